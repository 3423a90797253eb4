"""The kinds of check: each a pure function from runs to a finding, all with the same three-way ending."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ln.suite.judging.claims import ABOVE, BETTER, FASTER, VALUE, Check
from ln.suite.judging.stats import (
    NORMAL_QUANTILE,
    Interval,
    effective_examples,
    first_reach,
    mean_interval,
    paired_half_width,
    prediction_interval,
    ratio_interval,
    widened,
)
from ln.suite.runs.read import Measured, Seeds

IMPROVEMENT = 0.9  # of what the baseline gains from its first evaluation to its best is what counts as learned


class Outcome(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"  # the opposite holds
    SHORT = "short"  # less than was claimed, though not its opposite
    OPEN = "open"
    LACKING = "lacking"  # there is nothing to judge


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    outcome: Outcome
    measured: str  # as text, with its interval
    reason: str  # one sentence
    interval: Interval | None = None
    # How far it is from no effect, or from the nearer end of a range, and its spread over seeds, where they add.
    effect: float | None = None
    spread: float | None = None
    limit: float = 0.0  # half-width that no number of seeds takes away
    bound: str = ""  # "more than" or "less than" where the interval is of a bound only
    beside: "Speed | None" = None  # of a claim with a fixed target: to nine tenths of the baseline's improvement


def three_way(interval: Interval, low: float, high: float, contrary: float | None = None) -> Outcome:
    """The one ending of every check: an interval lies inside the claimed range, outside it, or across an end of it.

    The range is open where it ends in no effect, so that an interval of width zero on that end is across it. With
    `contrary`, which lies outside the range, an interval outside is the opposite of the claim only beyond that.
    """
    if low < interval.low and interval.high < high:
        return Outcome.HOLDS
    if interval.high <= low or high <= interval.low:
        if interval.low == interval.high in (low, high):
            return Outcome.OPEN
        opposite = contrary is None or (interval.high < contrary if contrary <= low else interval.low > contrary)
        return Outcome.FAILS if opposite else Outcome.SHORT
    return Outcome.OPEN


def beyond(end: float, up: bool) -> float:
    """The next number, for a range that includes its end."""
    return math.nextafter(end, math.inf if up else -math.inf)


def paired(sides: Sequence[Seeds]) -> list[list[Measured]]:
    """Each side's runs of the seeds that all sides have."""
    seeds = sorted(set.intersection(*(set(side) for side in sides)))
    return [[side[seed] for seed in seeds] for side in sides]


def too_few(count: int) -> Finding:
    return Finding(
        Outcome.OPEN, "", f"{count} seed{'s' * (count != 1)} give{'s' * (count == 1)} no interval; run at least 3"
    )


def all_diverged() -> Finding:
    return Finding(Outcome.OPEN, "diverged", "every run of both diverged")


def deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def limit_of_test_set(check: Check, shares: Sequence[float], examples: float) -> float:
    """Half-width that a test set of `examples` leaves to a difference of proportions, or of two such differences."""
    asked = effective_examples(examples, check.queries)
    pairs = zip(shares[::2], shares[1::2], strict=True)
    return check.scale * math.hypot(*(paired_half_width(*pair, asked) for pair in pairs))


def scatter(spread: float) -> float:
    """Half-width of the interval of one further run that no number of seeds takes away."""
    return NORMAL_QUANTILE * spread


def value(check: Check, sides: Sequence[Seeds]) -> Finding:
    """A published number is where a further run of ours could lie, give or take `tolerance`; or the mean over seeds
    lies `within` [low, high].

    The published number is one run, so it is compared with a prediction interval; it was measured on the same test set,
    so that the test set adds nothing.
    """
    runs = list(sides[0].values())
    values = [run.value(check.metric, check.at, check.lower) for run in runs]
    lost = sum(not math.isfinite(value) for value in values)
    if len(values) < 2:
        return too_few(len(values))
    if lost:
        return Finding(Outcome.FAILS, "diverged", f"{lost} of {len(values)} seeds diverged")
    mean, spread, limit = mean_interval(values), deviation(values), 0.0
    if check.published is not None and check.tolerance is not None:
        low, high = check.published - check.tolerance, check.published + check.tolerance
        interval, what = prediction_interval(values), "the interval of one further run"
        limit = scatter(spread)
        text = f"{mean}; one run {interval.low:.4g} to {interval.high:.4g}"
    else:
        low, high = (-math.inf if check.within[0] is None else check.within[0],
                     math.inf if check.within[1] is None else check.within[1])  # fmt: skip
        interval, what, text = mean, "the interval", str(mean)
    outcome = three_way(interval, beyond(low, up=False), beyond(high, up=True), check.contrary)
    effect = min(abs(interval.estimate - end) for end in (low, high))
    return Finding(outcome, text, f"{what} {_place(outcome, low, high)}", interval, effect, spread, limit)


def _place(outcome: Outcome, low: float, high: float) -> str:
    """Where an interval lies that a range was asked for: a range without one of its ends is named by the other."""
    if math.isfinite(low) and math.isfinite(high):
        where = {Outcome.HOLDS: "lies within", Outcome.OPEN: "straddles an end of"}.get(outcome, "lies outside")
        return f"{where} [{low:.4g}, {high:.4g}]"
    if outcome == Outcome.OPEN:
        return f"straddles {high if math.isfinite(high) else low:.4g}"
    below = math.isfinite(high) == (outcome == Outcome.HOLDS)
    return f"lies {'below' if below else 'above'} {high if math.isfinite(high) else low:.4g}"


def better(check: Check, sides: Sequence[Seeds]) -> Finding:
    """The improvement over the baseline, paired by seed, excludes zero."""
    ours = paired(sides)[0]
    if len(ours) < 2:
        return too_few(len(ours))
    sign = 1.0 if check.lower else -1.0
    mine, others, *less = [[run.value(check.metric, check.at, check.lower) for run in side] for side in paired(sides)]
    shares = [sum(values) / len(values) / check.scale for values in (mine, others, *less)]
    if less:
        if not all(math.isfinite(value) for side in less for value in side):
            return Finding(Outcome.OPEN, "", f"a run of {check.beyond}, which it is held against, diverged")
        mine, others = ([a - b for a, b in zip(*both, strict=True)] for both in zip((mine, others), less, strict=True))
    gains = [sign * (b - a) if math.isfinite(a) or math.isfinite(b) else 0.0 for a, b in zip(mine, others, strict=True)]
    finite = [gain for gain in gains if math.isfinite(gain)]
    if not any(math.isfinite(value) for value in (*mine, *others)):
        return all_diverged()
    if any(gain == -math.inf for gain in gains):
        lost = sum(not math.isfinite(value) for value in mine)
        outcome = Outcome.OPEN if any(gain > 0 for gain in gains) else Outcome.FAILS
        return Finding(outcome, "diverged", f"{lost} of {len(ours)} seeds of norm {check.norm} diverged")
    if not finite:
        outcome = Outcome.HOLDS if len(gains) >= 3 else Outcome.OPEN
        return Finding(outcome, "baseline diverged", "every baseline run diverged")
    if len(finite) < 2:
        why = f"{len(gains) - 1} of {len(gains)} baseline runs diverged; the one that is left gives no interval"
        return Finding(Outcome.OPEN, "", why)
    # A baseline that diverged lost by more than can be measured: it counts as the largest gain that was, or as none.
    gains = [max(0.0, *finite) if gain == math.inf else gain for gain in gains]
    interval, limit = mean_interval(gains), 0.0
    if check.proportion and all(map(math.isfinite, shares)):
        examples = check.examples or ours[0].info["examples"][check.metric.split("_")[0]]
        limit = limit_of_test_set(check, shares, examples)
        interval = widened(interval, limit)
    text = f"{check.norm_name} {_gain(interval, check.baseline_name)}"
    outcome = three_way(interval, 0.0, math.inf)
    reasons = {
        Outcome.HOLDS: "the paired difference excludes zero",
        Outcome.FAILS: f"{check.baseline_name} is better",
        Outcome.OPEN: "the paired difference does not exclude zero",
    }
    return Finding(outcome, text, reasons[outcome], interval, interval.estimate, deviation(gains), limit)


def _gain(interval: Interval, other: str) -> str:
    """An improvement over the other, or how much worse it is."""
    if interval.estimate < 0:
        return f"worse than {other} by {Interval(-interval.estimate, -interval.high, -interval.low)}"
    return f"better than {other} by {interval}"


def target_for(check: Check, others: Sequence[Measured]) -> float | None:
    """What has to be reached: the claim's fixed `target`, else nine tenths of the way from the first evaluation of the
    `others` to their best. Their noisy best itself would be reached late, and by luck.

    None where there is nothing to go by, since all of them diverged before they were evaluated.
    """
    if check.target is not None:
        return check.target
    curves = [[y for y in run.curve(check.metric)[1] if math.isfinite(y)] for run in others]
    ends = [(curve[0], min(curve) if check.lower else max(curve)) for curve in curves if curve]
    if not ends:
        return None
    first, best = (sum(values) / len(ends) for values in zip(*ends, strict=True))
    return first + IMPROVEMENT * (best - first)


@dataclass(frozen=True)
class Speed:
    """How many of the baseline's steps some runs need."""

    ratio: Interval
    never: tuple[int, int]  # runs that do not reach the target: ours, the baseline's
    spread: float  # over seeds, of the logarithm
    runs: int  # of either side

    @property
    def bound(self) -> str:
        """What the ratio is a bound of, where one side's every run ends before the target: it counts from its end."""
        ours, theirs = (count == self.runs for count in self.never)
        return "" if ours == theirs else "more than" if ours else "less than"

    def __str__(self) -> str:
        return f"{self.bound} {self.ratio}".strip()


def faster(check: Check, sides: Sequence[Seeds]) -> Finding:
    """The steps needed are fewer than the baseline's: their ratio lies below 1.

    Where the claim's target is a fixed one, the ratio to nine tenths of the baseline's improvement is said beside it.
    """
    ours, theirs = paired(sides)
    if len(ours) < 2:
        return too_few(len(ours))
    if all(run.diverged for run in (*ours, *theirs)):
        return all_diverged()
    speed = measured_speed(check, ours, theirs)
    if speed is None:
        return Finding(Outcome.OPEN, "", "the baseline's other runs diverged, so there is no target to reach")
    beside = f" (published: {check.share:.2g})" if check.share is not None else ""
    usual = measured_speed(replace(check, target=None), ours, theirs) if check.target is not None else None
    if usual is not None:
        beside += f"; {usual} to nine tenths of the baseline's improvement"
    text = f"{check.norm_name} takes {speed} of the updates with {check.baseline_name}{beside}"
    never = speed.never
    note = f" ({never[0]} and {never[1]} of {len(ours)} runs never reach the target)" if any(never) else ""
    outcome = three_way(speed.ratio, 0.0, 1.0)
    where = {Outcome.HOLDS: "lies below", Outcome.OPEN: "straddles"}.get(outcome, "lies above")
    reason, effect = f"the ratio of updates {where} 1{note}", -math.log(speed.ratio.estimate)
    return Finding(outcome, text, reason, speed.ratio, effect, speed.spread, bound=speed.bound, beside=usual)


def measured_speed(check: Check, ours: Sequence[Measured], theirs: Sequence[Measured]) -> Speed | None:
    """The ratio of the steps that two norms' runs, paired by seed, need; None where there is no target.

    The target is averaged over the *other* seeds of the baseline: a run cannot fail to reach its own best, so judging a
    seed by its own would bias the ratio where there is no difference. A run that never reaches the target, and one that
    diverges before it does, counts as later than the last step of the longest run.
    """
    pairs = list(zip(ours, theirs, strict=True))
    grids = [run.curve(check.metric)[0] for pair in pairs for run in pair]
    end, every = max(grid[-1] for grid in grids if grid), max(grid[0] for grid in grids if grid)
    reached: tuple[list[float], list[float]] = ([], [])
    variances, never = [], [0, 0]
    for index, pair in enumerate(pairs):
        target = target_for(check, [run for i, run in enumerate(theirs) if i != index])
        if target is None:
            return None
        for which, run in enumerate(pair):
            steps, values = run.curve(check.metric)
            step = first_reach(steps, values, target, check.lower)
            never[which] += step is None
            reached[which].append(step if step is not None else end + every)
            # A step read off a grid of evaluations is uncertain by the grid, on the log scale by its relative width.
            variances.append((every / reached[which][-1]) ** 2 / 12)
    floor = math.sqrt(sum(variances) / len(ours))
    spread = max(deviation([math.log(a / b) for a, b in zip(*reached, strict=True)]), floor)
    return Speed(ratio_interval(*reached, floor), (never[0], never[1]), spread, len(ours))


def above(check: Check, sides: Sequence[Seeds]) -> Finding:
    """The share of the checkpoints at which a run does better than the baseline's of its seed is `at_least` so large.

    A checkpoint that one of the two did not live to see counts for the other.
    """
    ours, theirs = paired(sides)
    if len(ours) < 2:
        return too_few(len(ours))
    assert check.at_least is not None
    sign = 1.0 if check.lower else -1.0
    shares = []
    for mine, other in zip(ours, theirs, strict=True):
        a, b = (dict(zip(*run.curve(check.metric), strict=True)) for run in (mine, other))
        checkpoints = a.keys() | b.keys()
        wins = sum(x not in b or (x in a and sign * (b[x] - a[x]) > 0) for x in checkpoints)
        shares.append(wins / len(checkpoints) if checkpoints else 0.0)
    t = mean_interval(shares)
    interval = Interval(t.estimate, max(t.low, 0.0), min(t.high, 1.0))
    text = f"{check.norm_name} better than {check.baseline_name} at {interval} of the checkpoints"
    outcome = three_way(interval, beyond(check.at_least, up=False), math.inf, contrary=0.5)
    where = {Outcome.HOLDS: "lies above", Outcome.OPEN: "straddles"}.get(outcome, "lies below")
    reason = f"the share of checkpoints {where} {check.at_least:g}"
    return Finding(outcome, text, reason, interval, interval.estimate - check.at_least, deviation(shares))


KINDS: dict[str, Callable[[Check, Sequence[Seeds]], Finding]] = {
    VALUE: value,
    BETTER: better,
    FASTER: faster,
    ABOVE: above,
}
