"""The torch backend: recurrences with a backward pass written by hand, in torch's own operations; it needs no compiler.

Functions, arguments and results as in `ln.reference`, differentiable once. Faster than autograd through a loop because
the input term, all weight gradients and all gain gradients are computed for many steps at once, and no graph is built
per step. Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ln.kernels import gate
from ln.kernels.torch.gru import GRUFunction
from ln.kernels.torch.lstm import LSTMFunction
from ln.kernels.torch.sites import Setup
from ln.norms import NormConfig, Statistics, refusal
from ln.reference import Params, Stats

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
    return refusal(cfg, _IMPLEMENTED)
