"""Another results folder laid beside this one: per claim both verdicts and the difference of what was measured, with
its interval; per panel of a figure both curves. Everything is judged afresh from the runs' files."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from ln.norms import NORMS
from ln.suite.config import PROFILES, differing
from ln.suite.errors import Mistake
from ln.suite.judging.claims import BETTER, CURVE, FASTER, VALUE, Check, Claim, ClaimsFile, Panel, load_claims
from ln.suite.judging.stats import Interval, difference, mean_interval, quotient
from ln.suite.judging.verdicts import NOT_RUN, WORDS, Verdict, judge_runs
from ln.suite.runs.read import Runs, Seeds, load_runs
from ln.suite.showing.figures import X_LABELS, mean_curve, new_figure
from ln.suite.showing.panels import MOST_COLUMNS, draw_curves, legend_columns, legend_handles, of_panel
from ln.suite.showing.report import groups
from ln.suite.showing.ticks import plain_ticks

PLACES = (0.25, 0.5, 1.0)  # of the part that both have of a curve, where its values are told
WIDTH = 110
THEIRS: dict[str, Any] = {"linestyle": (0, (4, 1.5))}


@dataclass(frozen=True)
class Side:
    """One folder's runs of an experiment at one profile."""

    name: str
    profile: str  # "" where it has no run
    runs: dict[str, Runs]
    verdicts: list[Verdict]

    @classmethod
    def of(cls, name: str, results: str | Path, document: ClaimsFile, profile: str) -> "Side":
        runs = {e: load_runs(results, profile, e) for e in document.runs.experiments} if profile else {}
        return cls(name, profile, runs, judge_runs(document, runs, profile))

    @property
    def count(self) -> int:
        return sum(len(by_seed) for by_norm in self.runs.values() for by_seed in by_norm.values())

    def measured(self, claim: int, check: int, of: Check) -> Interval | None:
        """What a check measured: its interval; of a single number the mean, which may be compared where it is not
        judged."""
        if of.kind == VALUE:
            runs = self.runs.get(of.experiment, {}).get(of.norm, {}).values()
            values = [run.value(of.metric, of.at, of.lower) for run in runs if run.has(of.metric, of.at)]
            return mean_interval(values) if len(values) > 1 and np.isfinite(values).all() else None
        findings = self.verdicts[claim].findings
        interval = findings[check]["interval"] if findings else None
        return Interval(**interval) if interval and np.isfinite(list(interval.values())).all() else None


@dataclass(frozen=True)
class Measurement:
    """What both folders measured of one check."""

    check: Check
    ours: Interval | None
    theirs: Interval | None

    @property
    def ratio(self) -> bool:
        return self.check.kind == FASTER or self.check.level is not None

    @property
    def apart(self) -> Interval | None:
        """theirs - ours; of ratios theirs / ours."""
        if self.ours is None or self.theirs is None or (self.ratio and min(self.ours.low, self.theirs.low) <= 0):
            return None
        return quotient(self.ours, self.theirs) if self.ratio else difference(self.ours, self.theirs)

    @property
    def differs(self) -> bool:
        none = 1.0 if self.ratio else 0.0
        return self.apart is not None and not self.apart.low <= none <= self.apart.high

    @property
    def what(self) -> str:
        check = self.check
        whose = f"{check.metric}, norm {check.norm}"
        kinds = {
            FASTER: f"steps to learn {check.metric}, {check.norm_name} / {check.baseline_name}",
            BETTER: f"{check.metric}, {check.norm_name} better than {check.baseline_name} by",
            VALUE: whose,
            CURVE: f"{whose}, {'steps / the paper' if check.level is not None else 'distance from the paper'}'s curve",
        }
        return kinds.get(check.kind, f"checkpoints with {check.metric} of {check.norm} above {check.baseline_name}'s")


@dataclass(frozen=True)
class Row:
    """A claim with both verdicts."""

    claim: Claim
    ours: Verdict
    theirs: Verdict
    measurements: list[Measurement]

    @property
    def told(self) -> bool:
        """Whether either folder says anything of it."""
        judged = {self.ours.verdict, self.theirs.verdict} != {NOT_RUN}
        return judged or any(m.ours and m.theirs for m in self.measurements)


@dataclass(frozen=True)
class Curves:
    """One norm's curve in one panel of the figure: means over seeds at a few places that both came to."""

    norm: str
    at: list[float]
    ours: list[float]
    theirs: list[float]


@dataclass(frozen=True)
class Compared:
    """One experiment at one profile of theirs."""

    group: str
    document: ClaimsFile
    ours: Side
    theirs: Side

    @property
    def key(self) -> str:
        return f"{self.group}-{self.theirs.profile}"

    @cached_property
    def rows(self) -> list[Row]:
        made = []
        for place, claim in enumerate(self.document.claims):
            measurements = [
                Measurement(check, self.ours.measured(place, number, check), self.theirs.measured(place, number, check))
                for number, check in enumerate(claim.checks)
            ]
            made.append(Row(claim, self.ours.verdicts[place], self.theirs.verdicts[place], measurements))
        return made

    @property
    def notes(self) -> list[str]:
        """Why a difference may be no surprise: another profile, other settings or data."""
        ours, theirs = self.ours, self.theirs
        if not ours.profile:
            return [f"{ours.name} has no run of it"]
        if ours.profile != theirs.profile:
            return [
                f"{ours.name} has no run at profile {theirs.profile}; its runs at {ours.profile} stand beside these, "
                "and a difference may be the profiles'"
            ]
        lines = dict.fromkeys(
            line
            for experiment, by_norm in theirs.runs.items()
            for norm in by_norm.keys() & ours.runs[experiment].keys()
            for line in differing(_recipe(ours.runs[experiment][norm]), _recipe(by_norm[norm]))
        )
        return [f"the recipes differ in {'; '.join(sorted(lines))}"] if lines else []

    def panels(self) -> Iterator[tuple[Panel, list[Curves]]]:
        """The panels of the figure that both have curves of."""
        for panel in self.document.figure.panels:
            ours, theirs = (of_panel(panel, side.runs.get(panel.experiment, {})) for side in (self.ours, self.theirs))
            both = [norm for norm in NORMS if norm in ours and norm in theirs]
            found = [curves for norm in both if (curves := _curves(panel, norm, ours[norm], theirs[norm]))]
            if found:
                yield panel, found


def _recipe(runs: Seeds) -> dict[str, Any]:
    """The identity of some runs but for their seed, and of the data's sha256 no more than a person compares."""
    recipe = {key: value for key, value in next(iter(runs.values())).info["identity"].items() if key != "seed"}
    source = recipe.get("source", {})
    return recipe | {"source": {key: value[:16] if key == "sha256" else value for key, value in source.items()}}


def _curves(panel: Panel, norm: str, *sides: Seeds) -> Curves | None:
    curves = [[c for run in side.values() if (c := run.curve(panel.metric, panel.x))[0]] for side in sides]
    if not all(curves):
        return None
    means = [mean_curve(side, panel.log) for side in curves]
    first, last = max(x[0] for x, _ in means), min(x[-1] for x, _ in means)
    at = [max(first, share * last) for share in PLACES] if first <= last else []
    return Curves(norm, at, *([float(value) for value in np.interp(at, x, y)] for x, y in means))


def compare(theirs: str | Path, ours: str | Path = "results") -> list[Compared]:
    """Every experiment that `theirs` has runs of, at each of its profiles, beside the runs of the same profile in
    `ours`, or of its most faithful one.

    Raises:
        Mistake: a folder that is not there or has no run that counts, or the same one twice.
    """
    for folder in (theirs, ours):
        if not Path(folder).is_dir():
            raise Mistake(
                f"{folder} is not a folder with results; THEIRS=<folder> names one, such as the RESULTS= of yours"
            )
    if Path(theirs).resolve() == Path(ours).resolve():
        raise Mistake(f"THEIRS={theirs} is the folder that it would be compared with; name another one")
    names = [Path(folder).resolve().name for folder in (ours, theirs)]
    names = names if names[0] != names[1] else [str(ours), str(theirs)]
    found = []
    for group in groups():
        document = load_claims(group)
        has = [profile for profile in reversed(PROFILES) if _any(ours, document, profile)]
        for profile in reversed(PROFILES):
            if _any(theirs, document, profile):
                beside = profile if profile in has else next(iter(has), "")
                sides = Side.of(names[0], ours, document, beside), Side.of(names[1], theirs, document, profile)
                found.append(Compared(group, document, *sides))
    if not found:
        raise Mistake(f"{theirs} has no run that counts; they lie in <profile>/<experiment>/<norm>/<seed>/ of it")
    return found


def _any(results: str | Path, document: ClaimsFile, profile: str) -> bool:
    return any(load_runs(results, profile, experiment) for experiment in document.runs.experiments)


def in_words(compared: Compared) -> Iterator[str]:
    """A comparison as lines for the terminal."""
    ours, theirs = compared.ours, compared.theirs
    width = max(len(side.name) for side in (ours, theirs))
    yield f"{compared.document.title} ({compared.document.figure_of_paper}), profile {theirs.profile}: " + ", ".join(
        f"{side.count} run{'s' * (side.count != 1)} in {side.name}" for side in (ours, theirs)
    )
    for note in compared.notes:
        yield from _filled(note, 2)
    for row in compared.rows:
        if not row.told:
            continue
        yield from _filled(f"{row.claim.sentence} ({row.claim.source})", 2)
        for side, verdict in ((ours, row.ours), (theirs, row.theirs)):
            yield from _filled(f"{side.name:{width}}  {WORDS[verdict.verdict]:14} {label(verdict)}", 4)
        for measurement in row.measurements:
            if measurement.ours or measurement.theirs:
                yield from _filled(told(measurement), 4)
                yield from _filled(apart(measurement, ours.name, theirs.name), 8)
    untold = sum(not row.told for row in compared.rows)
    if untold:
        yield f"  {untold} more claims that neither can judge"
    for panel, curves in compared.panels():
        yield f"  {panel.title or panel.metric}: {panel.label}, mean over seeds"
        for curve in curves:
            yield f"    {NORMS[curve.norm].label}, at {X_LABELS[panel.x]} {_numbers(curve.at)}"
            for name, values in ((ours.name, curve.ours), (theirs.name, curve.theirs)):
                yield f"      {name:{width}}  {_numbers(values)}"


def _numbers(values: Sequence[float]) -> str:
    return "".join(f"{value:<11.4g}" for value in values).rstrip()


def _filled(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4))


def label(verdict: Verdict) -> str:
    """On what a verdict rests, and why it is no other where nothing was measured."""
    seeds = len(verdict.seeds)
    if not seeds:
        return "no runs"
    said = f"{verdict.scale or verdict.profile}, {verdict.data}, {seeds} seed{'s' * (seeds != 1)}"
    return said if verdict.measured else f"{said}; {verdict.reason}"


def told(measurement: Measurement) -> str:
    """`test_error of layer: 0.02 [0.01, 0.03] and 0.03 [0.02, 0.04]`"""
    values = [str(value) if value else "no interval" for value in (measurement.ours, measurement.theirs)]
    return f"{measurement.what}: {values[0]} and {values[1]}"


def apart(measurement: Measurement, ours: str, theirs: str) -> str:
    """`mine / results = 1.2 [1.1, 1.4], they differ`; empty where there is nothing to take a difference of."""
    if measurement.apart is None:
        return ""
    seen = "they differ" if measurement.differs else "no difference is seen"
    return f"{theirs} {'/' if measurement.ratio else '-'} {ours} = {measurement.apart}, {seen}"


def figure(compared: Compared) -> Drawing | None:
    """Both folders' curves in the panels of the figure, theirs dashed; None where neither has any."""
    panels = [
        panel
        for panel in compared.document.figure.panels
        if any(_drawn(panel, side) for side in (compared.ours, compared.theirs))
    ]
    if not panels:
        return None
    columns = min(len(panels), compared.document.figure.columns or MOST_COLUMNS)
    drawing, axes = new_figure(columns, -(-len(panels) // columns))
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        if panel.log:
            axis.set_yscale("log")
        if panel.log_x:
            axis.set_xscale("log")
        for side, style in zip((compared.ours, compared.theirs), ({}, THEIRS), strict=True):
            runs = of_panel(panel, side.runs.get(panel.experiment, {}))
            draw_curves(axis, runs, panel.metric, panel.x, f", {side.name}", **style)
        axis.set(title=panel.title, ylabel=panel.label, xlabel=panel.xlabel or X_LABELS[panel.x])
        plain_ticks(axis)
    handles = legend_handles(drawing)
    drawing.legend(handles.values(), handles.keys(), loc="outside lower center",
                   ncols=legend_columns(list(handles), float(drawing.get_size_inches()[0])))  # fmt: skip
    return drawing


def _drawn(panel: Panel, side: Side) -> bool:
    runs = of_panel(panel, side.runs.get(panel.experiment, {}))
    return any(run.curve(panel.metric, panel.x)[0] for by_seed in runs.values() for run in by_seed.values())
