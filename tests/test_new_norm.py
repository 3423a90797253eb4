"""A norm that is added to the registry and to nothing else: everything computes it as its traits say or refuses it by
name.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from experiments.invariance import fisher
from ln import GRU, LSTM, RNN, kernels
from ln.kernels import BACKENDS
from ln.norms import NORMS, Normalization, NormConfig, RMSNorm
from ln.suite.config import CONFIGS, Recipe, imported, names
from ln.suite.data import Source
from ln.suite.errors import Mistake
from ln.suite.showing.page import curves
from ln.suite.showing.page.build import write_page
from ln.suite.showing.panels import draw_curves
from tests.page_results import metrics_of, write_run
from tests.recurrent_cases import judge, random_params

T, B, D, H = 4, 17, 5, 8
CPU = torch.device("cpu")


class BatchRMS(nn.Module):
    """Summed inputs (N, n) divided by the root of their mean square over the batch, with averages for evaluation."""

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_square", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(0) if self.training else self.running_square
        if self.training:
            self.running_square.lerp_(square.detach().to(self.running_square), self.momentum)
        return x / (square + self.eps).sqrt() * self.weight + self.bias


def rms(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    return RMSNorm(num_features, eps=eps)


def layer(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    return nn.LayerNorm(num_features, eps=eps)


TOYS = {
    # The traits of a registered norm under another name; two that no registered norm has; and two of them at once.
    "toy_twin": Normalization("toy twin", "#112233", "features", centred=False, make=rms),
    "toy_batch": Normalization("toy batch", "#223344", "batch", centred=False, population=True, make=BatchRMS),
    "toy_fleeting": Normalization("toy fleeting", "#334455", "batch", make=BatchRMS),
    "toy_both": Normalization(
        "toy both", "#445566", "features", reparameterizes=True, wrap_linear=weight_norm, make=layer
    ),
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, toy in TOYS.items():
        monkeypatch.setitem(NORMS, name, toy)
    torch.manual_seed(0)


# Recurrent layers.


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_a_backend_computes_its_statistics_or_refuses_it_by_name(backend: str, cell: str, toy: str) -> None:
    cfg, module = NormConfig(toy), kernels.load(backend)
    cpu = torch.device("cpu" if backend != "triton" else "cuda")
    reason = module.supports(cell, cfg, cpu, torch.float32)
    if toy == "toy_batch":
        assert f"norm={toy}, uncentred statistics over the batch" in reason
        return
    assert reason is None
    if module.available() is None and backend != "triton":
        tensors = [torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), *[(B, H)] * (2 if cell == "lstm" else 1))]
        judge(backend, cell, tensors, random_params(cell, cfg, D, H), cfg)


@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_auto_passes_over_what_refuses_and_an_explicit_request_raises(cls: type) -> None:
    model = cls(D, H, norm="toy_batch")
    model(torch.randn(T, B, D))
    assert model.backend_used == "reference"
    with pytest.raises(RuntimeError, match="norm=toy_batch"):
        cls(D, H, norm="toy_batch", backend="native")(torch.randn(T, B, D))


def test_the_batch_s_mean_square_has_averages_for_evaluation() -> None:
    model, x = LSTM(D, H, norm="toy_batch"), torch.randn(T, B, D)
    model(x)
    z = x @ model.weight_ih_l0.T
    torch.testing.assert_close(model.running_var_ih_l0[:T], z.square().mean(1))
    assert not model.running_mean_ih_l0.any()
    one = model.eval()(x[:, :1])[0]
    torch.testing.assert_close(one, model(x)[0][:, :1])  # of its own, not of the batch that it comes with


def test_without_averages_evaluation_takes_the_batch_at_hand() -> None:
    model, x = LSTM(D, H, norm="toy_fleeting"), torch.randn(2000, B, D)  # longer than any max_steps
    assert not list(model.buffers())
    torch.testing.assert_close(model(x)[0], model.eval()(x)[0])


def test_norms_of_weights_and_of_summed_inputs_go_together() -> None:
    torch.manual_seed(0)
    model, x = LSTM(D, H, norm="toy_both"), torch.randn(T, B, D)
    plain = LSTM(D, H, norm="layer")
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "weight" not in name}, False)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            g, v = model.get_parameter(f"{name}_g"), model.get_parameter(f"{name}_v")
            g.copy_(torch.rand(4 * H, 1) + 0.5)
            plain.set_weight(name, g * v / v.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model(x)[0], plain(x)[0])


# Experiments.


@cache
def source(task: str) -> Source:
    found: Source = imported(task).find("embedded")
    return dataclasses.replace(found, load=cache(found.load))


def first_loss(recipe: Recipe) -> float:
    """The loss of one batch after one step, from the same weights and the same noise whatever the norm."""
    torch.manual_seed(0)
    task = imported(recipe.task)(recipe, source(recipe.task), CPU)
    task.model.train()
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        loss = task.loss(task.batch(0))["loss"]
        task.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in task.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad / (1 + parameter.grad.norm())
        losses.append(loss.item())
    return losses[1]


def task_of(experiment: str) -> str:
    """The class that a recipe names, or the one of the recipe that it varies."""
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    found = re.search(r"^task: (\S+)|^  - (\w+)$", text, re.MULTILINE)
    assert found is not None, experiment
    return found[1] or task_of(found[2])


# One experiment of each task, and the variants in which the norm sits elsewhere.
EXPERIMENTS = {task_of(name): name for name in reversed(names("experiment"))}.values()
# Fast weights normalize over their own units or not at all.
UNFIT = {"associative_retrieval": {"weight", "batch", "toy_batch", "toy_both"}}
ELSEWHERE = ("attentive_reader_bn_everywhere", "attentive_reader_bn_sequence", "convnet_position")


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *ELSEWHERE])
def test_an_experiment_computes_it_or_refuses_it_by_name(recipe: Callable[..., Recipe], experiment: str) -> None:
    losses, refused = {}, {}
    for norm in (*names("norm"), *TOYS):
        name = "layer" if norm in TOYS else norm
        made = recipe(f"experiment={experiment}", f"norm={name}", f"norm.name={norm}")
        try:
            losses[norm] = first_loss(made)
        except (Mistake, ValueError) as refusal:
            refused[norm] = str(refusal)
    unfit = UNFIT.get(experiment, set())
    assert unfit <= refused.keys() <= TOYS.keys() | unfit
    assert all(f"norm={norm}" in sentence for norm, sentence in refused.items())
    assert losses["toy_twin"] == losses["rms"]
    registered = {losses[name] for name in names("norm") if name not in unfit}
    for norm in ("toy_batch", "toy_both"):
        assert losses.get(norm) not in registered, norm
    assert unfit or {"toy_both", "toy_batch"} & losses.keys()


@pytest.mark.parametrize("norm", ["toy_twin", "toy_batch", "toy_fleeting"])
def test_equations_13_and_14_hold_for_it(norm: str) -> None:
    theta, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    by_equation = fisher.fisher_by_equation(norm, theta, x)
    torch.testing.assert_close(by_equation, fisher.fisher_by_differentiation(norm, theta, x, own=True))


def test_equation_5_has_a_norm_of_weights_or_of_summed_inputs() -> None:
    theta, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    with pytest.raises(Mistake, match="norm=toy_both"):
        fisher.glm_inputs("toy_both", theta, x)


# Figures and the page.


def test_figures_give_it_its_label_and_colour() -> None:
    class Run:
        def curve(self, metric: str, x: str) -> tuple[list[float], list[float]]:
            return [1.0, 2.0], [0.5, 0.25]

    figure, axes = plt.subplots()
    draw_curves(axes, {name: {0: Run()} for name in (*reversed(TOYS), "layer")}, "valid_error")  # type: ignore[dict-item]
    shown = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    assert list(shown) == ["layer norm", *(toy.label for toy in TOYS.values())]
    assert [to_hex(shown[toy.label].get_color()) for toy in TOYS.values()] == [toy.colour for toy in TOYS.values()]
    plt.close(figure)


def test_the_page_shows_its_runs(tmp_path: Path) -> None:
    for norm in ("layer", *TOYS):
        write_run(tmp_path, "mnist_b128", norm, 0, metrics_of("mnist"))
    palette = curves.palette()
    assert list(palette) == list(NORMS)  # more norms than signs
    write_page(tmp_path)
    page = (tmp_path / "index.html").read_text()
    for name, toy in TOYS.items():
        assert f".norm-{name} {{ color: light-dark({toy.colour}," in page
        assert f'value="{name}" checked' in page
        assert toy.label in page
