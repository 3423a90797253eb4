"""Backend `native`: LSTM, GRU and RNN in C++ for the CPU (native.cpp), with the signatures of `ln.reference`.

Shapes: T time, B batch, D input, H hidden, G gates (LSTM 4H: i f g o; GRU 3H: r z n; RNN H). float32 only; first order
only.
Long sequences can be run with recompute=True: only states are stored, and summed inputs are computed again in backward.
Of sequences with `lengths` only the real steps are computed: the batch is put in order, longest first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ln.kernels import gate
from ln.kernels.contract import Call, statistics_shapes
from ln.kernels.native import build as native_build
from ln.kernels.native.call import STATISTICS_BITS, Args, NativeCall, as_it_lies, point, prepared, what_is_stored
from ln.kernels.native.memory import MEMORY, POOL
from ln.norms import NormConfig, Statistics, refusal
from ln.reference import Params, Stats

name = "native"
_IMPLEMENTED = (
    Statistics("features", centred=True),
    Statistics("features", centred=False),
    Statistics("batch", centred=True),
)


def available() -> str | None:
    """None where the library is there or could be compiled (on first use, in seconds), else why not."""
    try:
        native_build.load()
    except native_build.BuildError as error:
        return str(error)
    return None


def supports(cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where this backend can run such a layer, else why not."""
    if device.type != "cpu":
        return f"native runs on the CPU, not on {device.type}"
    if dtype != torch.float32:
        return f"native computes in float32, not in {str(dtype).removeprefix('torch.')}"
    return refusal(cell, cfg, _IMPLEMENTED)


def _run(a: Args, backward: bool) -> None:
    library = native_build.load()
    work = POOL.empty(library.ln_work_size(ctypes.byref(a), int(backward)))
    a.work = work.data_ptr()
    (library.ln_backward if backward else library.ln_forward)(ctypes.byref(a))


@dataclass
class _Saved:
    """What a backward pass needs beside the inputs. hs (T+1, B, H) starts with h0 and continues as the output."""

    hs: Tensor
    c: Tensor | None
    ax: Tensor | None
    ah: Tensor | None
    rs: Tensor | None
    stats: Stats | None
    groups: int

    def tensors(self) -> list[Tensor | None]:
        return [self.hs, self.c, self.ax, self.ah, self.rs, *(self.stats or ())]

    @classmethod
    def of(cls, tensors: list[Tensor | None], groups: int) -> _Saved:
        hs, c, ax, ah, rs, *stats = tensors
        assert hs is not None
        return cls(hs, c, ax, ah, rs, Stats(*stats) if stats else None, groups)


def _forward(
    call: NativeCall, x: Tensor, h0: Tensor, c0: Tensor | None, *parameters: Tensor | None
) -> tuple[_Saved, list[Tensor]]:
    params = dict(zip(call.kind.parameters, parameters, strict=True))
    (T, B, D), H = x.shape, h0.shape[1]
    a = call.args(x, c0, params, T, B, D, H)
    G = gate.GATES[call.cell] * H
    # A thread owns units under batch norm; fewer than 16 of them would leave its vectors empty.
    a.groups = max(1, min(a.threads, H // 16)) if a.columns and not call.external else 1
    hs = POOL.empty(T + 1, B, H)
    hs[0] = h0
    out = torch.from_numpy(hs.numpy()[1:])  # the same memory, but no view to autograd, so users may change it in place
    c = POOL.empty(T, B, H) if call.cell == "lstm" else None
    ax: Tensor | None
    ah: Tensor | None
    if call.external:
        assert parameters[0] is not None
        assert parameters[1] is not None
        of_x, of_h = F.linear(x[0], parameters[0], params["inner"]), F.linear(h0, parameters[1])
        ax, ah = (None, of_h.add_(of_x)) if call.kind.joint else (of_x, of_h)
    else:
        ah, ax = (POOL.empty(call.rows, G) if name in call.stored else None for name in ("ah", "ax"))
    rs = None if a.columns else POOL.empty(T, B, 8)
    stats = call.given
    if a.columns and stats is None:
        on = [a.sites & STATISTICS_BITS[name[-1]] for name in call.kind.statistics]
        stats = Stats(*(torch.zeros(T, G if i < 4 else H, **MEMORY) if on[i] else None for i in range(6)))
    last = [torch.empty(B, H, **MEMORY) for _ in range(2 if call.cell == "lstm" else 1)]
    tensors = {"hs": hs, "c": c, "ax": ax, "ah": ah, "rs": rs, "h_last": last[0], "c_last": last[-1]}
    for name, tensor in {**tensors, **dict(zip(call.kind.statistics, stats or (), strict=False))}.items():
        point(a, name, tensor)
    _run(a, backward=False)
    return _Saved(hs, c, ax, ah, rs, stats, a.groups), [out, *last]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: NativeCall, x: Tensor, h0: Tensor, c0: Tensor | None, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        saved, outputs = _forward(call, x, h0, c0, *parameters)
        ctx.call, ctx.groups = call, saved.groups
        # The output, so that a change in place is noticed; h0 for its own graph alone, since hs begins with its values.
        # All of it through autograd, which lets go of it after the backward pass and gives it to checkpoints and hooks.
        inputs = (x, h0 if h0.requires_grad else None, c0, *parameters)
        ctx.save_for_backward(outputs[0], *inputs, *saved.tensors())
        ctx.set_materialize_grads(False)
        measured = () if saved.stats is None or call.given is not None else saved.stats
        ctx.mark_non_differentiable(*(s for s in measured if s is not None))
        return (*outputs, *measured)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call = ctx.call
        grads = grads[: 3 if call.cell == "lstm" else 2]  # what follows are statistics
        # A hook on saved tensors may bring them back with other strides.
        _, x, h0, c0, *tensors = (None if t is None else as_it_lies(t) for t in ctx.saved_tensors)
        parameters, saved = tensors[: len(Params._fields)], _Saved.of(tensors[len(Params._fields) :], ctx.groups)
        if gate.differentiates_further(grads):
            inputs = (x, saved.hs[0] if h0 is None else h0, c0, *parameters)
            lengths, needed = call.ragged and call.ragged.lengths, ctx.needs_input_grad[1:]
            return None, *gate.reference_gradients(
                call.cell, call.cfg, lengths, call.given, inputs, needed, grads, call.nonlinearity
            )
        return None, *_backward(call, saved, (x, saved.hs[0], c0, *parameters), ctx.needs_input_grad[1:], grads)


def _backward(
    call: NativeCall,
    saved: _Saved,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of the inputs (x, h0, c0, parameters) that are needed, from those of the output, h and c."""
    x, _, c0, *parameters = inputs
    assert x is not None
    params = dict(zip(call.kind.parameters, parameters, strict=True))
    (T, B, D), H = x.shape, saved.hs.shape[2]
    a = call.args(x, c0, params, T, B, D, H)
    a.groups = saved.groups
    dout, dh_last, dc_last = (*(None if g is None else as_it_lies(g) for g in grads), None)[:3]
    names = ("x", "h0", "c0", *call.kind.parameters)
    found: dict[str, Tensor | None] = {}
    # What torch computes from d(ax) and d(ah) of a single step is left out here.
    by_torch = ("x", "w_ih", "w_hh", "inner") if call.external else ()
    for name, tensor, need in zip(names, inputs, needed, strict=True):
        wanted = need and tensor is not None and name not in by_torch
        found[name] = POOL.empty(*tensor.shape) if wanted else None  # type: ignore[union-attr]
        point(a, f"d{name}", found[name])
    w_ih, w_hh = params["w_ih"], params["w_hh"]
    assert w_ih is not None
    assert w_hh is not None
    if call.external:
        dah = torch.empty(B, len(w_hh), **MEMORY)
        dax = dah if call.kind.joint else torch.empty_like(dah)
        point(a, "dax", dax)
        point(a, "dah", dah)
    tensors = {"hs": saved.hs, "c": saved.c, "ax": saved.ax, "ah": saved.ah, "rs": saved.rs}
    tensors |= {"dout": dout, "dh_last": dh_last, "dc_last": dc_last}
    for name, tensor in {**tensors, **dict(zip(call.kind.statistics, saved.stats or (), strict=False))}.items():
        point(a, name, tensor)
    _run(a, backward=True)
    if call.external:
        needs = dict(zip(names, needed, strict=True))
        found["x"] = (dax @ w_ih)[None] if needs["x"] else None
        found["w_ih"] = torch.mm(dax.t(), x[0], out=POOL.empty(*w_ih.shape)) if needs["w_ih"] else None
        found["w_hh"] = torch.mm(dah.t(), saved.hs[0], out=POOL.empty(*w_hh.shape)) if needs["w_hh"] else None
        found["inner"] = dax.sum(0) if needs["inner"] else None
        if (d_h0 := found["h0"]) is not None:
            d_h0.addmm_(dah, w_hh)
    return [found[name] for name in names]


def _sequence(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None,
    stats: Stats | None,
    recompute: bool,
    nonlinearity: str = "tanh",
) -> tuple[list[Tensor], Stats | None]:
    gate.check_call("native", cell, x, h0, c0, p, stats, lengths)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *p))
    call, inputs = prepared(Call(cell, cfg, lengths, stats, recompute, keep, nonlinearity), x, h0, c0, p)
    if keep:
        count = 3 if cell == "lstm" else 2
        found = _Sequence.apply(call, *inputs)
        outputs, measured = list(found[:count]), found[count:]
        used = Stats(*measured) if measured else call.given
    else:
        saved, outputs = _forward(call, *inputs)  # type: ignore[arg-type]
        used = saved.stats
    return outputs if call.ragged is None else [call.ragged.restore(t) for t in outputs], used


def result_shapes(call: Call, x: Tensor, h0: Tensor) -> dict[str, tuple[int, ...]]:
    """See `Operable`: hs, h, c, the statistics, and what else is in `_Saved`."""
    (T, B, D), H = x.shape, h0.shape[1]
    G = gate.GATES[call.cell] * H
    shapes: dict[str, tuple[int, ...]] = {"hs": (T + 1, B, H), "h_last": (B, H)}
    if call.cell == "lstm":
        shapes["c_last"] = (B, H)
    shapes |= statistics_shapes(call, T, H, G)
    if not call.keep:
        return shapes
    if call.cell == "lstm":
        shapes["c"] = (T, B, H)
    shapes |= {"groups": (1,)} if call.cfg.traits.axis == "batch" else {"rs": (T, B, 8)}
    return shapes | {name: (T * B, G) for name in what_is_stored(call, T * B, D, G, H)}


def forward(call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params) -> list[Tensor]:
    """See `Operable`."""
    gate.check_call("native", call.cell, x, h0, c0, p, call.given, call.lengths)
    own, inputs = prepared(call, x, h0, c0, p, operator=True)
    saved, (_, *last) = _forward(own, *inputs)  # type: ignore[arg-type]
    groups = torch.tensor([float(saved.groups)], **MEMORY)
    found = {**vars(saved), **(saved.stats or Stats())._asdict(), "groups": groups}
    found |= dict(zip(("h_last", "c_last"), last, strict=False))
    if own.ragged is not None:
        found |= {name: own.ragged.restore(found[name]) for name in ("hs", "h_last", "c_last") if name in found}
    return [found[name] for name in result_shapes(call, x, h0)]


def backward(
    call: Call,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    p: Params,
    results: dict[str, Tensor],
    grads: Sequence[Tensor | None],
    wanted: set[str],
) -> dict[str, Tensor]:
    """See `Operable`."""
    own, inputs = prepared(call, x, h0, c0, p, operator=True)
    hs: Tensor | None = results["hs"]
    if own.ragged is not None:
        hs, grads = own.ragged.sort(hs), [own.ragged.sort(grad) for grad in grads]
    assert hs is not None
    c, ax, ah, rs = (results.get(name) for name in ("c", "ax", "ah", "rs"))
    stats = Stats(*(results.get(name) for name in Stats._fields)) if own.given is None else own.given
    saved = _Saved(hs, c, ax, ah, rs, stats, int(results["groups"]) if "groups" in results else 1)
    names = ("x", "h0", "c0", *Params._fields)
    gradients = _backward(own, saved, inputs, [name in wanted for name in names], grads)
    found = {name: grad for name, grad in zip(names, gradients, strict=True) if grad is not None}
    if own.ragged is not None:
        found |= {name: own.ragged.restore(found[name]) for name in names[:3] if name in found}
    return found


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Stats | None]:
    """LSTM over a sequence, as `ln.reference.lstm`: x (T, B, D); h0, c0 (B, H) -> (T, B, H), (B, H) x 2, statistics."""
    (output, h, c), used = _sequence("lstm", x, h0, c0, p, cfg, lengths, stats, recompute)
    return output, h, c, used


def gru(
    x: Tensor,
    h0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Stats | None]:
    """GRU over a sequence, as `ln.reference.gru`: x (T, B, D); h0 (B, H) -> (T, B, H), (B, H), statistics."""
    (output, h), used = _sequence("gru", x, h0, None, p, cfg, lengths, stats, recompute)
    return output, h, used


def rnn(
    x: Tensor,
    h0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    nonlinearity: str = "tanh",
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Stats | None]:
    """Simple RNN over a sequence, as `ln.reference.rnn`, with nonlinearity "tanh" or "relu"; the rest as in `gru`."""
    (output, h), used = _sequence("rnn", x, h0, None, p, cfg, lengths, stats, recompute, nonlinearity)
    return output, h, used
