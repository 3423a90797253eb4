"""The paper's analysis measured: Table 1's invariances, the Fisher blocks of equations 13-14, the growth of the weights
under training (section 5), and what a recurrence does to its summed inputs and gradients (section 3.1).

All but the growth, which is that of a network in training, is measured on random networks in float64 with real inputs.
Shapes: B batch, D input, H units, K draws, T steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ln import norms
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.data import Source, mnist, resolve
from ln.suite.errors import Mistake
from ln.suite.runs.read import Runs
from ln.suite.showing.figures import new_figure, save
from ln.suite.task import Shuffled, Task, wrong

COLUMNS = {
    "w_rescaling": "weight matrix\nre-scaling",
    "w_recentering": "weight matrix\nre-centering",
    "weight_vector_rescaling": "weight vector\nre-scaling",
    "dataset_rescaling": "dataset\nre-scaling",
    "dataset_recentering": "dataset\nre-centering",
    "case_rescaling": "single case\nre-scaling",
}
# Of recurrent units: the function, and the gain of random weights that keeps the size of (small) states.
UNITS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "rectified": (torch.relu, math.sqrt(2)),
    "tanh": (torch.tanh, 1.0),
}
FACTORS = {"half": 0.5, "twice": 2.0}  # of that gain
STEPS = 50
# The paper has no epsilon; torch insists on one. This one vanishes beside any variance.
NO_EPS = 1e-60


@dataclass
class Settings:
    hidden: int = 128
    draws: int = 5  # random networks per run, each with its own changes
    cases: int = 64  # inputs per draw
    fisher_units: int = 4
    fisher_inputs: int = 12


def network(inputs: int, hidden: int, norm: str, dtype: torch.dtype, eps: float) -> nn.Sequential:
    """(B, D) -> (B, 10): two normalized tanh layers and a linear one. tanh, because it forgives no change of scale."""
    normalization = norms.get(norm)
    layers: list[nn.Module] = []
    for size in (inputs, hidden):
        linear = nn.utils.skip_init(nn.Linear, size, hidden, bias=not normalization.normalizes)
        nn.init.xavier_normal_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers += [normalization.wrap_linear(linear), normalization.make(hidden, eps=eps), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10)).to(dtype)


def weight_of(linear: nn.Module) -> nn.Parameter:
    """(H, D) the weights that training moves: v under weight norm, whose gain stays as it is."""
    return linear.parametrizations.weight.original1 if hasattr(linear, "parametrizations") else linear.weight  # type: ignore[return-value,union-attr]


def positive(shape: tuple[int, ...]) -> Tensor:
    """Factors in [1.5, 4): a negative one would flip signs, which is not what the paper means by re-scaling."""
    return 1.5 + 2.5 * torch.rand(shape, dtype=torch.float64)


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


@torch.no_grad()
def table_row(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """log10 of the relative change of the outputs for each column: the least of K draws where it is large, the most
    where it is small, so that no cell is flattered."""
    seen: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for _ in range(settings.draws):
        x = images[torch.randperm(len(images))[: settings.cases]].double()
        model = network(x.shape[1], settings.hidden, norm, torch.float64, NO_EPS).train()  # batch norm: these cases'
        before, kept = model(x), weight_of(model[0]).clone()
        for name, change in changes(model[0], x).items():
            after = model(change())
            # The largest change of any case, so that the one case of the last column is not averaged away.
            relative = ((after - before).norm(dim=1) / before.norm(dim=1)).max().item()
            seen[name].append(math.log10(max(relative, 1e-18)))
            weight_of(model[0]).copy_(kept)
    return {f"log10_change_{name}": (max if max(v) < -6 else min)(v) for name, v in seen.items()}


def statistics(norm: str, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """mu and sigma of equation 5 for summed inputs a (B, H) and weights w (H, D), each broadcastable to (B, H).

    Raises:
        Mistake: a norm of both weights and summed inputs, which equation 5 does not have.
    """
    traits = norms.get(norm)
    if traits.reparameterizes and traits.normalizes:
        raise Mistake(f"norm={norm} changes both weights and summed inputs, and equation 5 has one or the other")
    if traits.reparameterizes:
        return torch.zeros_like(a), w.norm(dim=1).expand_as(a)
    if not traits.normalizes:
        return torch.zeros_like(a), torch.ones_like(a)
    dim = 1 if traits.axis == "features" else 0
    if not traits.centred:
        return torch.zeros_like(a), a.square().mean(dim, keepdim=True).sqrt()
    return a.mean(dim, keepdim=True), a.std(dim, correction=0, keepdim=True)


def glm_inputs(norm: str, theta: Tensor, x: Tensor) -> Tensor:
    """(B, H) natural parameters of the normalized GLM; theta (H, D + 2) holds w_i, b_i, g_i in its rows (eq. 13)."""
    w, b, g = theta[:, :-2], theta[:, -2], theta[:, -1]
    a = x @ w.T
    mu, sigma = statistics(norm, a, w)
    return g / sigma * (a - mu) + b


def fisher_by_equation(norm: str, theta: Tensor, x: Tensor) -> Tensor:
    """(H, D + 2, H, D + 2) the blocks of equation 13 with chi of equation 14, for a softmax output (phi = 1).

    d mu_i / d w_i and d sigma_i / d w_i in closed form; batch norm's run over the batch.
    """
    w, g = theta[:, :-2], theta[:, -1]
    batch, units = len(x), len(w)
    a = x @ w.T
    mu, sigma = (s.expand(batch, units) for s in statistics(norm, a, w))
    hat = (a - mu) / sigma
    inputs = x[:, None, :].expand(batch, units, -1)
    traits, zero = norms.get(norm), torch.zeros_like(inputs)
    # d sigma / d w_i has the same form whether sigma is a standard deviation or the root of a mean square.
    if traits.axis == "features":  # mu = sum_j a_j / H, so d mu / d w_i = x / H; d sigma / d w_i = hat_i x / H
        dmu, dsigma = inputs / units, hat[:, :, None] * inputs / units
    elif traits.axis == "batch":  # means over the batch of x and of hat_i x
        dmu = inputs.mean(0, keepdim=True).expand_as(inputs)
        dsigma = (hat[:, :, None] * inputs).mean(0, keepdim=True).expand_as(inputs)
    else:
        dmu = zero
        dsigma = (w / w.norm(dim=1, keepdim=True)).expand_as(inputs) if traits.reparameterizes else zero
    if not traits.centred:
        dmu = zero
    chi = inputs - dmu - hat[:, :, None] * dsigma
    rows = torch.cat([chi * (g / sigma)[:, :, None], torch.ones_like(a)[:, :, None], hat[:, :, None]], dim=2)
    p = torch.softmax(g * hat + theta[:, -2], dim=1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nij,nia,njb->iajb", covariance, rows, rows) / batch


def fisher_by_differentiation(norm: str, theta: Tensor, x: Tensor, own: bool) -> Tensor:
    """(H, D + 2, H, D + 2) E[J^T Cov J] with J = d z / d theta by automatic differentiation.

    own: keep d z_i / d theta_i only, as equation 13 does. Under layer norm z_i depends on the other units' weights too.
    """
    jacobian = torch.func.jacrev(lambda t: glm_inputs(norm, t, x))(theta)  # (B, H, H, D + 2)
    if own:
        jacobian = jacobian * torch.eye(len(theta), dtype=x.dtype)[None, :, :, None]
    p = torch.softmax(glm_inputs(norm, theta, x), dim=1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nij,niab,njcd->abcd", covariance, jacobian, jacobian) / len(x)


def fisher_row(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """How well equation 13 agrees with differentiation, and what doubling the weights does to its blocks.

    The errors are relative to the Fisher matrix: of the units' own blocks (i = j), of these as far as equation 13 goes
    (`own`), of their w-w parts, and of the whole matrix.
    """
    units, size = settings.fisher_units, settings.fisher_inputs
    x = images[torch.randperm(len(images))[: settings.cases]].double()
    x = x @ torch.randn(x.shape[1], size, dtype=torch.float64) / math.sqrt(x.shape[1])  # few enough for a Hessian
    theta = torch.cat(
        [torch.randn(units, size), 0.1 * torch.randn(units, 1), 1 + 0.1 * torch.randn(units, 1)], 1
    ).double()
    equation = fisher_by_equation(norm, theta, x)
    doubled = theta.clone()
    doubled[:, :-2] *= 2  # all of W: under layer norm a single w_i changes the shared sigma only in part
    twice = fisher_by_equation(norm, doubled, x)
    w, b = slice(0, size), size
    exact, own = (fisher_by_differentiation(norm, theta, x, own=only) for only in (False, True))

    def error(truth: Tensor, part: Callable[[Tensor], Tensor] = lambda f: f) -> float:
        return float((part(equation) - part(truth)).norm() / part(truth).norm())

    def blocks(f: Tensor) -> Tensor:
        return f.diagonal(dim1=0, dim2=2)  # (D + 2, D + 2, H)

    def ratio(block: Callable[[Tensor], Tensor]) -> float:
        return float(block(twice).norm() / block(equation).norm())

    return {
        "fisher_block_log10_error": math.log10(max(error(exact, blocks), 1e-18)),
        "fisher_own_log10_error": math.log10(max(error(own, blocks), 1e-18)),
        "fisher_block_error_ww": error(exact, lambda f: blocks(f)[w, w]),
        "fisher_cross_terms": error(exact),
        "curvature_ratio_ww": ratio(lambda f: f[:, w, :, w]),
        "curvature_ratio_wb": ratio(lambda f: f[:, w, :, b]),
        "distance_ratio": ratio(lambda f: f[:, w, :, w]) ** 0.5,  # sqrt(ds^2) of a step in w
    }


@torch.no_grad()
def beyond_the_table(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """What the paper says of its norms outside Table 1: shifts (conclusion), the gains' Fisher metric under another
    scale of the input (5.2.2). log10 of relative changes, the largest of K draws."""
    seen: dict[str, list[float]] = {}
    for _ in range(settings.draws):
        x = images[torch.randperm(len(images))[: settings.cases]].double()
        model = network(x.shape[1], settings.hidden, norm, torch.float64, NO_EPS).train()
        shifted = x.clone()
        shifted[0] += x.std() * positive((1,))  # the same constant on all features of one case
        units, size = settings.fisher_units, settings.fisher_inputs
        w = torch.randn(units, size, dtype=torch.float64)
        few = x @ torch.randn(x.shape[1], size, dtype=torch.float64) / math.sqrt(x.shape[1])
        a, one = few @ w.T, torch.ones(units, 1, dtype=torch.float64)
        theta = torch.cat([w, 0 * one, one], 1)
        changes = {
            "log10_change_case_shift": (model(x), model(shifted)),
            "log10_change_sum_shift": [_normalized(norm, s, w) for s in (a, a + positive((len(a), 1)))],
            "gain_metric_log10_change": [
                fisher_by_equation(norm, theta, scale * few)[:, -1, :, -1] for scale in (1.0, 2.0)
            ],
        }
        for name, (before, after) in changes.items():
            relative = ((after - before).norm(dim=1) / before.norm(dim=1)).max().item()
            seen.setdefault(name, []).append(math.log10(max(relative, 1e-18)))
    return {name: max(values) for name, values in seen.items()}


def _normalized(norm: str, a: Tensor, w: Tensor) -> Tensor:
    """(B, H) normalized summed inputs of equation 5, gain 1 and bias 0."""
    mu, sigma = statistics(norm, a, w)
    return (a - mu) / sigma


def recurrence(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """What a recurrent network's steps do to its summed inputs and to a gradient (section 3.1), in decades: the mean of
    K random networks whose recurrent weights are half or twice as large as would keep the states of their units. The
    drift is the larger change of the two."""
    measured: dict[str, float] = {}
    for unit, (function, kept) in UNITS.items():
        for name, factor in FACTORS.items():
            draws = []
            for _ in range(settings.draws):
                x = images[torch.randperm(len(images))[: settings.cases]].double()
                draws.append(_through_time(norm, x, settings.hidden, function, factor * kept))
            forward, back = (sum(values) / len(values) for values in zip(*draws, strict=True))
            measured |= {f"summed_inputs_{unit}_{name}": forward, f"gradient_{unit}_{name}": back}
        measured[f"gradient_{unit}_drift"] = max(abs(measured[f"gradient_{unit}_{name}"]) for name in FACTORS)
    return measured


def _through_time(
    norm: str, x: Tensor, hidden: int, function: Callable[[Tensor], Tensor], gain: float
) -> tuple[float, float]:
    """Equation 4 for inputs x (B, D), left to itself after the first: by how many decades the root mean square of the
    summed inputs, before they are normalized, changes from the first of T steps to the last, and the norm of a random
    gradient by the last state (B, H) on its way back to the first."""
    w = gain * torch.randn(hidden, hidden, dtype=torch.float64) / math.sqrt(hidden)
    w_x = torch.randn(hidden, x.shape[1], dtype=torch.float64) / math.sqrt(x.shape[1])
    first = function(_normalized(norm, x @ w_x.T, w_x)).requires_grad_()
    h, sizes = first, []
    with torch.enable_grad():
        for _ in range(STEPS):
            a = h @ w.T
            sizes.append(a.detach().square().mean().sqrt())
            h = function(_normalized(norm, a, w))
        gradient = torch.randn_like(h)
        (arrived,) = torch.autograd.grad(h, first, gradient)
    return math.log10(sizes[-1] / sizes[0]), math.log10(arrived.norm() / gradient.norm())


class Invariance(Task):
    Settings = Settings
    static_shapes = True

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        digits: mnist.Digits = source.load()
        self.images = {name: images.to(device) for name, images in digits.images.items()}
        self.labels = {name: labels.to(device) for name, labels in digits.labels.items()}
        self.examples = {name: len(labels) for name, labels in self.labels.items()}
        self.model = network(digits.pixels, recipe.model.hidden, recipe.norm.name, torch.float32, eps=1e-5)
        self.first_norm = float(self.weight_norm())
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed, device)
        self.steps_per_epoch = self.order.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": mnist.original, "embedded": mnist.embedded})

    def weight_norm(self) -> Tensor:
        """Mean length of the first layer's weight vectors."""
        return weight_of(self.model[0]).detach().norm(dim=1).mean()  # type: ignore[index]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        chosen = self.order.indices(step)
        return self.images["train"][chosen], self.labels["train"][chosen]

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss": F.cross_entropy(self.model(images), labels)}

    def evaluate(self, split: str) -> dict[str, float]:
        """On the way, how far the weights have grown; at the end, on test inputs, the table and the Fisher blocks."""
        logits = self.model(self.images[split])
        growth = float(self.weight_norm()) / self.first_norm
        metrics = {
            "error": wrong(logits, self.labels[split]) / len(logits),
            "weight_growth": growth,
            "effective_rate": 1 / growth**2,  # the learning rate a scale-invariant function sees, relative to the start
        }
        if split == "test":
            norm, images, settings = self.recipe.norm.name, self.images[split].cpu(), self.recipe.model
            metrics |= table_row(norm, images, settings) | fisher_row(norm, images, settings)
            metrics |= beyond_the_table(norm, images, settings) | recurrence(norm, images, settings)
        return metrics


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
