"""One operator of torch's for a sequence through a fast backend, so that a compiled graph holds the layer unbroken.

A compiler cannot follow a fast backend, which reads and writes memory. It is told instead of which sizes the results
are and which operator computes the gradients; the two run the backend's own forward and backward pass.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ln.kernels import gate
from ln.kernels.contract import Call, Operable, statistics_names
from ln.kernels.native import backend as native
from ln.kernels.torch import backend as plain
from ln.kernels.triton import backend as triton
from ln.norms import NormConfig
from ln.reference import Params, Stats

_BACKENDS: dict[str, Operable] = {"native": native, "torch": plain, "triton": triton}
# What of a call is no tensor; names of parameters and sites have blanks between them.
_SETTINGS = (
    "str backend, str cell, str params, str norm, str sites, float eps, bool recompute, bool keep, str nonlinearity"
)


class _Operation(NamedTuple):
    """A call of an operator."""

    module: Operable
    call: Call
    x: Tensor
    h0: Tensor
    c0: Tensor | None
    p: Params
    names: tuple[str, ...]  # of the tensors

    @classmethod
    def of(cls, tensors: list[Tensor], lengths: Tensor | None, given: list[Tensor], settings: Any) -> _Operation:
        """tensors: x (T, B, D), h0 and in the LSTM c0 (B, H), and the parameters; given: batch statistics."""
        backend, cell, params, norm, sites, eps, recompute, keep, nonlinearity = settings
        call = Call(cell, _config(norm, sites, eps), lengths, None, recompute, keep, nonlinearity)
        if given:
            call = call._replace(given=Stats(**dict(zip(statistics_names(call), given, strict=True))))
        names = ("x", "h0", *(("c0",) if cell == "lstm" else ()), *params.split())
        named = dict(zip(names, tensors, strict=True))
        states = (named.pop("x"), named.pop("h0"), named.pop("c0", None))
        return cls(_BACKENDS[backend], call, *states, Params(**named), names)

    def result_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.module.result_shapes(self.call, self.x, self.h0)


@functools.lru_cache(maxsize=1024)
def _config(norm: str, sites: str, eps: float) -> NormConfig:
    return NormConfig(norm, tuple(sites.split()), eps)


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """Contiguous, and each in memory of its own, as the compiler takes results to be."""
    seen: set[int] = set()
    found = []
    for tensor in tensors:
        shared = tensor.untyped_storage().data_ptr() in seen
        found.append(tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous())
        seen.add(found[-1].untyped_storage().data_ptr())
    return found


@torch.library.custom_op(
    "ln::sequence",
    mutates_args=(),
    schema=f"(Tensor[] tensors, Tensor? lengths, Tensor[] given, {_SETTINGS}) -> Tensor[]",
)
def _sequence(tensors: list[Tensor], lengths: Tensor | None, given: list[Tensor], *settings: Any) -> list[Tensor]:
    op = _Operation.of(tensors, lengths, given, settings)
    if lengths is not None and lengths.device.type == "cpu":  # elsewhere the check would wait for the device
        gate.length_range(lengths, len(op.x))
    return _apart(op.module.forward(op.call, op.x, op.h0, op.c0, op.p))


@_sequence.register_fake
def _(tensors: list[Tensor], lengths: Tensor | None, given: list[Tensor], *settings: Any) -> list[Tensor]:
    op = _Operation.of(tensors, lengths, given, settings)
    return [op.x.new_empty(shape) for shape in op.result_shapes().values()]


@torch.library.custom_op(
    "ln::sequence_backward",
    mutates_args=(),
    schema="(Tensor[] tensors, Tensor? lengths, Tensor[] given, Tensor[] results, Tensor?[] grads, bool[] needed, "
    f"{_SETTINGS}) -> Tensor[]",
)
def _sequence_backward(
    tensors: list[Tensor],
    lengths: Tensor | None,
    given: list[Tensor],
    results: list[Tensor],
    grads: list[Tensor | None],
    needed: list[bool],
    *settings: Any,
) -> list[Tensor]:
    """grads: of the output (T, B, H), h and c -> the gradients of those tensors that need one."""
    op = _Operation.of(tensors, lengths, given, settings)
    kept = dict(zip(op.result_shapes(), results, strict=True))
    wanted = {name: tensor for name, tensor, need in zip(op.names, tensors, needed, strict=True) if need}
    found = op.module.backward(op.call, op.x, op.h0, op.c0, op.p, kept, grads, set(wanted))
    return _apart([found[name] for name in wanted])


@_sequence_backward.register_fake
def _(
    tensors: list[Tensor],
    lengths: Tensor | None,
    given: list[Tensor],
    results: list[Tensor],
    grads: list[Tensor | None],
    needed: list[bool],
    *settings: Any,
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor, need in zip(tensors, needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, lengths, given, *ctx.settings = inputs
    ctx.counts = (len(tensors), len(given))
    ctx.save_for_backward(lengths, *tensors, *given, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    n, m = ctx.counts
    lengths, *saved = ctx.saved_tensors
    tensors, given, results = saved[:n], saved[n : n + m], saved[n + m :]
    needed = list(ctx.needs_input_grad[0])
    op = _Operation.of(tensors, lengths, given, ctx.settings)
    d_states, *d_last = grads[: 2 if op.c0 is None else 3]
    d_outputs = [None if d_states is None else d_states[-op.x.shape[0] :], *d_last]
    if gate.differentiates_further(d_outputs, compiling=True):
        inputs, call = (op.x, op.h0, op.c0, *op.p), op.call
        flags = iter(needed)
        wanted = [value is not None and next(flags) for value in inputs]
        all_grads = gate.reference_gradients(
            call.cell, call.cfg, lengths, call.given, inputs, wanted, d_outputs, call.nonlinearity
        )
        found = [grad for grad, value in zip(all_grads, inputs, strict=True) if value is not None]
    else:
        computed = iter(_sequence_backward(tensors, lengths, given, results, d_outputs, needed, *ctx.settings))
        found = [next(computed) if need else None for need in needed]
    return found, None, [None] * m, *(None for _ in ctx.settings)


_sequence.register_autograd(_differentiate, setup_context=_save)


class Operator:
    """A fast backend as it stands in a compiled graph: what of a `Backend` runs a sequence."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lstm(
        self,
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
        output, (h, c), used = self._run("lstm", x, (h0, c0), p, cfg, lengths, stats, recompute)
        return output, h, c, used

    def gru(
        self,
        x: Tensor,
        h0: Tensor,
        p: Params,
        cfg: NormConfig,
        lengths: Tensor | None = None,
        stats: Stats | None = None,
        *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor, Stats | None]:
        output, (h,), used = self._run("gru", x, (h0,), p, cfg, lengths, stats, recompute)
        return output, h, used

    def rnn(
        self,
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
        output, (h,), used = self._run("rnn", x, (h0,), p, cfg, lengths, stats, recompute, nonlinearity)
        return output, h, used

    def _run(
        self,
        cell: str,
        x: Tensor,
        state: tuple[Tensor, ...],
        p: Params,
        cfg: NormConfig,
        lengths: Tensor | None,
        stats: Stats | None,
        recompute: bool,
        nonlinearity: str = "tanh",
    ) -> tuple[Tensor, tuple[Tensor, ...], Stats | None]:
        T = x.shape[0]
        params = {name: value for name, value in zip(Params._fields, p, strict=True) if value is not None}
        tensors = [x, *state, *params.values()]
        given = [] if stats is None else [value for value in stats if value is not None]
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        sites = " ".join(cfg.sites_for(cell))
        settings = (self.name, cell, " ".join(params), cfg.name, sites, cfg.eps, recompute, keep, nonlinearity)
        states, *rest = _sequence(tensors, lengths, given, *settings)
        output, last, rest = states[-T:], tuple(rest[: len(state)]), rest[len(state) :]
        if lengths is not None:
            past = torch.arange(T, device=x.device).unsqueeze(1) >= lengths
            output = output.masked_fill(past.unsqueeze(-1), 0)
        names = statistics_names(Call(cell, cfg, lengths, stats, recompute, keep))
        if cfg.traits.axis == "batch" and stats is None:
            return output, last, Stats(**dict(zip(names, rest, strict=False)))
        return output, last, stats


OPERATORS = {name: Operator(name) for name in _BACKENDS}
