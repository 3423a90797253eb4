"""Claims of the paper as data: what `configs/claims/<experiment>.yaml` may say, read into types.

Everything that is not known is refused in one sentence that names the nearest thing that is, since a misspelt key would
otherwise be judged as if it were not there.
"""

import difflib
import itertools
import types
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, cached_property
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ln.norms import NORMS
from ln.suite.config import CONFIGS, PROFILES, names, nearest
from ln.suite.errors import Mistake

VALUE, BETTER, FASTER, CURVE, ABOVE = "value", "better", "faster", "curve", "above"
# Where on a run each kind reads its metric, unless the claim says otherwise.
USUAL_PLACE = {VALUE: "final", BETTER: "best", FASTER: "best", CURVE: "best", ABOVE: "best"}
PLACES = ("final", "last", "best")  # as `Measured.value` has them
AXES = ("step", "epoch", "seconds")
NEEDS = {
    VALUE: ("published, tolerance", "within"),
    BETTER: ("baseline",),
    FASTER: ("baseline",),
    CURVE: ("noises", "tolerance", "level, factor"),
    ABOVE: ("baseline, at_least",),
}


@dataclass(frozen=True)
class Expected:
    """What the power of a check is planned with, on the scale of its interval: a ratio of steps for `faster` (its
    spread is that of the logarithm), else the metric's own unit."""

    effect: float
    spread: float  # standard deviation over seeds, of the paired difference where there is a baseline
    steps: int | None = None  # updates after which the effect is expected to show, where fewer would not do
    share: float | None = None  # of a proportion: about what both sides have, in the metric's unit,
    examples: int | None = None  # of so many test examples, where the check names none


@dataclass(frozen=True)
class Reference:
    """What a simpler method reaches: a model that is no better says nothing of a norm.

    A `value`, or a `metric` that every run has of it; compared with the metrics `of`. On one status of data, and one
    data set, where they are named.
    """

    label: str
    of: tuple[str, ...] = ()
    value: float | None = None
    metric: str = ""
    data: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that runs can be asked, and what the answer is held against."""

    kind: str
    norm: str
    metric: str
    experiment: str = ""
    baseline: str = ""
    baseline_experiment: str = ""
    beyond: str = ""  # an experiment: what a run's value is more than that of the same norm and seed there
    at: int | str = ""  # one of PLACES, or the evaluation after so many updates
    quantity: str = ""  # its name where a claim has several checks
    proportion: bool = False  # the metric is a share of a split's examples,
    scale: float = 1.0  # in percent where this is 100,
    queries: int = 1  # of each of which so many questions are asked,
    examples: int | None = None  # of so many, where these are no split of the run's
    published: float | None = None  # a metric's value or, of `better`, the difference
    tolerance: float | None = None
    within: tuple[float | None, ...] = ()  # a range in words, as numbers
    target: float | None = None  # fixed, from the paper's own curve; for runs of the paper's whole protocol
    share: float | None = None  # of the baseline's steps, as the paper states it; reported, not judged
    at_least: float | None = None
    contrary: float | None = None  # outside a range, beyond which a value is the opposite of the claim, not just short
    noises: float | None = None  # tolerance of a curve, in the published one's own noise
    log: bool = False  # a curve is compared on the logarithm, to the base 10
    level: float | None = None  # of a published curve: when it gets there, to a `factor`
    factor: float | None = None
    curve_of: str = ""  # the experiment that holds the published curve, where it is not this one
    dataset: str = ""  # the only data the claim makes sense on
    scale_free: bool = False  # about functions, not a protocol: every profile and data set may judge it
    expected: Expected | None = None
    lower: bool = True  # filled in from the file's `metrics`

    @property
    def sides(self) -> list[tuple[str, str]]:
        """Experiment and norm of the runs that are judged, of their baseline, and of what both are held `beyond`."""
        sides = [(self.experiment, self.norm)]
        if self.baseline:
            sides.append((self.baseline_experiment or self.experiment, self.baseline))
        return [*sides, *((self.beyond, norm) for _, norm in sides if self.beyond)]

    @property
    def norm_name(self) -> str:
        return NORMS[self.norm].label

    @property
    def baseline_name(self) -> str:
        """Empty where nothing is compared."""
        of = f" of {self.baseline_experiment}" if self.baseline_experiment else ""
        return NORMS[self.baseline].label + of if self.baseline else ""


@dataclass(frozen=True)
class Claim:
    """A sentence or number of the paper and the checks that it stands or falls with."""

    id: str
    sentence: str
    source: str
    checks: tuple[Check, ...]
    source_kind: str = "paper"
    published_text: str = ""
    needs: str = ""  # a measurement that does not exist yet, for a claim that cannot be judged until it does
    headline: bool = False  # stands for its experiment on the scoreboard; with `singly`, all its cells in one row
    entry: str = ""  # filled in: the id in the file, which the claims that `singly` makes of it share

    @property
    def published(self) -> str:
        if self.published_text:
            return self.published_text
        check = self.checks[0] if self.checks else None
        if check is not None and check.published is not None:
            return f"by {check.published:g}" if check.kind == BETTER else f"{check.published:g}"
        return "in words" if check is None or check.share is None else f"in {check.share:g} of the updates"

    @property
    def experiment(self) -> str:
        """Whose runs are judged first."""
        return self.checks[0].experiment if self.checks else ""

    @property
    def extension(self) -> bool:
        return self.source_kind == "extension"


@dataclass(frozen=True)
class Also:
    """A panel's second curves, as the paper draws training beside test; what is not named is the panel's."""

    label: str
    experiment: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Window:
    """The axes that the paper draws a panel in, in our units: from left to right, from bottom to top."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One panel of a figure. The published curves of its metric are drawn behind ours."""

    metric: str
    experiment: str = ""
    x: str = "step"
    title: str = ""
    ylabel: str = ""
    xlabel: str = ""
    log: bool = False
    log_x: bool = False
    norms: tuple[str, ...] = ()
    band: str = ""  # a metric: one standard deviation
    reference: Reference | None = None
    also: Also | None = None
    paper: Window | None = None

    @property
    def label(self) -> str:
        return self.ylabel or self.metric


@dataclass(frozen=True)
class Figure:
    panels: tuple[Panel, ...]
    columns: int = 0


@dataclass(frozen=True)
class RunsAt:
    """What one profile runs of them, where that is not all."""

    experiments: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunsWanted:
    """Which runs the claims need."""

    experiments: tuple[str, ...]
    norms: tuple[str, ...]
    seeds: dict[str, int]  # by profile
    only: dict[str, list[str]] = field(default_factory=dict)  # variants that make sense under some norms
    smoke: RunsAt = RunsAt()
    laptop: RunsAt = RunsAt()
    full: RunsAt = RunsAt()

    def at(self, profile: str) -> RunsAt:
        """The experiments and norms of a profile."""
        own: RunsAt = getattr(self, profile)
        return RunsAt(own.experiments or self.experiments, own.norms or self.norms)


@dataclass(frozen=True)
class ClaimsFile:
    """The contents of a claims file."""

    title: str
    figure_of_paper: str
    runs: RunsWanted
    metrics: dict[str, str]  # every metric that is looked at, and whether lower or higher is better
    figure: Figure
    claims: tuple[Claim, ...]
    order: float = 99.0
    deviations: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()
    known_protocol: bool = True  # all of it is published: a run of `full` is then the paper's own experiment
    drawings: tuple[str, ...] = ()

    @cached_property
    def headlines(self) -> dict[str, list[Claim]]:
        """The claims of each row of the scoreboard, by their entry in the file."""
        rows: dict[str, list[Claim]] = {}
        for claim in self.claims:
            if claim.headline:
                rows.setdefault(claim.entry, []).append(claim)
        return rows

    @cached_property
    def checks(self) -> list[Check]:
        return [check for claim in self.claims for check in claim.checks]


@cache
def load_claims(group: str) -> ClaimsFile:
    """configs/claims/<group>.yaml, read once: a page asks for each many times, and YAML is slow.

    Raises:
        Mistake: no such file, or it holds a key, kind, metric, direction, norm or experiment that is not known.
    """
    path = CONFIGS / "claims" / f"{group}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise Mistake(
            f"{group} is not an experiment with claims; choose one of {', '.join(known)}{nearest(group, known)}"
        )
    return claims_file(yaml.safe_load(path.read_text()), f"{group}.yaml")


def claims_file(document: dict[str, Any], where: str) -> ClaimsFile:
    """A claims file from what YAML made of it; `where` begins every sentence that refuses it.

    Raises:
        Mistake: as `load_claims`.
    """
    raw = dict(document)
    metrics = raw.get("metrics", {})
    for metric, direction in metrics.items():
        _known(f"{where}, metrics, {metric}", "direction", direction, ("lower", "higher"))
    runs = _runs(raw.get("runs"), f"{where}, runs")
    panels = [_panel(panel, runs, metrics, where) for panel in raw.get("figure", {}).get("panels", [])]
    references = [_reference(r, metrics, f"{where}, references") for r in raw.get("references", [])]
    claims = [claim for entry in raw.get("claims", []) for claim in _claims(entry, runs, metrics, where)]
    for name in (claim.id for claim in claims):
        if sum(claim.id == name for claim in claims) > 1:
            raise Mistake(f"{where}: two claims are called {name}")
    figure = _build(Figure, {**raw.get("figure", {}), "panels": panels}, f"{where}, figure")
    raw |= {"runs": runs, "figure": figure, "references": references, "claims": claims}
    return _build(ClaimsFile, raw, where)


def _runs(raw: Any, where: str) -> RunsWanted:
    own = {p: _build(RunsAt, raw[p], f"{where}, {p}") for p in PROFILES if isinstance(raw, dict) and p in raw}
    runs: RunsWanted = _build(RunsWanted, {**raw, **own} if own else raw, where)
    parts = [runs.at(profile) for profile in PROFILES]
    for experiment in (*runs.only, *(experiment for part in parts for experiment in part.experiments)):
        _known(where, "experiment", experiment, names("experiment"))
    for norm in (*itertools.chain(*runs.only.values()), *(norm for part in parts for norm in part.norms)):
        _known(where, "norm", norm, names("norm"))
    return runs


def _claims(entry: dict[str, Any], runs: RunsWanted, metrics: dict[str, str], where: str) -> list[Claim]:
    """A claim, or with `singly` one for each of its checks: a table row's cells, reported each for itself."""
    raw = dict(entry)
    place = f"{where}, claim {raw.get('id', '?')}"
    singly = raw.pop("singly", False)
    given = raw.pop("checks", None)
    own = {f.name for f in fields(Claim)} - {"checks", "entry"}
    shared = {key: raw.pop(key) for key in list(raw) if key not in own}
    raw["entry"] = str(raw.get("id", "?"))
    if "needs" in raw and given is None and not shared:
        return [_build(Claim, {**raw, "checks": []}, place)]
    checks = [_check({**shared, **check}, runs, metrics, place) for check in (given if given is not None else [{}])]
    if not singly:
        return [_build(Claim, {**raw, "checks": checks}, place)]
    claims = []
    for check in checks:
        name = check.quantity or check.metric
        cell = {"id": f"{raw['id']}_{_identifier(name)}", "sentence": f"{raw['sentence']} {name}.", "checks": [check]}
        text = "" if check.published is not None else raw.get("published_text", "")
        claims.append(_build(Claim, {**raw, **cell, "published_text": text}, place))
    return claims


def _identifier(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _check(raw: dict[str, Any], runs: RunsWanted, metrics: dict[str, str], where: str) -> Check:
    raw = {"experiment": runs.experiments[0], **raw}
    for key in raw:
        _known(where, "key", key, [f.name for f in fields(Check) if f.name != "lower"])
    for key in ("kind", "norm", "metric"):
        if key not in raw:
            raise Mistake(f"{where}: {key} is missing")
    _known(where, "kind", raw["kind"], NEEDS)
    _known(where, "metric", raw["metric"], metrics)
    raw.setdefault("at", USUAL_PLACE[raw["kind"]])
    if not isinstance(raw["at"], int):
        _known(where, "place (at)", raw["at"], PLACES)
    if "expected" in raw:
        raw["expected"] = _build(Expected, raw["expected"], f"{where}, expected")
    check = _build(Check, {**raw, "lower": metrics[raw["metric"]] == "lower"}, where)
    for experiment, norm in check.sides:
        _known(where, "experiment", experiment, runs.experiments)
        _known(where, "norm", norm, names("norm"))
        allowed = runs.only.get(experiment, runs.norms)
        if norm not in allowed:
            raise Mistake(f"{where}: {experiment} is not run with norm {norm}, but with {', '.join(allowed)}")
    if not any(all(raw.get(key) is not None for key in needed.split(", ")) for needed in NEEDS[check.kind]):
        raise Mistake(f"{where}: a check of kind {check.kind} needs {' or '.join(NEEDS[check.kind])}")
    if check.within and len(check.within) != 2:
        raise Mistake(f"{where}: within must be a low and a high end, of which one may be null")
    return check


def _panel(raw: dict[str, Any], runs: RunsWanted, metrics: dict[str, str], where: str) -> Panel:
    place = f"{where}, a panel of {raw.get('metric', 'the figure')}"
    raw = {"experiment": runs.experiments[0], **raw}
    if "reference" in raw:
        raw["reference"] = _reference({"of": [raw.get("metric")], **raw["reference"]}, metrics, place)
    if "also" in raw:
        raw["also"] = also = _build(Also, raw["also"], f"{place}, also")
        _known(place, "metric", also.metric or raw.get("metric"), metrics)
        _known(place, "experiment", also.experiment or raw["experiment"], runs.experiments)
    if "paper" in raw:
        raw["paper"] = window = _build(Window, raw["paper"], f"{place}, paper")
        if not all(len(ends) == 2 and ends[0] != ends[1] for ends in (window.x, window.y)):
            raise Mistake(f"{place}: the paper's x and y must be two different ends each")
    panel = _build(Panel, raw, place)
    _known(place, "metric", panel.metric, metrics)
    _known(place, "experiment", panel.experiment, runs.experiments)
    _known(place, "axis", panel.x, AXES)
    for norm in panel.norms:
        _known(place, "norm", norm, names("norm"))
    return panel


def _reference(raw: dict[str, Any], metrics: dict[str, str], where: str) -> Reference:
    reference = _build(Reference, raw, where)
    for metric in reference.of:
        _known(where, "metric", metric, metrics)
    if (reference.value is None) == (not reference.metric):
        raise Mistake(f"{where}: a reference is either a value or a metric")
    return reference


def _known(where: str, what: str, name: Any, choices: Iterable[Any]) -> None:
    choices = [str(choice) for choice in choices]
    if str(name) in choices:
        return
    near = difflib.get_close_matches(str(name), choices, 1, 0.0)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise Mistake(f"{where}: {name} is no {what} that is known{hint}")


def _build(kind: type, raw: Any, where: str) -> Any:
    """A dataclass from a mapping.

    Raises:
        Mistake: an unknown key, a missing one, or a value of another type.
    """
    if not isinstance(raw, dict):
        raise Mistake(f"{where}: must be a mapping of keys to values")
    hints = get_type_hints(kind)
    values = {}
    for key, value in raw.items():
        _known(where, "key", key, hints)
        if not _fits(value, hints[key]):
            raise Mistake(f"{where}: {key} cannot be {value!r}; it must be {_words(hints[key])}")
        values[key] = tuple(value) if get_origin(hints[key]) is tuple else value
    for entry in fields(kind):
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise Mistake(f"{where}: {entry.name} is missing")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    named = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return named.get(hint, "a list" if origin in (tuple, list) else "a mapping")
