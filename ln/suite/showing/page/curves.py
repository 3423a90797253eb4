"""The measured curves as data for the page's interactive plots, thinned to what a screen can show.

Shapes: E evaluations of a run, P points kept of them.
"""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np

from ln.norms import NORMS
from ln.suite.judging.claims import ClaimsFile, Panel
from ln.suite.showing.figures import X_LABELS, mean_on_axis
from ln.suite.showing.page.found import AXES, PageRun
from ln.suite.showing.panels import published_in

# All measured curves of a page together, about 7 bytes each; with the published ones and plotly.js the page stays below
# 5 MB.
VALUES = 90_000
MOST_POINTS, FEWEST_POINTS = 200, 12
DIGITS = 4  # significant
DARK = (0x16, 0x1A, 0x20)  # page.css's plot background in the dark
CONTRAST = 4.5
# Colour alone does not tell the norms apart: the sign in the page's text and plotly's name for it.
SYMBOLS = (
    ("●", "circle"),
    ("■", "square"),
    ("◆", "diamond"),
    ("▲", "triangle-up"),
    ("▼", "triangle-down"),
    ("★", "star"),
)


def norms(found: Sequence[PageRun]) -> list[str]:
    """The norms that have curves, in the figures' order."""
    present = {run.norm for run in found if run.done}
    return [norm for norm in NORMS if norm in present]


def palette() -> dict[str, dict[str, str]]:
    """For each norm its name, its colour on white and in the dark, and its sign."""
    return {
        norm: {
            "name": traits.label,
            "light": traits.colour,
            "dark": on_dark(traits.colour),
            "sign": sign,
            "marker": marker,
        }
        for (norm, traits), (sign, marker) in zip(NORMS.items(), itertools.cycle(SYMBOLS), strict=False)
    }


def on_dark(colour: str) -> str:
    """The colour, mixed with white until it stands out from the dark background."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)
    for share in np.linspace(0, 1, 101):
        mixed = rgb + share * (255 - rgb)
        if contrast(mixed, np.array(DARK, dtype=np.float64)) >= CONTRAST:
            break
    return "#" + "".join(f"{round(float(part)):02x}" for part in mixed)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2's contrast ratio of two sRGB colours (3,) in 0..255."""

    def luminance(rgb: np.ndarray) -> float:
        part = rgb / 255
        linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def metrics(found: Sequence[PageRun]) -> list[str]:
    """What was measured along the way."""
    seen: dict[str, None] = {}
    for run in found:
        for record in run.evaluations:
            seen.update(dict.fromkeys(k for k, v in record.items() if k not in AXES and isinstance(v, int | float)))
    return list(seen)


def points_each(blocks: Sequence[Sequence[PageRun]]) -> int:
    """How many points each line may keep so that all lines together stay within VALUES."""
    columns = 0
    for found in blocks:
        lines = sum(run.done for run in found) + len(norms(found))
        columns += lines * (len(metrics(found)) + 2)
    return int(np.clip(VALUES // max(columns, 1), FEWEST_POINTS, MOST_POINTS))


def payload(document: ClaimsFile, found: Sequence[PageRun], points: int) -> dict[str, Any]:
    """What the page's script draws for one experiment group at one profile: its plots and its lines."""
    done = [run for run in found if run.done]
    lines, plots = [], _plots(document, done, points)
    logarithmic = {(plot["experiment"], plot["metric"]) for plot in plots if plot["log"]}
    for experiment in document.runs.experiments:
        for norm in norms(found):
            runs = [run for run in done if (run.experiment, run.norm) == (experiment, norm)]
            lines += [_line(run, points) for run in runs]
            if any(run.evaluations for run in runs):
                lines.append(_mean(runs, points, {metric for at, metric in logarithmic if at == experiment}))
    return {"plots": plots, "lines": lines}


def _plots(document: ClaimsFile, done: Sequence[PageRun], points: int) -> list[dict[str, Any]]:
    """The figure's panels first, then whatever else was measured."""
    experiments = document.runs.experiments
    plots: list[dict[str, Any]] = []
    for panel in _panels(document):
        experiment, x = panel.experiment, panel.x
        title = f"{panel.label}, {panel.title}" if panel.title else panel.metric
        plot = {"experiment": experiment, "metric": panel.metric, "title": title, "figure": True, "x": x}
        plot |= {"label": panel.label, "log": panel.log, "logX": panel.log_x}
        plot |= {"published": _published(panel, points)}
        if (experiment, panel.metric) not in [(p["experiment"], p["metric"]) for p in plots]:
            plots.append(plot)  # the page switches the axis, so a panel that differs in it alone is no other plot
    drawn = {(plot["experiment"], plot["metric"]) for plot in plots}
    for experiment in experiments:
        for metric in metrics([run for run in done if run.experiment == experiment]):
            if (experiment, metric) not in drawn:
                title = metric if len(experiments) == 1 else f"{metric}, {experiment}"
                plot = {"experiment": experiment, "metric": metric, "title": title, "figure": False, "x": "step"}
                plots.append(plot | {"label": metric, "log": False, "logX": False, "published": []})
    return plots


def _panels(document: ClaimsFile) -> Iterator[Panel]:
    """The figure's panels, with one of their own for second curves."""
    for panel in document.figure.panels:
        yield replace(panel, also=None)
        if (also := panel.also) is not None:
            experiment, metric = also.experiment or panel.experiment, also.metric or panel.metric
            yield replace(panel, also=None, experiment=experiment, metric=metric, title=f"{panel.title}, {also.label}")


def _published(panel: Panel, points: int) -> list[dict[str, Any]]:
    """The published curves of a panel, thinned as ours are."""
    lines = []
    for curve, _ in published_in(panel):
        kept = np.linspace(0, len(curve.x) - 1, min(points, len(curve.x))).round().astype(int)
        x, y = ([_short(part[i]) for i in kept] for part in (curve.x, curve.y))
        lines.append({"norm": curve.key.norm, "axis": curve.axis, "x": x, "y": y})
    return lines


def _line(run: PageRun, points: int) -> dict[str, Any]:
    line = {"experiment": run.experiment, "norm": run.norm, "seed": run.seed}
    if run.diverged:
        line["diverged"] = run.info.get("diverged_at", run.last_step())
    return line | _columns(run.evaluations, points)


def _mean(runs: Sequence[PageRun], points: int, logarithmic: Set[str]) -> dict[str, Any]:
    """The mean over seeds wherever all seeds were evaluated, as in the figures: until the first that diverged stops; on
    the scale of the metric's axis."""
    evaluated = [run.evaluations for run in runs if run.evaluations]
    length = min(map(len, evaluated))
    names, rows = metrics(runs), []
    for same in zip(*(records[:length] for records in evaluated), strict=True):
        row = {axis: same[0][axis] for axis in AXES if axis in same[0]}
        for metric in names:
            values = [record.get(metric) for record in same]
            row[metric] = None if None in values else float(mean_on_axis(np.array(values), metric in logarithmic))
        rows.append(row)
    return {"experiment": runs[0].experiment, "norm": runs[0].norm, "seed": None} | _columns(rows, points)


def _columns(records: Sequence[dict[str, Any]], points: int) -> dict[str, Any]:
    """E records as columns of P points, the first and the last among them."""
    kept = np.linspace(0, len(records) - 1, min(points, len(records))).round().astype(int)
    rows = [records[i] for i in kept]
    names = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, int | float))
    columns: dict[str, list[Any]] = {name: [_short(row.get(name)) for row in rows] for name in names}
    if "epoch" in columns and (steps := rows[-1]["step"]):
        # Epochs are steps in another unit, so one number says them all.
        columns.pop("epoch")
        return {"epochsPerStep": rows[-1]["epoch"] / steps, "y": columns}
    return {"y": columns}


def _short(value: float | None) -> float | int | None:
    """The value as it is worth showing: 4 digits, and whole numbers whole."""
    if value is None or isinstance(value, int):
        return value
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def axes(found: Sequence[PageRun]) -> list[tuple[str, str]]:
    """The horizontal axes that the runs have, with their names."""
    present = {axis for run in found for record in run.evaluations[:1] for axis in AXES if axis in record}
    return [(axis, X_LABELS[axis]) for axis in AXES if axis in present]
