"""What a backend is, and the two ways in which the modules use one.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ln.norms import NormConfig
from ln.reference import Params, Stats


class Backend(Protocol):
    """A module that runs recurrent layers; what its functions compute is written in `ln.reference`."""

    name: str

    def available(self) -> str | None:
        """Why this backend cannot be used here, or None."""

    def supports(self, cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot run such a layer ("lstm", "gru" or "rnn"), or None."""

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
        """x (T, B, D); h0, c0 (B, H); lengths (B) int64; stats: batch statistics to use in place of the batch's own
        -> output (T, B, H), 0 past a row's end; h, c (B, H) at each row's last step; the batch statistics used, or
        None. recompute: store less for the backward pass and compute it again."""

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
        """As `lstm`, without c."""


class BackendWithRNN(Backend, Protocol):
    """A backend whose `supports` lets "rnn" pass."""

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
        """As `gru`, with nonlinearity "tanh" or "relu"."""


class Call(NamedTuple):
    """What of a call is not a tensor that takes a gradient; shapes as in `Backend.lstm`."""

    cell: str
    cfg: NormConfig
    lengths: Tensor | None
    given: Stats | None  # batch statistics to use in place of the batch's own
    recompute: bool
    keep: bool  # a backward pass may follow
    nonlinearity: str = "tanh"  # of the RNN


class Operable(Protocol):
    """A backend that can stand in a compiled graph as one operator (`ln.kernels.operators`)."""

    def result_shapes(self, call: Call, x: Tensor, h0: Tensor) -> dict[str, tuple[int, ...]]:
        """The results of `forward` by name, in its order: first the states after each step (T, B, H), or (T + 1, B, H)
        with h0 before them; what they are past a row's end does not matter. Then h, in the LSTM c (B, H), under batch
        norm without given statistics mean and variance of each site, and last what `backward` needs, if kept."""

    def forward(self, call: Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params) -> list[Tensor]:
        """The results, for x (T, B, D) on the device."""

    def backward(
        self,
        call: Call,
        x: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        p: Params,
        results: dict[str, Tensor],
        grads: Sequence[Tensor | None],
        wanted: set[str],
    ) -> dict[str, Tensor]:
        """Gradients by name ("x", "h0", "c0" and the fields of Params), of those wanted at least; grads: of the output
        (T, B, H), h and c, None where there is none."""


def statistics_names(call: Call) -> list[str]:
    """The fields of Stats that are there under batch norm, in their order."""
    if call.cfg.traits.axis != "batch":
        return []
    fields = {"input": "ih", "recurrent": "hh", "cell": "c", "sum": "ih"}
    return [f"{kind}_{fields[site]}" for site in call.cfg.sites_for(call.cell) for kind in ("mean", "var")]


def statistics_shapes(call: Call, T: int, H: int, G: int) -> dict[str, tuple[int, ...]]:
    """The batch statistics that a forward pass measures, (T, G) and of the cell (T, H)."""
    names = statistics_names(call) if call.given is None else []
    return {name: (T, H if name.endswith("_c") else G) for name in names}


def sequence(
    backend: Backend,
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    *,
    recompute: bool = False,
    nonlinearity: str = "tanh",
) -> tuple[Tensor, tuple[Tensor, ...], Stats | None]:
    """Any cell over x (T, B, D) from its state, (h, c) or (h,), each (B, H) -> output (T, B, H), the last state, and
    the batch statistics used. The nonlinearity is the RNN's."""
    if cell == "lstm":
        h0, c0 = state
        output, h, c, used = backend.lstm(x, h0, c0, p, cfg, lengths, stats, recompute=recompute)
        return output, (h, c), used
    (h0,) = state
    if cell == "gru":
        output, h, used = backend.gru(x, h0, p, cfg, lengths, stats, recompute=recompute)
    else:
        complete: BackendWithRNN = backend  # type: ignore[assignment]  # by its `supports`
        output, h, used = complete.rnn(x, h0, p, cfg, lengths, stats, nonlinearity, recompute=recompute)
    return output, (h,), used


def step(
    backend: Backend,
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    p: Params,
    cfg: NormConfig,
    stats: Stats | None = None,
    *,
    nonlinearity: str = "tanh",
) -> tuple[tuple[Tensor, ...], Stats | None]:
    """A sequence of one: x (B, D); stats with T = 1 -> the state after it, and the batch statistics used."""
    _, state, used = sequence(backend, cell, x[None], state, p, cfg, None, stats, nonlinearity=nonlinearity)
    return state, used
