"""Compiled models: one operator stands for a sequence, with the numbers, gradients and statistics of eager code.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ln import GRU, LSTM, RNN, GRUCell, LSTMCell, NormConfig, RNNCell
from ln.kernels import operators
from ln.reference import Params
from tests.recurrent_cases import random_params, usable

T, B, D, H = 4, 3, 5, 7
LENGTHS = torch.tensor([T, 2, 0])


def _results(model: Any, of: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    """Outputs, gradients and buffers."""
    x = x.clone().requires_grad_()
    leaves = torch.utils._pytree.tree_leaves(model(x, **options))
    weights = [torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).view_as(leaf) for leaf in leaves]
    loss = sum((leaf * weight).sum() for leaf, weight in zip(leaves, weights, strict=True))
    grads = torch.autograd.grad(loss, [x, *of.parameters()], allow_unused=True)
    return [*leaves, *(grad for grad in grads if grad is not None), *of.buffers()]


def _judge(
    model: nn.Module, x: Tensor, compiler: str = "aot_eager", backend: str | None = None, **options: Any
) -> None:
    """The compiled model against the model, over two batches."""
    torch._dynamo.reset()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for batch in (x, x.flip(0)):
        found, wanted = _results(compiled, model, batch, **options), _results(plain, plain, batch, **options)
        torch.testing.assert_close(found, wanted)
    assert backend is None or model.backend_used == backend


@pytest.mark.parametrize(("cls", "norm"), [(LSTM, "batch"), (LSTM, "weight"), (GRU, "layer"), (RNN, "rms")])
def test_a_compiled_layer_is_one_operator_with_eager_numbers(cls: type, norm: str) -> None:
    usable("native", cls.__name__.lower(), NormConfig(norm))
    torch.manual_seed(0)
    _judge(cls(D, H, norm=norm), torch.randn(T, B, D), backend="native")


@pytest.mark.parametrize(
    ("cls", "norm", "dtype"),
    [(LSTM, "batch", torch.float32), (GRU, "layer", torch.float32), (LSTM, "layer", torch.float64)],
)
def test_compiled_layers_take_lengths(cls: type, norm: str, dtype: torch.dtype) -> None:
    """In float64 it is the torch backend's operator."""
    torch.manual_seed(0)
    model = cls(D, H, bidirectional=cls is LSTM, norm=norm, dtype=dtype)
    _judge(model, torch.randn(T, B, D, dtype=dtype), "eager", lengths=LENGTHS)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_compiled_evaluation_takes_the_averages(backend: str) -> None:
    usable(backend, "gru", NormConfig("batch"))
    torch.manual_seed(0)
    model = GRU(D, H, norm="batch", backend=backend)
    model(torch.randn(T, B, D))
    _judge(model.eval(), torch.randn(T, B, D), "eager")


@pytest.mark.parametrize("cls", [LSTMCell, GRUCell, RNNCell])
def test_compiled_cells(cls: type) -> None:
    torch.manual_seed(0)
    _judge(cls(D, H, norm="batch"), torch.randn(B, D), "eager", step=1)


def test_no_graph_breaks() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(D, D), LSTM(D, H, bidirectional=True))
    explained = torch._dynamo.explain(model)(torch.randn(T, B, D))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1
    (graph,) = explained.graphs
    assert sum("ln.sequence" in str(node.target) for node in graph.graph.nodes) == 2


def test_other_lengths_of_time_do_not_compile_again() -> None:
    usable("native", "lstm", NormConfig())
    torch._dynamo.reset()
    model, graphs = LSTM(D, H), []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True)
    for steps in (4, 6, 9):
        x = torch.randn(steps, B, D)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


def test_what_eager_code_refuses_or_returns_empty() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(LSTM(D, H, dtype=torch.float64), backend="eager", fullgraph=True)
    x = torch.randn(T, B, D, dtype=torch.float64)
    for lengths in ([T + 1, 1, 1], [-1, 1, 1]):
        with pytest.raises(ValueError, match=r"lengths must lie in 0 \.\.\. T = 4"):
            compiled(x, lengths=torch.tensor(lengths))
    assert compiled(x[:, :0])[0].shape == (T, 0, H)
    with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot read LSTM; use torch.compile"):
        torch.jit.script(nn.Sequential(LSTM(D, H)))


def test_derivatives_beyond_the_first_are_the_references() -> None:
    """Where a graph is run without a compiler of gradients; one with it refuses by itself."""
    torch.manual_seed(0)
    model, x = LSTM(D, H, norm=NormConfig(eps=0.1)), torch.randn(T, B, D)
    plain = copy.deepcopy(model)

    def penalty(model: Any) -> Tensor:
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(y)[0].square().sum(), y, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), y)[0]

    torch._dynamo.reset()
    torch.testing.assert_close(penalty(torch.compile(model, backend="eager")), penalty(plain), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="double backward"):
        penalty(torch.compile(model, backend="aot_eager"))


def test_a_transform_within_a_compiled_function_takes_the_reference() -> None:
    torch.manual_seed(0)
    model, x = LSTM(D, H), torch.randn(T, B, D)

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: model(x)[0].square().sum())(x)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(gradient, backend="eager", fullgraph=True)(x), gradient(x))


def test_an_exported_program_has_torchs_own_operations_only() -> None:
    model, x = LSTM(D, H), torch.randn(T, B, D)
    program = torch.export.export(model, (x,))
    assert "ln." not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))
    with pytest.raises(RuntimeError, match=r"backend=native cannot be seen through by torch.export"):
        torch.export.export(LSTM(D, H, backend="native"), (x,))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("cell", "norm"), [("lstm", "layer"), ("gru", "batch")])
def test_operators_are_what_they_say_they_are(cell: str, norm: str, backend: str) -> None:
    """Fake results of the real sizes, no memory shared, gradients registered: torch's own check of an operator."""
    cfg = NormConfig(norm, eps=0.1)
    usable(backend, cell, cfg)
    torch.manual_seed(0)
    p: Params = random_params(cell, cfg, D, H, dtype=torch.float32)
    params = {name: value for name, value in p._asdict().items() if value is not None}
    states = [torch.randn(B, H) for _ in range(2 if cell == "lstm" else 1)]
    tensors = [t.requires_grad_() for t in (torch.randn(T, B, D), *states, *params.values())]
    for lengths in (None, LENGTHS):
        sites = " ".join(cfg.sites_for(cell))
        settings = (backend, cell, " ".join(params), norm, sites, cfg.eps, False, True, "tanh")
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operators._sequence, (tensors, lengths, [], *settings), test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_inductor(norm: str) -> None:
    torch.manual_seed(0)
    _judge(LSTM(D, H, norm=norm), torch.randn(T, B, D), "inductor")
