"""Figures in one style: the same colour per norm everywhere, safe for colour-blind readers, every seed faint and the
mean on top. What a figure shows is data in the claims file; vector and PNG are written side by side."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ln.norms import NORMS
from ln.suite.files import replacing
from ln.suite.judging.claims import ClaimsFile, Panel, Reference
from ln.suite.runs.read import Runs

PUBLISHED: dict[str, Any] = {"linestyle": (0, (1, 1.5)), "linewidth": 1.6, "alpha": 0.9}
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.0}
LEGEND_ENTRY_INCHES = 2.0  # the widest entry, a published value
X_LABELS = {"step": "iteration", "epoch": "epoch", "seconds": "seconds"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "ln",  # the same figure twice is the same file
}
plt.rcParams.update(STYLE)


def new_figure(columns: int, rows: int = 1, width: float = 3.1, height: float = 2.6) -> tuple[Figure, np.ndarray]:
    """A figure of equal panels in the house style and its (rows, columns) axes."""
    with plt.rc_context(STYLE):
        return plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
        )


def save(figure: Figure, path: Path, vectors: bool = True) -> Path:
    """Write `path` as PNG and its twin as SVG, which of a page of text would be large; returns the PNG's path."""
    try:
        with replacing(path.with_suffix(".png")) as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
        if vectors:
            with replacing(path.with_suffix(".svg")) as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
    finally:
        plt.close(figure)
    return path.with_suffix(".png")


def mean_curve(curves: list[tuple[list[float], list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds wherever all seeds were evaluated: until the first one that diverged stops. Its positions
    are the median of theirs, since seconds differ from seed to seed."""
    length = min(len(x) for x, _ in curves)
    positions = np.median([x[:length] for x, _ in curves], axis=0)
    return positions, np.mean([y[:length] for _, y in curves], axis=0)


def draw_curves(axes: Axes, runs: Runs, metric: str, x: str = "step") -> None:
    """Every seed faint, the mean of each norm on top."""
    for name, by_seed in sorted(runs.items(), key=lambda item: list(NORMS).index(item[0])):
        norm = NORMS[name]
        curves = [curve for run in by_seed.values() if (curve := run.curve(metric, x))[0]]
        for positions, values in curves:
            axes.plot(positions, values, color=norm.colour, alpha=0.25, linewidth=0.8)
        if curves:
            where, mean = mean_curve(curves)
            marker = "o" if len(where) < 12 else None
            axes.plot(where, mean, color=norm.colour, linewidth=1.8, marker=marker, markersize=3, label=norm.label)


def draw_band(axes: Axes, runs: Runs, metric: str, deviation: str, x: str) -> None:
    """A shade one `deviation` (a metric too) wide on both sides of each norm's mean, averaged over the seeds."""
    for norm, by_seed in runs.items():
        curves = [curve for run in by_seed.values() if (curve := run.curve(metric, x))[0]]
        if curves:
            where, mean = mean_curve(curves)
            _, half = mean_curve([run.curve(deviation, x) for run in by_seed.values() if run.curve(deviation, x)[0]])
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


def two_or_five(value: float, position: int) -> str:
    """A logarithmic axis' minor ticks: 20 and 50, since labels on all of them would overlap."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def draw_panel(axes: Axes, panel: Panel, runs: Runs) -> None:
    """One panel as the claims file describes it: published values as dotted lines or points, references dashed."""
    x = panel.x
    shown = panel.norms or NORMS
    runs = {norm: by_seed for norm, by_seed in runs.items() if norm in shown}
    draw_curves(axes, runs, panel.metric, x)
    if panel.band:
        draw_band(axes, runs, panel.metric, panel.band, x)
    if panel.reference:
        draw_reference(axes, panel.reference, runs, x)
    for published in panel.published:
        norm = NORMS[published["norm"]]
        colour, name = norm.colour, f"published, {norm.label}"
        if "points" in published:
            positions = list(published["points"])
            axes.plot(positions, list(published["points"].values()), color=colour, marker="x", label=name, **PUBLISHED)
        else:
            axes.axhline(published["value"], color=colour, label=f"{name}: {published['value']}", **PUBLISHED)
    if panel.log:
        axes.set_yscale("log")
    if panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(FuncFormatter(two_or_five))
    if panel.ylim:
        axes.set_ylim(*panel.ylim)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.label)
    axes.set_xlabel(panel.xlabel or X_LABELS[x])


def claim_figure(document: ClaimsFile, runs: dict[str, Runs], path: Path, note: str) -> Path:
    """The figure that a claims file describes; `note` says with which profile and data it was measured."""
    panels = document.figure.panels
    columns = document.figure.columns or min(len(panels), 4)
    figure, axes = new_figure(columns, -(-len(panels) // columns))
    for axis, panel in zip(axes.flat, panels, strict=False):
        draw_panel(axis, panel, runs[panel.experiment])
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    fitting = max(1, int(figure.get_size_inches()[0] / LEGEND_ENTRY_INCHES))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), fitting) or 1)
    figure.suptitle(f"{document.title} ({document.figure_of_paper}): {note}", fontsize=10)
    return save(figure, path)
