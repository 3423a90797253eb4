"""How many seeds a check takes: the power of its interval for an effect that is expected, or was measured."""

import math

from scipy.special import nctdtr, stdtrit

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
