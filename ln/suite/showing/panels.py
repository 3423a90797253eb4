"""A claims file's figure: the paper's panels with our curves in them, and the published curves dashed behind.

Where our runs do not come into the axes that the paper draws, as at a profile smaller than the paper's, one pair of
axes cannot show both: then the published curves have panels of their own, as the paper draws them, beside ours.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from ln.norms import NORMS
from ln.suite.judging.claims import ClaimsFile, Figure, Panel, Reference
from ln.suite.judging.published import ORIGINAL, Curve, published_curves
from ln.suite.runs.read import Runs
from ln.suite.showing.figures import X_LABELS, mean_curve, new_figure, save
from ln.suite.showing.ticks import plain_ticks

PUBLISHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.3, "alpha": 0.75, "zorder": 1.9}
ALSO: dict[str, Any] = {"linestyle": (0, (5, 1.5, 1, 1.5))}  # a panel's second curves, as in the paper's Figure 5
PUBLISHED_ALSO: dict[str, Any] = {**PUBLISHED, "linestyle": (0, (1, 1.5)), "linewidth": 1.0}
ORIGINAL_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.8, "zorder": 1.5}
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.0}
REACH = 0.25  # of the paper's x axis, as drawn: our curves are in the same axes from here on
TITLE_LETTER_INCHES, LEGEND_LETTER_INCHES, LEGEND_SIGN_INCHES = 0.07, 0.07, 0.55
MOST_COLUMNS = 4


def draw_curves(axes: Axes, runs: Runs, metric: str, x: str = "step", suffix: str = "", **style: Any) -> None:
    """Every seed faint, the mean of each norm on top, as the axes' scale has it."""
    for norm, by_seed in sorted(runs.items(), key=lambda item: list(NORMS).index(item[0])):
        curves = [curve for run in by_seed.values() if (curve := run.curve(metric, x))[0]]
        colour, name = NORMS[norm].colour, NORMS[norm].label + suffix
        for positions, values in curves:
            axes.plot(positions, values, color=colour, alpha=0.25, linewidth=0.8)
        if curves:
            where, mean = mean_curve(curves, axes.get_yscale() == "log")
            marker = "o" if len(where) < 12 else None
            width = 1.8 if not suffix else 1.2
            axes.plot(where, mean, color=colour, linewidth=width, marker=marker, markersize=3, label=name, **style)


def draw_band(axes: Axes, runs: Runs, metric: str, deviation: str, x: str) -> None:
    """A shade one `deviation` (a metric too) wide on both sides of each norm's mean, averaged over the seeds."""
    for norm, by_seed in runs.items():
        curves = [curve for run in by_seed.values() if (curve := run.curve(metric, x))[0]]
        halves = [part for run in by_seed.values() if (part := run.curve(deviation, x))[0]]
        if curves and halves:
            where, mean = mean_curve(curves)
            _, half = mean_curve(halves)
            axes.fill_between(where, mean - half, mean + half, color=NORMS[norm].colour, alpha=0.12, linewidth=0)


def draw_reference(axes: Axes, reference: Reference, runs: Runs, x: str) -> None:
    """What a simpler method reaches: a `value`, or a `metric` that every run has of it, its mean over all of them; on
    runs of one status of data only where `data` names it."""
    measured = [run for by_seed in runs.values() for run in by_seed.values()]
    if reference.data and {run.data for run in measured} != {reference.data}:
        return
    if reference.value is not None:
        axes.axhline(reference.value, label=reference.label, **REFERENCE)
    elif curves := [curve for run in measured if (curve := run.curve(reference.metric, x))[0]]:
        axes.plot(*mean_curve(curves), label=reference.label, **REFERENCE)


def published_in(panel: Panel) -> Iterator[tuple[Curve, bool]]:
    """The published curves of a panel, and whether each is one of its second ones."""
    places = [(panel.experiment, panel.metric)]
    if panel.also is not None:
        places.append((panel.also.experiment or panel.experiment, panel.also.metric or panel.metric))
    for curve in published_curves().values():
        place, norm = curve.key[:2], curve.key.norm
        if place in places and curve.axis == panel.x and norm in (*(panel.norms or NORMS), ORIGINAL):
            yield curve, place != places[0]


def draw_published(axes: Axes, panel: Panel) -> None:
    """The published curves dashed in their norms' colours, with their bands."""
    for curve, second in published_in(panel):
        if curve.key.norm == ORIGINAL:
            axes.plot(curve.x, curve.y, label="original (Kiros et al. 2015)", **ORIGINAL_LINE)
            continue
        colour = NORMS[curve.key.norm].colour
        # Points that were read one by one are shown as such.
        marker = "x" if curve.source.between == "nothing" else None
        style = PUBLISHED_ALSO if second else PUBLISHED
        axes.plot(curve.x, curve.y, color=colour, marker=marker, markersize=4, **style)
        if curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.1, linewidth=0)


def has_runs(panel: Panel, runs: dict[str, Runs]) -> bool:
    """Whether any run has the panel's curve."""
    return any(run.curve(panel.metric, panel.x)[0] for run in _shown(panel, runs, panel.experiment))


def comes_into(panel: Panel, runs: dict[str, Runs]) -> bool:
    """Whether our runs reach the paper's axes: a value inside them, and REACH of the x axis as it is drawn."""
    if panel.paper is None:
        return True
    (left, right), (bottom, top) = panel.paper.x, sorted(panel.paper.y)
    measured = _shown(panel, runs, panel.experiment)
    points = [point for run in measured for point in zip(*run.curve(panel.metric, panel.x), strict=True)]
    if not any(left <= x <= right and bottom <= y <= top for x, y in points):
        return False
    last = max(x for x, _ in points)
    drawn = math.log(last / left) / math.log(right / left) if panel.log_x else (last - left) / (right - left)
    return drawn >= REACH


def _shown(panel: Panel, runs: dict[str, Runs], experiment: str) -> list[Any]:
    by_norm = runs.get(experiment, {})
    return [run for norm, seeds in by_norm.items() if not panel.norms or norm in panel.norms for run in seeds.values()]


def draw_panel(axes: Axes, panel: Panel, runs: dict[str, Runs], measured: bool = True) -> None:
    """One panel as the claims file describes it, with our runs and the published curves behind them; or, not
    `measured`, with the published curves alone, in the paper's axes."""
    if panel.log:
        axes.set_yscale("log")
    if panel.log_x:
        axes.set_xscale("log")
    if measured:
        _draw_measured(axes, panel, runs)
    if measured and not (panel.paper is not None and comes_into(panel, runs)):
        # The axes are those of our runs; what is published is seen where it comes into them.
        limits = axes.get_xlim(), axes.get_ylim()
        draw_published(axes, panel)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
    else:
        assert panel.paper is not None
        ours = axes.dataLim.get_points()[:, 0] if measured else panel.paper.x
        draw_published(axes, panel)
        axes.set_xlim(min(panel.paper.x[0], ours[0]), max(panel.paper.x[1], ours[1]))
        axes.set_ylim(*panel.paper.y)
    axes.set_ylabel(panel.label)
    axes.set_xlabel(panel.xlabel or X_LABELS[panel.x])
    plain_ticks(axes)


def _draw_measured(axes: Axes, panel: Panel, runs: dict[str, Runs]) -> None:
    own, x = of_panel(panel, runs.get(panel.experiment, {})), panel.x
    draw_curves(axes, own, panel.metric, x)
    if panel.also is not None:
        second = of_panel(panel, runs.get(panel.also.experiment or panel.experiment, {}))
        draw_curves(axes, second, panel.also.metric or panel.metric, x, f", {panel.also.label}", **ALSO)
    if panel.band:
        draw_band(axes, own, panel.metric, panel.band, x)
    if panel.reference:
        draw_reference(axes, panel.reference, own, x)
    if not has_runs(panel, runs):
        axes.text(0.5, 0.5, "no run yet", transform=axes.transAxes, ha="center", va="center", color="#777777")


def of_panel(panel: Panel, runs: Runs) -> Runs:
    """The runs of the norms that a panel draws."""
    return {norm: by_seed for norm, by_seed in runs.items() if not panel.norms or norm in panel.norms}


def claim_figure(document: ClaimsFile, runs: dict[str, Runs], path: Path, note: str) -> Path:
    """The figure that a claims file describes; `note` says with which profile and data it was measured."""
    drawn, columns = arranged(document.figure, runs)
    figure, axes = new_figure(columns, -(-len(drawn) // columns))
    for axis, (panel, measured, said) in zip(axes.flat, drawn, strict=False):
        draw_panel(axis, panel, runs, measured)
        axis.set_title(f"{panel.title}: {said}" if said else panel.title)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.remove()
    _legend(figure, [panel for panel, *_ in drawn])
    title = f"{document.title} ({document.figure_of_paper}): {note}"
    figure.suptitle(textwrap.fill(title, int(figure.get_size_inches()[0] / TITLE_LETTER_INCHES)), fontsize=10)
    return save(figure, path)


def arranged(figure: Figure, runs: dict[str, Runs]) -> tuple[list[tuple[Panel, bool, str]], int]:
    """The panels in their order, each with whether it shows our runs and what its title adds; and in how many columns.

    A panel whose published curves have axes of their own is a pair, side by side; of one row of such panels, one
    stands above the other. A panel with nothing to show, neither runs nor published curves, is left out.
    """
    panels = [panel for panel in figure.panels if has_runs(panel, runs) or any(published_in(panel))] or figure.panels
    columns = min(figure.columns or MOST_COLUMNS, len(panels))
    # Pairs first: no panel of published curves alone comes between the two of a pair at the end of a row.
    apart = sorted((p for p in panels if not comes_into(p, runs)), key=lambda panel: not has_runs(panel, runs))
    if not apart:
        return [(panel, True, "") for panel in panels], columns
    published, measured = (
        [(p, ours, said) for p in apart] for ours, said in ((False, "published"), (True, "measured"))
    )
    measured = [part for part in measured if has_runs(part[0], runs)]
    others = [(panel, True, "") for panel in panels if panel not in apart]
    if len(apart) == len(panels) == columns > 2 or not measured:
        return [*published, *measured, *others], columns
    pairs = [part for panel in apart for part in (*published, *measured) if part[0] is panel]
    return [*pairs, *others], min(len(pairs) + len(others), MOST_COLUMNS)


def legend_handles(figure: Drawing) -> dict[str, Any]:
    """What the axes of a figure show, once for each label."""
    return {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }


def _legend(figure: Drawing, panels: Iterable[Panel]) -> None:
    """One entry for each norm, and for each with a panel's second curves, dashed where only a published curve shows it;
    and one for all published curves."""
    handles = legend_handles(figure)
    published = [(panel, curve.key.norm, second) for panel in panels for curve, second in published_in(panel)]
    for panel, norm, second in published:
        if norm in NORMS:
            suffix = f", {panel.also.label}" if second and panel.also else ""
            style = PUBLISHED_ALSO if second else PUBLISHED
            handles.setdefault(NORMS[norm].label + suffix, Line2D([], [], color=NORMS[norm].colour, **style))
    norms = [traits.label for traits in NORMS.values()]
    handles = dict(sorted(handles.items(), key=lambda entry: entry[0].partition(",")[0] not in norms))  # norms first
    if published:
        handles["published"] = Line2D([], [], color="#333333", **PUBLISHED)
    if not handles:
        return
    columns = legend_columns(list(handles), float(figure.get_size_inches()[0]))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """As many columns as fit, and no row that is much shorter than the others."""
    widest = LEGEND_LETTER_INCHES * max(map(len, labels)) + LEGEND_SIGN_INCHES
    fitting = max(1, int(inches / widest))
    rows = -(-len(labels) // fitting)
    return -(-len(labels) // rows)
