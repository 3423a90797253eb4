"""No fast path where only the reference can follow: traces, exports, transforms, higher derivatives; and no call that
would read what is not there.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from ln import GRU, LSTM, RNN, GRUCell, LSTMCell, NormConfig, kernels, reference
from ln.kernels import BACKENDS
from ln.reference import Params, Stats
from tests.recurrent_cases import GATES, hooked, random_params, usable

NORMS = ("none", "batch", "weight", "layer")
LAYERS = [(cls, norm) for cls in (LSTM, GRU, RNN) for norm in NORMS]
IDS = [f"{cls.__name__}-{norm}" for cls, norm in LAYERS]
FAST = [name for name in BACKENDS if name != "reference"]
T, B, D, H = 3, 2, 3, 4


def _model(cls: type, norm: str, layers: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(D, H, layers, bidirectional=layers > 1, norm=norm, **options).eval()


def _close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x)[0].square().sum()


# Graphs that outlive the call.


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("cls", "norm"), LAYERS, ids=IDS)
def test_a_trace_computes_and_does_not_repeat_its_example(cls: type, norm: str) -> None:
    model, x = _model(cls, norm), torch.randn(T, B, D)
    traced = torch.jit.trace(model, x, check_trace=False)
    for other in (torch.randn(T, B, D), torch.randn(T, B + 1, D)):
        _close(traced(other), model(other))
    longer = torch.randn(T + 2, B, D)
    try:
        found = traced(longer)
    except RuntimeError as error:
        assert "Expected" in str(error)  # noqa: PT017 - either is right: the numbers, or no numbers
    else:
        _close(found, model(longer))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_a_trace_keeps_lengths_an_input(cls: type) -> None:
    model, x = _model(cls, "layer"), torch.randn(T, B, D)
    full = {"input": x, "lengths": torch.full((B,), T)}
    traced = torch.jit.trace(model, example_kwarg_inputs=full, check_trace=False)
    lengths = torch.tensor([1, T - 1])
    _close(traced(input=x, lengths=lengths), model(x, lengths=lengths))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cls", [LSTMCell, GRUCell])
def test_a_traced_cell_computes(cls: type, norm: str) -> None:
    torch.manual_seed(0)
    cell = cls(D, H, norm=norm).eval()

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Any:
            return self.cell(x, step=0)

    traced = torch.jit.trace(Step(), torch.randn(B, D), check_trace=False)
    other = torch.randn(B + 1, D)
    _close(traced(other), cell(other, step=0))


FEW = [(LSTM, "layer"), (LSTM, "none"), (GRU, "batch"), (GRU, "weight"), (RNN, "layer")]  # graphs take seconds each


@pytest.mark.parametrize(("cls", "norm"), FEW)
def test_make_fx_with_and_without_gradients(cls: type, norm: str) -> None:
    model, x = _model(cls, norm, layers=1), torch.randn(T, B, D)
    other = torch.randn(T, B, D)
    with torch.no_grad():
        graph = make_fx(lambda x: model(x)[0])(x)
    _close(graph(other), model(other)[0])
    graph = make_fx(grad(_loss(model)))(x)
    _close(graph(other), _gradient(model, other))


@pytest.mark.parametrize(("cls", "norm"), FEW)
def test_export_computes(cls: type, norm: str) -> None:
    model = _model(cls, norm, layers=1)
    other = torch.randn(T, B, D)
    _close(torch.export.export(model, (torch.randn(T, B, D),)).module()(other), model(other))


@pytest.mark.parametrize(("cls", "norm"), FEW)
def test_compiled_layers_compute(cls: type, norm: str) -> None:
    model = _model(cls, norm, layers=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(T, B, D, requires_grad=True)
    compiled(x)[0].square().sum().backward()
    _close(x.grad, _gradient(model, x.detach()))


@pytest.mark.parametrize(("cls", "norm"), LAYERS, ids=IDS)
def test_fake_and_meta_tensors_give_shapes(cls: type, norm: str) -> None:
    model = _model(cls, norm)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = model(mode.from_tensor(torch.randn(T, B, D)))[0]
    assert type(output).__name__ == "FakeTensor"
    assert output.shape == (T, B, 2 * H)
    output = cls(D, H, norm=norm, device="meta")(torch.randn(T, B, D, device="meta"))[0]
    assert output.is_meta
    assert output.shape == (T, B, H)


# Transforms and derivatives.


def _gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(_loss(model)(x), x)[0]


@pytest.mark.parametrize(("cls", "norm"), LAYERS, ids=IDS)
def test_transforms_of_torch_func(cls: type, norm: str) -> None:
    model, x = _model(cls, norm), torch.randn(T, B, D)
    weights, wanted = dict(model.named_parameters()), _gradient(model, x)

    def loss(x: Tensor) -> Tensor:
        return functional_call(model, weights, (x,))[0].square().sum()

    for transform in (grad, jacrev, jacfwd):
        _close(transform(loss)(x), wanted)
    _close(vmap(lambda x: model(x[:, None])[0][:, 0], 1, 1)(x), model(x)[0])
    _close(vmap(grad(lambda x: loss(x[:, None])), 1, 1)(x), wanted)
    _close(torch.func.functionalize(lambda x: model(x)[0])(x), model(x)[0])


def _refused(run: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="batch norm in training cannot move its averages under a transform") as said:
        run()
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("cls", [LSTM, GRUCell])
def test_batch_norm_trains_under_transforms_that_reach_its_averages(cls: type) -> None:
    options = {"step": 0} if cls is GRUCell else {}
    model, x = cls(D, H, norm="batch"), torch.randn(*((2, B, D) if options else (2, T, B, D)))
    model(x[0], **options)
    weights, averages = (dict(named()) for named in (model.named_parameters, model.named_buffers))
    several = [{name: torch.stack([value] * 2) for name, value in values.items()} for values in (weights, averages)]

    def output(x: Tensor, *values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values or weights, (x,), options)[0]

    for transform in (vmap(output), vmap(grad(lambda x: output(x).sum()))):
        _refused(partial(transform, x))
    for transform in (grad, jacrev, jacfwd):
        _refused(partial(transform(lambda x: output(x).sum()), x[0]))
    _refused(partial(vmap(partial(output, x[0])), several[0]))
    _close(vmap(output)(x, *several), torch.stack([model(case, **options)[0] for case in x]))


@pytest.mark.parametrize(("cls", "norm"), LAYERS, ids=IDS)
def test_forward_mode(cls: type, norm: str) -> None:
    model, x, v = _model(cls, norm), torch.randn(T, B, D), torch.randn(T, B, D)
    slow = _model(cls, norm, backend="reference").double()
    step = 1e-6 * v.double()
    wanted = (slow(x.double() + step)[0] - slow(x.double() - step)[0]) / 2e-6
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))[0]).tangent
    _close(found.double(), wanted)
    _close(jvp(lambda x: model(x)[0], (x,), (v,))[1].double(), wanted)


@pytest.mark.parametrize(("cls", "norm"), LAYERS, ids=IDS)
def test_hessians_are_those_of_the_reference(cls: type, norm: str) -> None:
    x, v = torch.randn(2, B, D), torch.randn(2, B, D)
    wanted = hessian(_loss(_model(cls, norm, backend="reference")))(x)
    model = _model(cls, norm)
    assert model(x)[0].any()
    _close(torch.autograd.functional.hessian(_loss(model), x), wanted)
    product = torch.einsum("abcdef,def->abc", wanted, v)
    _close(torch.autograd.functional.hvp(_loss(model), x, v)[1], product)
    _close(torch.autograd.functional.vhp(_loss(model), x, v)[1], product)


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_batched_and_dual_gradients_reach_a_graph_made_before(cls: type) -> None:
    model, x = _model(cls, "layer"), torch.randn(T, B, D, requires_grad=True)
    output = model(x)[0]
    several = torch.randn(3, *output.shape)
    one_by_one = torch.stack([torch.autograd.grad(output, x, g, retain_graph=True)[0] for g in several])
    found = torch.autograd.grad(output, x, several, is_grads_batched=True, retain_graph=True)[0]
    _close(found, one_by_one)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(several[0], several[1])
        tangent = forward_ad.unpack_dual(torch.autograd.grad(output, x, dual)[0]).tangent
    _close(tangent, one_by_one[1])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradient_penalties_are_those_of_the_reference(cell: str, norm: str, backend: str) -> None:
    """d |d loss / d everything|^2 / d everything, ragged rows, and a state that is itself a function of the input."""
    cfg = NormConfig(norm, eps=0.1)
    usable(backend, cell, cfg)
    torch.manual_seed(0)
    x = torch.randn(T, 4, D, dtype=torch.float64)
    params = {n: v for n, v in random_params(cell, cfg, D, H)._asdict().items() if v is not None}
    lengths = torch.tensor([T, 2, T, T])
    spread = torch.randn(D, H, dtype=torch.float64)

    def penalty(module: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = {n: v.to(dtype).requires_grad_() for n, v in {"x": x, **params}.items()}
        p = Params(**{n: leaves[n] for n in params})
        h0 = (leaves["x"][0] @ spread.to(dtype)).tanh()
        states = (h0, h0) if cell == "lstm" else (h0,)
        *outputs, _ = getattr(module, cell)(leaves["x"], *states, p, cfg, lengths)
        loss = sum(o.square().sum() for o in outputs)
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values())))

    exact, plain = penalty(reference, torch.float64), penalty(reference, torch.float32)
    found = penalty(kernels.load(backend), torch.float32)
    for truth, own, other in zip(exact, plain, found, strict=True):
        allowed = 2 * (own - truth).abs().max() + 1e-5 * truth.abs().max()
        assert (other - truth).abs().max() <= allowed


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivatives_by_finite_differences(cell: str) -> None:
    cfg = NormConfig("layer", eps=0.1)
    torch.manual_seed(1)
    params = {n: v for n, v in random_params(cell, cfg, 2, 2)._asdict().items() if v is not None}
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 2), *[(3, 2)] * (2 if cell == "lstm" else 1))]

    def run(*values: Tensor) -> Any:
        count = len(values) - len(params)
        p = Params(**dict(zip(params, values[count:], strict=True)))
        return getattr(kernels.load("torch"), cell)(*values[:count], p, cfg, torch.tensor([2, 1, 2]))[:-1]

    assert torch.autograd.gradgradcheck(run, [v.requires_grad_() for v in (*tensors, *params.values())])


# Asked for by name.


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_fast_backend_asked_for_by_name_refuses_what_it_cannot_follow(backend: str) -> None:
    usable(backend, "lstm", NormConfig())
    model, x = LSTM(D, H, backend=backend), torch.randn(T, B, D)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("torch.jit.trace", lambda: torch.jit.trace(model, x)),
        ("a transform of torch.func", lambda: jacrev(lambda x: model(x)[0])(x)),
        ("make_fx, fake tensors", lambda: make_fx(lambda x: model(x)[0])(x)),
    ]
    for what, call in calls:
        with pytest.raises(RuntimeError, match=f"backend={backend} cannot be seen through by {what}"):
            call()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation"):
        model(x)
    with FlopCounterMode(display=False) as counter:
        if backend == "torch":  # of torch's own operations: all of them are seen
            model(x)
        else:
            with pytest.raises(RuntimeError, match="a torch dispatch mode"):
                model(x)
        seen = counter.get_total_flops()
        LSTM(D, H)(x)
    assert counter.get_total_flops() - seen == 2 * T * B * 4 * H * (D + H)
    assert model(x)[0].shape == (T, B, H)


# What a call reads.


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_backend_reads_a_tensor_of_another_size_dtype_or_device(cell: str, backend: str) -> None:
    """Every argument in turn is one too long, one too short, of another dtype, on another device, or not there."""
    for cfg in (NormConfig("layer", inner_bias=True), NormConfig("batch")):
        usable(backend, cell, cfg)
        module = kernels.load(backend)
        p = random_params(cell, cfg, D, H, dtype=torch.float32)
        given: dict[str, Tensor] = {"h0": torch.zeros(B, H)} | ({"c0": torch.zeros(B, H)} if cell == "lstm" else {})
        states, width = list(given), GATES[cell] * H
        given |= {n: v for n, v in p._asdict().items() if v is not None} | {"lengths": torch.full((B,), T)}
        if cfg.name == "batch":
            sites = (("ih", width), ("hh", width), ("c", H))[: len(cfg.sites_for(cell))]
            given |= {f"{kind}_{site}": torch.ones(T, n) for site, n in sites for kind in ("mean", "var")}

        def run(values: dict[str, Tensor], module=module, cfg=cfg, states=states) -> Any:
            p = Params(**{n: v for n, v in values.items() if n in Params._fields})  # type: ignore[arg-type]
            stats = Stats(**{n: v for n, v in values.items() if n in Stats._fields}) if cfg.name == "batch" else None
            x = torch.ones(T, B, D)
            return getattr(module, cell)(x, *(values[n] for n in states), p, cfg, values["lengths"], stats)

        run(given)
        for name, value in given.items():
            others = [
                torch.cat([value, value[:1]]),
                value[:-1],
                value.to(torch.float16),
                value.to("meta"),
                value.unsqueeze(0),
            ]
            for other in others:
                with pytest.raises(ValueError, match=r"must be .* but is|holds no memory") as caught:
                    run(given | {name: other})
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_hooks_may_bring_saved_tensors_back_with_other_strides(cell: str, norm: str, backend: str) -> None:
    usable(backend, cell, NormConfig(norm))
    hooked(backend, cell, NormConfig(norm))


def test_freed_memory_and_lazy_signs() -> None:
    usable("native", "lstm", NormConfig())
    torch.manual_seed(0)
    model = LSTM(D, H, backend="native")
    x = torch.randn(T, B, D)
    assert torch._neg_view(x).is_neg()
    _close(model(torch._neg_view(x)), model(-x))
    model.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="w_hh holds no memory"):
        model(x)


@pytest.mark.parametrize("backend", ["auto", "torch", "native"])
def test_replaced_parameters_are_refused_in_one_sentence(backend: str) -> None:
    usable("native" if backend == "auto" else backend, "lstm", NormConfig())
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda p: p[:-1],
        lambda p: torch.cat([p, p]),
        lambda p: p.double(),
        lambda p: p.half(),
        lambda p: p.to("meta"),
    ]
    names = [name for name, _ in LSTM(D, H).named_parameters()]
    for name in names:
        for change in changes:
            model = LSTM(D, H, backend=backend)
            model.register_parameter(name, nn.Parameter(change(model.get_parameter(name).detach())))
            with pytest.raises(ValueError, match=r"must be|parameters are"):
                model(torch.randn(T, B, D))


@pytest.mark.parametrize("cls", [LSTMCell, GRUCell])
def test_torch_s_own_cells_get_no_replaced_parameters(cls: type) -> None:
    """They broadcast a bias, and of a matrix on the meta device make numbers."""
    for name, value in cls(D, H, norm="none").named_parameters():
        for change in (lambda p: p[:1], lambda p: p.to("meta")):
            model = cls(D, H, norm="none")
            model.register_parameter(name, nn.Parameter(change(value.detach())))
            with pytest.raises(ValueError, match=r"must be|parameters are"):
                model(torch.randn(B, D))


@torch.no_grad()
@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_torch_s_own_layers_get_no_replaced_parameters(cls: type) -> None:
    """oneDNN's reads past their end."""
    options = {"norm": "none", "num_layers": 2, "bidirectional": True}
    for name, value in cls(D, H, **options).named_parameters():
        for change in (lambda p: p[:1], lambda p: p[:-1], lambda p: p.to("meta")):
            model = cls(D, H, **options)
            model.register_parameter(name, nn.Parameter(change(value.detach())))
            with pytest.raises(ValueError, match=r"must be|parameters are"):
                model(torch.randn(1, B, D))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("end", ["_g", "_v"])
def test_weight_norm_reads_no_part_of_another_size_dtype_or_device(end: str, backend: str) -> None:
    """torch's kernel of weight norm checks nothing, and multiplying g by v would broadcast."""
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda p: p[:-1],
        lambda p: p[:1],
        lambda p: p[0],
        lambda p: p.unsqueeze(0),
        lambda p: torch.cat([p, p]),
        lambda p: p.double(),
        lambda p: p.to("meta"),
    ]
    for change in changes:
        model = LSTM(D, H, norm="weight", backend=backend)
        name = f"weight_hh_l0{end}"
        model.register_parameter(name, nn.Parameter(change(model.get_parameter(name).detach())))
        with pytest.raises(ValueError, match=r"weight_hh_l0_g must have the length of each row of weight_hh_l0_v"):
            model(torch.randn(T, B, D))


def test_a_copy_of_a_model_keeps_working() -> None:
    model, x = LSTM(D, H), torch.randn(T, B, D)
    assert torch.equal(copy.deepcopy(model)(x)[0], model(x)[0])


def test_norms_differ() -> None:
    """The cases above would pass on layers that ignore their norm."""
    outputs = [_model(LSTM, norm)(torch.ones(T, B, D))[0] for norm in ("none", "batch", "layer")]
    for a, b in combinations(outputs, 2):
        assert not torch.allclose(a, b)
