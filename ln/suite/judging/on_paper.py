"""The paper's own curves put through every claim's own rule, as if they were runs of one seed.

A rule that the paper's figure fails is a finding about the paper, or about the rule, and is not held against a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ln.suite.judging.checks import target_for
from ln.suite.judging.claims import ABOVE, BETTER, FASTER, VALUE, Check
from ln.suite.judging.published import Curve, Key, published_curves
from ln.suite.judging.reading import best, common, share_to_best
from ln.suite.judging.stats import first_reach
from ln.suite.runs.read import COMPLETE, Measured, Seeds

ALIKE = 0.03  # of the improvement: a fixed target so near is nine tenths of it


@dataclass(frozen=True)
class OnPaper:
    """What a check's rule says of the paper's own figure."""

    text: str
    fails: bool
    effect: float | None = None  # the ratio of steps (`faster`) or the improvement (`better`)


def on_paper(check: Check, sides: Sequence[Seeds] = ()) -> OnPaper | None:
    """The rule applied to the published curves, cut to what the runs of `sides` have where these are a first part only;
    None where the paper draws no such curves."""
    curves = [_drawn(check, experiment, norm) for experiment, norm in check.sides]
    if check.kind not in RULES or any(curve is None for curve in curves):
        return None
    drawn = [_same_part(curve, check, sides) for curve in curves if curve is not None]
    if any(not curve.x for curve in drawn):
        return None
    return RULES[check.kind](check, drawn)


def _drawn(check: Check, experiment: str, norm: str) -> Curve | None:
    """A side's curve; `curve_of` names the experiment that holds those of the check's own."""
    own = check.curve_of if check.curve_of and experiment == check.experiment else experiment
    return published_curves().get(Key(own, check.metric, norm))


def _same_part(curve: Curve, check: Check, sides: Sequence[Seeds]) -> Curve:
    runs = [run for side in sides for run in side.values() if run.partial and run.curve(check.metric, curve.axis)[0]]
    return curve.until(min(run.curve(check.metric, curve.axis)[0][-1] for run in runs)) if runs else curve


def _as_run(curve: Curve, metric: str) -> Measured:
    records = [{"step": x, metric: y} for x, y in zip(curve.x, curve.y, strict=True)]
    return Measured({"status": COMPLETE}, records)


def _faster(check: Check, curves: Sequence[Curve]) -> OnPaper:
    ours, theirs = curves
    mine, share = _needed(check, ours, theirs)
    rule = "to nine tenths of the baseline's improvement" if check.target is None else f"to {check.target:g}"
    before = share_to_best(ours, theirs, check.lower)
    if mine is None:
        text = f"never {rule}"
    elif share is None:
        text = f"{rule}, which is never reached with {check.baseline_name}"
    else:
        text = f"{share:.2f} of the updates with {check.baseline_name} {rule}"
    if check.target is not None:
        usual = replace(check, target=None)
        apart = abs(check.target - _target(usual, theirs)) > ALIKE * abs(check.target - theirs.y[0])
        if apart and (also := _needed(usual, ours, theirs)[1]) is not None:
            text += f", {also:.2f} to nine tenths of the baseline's improvement"
    text += ", never to the baseline's best" if before is None else f", {before:.2f} to the baseline's best"
    return OnPaper(text, mine is None or (share is not None and share >= 1), share)


def _target(check: Check, theirs: Curve) -> float:
    target = target_for(check, [_as_run(theirs, check.metric)])
    assert target is not None
    return target


def _needed(check: Check, ours: Curve, theirs: Curve) -> tuple[float | None, float | None]:
    """When `ours` reaches a check's target, and its share of what `theirs` needs; None where either never does."""
    target = _target(check, theirs)
    mine, other = (first_reach(curve.x, curve.y, target, check.lower) for curve in (ours, theirs))
    return mine, None if mine is None or other is None else mine / other


def _better(check: Check, curves: Sequence[Curve]) -> OnPaper | None:
    place = "best" if check.at == "best" else "last"
    values = [best(curve, check.lower)[1] if place == "best" else curve.y[-1] for curve in curves]
    if check.beyond:
        values = [values[0] - values[2], values[1] - values[3]]
    gain = values[1] - values[0] if check.lower else values[0] - values[1]
    where = "at its best" if place == "best" else "at its last point"
    return OnPaper(f"{'better' if gain > 0 else 'worse'} by {abs(gain):.3g} {where}", gain <= 0, gain)


def _value(check: Check, curves: Sequence[Curve]) -> OnPaper | None:
    """Of a number that the figure shows: a best value, or one after so many updates. A figure's end is not always the
    protocol's."""
    (curve,) = curves
    values = dict(zip(curve.x, curve.y, strict=True))
    if check.at == "best":
        value: float | None = best(curve, check.lower)[1]
    else:
        value = values.get(check.at) if isinstance(check.at, int) else None
    if value is None or check.published is None or check.tolerance is None:
        return None
    return OnPaper(f"{value:.4g}", abs(value - check.published) > check.tolerance)


def _above(check: Check, curves: Sequence[Curve]) -> OnPaper:
    _, mine, other = common(*curves)
    share = float((mine < other).mean() if check.lower else (mine > other).mean())
    assert check.at_least is not None
    return OnPaper(f"at {share:.2f} of the checkpoints", share < check.at_least)


RULES = {FASTER: _faster, BETTER: _better, VALUE: _value, ABOVE: _above}
