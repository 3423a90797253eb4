"""The recurrent modules and cells: every backend against the reference, torch.nn without norm, batch norm's two modes,
weight norm, and the sentences that bad input gets.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import copy
import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.testing._internal.distributed.fake_pg import FakeStore

import ln
from ln import GRU, LSTM, RNN, GRUCell, LSTMCell, NormConfig, kernels, recompute_statistics, reference
from ln.kernels import BACKENDS, choice
from ln.kernels.gate import GATES
from ln.kernels.torch.sites import chunks
from ln.norms import NORMS
from tests.recurrent_cases import judge, random_params, usable

FAST = [name for name in BACKENDS if name != "reference"]
CONFIGS = {
    "lstm": [
        NormConfig("none"),
        NormConfig("layer"),
        NormConfig("layer", inner_bias=True),
        NormConfig("layer", sites=("cell",)),
        NormConfig("layer", sites=("input", "recurrent")),
        NormConfig("layer", sites=("recurrent",)),
        NormConfig("rms"),
        NormConfig("rms", sites=("cell",)),
        NormConfig("batch"),
        NormConfig("batch", sites=("input", "cell")),
    ],
    "gru": [
        NormConfig("none"),
        NormConfig("layer"),
        NormConfig("layer", inner_bias=True),
        NormConfig("layer", sites=("input",)),
        NormConfig("layer", sites=("recurrent",)),
        NormConfig("rms"),
        NormConfig("rms", sites=("input",)),
        NormConfig("batch"),
        NormConfig("batch", sites=("recurrent",)),
    ],
}
CASES = [(cell, cfg) for cell in CONFIGS for cfg in CONFIGS[cell]]
PROPERTY = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _tensors(cell: str, T: int, B: int, D: int, H: int) -> list[torch.Tensor]:
    return [torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), *[(B, H)] * (2 if cell == "lstm" else 1))]


# Backends against the reference.


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("cell", "cfg"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v.name}-{v.sites}")
@PROPERTY
@given(data=st.data())
def test_backends_agree_with_the_reference(backend: str, cell: str, cfg: NormConfig, data: st.DataObject) -> None:
    usable(backend, cell, cfg)
    sizes = st.sampled_from([1, 2, 3, 5, 8, 17])
    T, D, H = (data.draw(sizes) for _ in range(3))
    # Batch statistics of one or two rows divide by next to nothing; the reference in float32 is no yardstick there.
    B = data.draw(st.sampled_from([4, 5, 17] if cfg.name == "batch" else [1, 2, 5, 17]))
    if min(B, D, H) < 3:
        # One or two units or inputs have next to no variance: 1 / sqrt(eps) would magnify rounding.
        cfg = replace(cfg, eps=0.1)
    bias, recompute, ragged, frozen = (data.draw(st.booleans()) for _ in range(4))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    tensors = _tensors(cell, T, B, D, H)
    p = random_params(cell, cfg, D, H, bias)
    lengths = torch.randint(0, T + 1, (B,)) if ragged else None
    if ragged and cfg.name == "batch":
        lengths[:4] = T
    stats = getattr(reference, cell)(*tensors, p, cfg)[-1] if frozen else None
    judge(backend, cell, tensors, p, cfg, lengths=lengths, stats=stats, recompute=recompute)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_backends_agree_over_several_stretches_of_time(backend: str, cell: str, name: str) -> None:
    # A large eps, since chains of batch statistics magnify rounding.
    cfg, (T, B, H) = NormConfig(name, eps=0.1), (33, 512, 64)
    usable(backend, cell, cfg)
    assert len(chunks(T, B, GATES[cell] * H)) > 1
    torch.manual_seed(0)
    tensors, p = _tensors(cell, T, B, 3, H), random_params(cell, cfg, 3, H)
    judge(backend, cell, tensors, p, cfg, lengths=torch.cat([torch.full((8,), T), torch.arange(B - 8) % (T + 1)]))
    judge(backend, cell, tensors, p, cfg, recompute=True)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_biases_that_enter_together_have_gradients_apart(norm: str) -> None:
    model = LSTM(3, 5, norm=norm, backend="torch")
    biases = [model.bias_ih_l0, model.bias_hh_l0]
    first, second = torch.autograd.grad(model(torch.randn(4, 2, 3))[0].sum(), biases)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_torch_backend_gradients_are_those_of_finite_differences() -> None:
    backend = kernels.load("torch")
    for cell, cfg in CASES:
        cfg = NormConfig(cfg.name, cfg.sites, eps=0.1, inner_bias=cfg.inner_bias)
        torch.manual_seed(1)
        p = random_params(cell, cfg, 2, 2)
        present = {n: v for n, v in p._asdict().items() if v is not None}
        states = _tensors(cell, 2, 3, 2, 2)

        def run(*values, cell=cell, cfg=cfg, names=tuple(present)):
            count = len(values) - len(names)
            params = reference.Params(**dict(zip(names, values[count:], strict=True)))
            return getattr(backend, cell)(*values[:count], params, cfg, torch.tensor([2, 1, 2]))[:-1]

        assert torch.autograd.gradcheck(run, [v.requires_grad_() for v in (*states, *present.values())])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cls", [LSTM, GRU])
@pytest.mark.parametrize("norm", ["none", "weight", "layer", "rms", "batch"])
@settings(PROPERTY, max_examples=3)
@given(data=st.data())
def test_modules_agree_across_backends(backend: str, cls: type, norm: str, data: st.DataObject) -> None:
    usable(backend, cls.__name__.lower(), NormConfig(norm))
    layers, H, D = (data.draw(st.integers(1, 3)) for _ in range(3))
    both, batch_first, ragged = (data.draw(st.booleans()) for _ in range(3))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    T, B = 6, 5
    options = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first, "learn_state": True}
    # A large eps, since one unit has no variance and 1 / sqrt(eps) would magnify what is rounding on both sides.
    cfg = NormConfig(norm, eps=0.1)
    models = [cls(D, H, norm=cfg, backend=name, **options) for name in (backend, "reference")]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(B, T, D) if batch_first else torch.randn(T, B, D)
    # Non-contiguous input, and lengths with some full rows.
    x = torch.stack([x, x], -1)[..., 0]
    lengths = torch.tensor([6, 0, 3, 6, 6]) if ragged else None
    found = []
    for model in models:
        output, state = model(x, lengths=lengths)
        output.square().sum().backward()
        states = state if cls is LSTM else (state,)
        found.append([output, *states, *(p.grad for p in model.parameters()), *(b for b in model.buffers())])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    assert [model.backend_used for model in models] == [backend, "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    usable(backend, "lstm", NormConfig())
    torch.manual_seed(0)
    half = LSTM(5, 7, backend=backend).to(dtype)
    single = LSTM(5, 7, backend="reference")
    single.load_state_dict(half.state_dict())
    x = torch.randn(4, 3, 5).to(dtype)
    output, (h, c) = half(x)
    assert output.dtype == h.dtype == c.dtype == dtype
    wanted, _ = single(x.float())
    wanted = wanted.detach()
    # Computed in float32 and rounded once: no further than one unit of the narrow type.
    assert (output.detach().float() - wanted).abs().max() <= torch.finfo(dtype).eps * max(
        1.0, float(wanted.abs().max())
    )
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in half.parameters())


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_autocast_computes_in_full_and_returns_what_torch_returns(name: str, given: torch.dtype) -> None:
    dtype = torch.promote_types(given, torch.float32)
    model, theirs = (getattr(kind, name)(5, 7, dtype=dtype) for kind in (ln, nn))
    x = torch.randn(*((3, 5) if "Cell" in name else (4, 3, 5))).to(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            wanted = torch.utils._pytree.tree_leaves(theirs(x))
        except RuntimeError as error:  # torch 2.11's LSTM on a CPU without AVX-512
            pytest.skip(f"torch.nn.{name} itself cannot: {error}")
        inside = torch.utils._pytree.tree_leaves(model(x))
    assert [t.dtype for t in inside] == [t.dtype for t in wanted]
    for found, exact in zip(inside, torch.utils._pytree.tree_leaves(model(x.to(dtype))), strict=True):
        assert torch.equal(found, exact.to(found.dtype))


# torch.nn without norm.

PAIRS = [(LSTM, nn.LSTM), (GRU, nn.GRU), (RNN, nn.RNN)]


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("lengths", [None, [6, 3, 1, 5]])
def test_without_norm_equals_torch(backend: str, ours: type, theirs: type, lengths: list[int] | None) -> None:
    if backend != "auto":
        usable(
            backend, ours.__name__.lower(), NormConfig("none"), torch.float64 if backend == "torch" else torch.float32
        )
    dtype = torch.float32 if backend in ("native", "triton") else torch.float64
    torch.manual_seed(0)
    a = theirs(3, 5, 2, bidirectional=True, batch_first=True, dtype=dtype)
    b = ours(3, 5, 2, bidirectional=True, batch_first=True, dtype=dtype, norm="none", backend=backend)
    b.load_state_dict(a.state_dict())
    x = torch.randn(4, 6, 3, dtype=dtype)
    given = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), True, False)
    wanted, wanted_state = a(given)
    if lengths is not None:
        wanted, _ = nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True, total_length=6)
    found, found_state = b(x, lengths=None if lengths is None else torch.tensor(lengths))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found_state, wanted_state)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for (name, p), q in zip(b.named_parameters(), a.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_names_and_init_are_those_of_torch(ours: type, theirs: type) -> None:
    torch.manual_seed(0)
    a = theirs(3, 5, 2, bidirectional=True)
    torch.manual_seed(0)
    b = ours(3, 5, 2, bidirectional=True, norm="none")
    assert list(a.state_dict()) == list(b.state_dict())
    for wanted, found in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(wanted, found)


@pytest.mark.parametrize(("ours", "theirs"), [(LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell)])
def test_cells_without_norm_equal_torch(ours: type, theirs: type) -> None:
    a, b = theirs(3, 5), ours(3, 5, norm="none")
    b.load_state_dict(a.state_dict())
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    state = (h, h.flip(0)) if ours is LSTMCell else h
    torch.testing.assert_close(b(x, state), a(x, state))
    torch.testing.assert_close(b(x), a(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cls", "cell"), [(LSTM, LSTMCell), (GRU, GRUCell)])
@pytest.mark.parametrize("norm", ["none", "weight", "layer", "rms", "batch"])
def test_cells_step_through_the_sequence(backend: str, cls: type, cell: type, norm: str) -> None:
    usable(backend, cls.__name__.lower(), NormConfig(norm))
    torch.manual_seed(0)
    whole, one = cls(3, 5, norm=norm, backend=backend), cell(3, 5, norm=norm, backend=backend)
    one.load_state_dict({name.replace("_l0", ""): value for name, value in whole.state_dict().items()})
    x = torch.randn(4, 6, 3)
    output, _ = whole(x)
    state, outputs = None, []
    for t in range(4):
        state = one(x[t], state, step=t)
        outputs.append(state[0] if cls is LSTM else state)
    torch.testing.assert_close(torch.stack(outputs), output, rtol=1e-4, atol=1e-5)
    output.sum().backward()
    torch.stack(outputs).sum().backward()
    for p, q in zip(one.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    for p, q in zip(one.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


# Parameters.


def test_parameter_names_and_initial_values() -> None:
    model = LSTM(3, 5, norm=NormConfig(inner_bias=True), learn_state=True)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "weight_ih_l0": (20, 3),
        "weight_hh_l0": (20, 5),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
        "inner_bias_ih_l0": (20,),
        "gain_ih_l0": (20,),
        "gain_hh_l0": (20,),
        "gain_c_l0": (5,),
        "bias_c_l0": (5,),
        "h0_l0": (5,),
        "c0_l0": (5,),
    }
    assert model.gain_c_l0.eq(1).all()
    assert not model.bias_ih_l0.any()
    assert model.inner_bias_ih_l0.all()
    assert GRU(3, 5, norm="batch").gain_ih_l0.eq(0.1).all()
    assert not any("bias" in name for name, _ in LSTM(3, 5, bias=False).named_parameters())


def test_weight_norm_starts_as_the_plain_layer_and_scales_rows() -> None:
    torch.manual_seed(0)
    plain = LSTM(3, 5, norm="none")
    torch.manual_seed(0)
    model = LSTM(3, 5, norm="weight")
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(model(x)[0], plain(x)[0])
    assert tuple(model.weight_hh_l0_g.shape) == (20, 1)
    with torch.no_grad():
        model.weight_ih_l0_v.mul_(torch.linspace(0.5, 3, 20).unsqueeze(1))  # the length of v is without effect
    torch.testing.assert_close(model(x)[0], plain(x)[0])


@pytest.mark.parametrize("strict", [True, False])
def test_weights_load_into_weight_norm_and_back(strict: bool) -> None:
    torch.manual_seed(0)
    plain, x = nn.LSTM(3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
    model = nn.Sequential(LSTM(3, 5, 2, bidirectional=True, norm="weight"))
    given = {f"0.{name}": value for name, value in plain.state_dict().items()}
    keys = list(given)
    missing, unexpected = model.load_state_dict(given, strict=strict)
    assert not missing
    assert not unexpected
    assert list(given) == keys
    torch.testing.assert_close(model(x)[0], plain(x)[0])
    back = LSTM(3, 5, 2, bidirectional=True, norm="none")
    back.load_state_dict(model[0].state_dict(), strict=strict)
    torch.testing.assert_close(back.weight_hh_l1, plain.weight_hh_l1)
    given["0.weight_ih_l0"][3] = 0
    with pytest.raises(ValueError, match="row 3 of weight_ih_l0 has length 0"):
        model.load_state_dict(given)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_under_torch_s_own_weight_norm_loads_its_own_state() -> None:
    layer, other = (nn.utils.weight_norm(LSTM(3, 5), "weight_hh_l0") for _ in range(2))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 2, 3)
    assert torch.equal(other(x)[0], layer(x)[0])


def test_reset_parameters_forgets_the_batches_seen() -> None:
    model = LSTM(3, 5, norm="batch")
    fresh = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 6, 3))
    assert any(not torch.equal(buffer, fresh[name]) for name, buffer in model.named_buffers())
    model.reset_parameters()
    assert all(torch.equal(buffer, fresh[name]) for name, buffer in model.named_buffers())


def test_learned_initial_state_is_used_and_trained() -> None:
    model = LSTM(3, 5, 2, bidirectional=True, learn_state=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith(("h0", "c0")):
                p.normal_()
    state = tuple(
        torch.stack([getattr(model, f"{s}_{e}") for e in ("l0", "l0_reverse", "l1", "l1_reverse")])[:, None].expand(
            4, 2, 5
        )
        for s in ("h0", "c0")
    )
    x = torch.randn(4, 2, 3)
    output, _ = model(x)
    assert torch.equal(output, model(x, state)[0])
    output.sum().backward()
    assert model.c0_l1_reverse.grad.any()


def test_dropout_acts_between_layers_in_training_only() -> None:
    model, x = LSTM(3, 5, 2, dropout=1.0), torch.randn(4, 2, 3)
    lower = LSTM(3, 5, 2)
    lower.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x)[0], lower(x)[0])
    with torch.no_grad():
        model.weight_ih_l1.zero_()
    wanted = model(x)[0]
    assert torch.equal(model.train()(x)[0], wanted)


@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_padding_has_no_effect_whatever_it_holds(cls: type) -> None:
    model, lengths = cls(3, 5, bidirectional=True), torch.tensor([4, 2, 0])
    x = torch.randn(4, 3, 3)
    dirty = x.clone()
    dirty[2:, 1], dirty[:, 2] = float("nan"), float("inf")
    dirty.requires_grad_()
    output, state = model(dirty, lengths=lengths)
    torch.testing.assert_close((output, state), model(x, lengths=lengths))
    output.sum().backward()
    assert dirty.grad.isfinite().all()
    assert not dirty.grad[2:, 1].any()


def test_recompute_gives_the_same_gradients() -> None:
    for cls in (LSTM, GRU):
        models = [cls(3, 5, backend="torch", recompute=flag, dtype=torch.float64) for flag in (False, True)]
        models[1].load_state_dict(models[0].state_dict())
        x = torch.randn(30, 4, 3, dtype=torch.float64)
        for model in models:
            model(x)[0].square().sum().backward()
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)


def test_the_backward_pass_can_run_twice() -> None:
    model = LSTM(3, 5, backend="torch")
    loss = model(torch.randn(4, 2, 3))[0].sum()
    first = torch.autograd.grad(loss, model.weight_hh_l0, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, model.weight_hh_l0)[0])


# Batch norm.


@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_batch_norm_keeps_statistics_per_step(cls: type) -> None:
    torch.manual_seed(0)
    model, x = cls(3, 5, norm=NormConfig("batch", max_steps=7)), torch.randn(4, 6, 3)
    trained, _ = model(x)
    assert model.batches_tracked_l0.tolist() == [1, 1, 1, 1]
    z = x @ model.weight_ih_l0.T
    if cls is not RNN:
        torch.testing.assert_close(model.running_mean_ih_l0[:4], z.mean(1))
        torch.testing.assert_close(model.running_var_ih_l0[:4], z.var(1, correction=0))
    # One batch seen: its statistics are the population's.
    torch.testing.assert_close(model.eval()(x)[0], trained)
    assert model.batches_tracked_l0.sum() == 4


def test_batch_norm_moves_its_averages_by_momentum() -> None:
    model = LSTM(3, 5, norm=NormConfig("batch", momentum=0.5))
    batches = [torch.randn(4, 6, 3) for _ in range(3)]
    for x in batches:
        model(x)
    means = [(x @ model.weight_ih_l0.T).mean(1) for x in batches]
    torch.testing.assert_close(model.running_mean_ih_l0[:4], (means[0] + means[1]) / 4 + means[2] / 2)


@pytest.mark.parametrize("set_default", [torch.set_default_dtype, torch.set_default_device])
def test_torchs_defaults_do_not_matter_to_averages_and_lengths(set_default) -> None:
    model, x = LSTM(3, 5, norm=NormConfig("batch", momentum=0.001)), torch.randn(4, 6, 3)
    model(x)
    other = copy.deepcopy(model)
    lengths = [2, 1, 4, 2, 2, 2]
    for _ in range(2):
        model(x, lengths=lengths)
    try:
        set_default(torch.float16 if set_default is torch.set_default_dtype else "meta")
        for _ in range(2):
            other(x, lengths=lengths)
    finally:
        set_default(torch.float32 if set_default is torch.set_default_dtype else None)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_batch_norm_reuses_the_last_trained_step_beyond_it() -> None:
    torch.manual_seed(0)
    model = LSTM(3, 5, norm=NormConfig("batch", max_steps=10))
    model(torch.randn(4, 6, 3))
    model.eval()
    x = torch.randn(13, 6, 3)
    long, _ = model(x)
    repeated = {
        name: torch.cat([value, *[value[-1:]] * 6]) if value.shape[0] == 4 else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(repeated)
    assert len(model.batches_tracked_l0) == 10
    torch.testing.assert_close(model(x)[0], long)


def test_batch_norm_keeps_as_many_steps_as_it_has_seen() -> None:
    torch.manual_seed(0)
    model = LSTM(3, 64, norm="batch")
    held = dict(model.named_buffers())
    model(torch.randn(4, 6, 3))
    model(torch.randn(7, 6, 3))
    assert model.batches_tracked_l0.tolist() == [2] * 4 + [1] * 3
    assert all(held[name] is buffer for name, buffer in model.named_buffers())
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    parameters = sum(4 * p.numel() for p in model.parameters())
    assert saved.tell() < parameters + 4 * 7 * 2 * (2 * 256 + 64) + 10_000
    for fresh in (LSTM(3, 64, norm="batch"), copy.deepcopy(model)):
        fresh.load_state_dict(model.state_dict())
        x = torch.randn(9, 6, 3)
        assert torch.equal(fresh.eval()(x)[0], copy.deepcopy(model).eval()(x)[0])
    fewer = LSTM(3, 64, norm=NormConfig("batch", max_steps=5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        fewer.load_state_dict(model.state_dict())


def test_batch_norm_grows_out_of_a_mapped_file(tmp_path) -> None:
    model, x = LSTM(3, 5, norm="batch"), torch.randn(6, 6, 3)
    model(x[:4])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    mapped = LSTM(3, 5, norm="batch")
    mapped.load_state_dict(torch.load(tmp_path / "model.pt", mmap=True), assign=True)
    for layer in (model, mapped):
        layer(x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), mapped.buffers(), strict=True))


def test_batch_norm_in_shared_memory_keeps_to_the_steps_reserved() -> None:
    model, x = LSTM(3, 5, norm="batch").share_memory(), torch.randn(6, 6, 3)
    with pytest.raises(RuntimeError, match=r"in shared memory, where they cannot become 6 steps long; call reserve_st"):
        model(x)
    alone = copy.deepcopy(model)
    model = copy.deepcopy(model)
    model.reserve_steps(7)
    model.share_memory()
    addresses = [buffer.data_ptr() for buffer in model.buffers()]
    for layer in (model, alone):
        layer(x)
        layer(x[:4])
    assert [buffer.data_ptr() for buffer in model.buffers()] == addresses
    assert model.batches_tracked_l0.is_shared()
    assert model.batches_tracked_l0.tolist() == [2, 2, 2, 2, 1, 1, 0]
    assert all(torch.equal(a[:6], b) for a, b in zip(model.buffers(), alone.buffers(), strict=True))
    assert torch.equal(model.eval()(torch.cat([x, x]))[0], alone.eval()(torch.cat([x, x]))[0])


def test_batch_norm_does_not_grow_in_one_of_several_processes() -> None:
    store = FakeStore()
    torch.distributed.init_process_group("fake", store=store, rank=0, world_size=2)
    try:
        model = GRU(3, 5, norm=NormConfig("batch", max_steps=6))
        with pytest.raises(RuntimeError, match=r"step 4 for the first time in one of 2 processes.* reserve_steps\(T\)"):
            model(torch.randn(4, 6, 3))
        model.reserve_steps(4)
        model(torch.randn(4, 6, 3))
    finally:
        torch.distributed.destroy_process_group()
    model(torch.randn(5, 6, 3))
    model.reserve_steps(2)
    assert model.batches_tracked_l0.tolist() == [2] * 4 + [1]
    with pytest.raises(ValueError, match="at most max_steps=6, but is 7"):
        model.reserve_steps(7)


def test_batch_norm_refuses_to_train_beyond_max_steps() -> None:
    model = LSTM(3, 5, norm=NormConfig("batch", max_steps=4))
    with pytest.raises(ValueError, match=r"max_steps=4 steps, but training reached step 5"):
        model(torch.randn(5, 6, 3))
    cell = GRUCell(3, 5, norm=NormConfig("batch", max_steps=4))
    with pytest.raises(ValueError, match="max_steps=4"):
        cell(torch.randn(6, 3), step=4)
    with pytest.raises(ValueError, match="step=0, 1, 2"):
        cell(torch.randn(6, 3))
    assert model.eval()(torch.randn(5, 6, 3))[0].isfinite().all()


def test_batch_norm_counts_only_the_steps_that_some_row_reaches() -> None:
    model = LSTM(3, 5, norm="batch")
    model(torch.randn(4, 6, 3), lengths=torch.tensor([2, 1, 2, 0, 2, 2]))
    assert model.batches_tracked_l0.tolist() == [1, 1, 0, 0]


def test_a_call_that_is_refused_makes_no_room_for_its_steps() -> None:
    model = LSTM(3, 5, norm="batch")
    with pytest.raises(ValueError, match=r"0 ... T = 4"):
        model(torch.randn(4, 6, 3), lengths=[5] * 6)
    assert model.batches_tracked_l0.tolist() == [0]


def test_a_cell_that_skips_a_step_keeps_the_last_one_trained() -> None:
    torch.manual_seed(0)
    cell = GRUCell(3, 5, norm=NormConfig("batch", sites=("input",)))
    for step in (1, 2):
        cell(torch.randn(6, 3) + 4 * step, step=step)
    assert cell.batches_tracked.tolist() == [0, 1, 1]
    cell.eval()
    for step, row in ((1, 1), (2, 2), (7, 2)):
        given = cell.population("", step, 1, torch.float32)
        assert torch.equal(given.mean_ih[0], cell.running_mean_ih[row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_statistics_are_means_over_all_batches(backend: str) -> None:
    usable(backend, "lstm", NormConfig("batch"))
    torch.manual_seed(0)
    model = nn.Sequential(LSTM(3, 5, norm="batch", backend=backend))
    model(torch.randn(4, 6, 3))
    batches = [torch.randn(4, 6, 3) + k for k in range(3)]
    recompute_statistics(model, batches)
    layer = model[0]
    means = torch.stack([(x @ layer.weight_ih_l0.T).mean(1) for x in batches])
    torch.testing.assert_close(layer.running_mean_ih_l0[:4], means.mean(0))
    assert layer.batches_tracked_l0.tolist() == [3, 3, 3, 3]
    assert model.training
    before = layer.running_mean_ih_l0.clone()
    model.eval()(batches[0])
    assert torch.equal(layer.running_mean_ih_l0, before)


@pytest.mark.parametrize(("shapes", "message"), [([], "at least one batch"), ([(7, 6, 3), (4, 6, 2)], "D = 3")])
def test_statistics_that_cannot_be_recomputed_stay(shapes: list[tuple[int, ...]], message: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LSTM(3, 5, norm="batch"))
    for T in (2, 4):
        model(torch.randn(T, 6, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        recompute_statistics(model, [torch.randn(shape) for shape in shapes])
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training
    model(torch.randn(4, 6, 3))
    assert model[0].batches_tracked_l0.tolist() == [3, 3, 2, 2]


# Bad input: one sentence each.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.randn(4, 2, 1, 3)), r"input must be \(T, B, D\) with D = 3, but is \(4, 2, 1, 3\)"),
        (lambda m: m(torch.randn(4, 3), (torch.zeros(1, 1, 5),) * 2), r"without a batch hx must be \(L, H\)"),
        (lambda m: m(torch.randn(4, 3), lengths=[4]), "as long as it is"),
        (lambda m: m(pack_sequence([torch.randn(4, 3)]), lengths=[4]), "brings its own lengths"),
        (lambda m: m(torch.randn(4, 2, 5)), r"input must be \(T, B, D\) with D = 3, but is \(4, 2, 5\)"),
        (lambda m: m(torch.randn(0, 2, 3)), "at least one step"),
        (lambda m: m(torch.randn(4, 2, 3, dtype=torch.float64)), "input is torch.float64"),
        (lambda m: m(torch.randn(4, 2, 3, device="meta")), "input is on meta, but the parameters are on cpu"),
        (lambda m: m(torch.randn(4, 2, 3), torch.zeros(1, 2, 5)), r"pair \(h, c\), each \(L, B, H\)"),
        (lambda m: m(torch.randn(4, 2, 3), (torch.zeros(2, 5),) * 2), r"h0 must be \(L, B, H\) = \(1, 2, 5\)"),
        (lambda m: m(torch.randn(4, 2, 3), (torch.zeros(1, 2, 5).double(),) * 2), "h0 is torch.float64"),
        (lambda m: m(torch.randn(4, 2, 3), (torch.zeros(1, 2, 5, device="meta"),) * 2), "h0 is on meta"),
        (lambda m: m(torch.randn(4, 2, 3), lengths=torch.tensor([5, 1])), r"0 ... T = 4, but range over 1 ... 5"),
        (lambda m: m(torch.randn(4, 2, 3), lengths=torch.tensor([-1, 1])), r"0 ... T = 4, but range over -1 ... 1"),
        (lambda m: m(torch.randn(4, 2, 3), lengths=torch.tensor([1])), r"lengths must be \(B,\) = \(2,\) integers"),
        (lambda m: m(torch.randn(4, 2, 3), lengths=torch.tensor([1.0, 2.0])), "integers"),
        (lambda m: GRU(3, 5, norm=NormConfig(sites=("cell",))), "site 'cell' does not exist in gru"),
        (lambda m: LSTM(3, 0), "hidden_size=0"),
        (lambda m: LSTM(0, 5), "input_size=0"),
        (lambda m: LSTM(3, 5, 0), "num_layers=0"),
        (lambda m: LSTM(3, 5, dropout=2.0), "dropout=2.0"),
        (lambda m: RNN(3, 5, nonlinearity="elu"), "nonlinearity=elu"),
        (lambda m: LSTM(3, 5, proj_size=2), "proj_size=2 is not supported"),
        (lambda m: LSTM(3, 5, norm="weight").set_weight("weight_hh_l0", torch.zeros(20, 5)), "row 0 of weight_hh_l0"),
        (lambda m: LSTM(3, 5, norm="batch")(torch.randn(4, 1, 3)), "at least 2 cases for its statistics, but B = 1"),
        (lambda m: GRUCell(3, 5, norm="batch")(torch.randn(1, 3), step=0), "at least 2 cases"),
        (lambda m: LSTMCell(3, 5)(torch.randn(2, 2, 3)), r"input must be \(B, D\) with D = 3"),
        (lambda m: GRUCell(3, 5)(torch.randn(2, 3), torch.zeros(3, 5)), r"h must be \(B, H\) = \(2, 5\)"),
        (lambda m: LSTM(3, 5, backend="cuda"), "backend=cuda is not a backend; choose one of auto"),
        (lambda m: LSTM(3, 5, norm=["layer"]), r"norm=\['layer'\] is not a normalization; choose one of none"),
        (lambda m: NormConfig(sites="cell"), r"sites='cell' must be a tuple of names, such as \('cell',\)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(LSTM(3, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional", "learn_state", "recompute"])
@pytest.mark.parametrize("value", ["False", 1, None, 0.0])
def test_flags_are_true_or_false(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False, but is {value!r}"):
        LSTM(3, 5, **{name: value})


def test_sizes_and_options_of_another_kind() -> None:
    for call, message in (
        (lambda: LSTM(3.0, 5), "input_size must be an int, but is 3.0"),
        (lambda: GRU(3, True), "hidden_size must be an int, but is True"),
        (lambda: LSTM(3, 5, "2"), "num_layers must be an int, but is '2'"),
        (lambda: LSTM(3, 5, dropout=True), "dropout must be a number"),
        (lambda: LSTM(3, 5)([[[1.0, 2, 3]]]), r"input must be a tensor \(T, B, D\), but is a list"),
        (lambda: GRUCell(3, 5)([[1.0, 2, 3]]), r"input must be a tensor \(B, D\), but is a list"),
        (lambda: LSTMCell(3, 5)(torch.randn(2, 3), step=1.5), "step must be an int, but is 1.5"),
        (lambda: LSTM(3, 5)(torch.randn(4, 3, 3), lengths="abc"), r"lengths must be \(B,\) = \(3,\) integers"),
        (lambda: LSTM(3, 5, nonlinearity="relu"), "unexpected keyword argument 'nonlinearity'"),
        (lambda: GRU(3, 5, proj_size=0), "unexpected keyword argument 'proj_size'"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_numbers_of_other_libraries_are_taken() -> None:
    layer = LSTM(np.int64(3), 5, 2, dropout=np.float32(0.5))
    assert layer(torch.randn(4, 2, 3))[0].shape == (4, 2, 5)
    assert LSTMCell(3, 5, norm="batch")(torch.randn(2, 3), step=np.int64(1))[0].shape == (2, 5)


def test_a_batch_of_no_sequences_has_no_lengths() -> None:
    assert LSTM(3, 5)(torch.randn(4, 0, 3), lengths=[])[0].shape == (4, 0, 5)


def test_attributes_are_those_of_torch() -> None:
    for ours, theirs in (*PAIRS, (partial(RNN, nonlinearity="relu"), partial(nn.RNN, nonlinearity="relu"))):
        assert all(getattr(ours(3, 5), name) == getattr(theirs(3, 5), name) for name in ("mode", "proj_size"))


def test_positional_arguments_are_in_the_order_of_torch() -> None:
    """The fourth of an RNN is its nonlinearity: passed on as a flag it would be the default, tanh, in silence."""
    torch.manual_seed(0)
    theirs = nn.RNN(5, 6, 2, "relu", True, True, 0.0, True)
    ours = RNN(5, 6, 2, "relu", True, True, 0.0, True, norm="none")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    for a, b, projection in ((LSTM, nn.LSTM, [0]), (GRU, nn.GRU, [])):
        # torch.nn.GRU hands a proj_size of its own on between the two.
        options = (5, 6, 2, False, True, 0.0, True)
        plain = a(*options, *projection, "cpu", torch.float64, norm="none")
        wanted = b(*options, device="cpu", dtype=torch.float64)
        assert [p.shape for p in plain.parameters()] == [p.shape for p in wanted.parameters()]
        assert plain.weight_hh_l0.dtype == torch.float64
        assert not plain.bias
    for a, b in ((LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell)):
        shapes = [
            [p.shape for p in c(5, 6, False, "cpu", torch.float64).parameters()] for c in (partial(a, norm="none"), b)
        ]
        assert shapes[0] == shapes[1]


# The choice of a backend.


def test_a_backend_that_cannot_run_a_layer_says_so() -> None:
    with pytest.raises(RuntimeError, match="backend=torch cannot run rnn with norm=layer on cpu in float32: it has no"):
        RNN(3, 5, backend="torch")(torch.randn(4, 2, 3))


def test_the_choice_is_logged_once_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    choice._choose.cache_clear()
    model = GRU(3, 5, backend="torch")
    with caplog.at_level(logging.INFO, logger="ln"):
        model(torch.randn(4, 2, 3))
        model(torch.randn(4, 2, 3))
    assert [record.message for record in caplog.records] == [
        "backend torch runs gru with norm=layer on cpu in float32, as asked for"
    ]
    assert model.backend_used == "torch"


def test_without_a_compiler_auto_takes_torch_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice._choose.cache_clear()
    monkeypatch.setattr(kernels.load("native"), "available", lambda: "there is no g++")
    model = LSTM(3, 5)
    with caplog.at_level(logging.WARNING, logger="ln"):
        model(torch.randn(4, 2, 3))
    assert model.backend_used == "torch"
    assert "not native: there is no g++" in caplog.text
    plain = LSTM(3, 5, norm="none")
    plain(torch.randn(4, 2, 3))
    choice._choose.cache_clear()
    assert plain.backend_used == "torch.nn"  # oneDNN's, faster than our loop in Python


def test_importing_the_layers_is_light() -> None:
    code = "import sys, ln; print([m for m in ('hydra', 'wandb', 'matplotlib', 'triton') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert ln.LSTM is LSTM


@pytest.mark.parametrize("norm", NORMS)
def test_prepared_cells_take_the_same_steps(norm: str) -> None:
    torch.manual_seed(0)
    cell = LSTMCell(3, 4, norm=norm, backend="reference", dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        state = None
        for t in range(5):
            state = cell(x[t], state, t)
        assert state is not None
        return [state[0].detach(), *torch.autograd.grad(state[0].sum(), list(cell.parameters()), allow_unused=True)]

    plain = run()
    with cell.prepared():
        prepared = run()
    for a, b in zip(plain, prepared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# --- the scalar input


@pytest.mark.parametrize("make", [LSTM, GRU, LSTMCell, GRUCell])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_scalar_input_that_loses_its_size_is_warned_of_where_the_layer_is_made(
    make: Callable[..., nn.Module], norm: str
) -> None:
    with pytest.warns(UserWarning, match=f"norm={norm} keeps only the sign of a scalar input") as said:
        layer = make(1, 5, norm=norm)
    assert [warning.filename for warning in said] == [__file__]
    x = torch.rand(3, 1) + 0.5  # (T, D) of a layer, (B, D) of a cell
    torch.testing.assert_close(layer(10 * x)[0], layer(1000 * x)[0], atol=1e-3, rtol=0)  # so it is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(1, 5, norm=NormConfig(norm, inner_bias=True))
        make(1, 5, norm=NormConfig(norm, sites=("recurrent",)))
        make(1, 5, norm="none")
        make(1, 5, norm="batch")
        make(2, 5, norm=norm)
