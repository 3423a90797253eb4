"""Backend `native`: LSTM, GRU and RNN in C++ for the CPU (native.cpp), with the signatures of `ln.reference`.

Shapes: T time, B batch, D input, H hidden, G gates (LSTM 4H: i f g o; GRU 3H: r z n; RNN H). float32 only; first order
only.
Long sequences can be run with recompute=True: only states are stored, and summed inputs are computed again in backward.
Of sequences with `lengths` only the real steps are computed: the batch is put in order, longest first.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ln.kernels import gate
from ln.kernels.contract import Call, statistics_shapes
from ln.kernels.native import build as native_build
from ln.kernels.native.memory import MEMORY, POOL
from ln.norms import NormConfig, Statistics, refusal
from ln.reference import Params, Stats

_IMPLEMENTED = (
    Statistics("features", centred=True),
    Statistics("features", centred=False),
    Statistics("batch", centred=True),
)
_CELLS = ("lstm", "gru", "rnn")  # in the order of native.cpp
_SITE_BITS = {"input": 1, "recurrent": 2, "cell": 4, "sum": 2}
# The fields of Params and of Stats, in order. A sum normalized as one is to native.cpp the recurrent term, which then
# begins as the input's, and has its gain and statistics.
_STATISTICS_BITS = {"x": 1, "h": 2, "c": 4}
_PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh", "g_ih", "g_hh", "g_c", "b_c", "inner")
_STATISTICS = ("mean_x", "var_x", "mean_h", "var_h", "mean_c", "var_c")
_JOINT_PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh", "g_hh", "g_ih", "g_c", "b_c", "inner")
_JOINT_STATISTICS = ("mean_h", "var_h", "mean_x", "var_x", "mean_c", "var_c")

_CHUNK_FLOATS = 1 << 20  # of d(ax) in one chunk: what stays in the caches until the weights' gradients have read it
_SMALL_CHUNK, _SMALL_WEIGHTS = 1 << 18, 1 << 17  # so few, where so many weights leave room in L2 for it beside them
_MOST_STORED, _CHEAP_STATE = 1 << 24, 256  # beyond so many floats, up to this H, W_hh h is computed again: it is faster
_FEW_ROWS = 16  # from here on, products of one step are fast enough to be worth packing the weights for them
_CHEAP_INPUT = 16  # up to this D, computing W_ih x again costs less than writing and reading it


class _Args(ctypes.Structure):
    _fields_ = native_build.fields_of("Args")


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


class _Order(torch.autograd.Function):
    """Rows of a batch, dimension -2 of x, put in another order; inverse: the order that undoes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.order, ctx.inverse = order, inverse
        return x.index_select(-2, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(-2, ctx.inverse), None, None


class _Ragged:
    """Sequences of lengths (B) up to T, as native.cpp wants them: the longest first."""

    def __init__(self, lengths: Tensor, T: int) -> None:
        self.lengths, order = lengths.sort(descending=True, stable=True)
        if len(order) and not 0 <= int(self.lengths[-1]) <= int(self.lengths[0]) <= T:
            raise ValueError(f"lengths must lie in 0 ... T = {T}")
        running = torch.arange(T, device="cpu").unsqueeze(1) < self.lengths
        self.first = F.pad(running.sum(1).cumsum(0), (1, 0))
        self.places = running.flatten().nonzero()
        self.orders = (order, order.argsort())

    def sort(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else _Order.apply(x, *self.orders)

    def restore(self, x: Tensor) -> Tensor:
        found: Tensor = _Order.apply(x, *reversed(self.orders))
        return found


def _rows(x: Tensor, ragged: _Ragged | None) -> int:
    """How many rows of x (T, B, D) are computed."""
    return x.shape[0] * x.shape[1] if ragged is None else len(ragged.places)


@dataclass(frozen=True)
class _Kind:
    """What of a call follows from the cell and the norm."""

    constants: dict[str, Any]  # fields of Args
    joint: bool  # the two terms are normalized as one or not at all, and are one array
    parameters: tuple[str, ...]  # names in Args of the fields of Params
    statistics: tuple[str, ...]  # and of those of Stats


@functools.cache
def _kind_of(cell: str, cfg: NormConfig) -> _Kind:
    sites, traits = cfg.sites_for(cell), cfg.traits
    joint = cell != "gru" and not {"input", "recurrent"}.intersection(sites)
    bits = sum(_SITE_BITS[site] for site in sites)
    constants = {"cell": _CELLS.index(cell), "sites": bits, "joint": joint, "eps": cfg.eps}
    constants |= {"columns": traits.axis == "batch", "centred": traits.centred}
    if joint:
        return _Kind(constants, joint, _JOINT_PARAMETERS, _JOINT_STATISTICS)
    return _Kind(constants, joint, _PARAMETERS, _STATISTICS)


@dataclass
class _Call:
    """What of a call is not a tensor that takes a gradient."""

    cell: str
    cfg: NormConfig
    kind: _Kind
    ragged: _Ragged | None
    given: Stats | None  # batch statistics to use in place of the batch's own
    stored: tuple[str, ...]  # of ah and ax, the summed inputs that a backward pass finds
    rows: int  # of them, at least as many as are computed
    external: bool  # one step of few rows: the products are left to torch, which packs no weights for them
    nonlinearity: str  # of the RNN

    def args(
        self, x: Tensor, c0: Tensor | None, params: dict[str, Tensor | None], T: int, B: int, D: int, H: int
    ) -> _Args:
        a = _Args(T=T, B=B, D=D, H=H, external=self.external, **self.kind.constants)
        a.relu, a.given_stats = self.nonlinearity == "relu", self.given is not None
        G = gate.GATES[self.cell] * H
        a.threads = 1 if T == 1 and B * G < 1 << 16 else torch.get_num_threads()
        a.chunk = max(1, min(T, (_SMALL_CHUNK if G * (D + H) <= _SMALL_WEIGHTS else _CHUNK_FLOATS) // (B * G)))
        for name, tensor in {"x": x, "c0": c0, **params}.items():
            _point(a, name, tensor)
        if self.ragged is not None:
            for name in ("lengths", "first", "places"):
                _point(a, name, getattr(self.ragged, name), torch.int64)
        return a


def _point(a: _Args, name: str, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
    if tensor is not None:
        if tensor.dtype is not dtype or not tensor.is_cpu:
            raise ValueError(f"{name} must be {dtype} on cpu, but is {tensor.dtype} on {tensor.device}")
        pointer = tensor.data_ptr()
        if not pointer and tensor.numel():
            raise ValueError(f"{name} holds no memory: its storage was freed or resized")
        setattr(a, name, pointer)


def _as_it_lies(tensor: Tensor) -> Tensor:
    """The tensor in one piece and without a lazy sign, as memory is read."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def _run(a: _Args, backward: bool) -> None:
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
    call: _Call, x: Tensor, h0: Tensor, c0: Tensor | None, *parameters: Tensor | None
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
        on = [a.sites & _STATISTICS_BITS[name[-1]] for name in call.kind.statistics]
        stats = Stats(*(torch.zeros(T, G if i < 4 else H, **MEMORY) if on[i] else None for i in range(6)))
    last = [torch.empty(B, H, **MEMORY) for _ in range(2 if call.cell == "lstm" else 1)]
    tensors = {"hs": hs, "c": c, "ax": ax, "ah": ah, "rs": rs, "h_last": last[0], "c_last": last[-1]}
    for name, tensor in {**tensors, **dict(zip(call.kind.statistics, stats or (), strict=False))}.items():
        _point(a, name, tensor)
    _run(a, backward=False)
    return _Saved(hs, c, ax, ah, rs, stats, a.groups), [out, *last]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, x: Tensor, h0: Tensor, c0: Tensor | None, *parameters: Tensor | None
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
        _, x, h0, c0, *tensors = (None if t is None else _as_it_lies(t) for t in ctx.saved_tensors)
        parameters, saved = tensors[: len(Params._fields)], _Saved.of(tensors[len(Params._fields) :], ctx.groups)
        if gate.differentiates_further(grads):
            inputs = (x, saved.hs[0] if h0 is None else h0, c0, *parameters)
            lengths, needed = call.ragged and call.ragged.lengths, ctx.needs_input_grad[1:]
            return None, *gate.reference_gradients(
                call.cell, call.cfg, lengths, call.given, inputs, needed, grads, call.nonlinearity
            )
        return None, *_backward(call, saved, (x, saved.hs[0], c0, *parameters), ctx.needs_input_grad[1:], grads)


def _backward(
    call: _Call,
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
    dout, dh_last, dc_last = (*(None if g is None else _as_it_lies(g) for g in grads), None)[:3]
    names = ("x", "h0", "c0", *call.kind.parameters)
    found: dict[str, Tensor | None] = {}
    # What torch computes from d(ax) and d(ah) of a single step is left out here.
    by_torch = ("x", "w_ih", "w_hh", "inner") if call.external else ()
    for name, tensor, need in zip(names, inputs, needed, strict=True):
        wanted = need and tensor is not None and name not in by_torch
        found[name] = POOL.empty(*tensor.shape) if wanted else None  # type: ignore[union-attr]
        _point(a, f"d{name}", found[name])
    w_ih, w_hh = params["w_ih"], params["w_hh"]
    assert w_ih is not None
    assert w_hh is not None
    if call.external:
        dah = torch.empty(B, len(w_hh), **MEMORY)
        dax = dah if call.kind.joint else torch.empty_like(dah)
        _point(a, "dax", dax)
        _point(a, "dah", dah)
    tensors = {"hs": saved.hs, "c": saved.c, "ax": saved.ax, "ah": saved.ah, "rs": saved.rs}
    tensors |= {"dout": dout, "dh_last": dh_last, "dc_last": dc_last}
    for name, tensor in {**tensors, **dict(zip(call.kind.statistics, saved.stats or (), strict=False))}.items():
        _point(a, name, tensor)
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
    call, inputs = _prepared(Call(cell, cfg, lengths, stats, recompute, keep, nonlinearity), x, h0, c0, p)
    if keep:
        count = 3 if cell == "lstm" else 2
        found = _Sequence.apply(call, *inputs)
        outputs, measured = list(found[:count]), found[count:]
        used = Stats(*measured) if measured else call.given
    else:
        saved, outputs = _forward(call, *inputs)  # type: ignore[arg-type]
        used = saved.stats
    return outputs if call.ragged is None else [call.ragged.restore(t) for t in outputs], used


def _prepared(
    call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params, operator: bool = False
) -> tuple[_Call, list[Tensor | None]]:
    """The call, and x, h0, c0 and the parameters, as native.cpp reads them. What an operator stores has a size that
    does not depend on the lengths, and its products are native.cpp's."""
    ragged = None if call.lengths is None else _Ragged(call.lengths, len(x))
    states = (x, h0, c0) if ragged is None else (ragged.sort(t) for t in (x, h0, c0))
    inputs = [None if t is None else _as_it_lies(t) for t in (*states, *p)]
    stats = call.given
    given = None if stats is None else Stats(*(None if s is None else _as_it_lies(s.detach()) for s in stats))
    rows = _rows(x, None if operator else ragged)
    external = x.shape[0] == 1 and x.shape[1] < _FEW_ROWS and ragged is None and not operator
    stored = _stored(call, rows, x.shape[2], *p.weight_hh.shape)
    kind = _kind_of(call.cell, call.cfg)
    return _Call(call.cell, call.cfg, kind, ragged, given, stored, rows, external, call.nonlinearity), inputs


def _stored(call: Call, rows: int, D: int, G: int, H: int) -> tuple[str, ...]:
    """Which summed inputs are stored for the backward pass, which computes the others again."""
    if not call.keep or call.recompute or (rows * G > _MOST_STORED and H <= _CHEAP_STATE):
        return ()
    if _kind_of(call.cell, call.cfg).joint:
        return ("ah",) if call.cell == "lstm" or call.cfg.sites_for(call.cell) else ()
    return ("ah",) if D <= _CHEAP_INPUT else ("ah", "ax")


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
    return shapes | {name: (T * B, G) for name in _stored(call, T * B, D, G, H)}


def forward(call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params) -> list[Tensor]:
    """See `Operable`."""
    gate.check_call("native", call.cell, x, h0, c0, p, call.given, call.lengths)
    own, inputs = _prepared(call, x, h0, c0, p, operator=True)
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
    own, inputs = _prepared(call, x, h0, c0, p, operator=True)
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
