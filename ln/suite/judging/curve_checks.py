"""The kind of check that compares whole curves: the published one is one of ours."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ln.suite.judging.checks import Finding, Outcome, beyond, deviation, scatter, three_way, too_few
from ln.suite.judging.claims import Check
from ln.suite.judging.published import Curve, published_curves
from ln.suite.judging.stats import Interval, first_reach, mean_interval, prediction_interval
from ln.suite.runs.read import Measured, Seeds

LEAST = 1e-12  # where a likelihood is 0 in float32, on a logarithmic axis
ENOUGH_POINTS = 5  # of a published curve within the steps of a run


def drawn_curves(check: Check) -> dict[str, Curve]:
    """The published curves of a check's metric, by norm."""
    wanted = (check.curve_of or check.experiment, check.metric)
    return {key.norm: curve for key, curve in published_curves().items() if key[:2] == wanted}


def curve(check: Check, sides: Sequence[Seeds]) -> Finding:
    """The published curve is one of ours: the mean absolute distance from it is at most `tolerance`, or, where the
    published run is a single unstable one, it gets to `level` when a further run of ours could, to a `factor`.

    Of a run that is the first part of the protocol, the same part of the published curve is compared.
    """
    runs, curves = list(sides[0].values()), drawn_curves(check)
    drawn = curves.get(check.norm)
    if drawn is None:
        return Finding(Outcome.LACKING, "", "the paper draws no such curve")
    if len(runs) < 2:
        return too_few(len(runs))
    if any(run.diverged for run in runs):
        return Finding(Outcome.FAILS, "diverged", f"{sum(r.diverged for r in runs)} of {len(runs)} seeds diverged")
    end = min(run.curve(check.metric, drawn.axis)[0][-1] for run in runs)
    first_part = drawn.until(end)
    if len(first_part.x) < ENOUGH_POINTS:
        few = f"{len(first_part.x)} of the published curve's points lie before {drawn.axis} {end:g}, where the runs end"
        return Finding(Outcome.LACKING, "", f"{few}; it takes {ENOUGH_POINTS}")
    return _reaches(check, runs, first_part) if check.level is not None else _distance(check, runs, curves, first_part)


def _distance(check: Check, runs: Sequence[Measured], curves: Mapping[str, Curve], drawn: Curve) -> Finding:
    """curves: the published ones of all norms; drawn: the check's own, as far as the runs go. The noise is its whole
    course's: of a first part alone it would hold the descent, which is none."""
    whole = curves[check.norm].y
    tolerance = check.tolerance if check.noises is None else check.noises * noise(_on_axis(check, whole))
    assert tolerance is not None
    distances = [_mean_distance(check, *run.curve(check.metric, drawn.axis), drawn) for run in runs]
    interval = mean_interval(distances)
    outcome = three_way(interval, -math.inf, beyond(tolerance, up=True))
    unit = " decades" if check.log else ""
    why = f", {check.noises:g} times its noise" if check.noises is not None else ""
    reasons = {
        Outcome.HOLDS: f"the curve stays within {tolerance:.3g}{unit} of the published one{why}",
        Outcome.FAILS: f"the curve is farther than {tolerance:.3g}{unit} from the published one{why}",
        Outcome.OPEN: f"the distance straddles {tolerance:.3g}{unit}{why}",
    }
    alike = [
        norm
        for norm, other in curves.items()
        if norm != check.norm and _mean_distance(check, other.x, other.y, drawn) <= tolerance
    ]
    also = f", as would the published curve{'s' * (len(alike) > 1)} of {' and '.join(alike)}" if alike else ""
    effect, spread = abs(interval.estimate - tolerance), deviation(distances)
    return Finding(outcome, f"mean distance {interval}{unit}", reasons[outcome] + also, interval, effect, spread)


def _mean_distance(check: Check, x: Sequence[float], y: Sequence[float], drawn: Curve) -> float:
    """Of a curve from a published one at the latter's points, as far as both go."""
    within = [(p, q) for p, q in zip(drawn.x, drawn.y, strict=True) if x[0] <= p <= x[-1]]
    pairs = [_on_axis(check, (float(np.interp(p, x, y)), q)) for p, q in within]
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else math.inf


def _on_axis(check: Check, values: Sequence[float]) -> list[float]:
    return [math.log10(max(value, LEAST)) for value in values] if check.log else list(values)


def noise(values: Sequence[float]) -> float:
    """Standard deviation of a curve's single points about its course, from second differences, which a straight course
    leaves at zero."""
    seconds = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return math.sqrt(sum(second**2 for second in seconds) / len(seconds) / 6)


def _reaches(check: Check, runs: Sequence[Measured], drawn: Curve) -> Finding:
    assert check.level is not None
    assert check.factor is not None
    published = first_reach(drawn.x, drawn.y, check.level, check.lower)
    if published is None:
        return Finding(Outcome.LACKING, "", f"the published curve gets to {check.level:g} only after these runs' end")
    reached, never = [], 0
    for run in runs:
        x, y = run.curve(check.metric, drawn.axis)
        step = first_reach(x, y, check.level, check.lower)
        never += step is None
        reached.append(math.log((step if step is not None else x[-1] + x[0]) / published))
    interval = prediction_interval(reached)
    ratio = Interval(*(math.exp(v) for v in (interval.estimate, interval.low, interval.high)))
    outcome = three_way(ratio, beyond(1 / check.factor, up=False), beyond(check.factor, up=True))
    text = f"at {check.level:g} after {ratio} of the published {published:,.4g} {drawn.axis}s"
    note = f"; {never} of {len(runs)} runs never are" if never else ""
    where = {Outcome.HOLDS: "lies within", Outcome.OPEN: "straddles an end of"}.get(outcome, "lies outside")
    effect, spread = abs(math.log(check.factor) - abs(interval.estimate)), deviation(reached)
    reason = f"one further run's {where} a factor of {check.factor:g}{note}"
    return Finding(outcome, text, reason, ratio, effect, spread, scatter(spread))
