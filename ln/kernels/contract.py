"""What a backend is, and the two ways in which the modules use one.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ln.norms import NormConfig
from ln.reference import Params, Stats


class Backend(Protocol):
    """A module that runs recurrent layers; what its functions compute is written in `ln.reference`."""

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
