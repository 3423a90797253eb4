"""Figures in one style: a norm has the same colour everywhere, and vector and PNG are written side by side."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ln.suite.files import replacing
from ln.suite.judging.curve_checks import LEAST

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


def mean_curve(curves: list[tuple[list[float], list[float]]], log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds wherever all seeds were evaluated: until the first one that diverged stops. Its positions
    are the median of theirs, since seconds differ from seed to seed. log: see mean_on_axis."""
    length = min(len(x) for x, _ in curves)
    positions = np.median([x[:length] for x, _ in curves], axis=0)
    return positions, mean_on_axis(np.array([y[:length] for _, y in curves]), log)


def mean_on_axis(values: np.ndarray, log: bool) -> np.ndarray:
    """The mean over the first axis, the seeds, as the vertical axis draws them: on a logarithmic one the geometric,
    since of seeds that are decades apart the arithmetic one shows the largest alone."""
    return np.exp(np.log(np.maximum(values, LEAST)).mean(0)) if log else values.mean(0)
