"""Table 1's invariances, and what the paper says of its norms outside the table. B batch, D input, H units, K draws."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.invariance.fisher import fisher_by_equation
from experiments.invariance.network import (
    NO_EPS,
    Settings,
    cases_of,
    network,
    normalized,
    positive,
    projected,
    weight_of,
)
from ln.norms import NORMS
from ln.suite.runs.read import Runs
from ln.suite.showing.figures import new_figure, save

COLUMNS = {
    "w_rescaling": "weight matrix\nre-scaling",
    "w_recentering": "weight matrix\nre-centering",
    "weight_vector_rescaling": "weight vector\nre-scaling",
    "dataset_rescaling": "dataset\nre-scaling",
    "dataset_recentering": "dataset\nre-centering",
    "case_rescaling": "single case\nre-scaling",
}


def changes(linear: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Table 1's columns (eq. 6-7): each changes the first layer's weights or returns changed inputs (B, D)."""
    weight = weight_of(linear)

    def weights_become(new: Tensor) -> Tensor:
        with torch.no_grad():
            weight.copy_(new)
        return x

    one = torch.ones(len(x), 1, dtype=x.dtype)
    one[0] = positive((1,))
    shift = torch.randn(x.shape[1], dtype=x.dtype) * x.std()
    gamma = torch.randn(weight.shape[1], dtype=x.dtype) * weight.std()
    return {
        "w_rescaling": lambda: weights_become(weight * positive((1,))),
        "w_recentering": lambda: weights_become(weight + gamma),  # the same vector is added to every unit's weights
        "weight_vector_rescaling": lambda: weights_become(weight * positive((len(weight), 1))),
        "dataset_rescaling": lambda: x * positive((1,)),
        "dataset_recentering": lambda: x + shift,
        "case_rescaling": lambda: x * one,
    }


def log10_change(before: Tensor, after: Tensor) -> float:
    """Of outputs (B, N), relative: the largest of any case, so that a single changed one is not averaged away."""
    relative = ((after - before).norm(dim=1) / before.norm(dim=1)).max().item()
    return math.log10(max(relative, 1e-18))


@torch.no_grad()
def table_row(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """log10 of the relative change of the outputs for each column: the least of K draws where it is large, the most
    where it is small, so that no cell is flattered."""
    seen: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for _ in range(settings.draws):
        x = cases_of(images, settings)
        model = network(x.shape[1], settings.hidden, norm, torch.float64, NO_EPS).train()  # batch norm: these cases'
        before, kept = model(x), weight_of(model[0]).clone()
        for name, change in changes(model[0], x).items():
            after = model(change())
            seen[name].append(log10_change(before, after))
            weight_of(model[0]).copy_(kept)
    return {f"log10_change_{name}": (max if max(v) < -6 else min)(v) for name, v in seen.items()}


@torch.no_grad()
def beyond_the_table(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """What the paper says of its norms outside Table 1: shifts (conclusion), the gains' Fisher metric under another
    scale of the input (5.2.2). log10 of relative changes, the largest of K draws."""
    seen: dict[str, list[float]] = {}
    for _ in range(settings.draws):
        x = cases_of(images, settings)
        model = network(x.shape[1], settings.hidden, norm, torch.float64, NO_EPS).train()
        shifted = x.clone()
        shifted[0] += x.std() * positive((1,))  # the same constant on all features of one case
        units, size = settings.fisher_units, settings.fisher_inputs
        w = torch.randn(units, size, dtype=torch.float64)
        few = projected(x, settings)
        a, one = few @ w.T, torch.ones(units, 1, dtype=torch.float64)
        theta = torch.cat([w, 0 * one, one], 1)
        changes = {
            "log10_change_case_shift": (model(x), model(shifted)),
            "log10_change_sum_shift": [normalized(norm, s, w) for s in (a, a + positive((len(a), 1)))],
            "gain_metric_log10_change": [
                fisher_by_equation(norm, theta, scale * few)[:, -1, :, -1] for scale in (1.0, 2.0)
            ],
        }
        for name, (before, after) in changes.items():
            seen.setdefault(name, []).append(log10_change(before, after))
    return {name: max(values) for name, values in seen.items()}


def draw_table(runs: dict[str, Runs], folder: Path) -> Path:
    """Table 1 as measured: the change of each cell, coloured by whether it is an invariance."""
    measured_norms = [norm for norm in NORMS if norm in runs["invariance"]]
    rows = sorted(measured_norms, key=lambda norm: not (NORMS[norm].normalizes or NORMS[norm].reparameterizes))
    figure, axes = new_figure(1, width=9.0, height=0.62 * (len(rows) + 1.6))
    axis = axes[0, 0]
    axis.set_axis_off()
    cells, colours = [], []
    for norm in rows:
        measured = list(runs["invariance"][norm].values())
        logs = {name: [run.value(f"test_log10_change_{name}", "final", True) for run in measured] for name in COLUMNS}
        invariant = {name: max(values) < -6 for name, values in logs.items()}
        cells.append(
            [
                f"invariant\n$\\leq$ 1e{math.ceil(max(values))}" if invariant[name] else f"no\n{10 ** min(values):.2g}"
                for name, values in logs.items()
            ]
        )
        colours.append(["#cfe8f7" if invariant[name] else "#f7f0e0" for name in logs])
    table = axis.table(
        cells, cellColours=colours, rowLabels=[NORMS[norm].label for norm in rows], colLabels=list(COLUMNS.values()),
        cellLoc="center", loc="center", bbox=[0.0, 0.0, 1.0, 1.0],
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("white")
        if column == -1 and row > 0:
            cell.get_text().set_color(NORMS[rows[row - 1]].colour)
    figure.suptitle("Table 1, measured in float64: relative change of the outputs, largest over cases", fontsize=10)
    return save(figure, folder / "table1.png")
