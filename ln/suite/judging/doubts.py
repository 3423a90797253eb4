"""Why runs that differ may still say nothing of a norm, and what it would take to decide what is open."""

import math
from collections.abc import Iterable, Iterator, Sequence

from ln.suite.judging.checks import Finding
from ln.suite.judging.claims import ABOVE, BETTER, FASTER, Check, ClaimsFile, Reference
from ln.suite.judging.power import MOST_SEEDS, POWER, beside, seeds_expected, seeds_for_power
from ln.suite.runs.read import Measured, Seeds

STILL = 0.05  # of a curve's whole improvement in the last quarter of its evaluations: more, and the end is not in sight


def doubt(check: Check, document: ClaimsFile, sides: Sequence[Seeds], whole: bool) -> str:
    """Why these runs cannot decide between two norms, whatever their difference; empty where they can.

    whole: they are runs of the paper's whole protocol, whose end is the end.
    """
    if check.kind not in (BETTER, FASTER, ABOVE):
        return ""
    for reference in references_of(check, document):
        if reached := below(reference, document.metrics[reference.of[0]] == "lower", sides):
            return f"too weak: {reached}; how many more updates that takes cannot be told from these"
    if check.kind == BETTER and not whole:
        share, before = max(last_quarters(check, side, document) for side in sides)
        if share > STILL:
            said = f"still improving: {share:.0%} of a curve's whole improvement came in its last quarter"
            return f"{said}; about {times_as_long(share, before):.2g} times the updates would show its end"
    return ""


def references_of(check: Check, document: ClaimsFile) -> Iterator[Reference]:
    """What a model has to beat to be asked a check: the file's references, and those that its figure draws."""
    drawn = [panel.reference for panel in document.figure.panels if panel.reference]
    return (reference for reference in (*document.references, *drawn) if check.metric in reference.of)


def below(reference: Reference, lower: bool, sides: Sequence[Seeds]) -> str:
    """A sentence where even the better of the two sides does no better than a simpler method; else nothing.

    lower: whether lower is better of the metric that is compared. The better side, since it is an effect of a norm
    where a network learns with it what it does not learn without.
    """
    every = [run for side in sides for run in side.values()]
    if reference.data and {run.data for run in every} != {reference.data}:
        return ""
    if reference.dataset and {run.info["data"]["name"] for run in every} != {reference.dataset}:
        return ""
    reached = [_mean(_values(side.values(), reference.of[0], lower)) for side in sides]
    level = reference.value if reference.metric == "" else _mean(_values(every, reference.metric, lower))
    known = [value for value in reached if math.isfinite(value)]
    if level is None or not math.isfinite(level) or not known:
        return ""
    best = min(known) if lower else max(known)
    if (best < level) if lower else (best > level):
        return ""
    return f"the better of the two norms reaches {best:.4g}, {reference.label} {level:.4g}"


def _values(runs: Iterable[Measured], metric: str, lower: bool) -> list[float]:
    """A metric of the runs that have it: of the test split at the end, else at its best."""
    place = "final" if metric.startswith("test_") else "best"
    return [run.value(metric, place, lower) for run in runs if not run.diverged and run.has(metric, place)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def last_quarters(check: Check, side: Seeds, document: ClaimsFile) -> tuple[float, float]:
    """Mean over seeds of the share of a curve's whole improvement, from its first evaluation to its best, that lies
    between the third and the last quarter of its evaluations, and between the second and the third."""
    shares = []
    for run in side.values():
        metric, lower = _with_curve(run, check, document)
        values = [value for value in run.curve(metric)[1] if math.isfinite(value)]
        quarter = len(values) // 4
        if not quarter:
            continue
        sign = 1.0 if lower else -1.0
        whole = sign * (values[0] - (min(values) if lower else max(values)))
        second, third, last = (_mean(values[len(values) - i * quarter :][:quarter]) for i in (3, 2, 1))
        shares.append([sign * gain / whole if whole > 0 else 0.0 for gain in (third - last, second - third)])
    return (_mean([s[0] for s in shares]), _mean([s[1] for s in shares])) if shares else (0.0, 0.0)


def times_as_long(share: float, before: float) -> float:
    """How much longer a run must be for its last quarter to bring no more than `STILL` of its improvement, were each
    further quarter's gain as much smaller than the one before as the last was; at least half as long again."""
    ratio = min(max(share / before, 0.25), 0.9) if before > 0 else 0.9
    return 1 + max(2, math.ceil(math.log(STILL / share) / math.log(ratio))) / 4


def _with_curve(run: Measured, check: Check, document: ClaimsFile) -> tuple[str, bool]:
    """The check's metric or, where only the end has it, the same of the validation split, or what selects the run."""
    select = run.info["identity"].get("train", {}).get("select", {})
    twin = check.metric.replace("test_", "valid_", 1)
    for metric in (check.metric, twin, select.get("metric", check.metric)):
        if run.curve(metric)[0]:
            direction = select.get("direction") if metric == select.get("metric") else document.metrics.get(metric)
            return metric, check.lower if direction is None else direction == "lower"
    return check.metric, check.lower


def remedy(check: Check, finding: Finding) -> str:
    """How many seeds would decide what is open, were the effect what it was measured to be; where none was, how many do
    for the effect that is expected."""
    if not finding.effect or finding.spread is None:
        return expectation(check, finding.limit)
    effect = abs(finding.effect)
    if finding.limit >= effect:
        why = "the test set is too small" if check.kind == BETTER else "single runs scatter too much"
        return f"no number of seeds would decide it, since {why}"
    seeds = seeds_for_power(beside(effect, finding.limit), finding.spread)
    return f"about {seeds} seeds of as many updates would decide it" if seeds else f"it takes over {MOST_SEEDS} seeds"


def expectation(check: Check, limit: float = 0.0) -> str:
    """The seeds, and the updates where they matter, that the effect which is expected takes; empty where none is.

    limit: the half-width that the runs' test set leaves, where they were judged.
    """
    seeds = seeds_expected(check, limit)
    if check.expected is None or seeds is None:
        return ""
    after = f" of {check.expected.steps:,} updates" if check.expected.steps else ""
    return f"{seeds} seeds{after} have a power of {POWER:.0%} for the effect that is expected"
