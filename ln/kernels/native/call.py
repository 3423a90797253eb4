"""One call of the native backend as native.cpp reads it: sizes, flags and pointers, and what of it is stored.

Shapes: T time, B batch, D input, H hidden, G gates (LSTM 4H: i f g o; GRU 3H: r z n; RNN H).
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ln.kernels import gate
from ln.kernels.contract import Call
from ln.kernels.native import build as native_build
from ln.norms import NormConfig
from ln.reference import Params, Stats

_CELLS = ("lstm", "gru", "rnn")  # in the order of native.cpp
_SITE_BITS = {"input": 1, "recurrent": 2, "cell": 4, "sum": 2}
# The fields of Params and of Stats, in order. A sum normalized as one is to native.cpp the recurrent term, which then
# begins as the input's, and has its gain and statistics.
STATISTICS_BITS = {"x": 1, "h": 2, "c": 4}
_PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh", "g_ih", "g_hh", "g_c", "b_c", "inner")
_STATISTICS = ("mean_x", "var_x", "mean_h", "var_h", "mean_c", "var_c")
_JOINT_PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh", "g_hh", "g_ih", "g_c", "b_c", "inner")
_JOINT_STATISTICS = ("mean_h", "var_h", "mean_x", "var_x", "mean_c", "var_c")

_CHUNK_FLOATS = 1 << 20  # of d(ax) in one chunk: what stays in the caches until the weights' gradients have read it
_SMALL_CHUNK, _SMALL_WEIGHTS = 1 << 18, 1 << 17  # so few, where so many weights leave room in L2 for it beside them
_MOST_STORED, _CHEAP_STATE = 1 << 24, 256  # beyond so many floats, up to this H, W_hh h is computed again: it is faster
_FEW_ROWS = 16  # from here on, products of one step are fast enough to be worth packing the weights for them
_CHEAP_INPUT = 16  # up to this D, computing W_ih x again costs less than writing and reading it


class Args(ctypes.Structure):
    """native.cpp's struct of the same name, field for field."""

    _fields_ = native_build.fields_of("Args")


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
class NativeCall:
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
    ) -> Args:
        """The arguments with what is known before memory is made for results."""
        a = Args(T=T, B=B, D=D, H=H, external=self.external, **self.kind.constants)
        a.relu, a.given_stats = self.nonlinearity == "relu", self.given is not None
        G = gate.GATES[self.cell] * H
        a.threads = 1 if T == 1 and B * G < 1 << 16 else torch.get_num_threads()
        a.chunk = max(1, min(T, (_SMALL_CHUNK if G * (D + H) <= _SMALL_WEIGHTS else _CHUNK_FLOATS) // (B * G)))
        for name, tensor in {"x": x, "c0": c0, **params}.items():
            point(a, name, tensor)
        if self.ragged is not None:
            for name in ("lengths", "first", "places"):
                point(a, name, getattr(self.ragged, name), torch.int64)
        return a


def point(a: Args, name: str, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
    """Set a field to where a tensor lies. ValueError for memory that native.cpp would misread."""
    if tensor is not None:
        if tensor.dtype is not dtype or not tensor.is_cpu:
            raise ValueError(f"{name} must be {dtype} on cpu, but is {tensor.dtype} on {tensor.device}")
        pointer = tensor.data_ptr()
        if not pointer and tensor.numel():
            raise ValueError(f"{name} holds no memory: its storage was freed or resized")
        setattr(a, name, pointer)


def as_it_lies(tensor: Tensor) -> Tensor:
    """The tensor in one piece and without a lazy sign, as memory is read."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def prepared(
    call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params, operator: bool = False
) -> tuple[NativeCall, list[Tensor | None]]:
    """The call, and x, h0, c0 and the parameters, as native.cpp reads them. What an operator stores has a size that
    does not depend on the lengths, and its products are native.cpp's."""
    ragged = None if call.lengths is None else _Ragged(call.lengths, len(x))
    states = (x, h0, c0) if ragged is None else (ragged.sort(t) for t in (x, h0, c0))
    inputs = [None if t is None else as_it_lies(t) for t in (*states, *p)]
    stats = call.given
    given = None if stats is None else Stats(*(None if s is None else as_it_lies(s.detach()) for s in stats))
    rows = _rows(x, None if operator else ragged)
    external = x.shape[0] == 1 and x.shape[1] < _FEW_ROWS and ragged is None and not operator
    stored = what_is_stored(call, rows, x.shape[2], *p.weight_hh.shape)
    kind = _kind_of(call.cell, call.cfg)
    return NativeCall(call.cell, call.cfg, kind, ragged, given, stored, rows, external, call.nonlinearity), inputs


def what_is_stored(call: Call, rows: int, D: int, G: int, H: int) -> tuple[str, ...]:
    """Which summed inputs are stored for the backward pass, which computes the others again."""
    if not call.keep or call.recompute or (rows * G > _MOST_STORED and H <= _CHEAP_STATE):
        return ()
    if _kind_of(call.cell, call.cfg).joint:
        return ("ah",) if call.cell == "lstm" or call.cfg.sites_for(call.cell) else ()
    return ("ah",) if D <= _CHEAP_INPUT else ("ah", "ax")
