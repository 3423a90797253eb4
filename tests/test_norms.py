"""The registry of norms for feed-forward layers, and the checks of NormConfig."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from ln import norms
from ln.norms import NORMS, NormConfig


def test_registry_holds_the_paper_s_norms_and_rms() -> None:
    assert {"none", "batch", "weight", "layer", "rms"} <= set(NORMS)


def test_unknown_norm_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=f"^norm=lyer is not a normalization; choose one of {', '.join(NORMS)}$"):
        norms.get("lyer")
    with pytest.raises(ValueError, match="norm=lyer"):
        NormConfig("lyer")


ROOT = Path(__file__).parents[1]


def asks_for_a_name(node: ast.AST) -> bool:
    """Whether a comparison is with the name of a norm; an axis may be called "batch" too."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    if any(isinstance(side, ast.Attribute) and side.attr == "axis" for side in sides):
        return False
    parts = [part for side in sides for part in getattr(side, "elts", [side])]
    named = {part.value for part in parts if isinstance(part, ast.Constant)} & set(NORMS)
    return bool(named - {"none"}) or (bool(named) and "norm" in ast.unparse(node.left))


def test_no_code_asks_for_the_name_of_a_norm() -> None:
    """Layers, experiments, figures and pages decide by traits, so that a norm is added in one place."""
    assert asks_for_a_name(ast.parse("norm.name in ('layer', 'other')", mode="eval").body)
    assert asks_for_a_name(ast.parse("norm == 'none'", mode="eval").body)
    paths = [path for folder in ("ln", "experiments", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if asks_for_a_name(node) and isinstance(node, ast.expr)
    ]
    assert not found


@pytest.mark.parametrize("name", NORMS)
def test_each_norm_wraps_and_makes(name: str) -> None:
    norm = norms.get(name)
    model = nn.Sequential(norm.wrap_linear(nn.Linear(5, 3)), norm.make(3), nn.ReLU())
    model(torch.randn(8, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["none", "batch", "layer", "rms"])
def test_only_weight_norm_touches_the_weights(name: str) -> None:
    linear = nn.Linear(5, 3)
    assert norms.get(name).wrap_linear(linear) is linear


def test_weight_norm_has_one_gain_per_output_unit_and_starts_from_the_same_weights() -> None:
    linear = nn.Linear(5, 3)
    weight = linear.weight.detach().clone()
    wrapped = norms.get("weight").wrap_linear(linear)
    sizes = {tuple(parameter.shape) for parameter in wrapped.parametrizations.weight.parameters()}
    assert sizes == {(3, 1), (3, 5)}
    torch.testing.assert_close(wrapped.weight, weight)


def test_layer_norm_of_summed_inputs_has_eps_1e_5() -> None:
    assert NORMS["layer"].make(4).eps == 1e-5


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5)])
def test_unbiased_batch_norm_divides_by_n_minus_1(shape: tuple[int, ...]) -> None:
    layer = NORMS["batch"].make(3, unbiased=True).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.transpose(0, 1).flatten(1).T  # (values, features)
    z = (rows - rows.mean(0)) / (rows.var(0, correction=1) + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x).transpose(0, 1).flatten(1).T, z)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * rows.var(0))
    torch.testing.assert_close(layer.running_mean, 0.1 * rows.mean(0))
    assert layer.num_batches_tracked == 1


def test_unbiased_batch_norm_evaluates_like_batch_norm() -> None:
    unbiased, plain = (NORMS["batch"].make(3, unbiased=flag).eval() for flag in (True, False))
    x = torch.randn(4, 3)
    assert torch.equal(unbiased(x), plain(x))


def test_biased_and_unbiased_differ_at_batch_size_4() -> None:
    unbiased, plain = (NORMS["batch"].make(3, unbiased=flag) for flag in (True, False))
    x = torch.randn(4, 3)
    torch.testing.assert_close(unbiased(x), plain(x) * 0.75**0.5, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(unbiased(x), plain(x), atol=1e-2)


def test_unbiased_variance_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 values"):
        NORMS["batch"].make(3, unbiased=True)(torch.randn(1, 3))


def test_default_sites_are_those_of_the_paper() -> None:
    cfg = NormConfig()
    assert cfg.sites_for("lstm") == ("input", "recurrent", "cell")
    assert cfg.sites_for("gru") == ("input", "recurrent")
    assert cfg.sites_for("rnn") == ("sum",)
    assert NormConfig("weight").sites_for("lstm") == ()


def test_initial_gains() -> None:
    assert NormConfig("layer").initial_gain == 1.0
    assert NormConfig("batch").initial_gain == 0.1
    assert NormConfig("batch", gain_init=0.3).initial_gain == 0.3


def test_equal_configs_are_one_key() -> None:
    assert len({NormConfig(sites=("cell", "input")), NormConfig(sites=("input", "cell"))}) == 1
    assert NormConfig.of("batch") == NormConfig("batch")
    assert NormConfig.of(NormConfig("batch")) == NormConfig("batch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ("gates",)}, "sites: 'gates' is unknown; choose from input, recurrent, sum, cell"),
        ({"sites": ("sum", "input")}, "'sum' stands in place of input and recurrent"),
        ({"name": "weight", "sites": ("input",)}, "normalizes no summed inputs"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"name": "batch", "inner_bias": True}, "inner_bias"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"momentum": 0.0}, "momentum=0.0"),
    ],
)
def test_senseless_configs_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormConfig(**options)


@pytest.mark.parametrize(("cell", "site"), [("gru", "cell"), ("rnn", "cell")])
def test_sites_that_a_cell_lacks_are_refused(cell: str, site: str) -> None:
    with pytest.raises(ValueError, match=f"site '{site}' does not exist in {cell}"):
        NormConfig(sites=(site,)).sites_for(cell)


def test_inner_bias_needs_the_input_site() -> None:
    with pytest.raises(ValueError, match="site 'input'"):
        NormConfig(sites=("cell",), inner_bias=True).sites_for("lstm")
