"""The torch backend: recurrences with a backward pass written by hand, in torch's own operations; it needs no compiler.

Functions, arguments and results as in `ln.reference`, differentiable once. Faster than autograd through a loop because
the input term, all weight gradients and all gain gradients are computed for many steps at once, and no graph is built
per step. Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ln.kernels import gate
from ln.kernels.contract import Call, statistics_shapes
from ln.kernels.torch.gru import GRUFunction, GRULayer
from ln.kernels.torch.lstm import LSTMFunction, LSTMLayer
from ln.kernels.torch.sites import Setup
from ln.norms import NormConfig, Statistics, refusal
from ln.reference import Params, Stats

name = "torch"
_IMPLEMENTED = (
    Statistics("features", centred=True),
    Statistics("features", centred=False),
    Statistics("batch", centred=True),
)


def _setup(
    x: Tensor,
    cell: str,
    cfg: NormConfig,
    lengths: Tensor | None,
    stats: Stats | None,
    recompute: bool,
    h0: Tensor,
    c0: Tensor | None,
    p: Params,
) -> tuple[Setup, Tensor | None]:
    """The call's check, what the functions share, and the mask (T, B, 1) of the steps past each row's end."""
    gate.check_call("torch", cell, x, h0, c0, p, stats, lengths)
    past = ends = valid = None
    if lengths is not None:
        time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        past = (time >= lengths).unsqueeze(-1)
        ends = (time == lengths - 1).unsqueeze(-1).to(x.dtype)
        valid = (~past).to(x.dtype) if cfg.traits.axis == "batch" else None
    trained = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, h0, c0, *p))
    return Setup(cfg, cfg.sites_for(cell), lengths, valid, ends, stats, trained and not recompute, {}), past


def _last(output: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
    """h at each row's last step; h0 for a row without steps."""
    if lengths is None:
        return output[-1]
    states = torch.cat([h0[None], output])
    return states.gather(0, lengths.view(1, -1, 1).expand(1, -1, h0.shape[-1]))[0]


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
    """As `ln.reference.lstm`. `recompute` stores 2H numbers per step and case in place of 15H."""
    setup, past = _setup(x, "lstm", cfg, lengths, stats, recompute, h0, c0, p)
    output, c = LSTMFunction.apply(x, h0, c0, setup, *p)
    output = output if past is None else output.masked_fill(past, 0)
    return output, _last(output, h0, lengths), c, setup.stats()


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
    """As `ln.reference.gru`. `recompute` stores H numbers per step and case in place of 11H."""
    setup, past = _setup(x, "gru", cfg, lengths, stats, recompute, h0, None, p)
    output = GRUFunction.apply(x, h0, setup, *p)
    output = output if past is None else output.masked_fill(past, 0)
    return output, _last(output, h0, lengths), setup.stats()


def result_shapes(call: Call, x: Tensor, h0: Tensor) -> dict[str, tuple[int, ...]]:
    """See `Operable`: the states are kept, and all other activations computed again."""
    (T, B, _), H, lstm = x.shape, h0.shape[1], call.cell == "lstm"
    shapes: dict[str, tuple[int, ...]] = {"output": (T, B, H), "h": (B, H)} | ({"c": (B, H)} if lstm else {})
    shapes |= statistics_shapes(call, T, H, gate.GATES[call.cell] * H)
    return shapes | ({"cells": (T, B, H)} if lstm else {})


def forward(call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params) -> list[Tensor]:
    """See `Operable`."""
    setup, _ = _setup(x, call.cell, call.cfg, call.lengths, call.given, True, h0, c0, p)
    if c0 is None:
        output, _ = GRULayer(p, setup).forward(x, h0)
        found = {"output": output}
    else:
        layer = LSTMLayer(p, setup)
        output, cells, _ = layer.forward(x, h0, c0)
        found = {"output": output, "c": layer.last(cells, c0), "cells": cells}
    found |= {"h": _last(output, h0, call.lengths), **setup.used}
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
    setup, past = _setup(x, call.cell, call.cfg, call.lengths, call.given, True, h0, c0, p)
    d_output, d_h, d_c = (*grads, None)[:3]
    d_output = torch.zeros_like(results["output"]) if d_output is None else d_output
    d_output = d_output.clone() if past is None else d_output.masked_fill(past, 0)
    empty = None  # h of a row without steps is h0
    if d_h is not None and setup.ends is None:
        d_output[-1] += d_h
    elif d_h is not None:
        assert setup.ends is not None
        d_output.addcmul_(setup.ends, d_h)
        empty = d_h * ~setup.ends.any(0)
    if c0 is None:
        d_x, d_h0, found = GRULayer(p, setup).backward(x, h0, results["output"], [], d_output, "x" in wanted)
        d_c0 = None
    else:
        d_c = torch.zeros_like(c0) if d_c is None else d_c
        states = (results["output"], results["cells"])
        d_x, d_h0, d_c0, found = LSTMLayer(p, setup).backward(x, h0, c0, *states, [], d_output, d_c, "x" in wanted)
    d_h0 = d_h0 if empty is None else d_h0 + empty
    gradients = {"x": d_x, "h0": d_h0, "c0": d_c0, **found._asdict()}
    return {name: grad for name, grad in gradients.items() if grad is not None}


def available() -> str | None:
    """Why this backend cannot be used here, or None: this one always can."""
    return None


def supports(cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run such a layer, or None."""
    if cell == "rnn":
        return "it has no simple RNN"
    if device.type == "meta":
        return "it writes into memory, and meta tensors have none"
    if dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, not {dtype}"
    return refusal(cell, cfg, _IMPLEMENTED)
