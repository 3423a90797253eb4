"""How many seeds a check takes: the power of its interval for an effect that is expected, or was measured."""

import math
from collections.abc import Iterator

from scipy.special import nctdtr, stdtrit

from ln.suite.judging.checks import limit_of_test_set
from ln.suite.judging.claims import FASTER, Check, ClaimsFile
from ln.suite.judging.stats import CONFIDENCE

POWER = 0.8
MOST_SEEDS = 100


def power(effect: float, spread: float, seeds: int) -> float:
    """The probability that the interval of the mean over `seeds` values excludes zero on the effect's side.

    effect, spread: mean and standard deviation over seeds of what the interval is of: the paired gain, or the logarithm
    of the ratio of steps.
    """
    if spread == 0:
        return float(effect != 0)
    noncentrality = abs(effect) / spread * math.sqrt(seeds)
    needed = float(stdtrit(seeds - 1, 0.5 + CONFIDENCE / 2))
    return float(1 - nctdtr(seeds - 1, noncentrality, needed))


def seeds_for_power(effect: float, spread: float) -> int | None:
    """The fewest seeds, at least 3, with 80 % power; None where 100 are not enough."""
    return next((seeds for seeds in range(3, MOST_SEEDS + 1) if power(effect, spread, seeds) >= POWER), None)


def beside(effect: float, limit: float) -> float:
    """What an effect leaves for the seeds' half-width where the test set leaves `limit`: the two add as squares do."""
    return math.sqrt(max(effect**2 - limit**2, 0.0))


def expected_limit(check: Check) -> float:
    """Half-width that the paper's test set is expected to leave to a difference of proportions, whatever the seeds."""
    expected = check.expected
    examples = check.examples or (expected and expected.examples)
    if expected is None or expected.share is None or not examples:
        return 0.0
    return limit_of_test_set(check, [expected.share / check.scale] * len(check.sides), examples)


def seeds_expected(check: Check, limit: float = 0.0) -> int | None:
    """The fewest seeds with 80 % power for what a check expects; None where it expects nothing, or too little, which it
    also is where the test set leaves more uncertain (`limit`, of runs that are there)."""
    if check.expected is None:
        return None
    effect = -math.log(check.expected.effect) if check.kind == FASTER else check.expected.effect
    return seeds_for_power(beside(effect, limit or expected_limit(check)), check.expected.spread)


def planned(document: ClaimsFile, profile: str) -> Iterator[str]:
    """For each check with an expected effect, a line: which seeds, and after how many updates, give it 80 % power."""
    wanted = document.runs.seeds[profile]
    for claim in document.claims:
        for check in claim.checks:
            if check.expected is None:
                continue
            seeds, expected = seeds_expected(check), check.expected
            unit = " of the updates" if check.kind == FASTER else ""
            name = claim.id + (f" {check.quantity.rstrip(':')}" if len(claim.checks) > 1 else "")
            limit = expected_limit(check)
            few = f"no number of seeds (the test set leaves {limit:.2g})" if limit >= expected.effect else ""
            number = few or (f"{seeds} seeds" if seeds else f"over {MOST_SEEDS} seeds")
            after = f" of {expected.steps:,} updates" if expected.steps else ""
            short = "" if few or (seeds and seeds <= wanted) else f"; {wanted} are planned"
            yield f"{name:44} {number}{after} for {expected.effect:g}{unit}, spread {expected.spread:g}{short}"
