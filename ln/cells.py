"""One step of a recurrence with a norm inside, shaped after the cells of torch.nn.

Shapes: B batch, D input, H hidden. Equation numbers are those of "Layer Normalization" (Ba, Kiros, Hinton 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ln import checks, inputs, kernels
from ln.kernels import gate
from ln.norms import NormConfig
from ln.parameters import NormalizedRecurrence, without_autocast, working_dtype
from ln.reference import Params


class _Cell(NormalizedRecurrence):
    """One step of a recurrence, for models whose input depends on their own state."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        norm: str | NormConfig,
        backend: str,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__(cell, input_size, hidden_size, bias, norm, backend, {"device": device, "dtype": dtype})
        self.nonlinearity = checks.nonlinearity(nonlinearity)
        self._prepared: Params | None = None
        self.add_direction("", input_size)
        self.reset_parameters()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within this context all steps share weights computed once; weight norm's g v / ||v|| would be at each."""
        parameter = self._reference_parameter()
        self._prepared = self.params("", working_dtype(parameter.dtype))
        try:
            yield
        finally:
            self._prepared = None

    def _call(self, input: Tensor, hx: Any, step: int | None) -> tuple[Tensor, ...]:
        names = ("h", "c")[: 2 if self.cell == "lstm" else 1]
        state = checks.states(hx, names, "(B, H)")
        if isinstance(input, Tensor) and input.dim() == 1:
            new = self._advance(input.unsqueeze(0), inputs.with_batch(state, "(H)"), names, step)
            return tuple(value.squeeze(0) for value in new)
        return self._advance(input, state, names, step)

    def _advance(
        self, x: Tensor, state: tuple[Tensor, ...] | None, names: tuple[str, ...], step: int | None
    ) -> tuple[Tensor, ...]:
        given, x = x, self.matched(x, 2, "(B, D)")
        returned = self.returned_dtype(given)
        shape = (x.shape[0], self.hidden_size)
        if state is None:
            state = tuple(x.new_zeros(shape) for _ in names)
        else:
            pairs = zip(names, state, strict=True)
            state = tuple(self.matched_state(value, name, x, shape, "(B, H)") for name, value in pairs)
        if step is None:
            if self.kernel_norm.traits.population:
                raise ValueError(
                    "batch norm has statistics of its own for each step; call the cell with step=0, 1, 2, ..."
                )
            step = 0
        step = checks.whole("step", step)
        if step < 0:
            raise ValueError(f"step={step} must be at least 0")
        beyond = gate.beyond_eager((x, *state, *self._parameters.values(), *self._buffers.values()))
        self.check_batch(step, 1, (x, *state), beyond)
        if beyond is None and self._torch_is_fastest(x, state):
            return tuple(value.to(returned) for value in self._torch(x, state))
        dtype = working_dtype(x.dtype)
        backend = self.resolved(x, beyond)
        x, state = x.to(dtype), tuple(value.to(dtype) for value in state)
        with without_autocast(x.device):
            stats = self.population("", step, 1, dtype)
            params = self.params("", dtype) if self._prepared is None else self._prepared
            new, used = kernels.step(
                backend, self.cell, x, state, params, self.kernel_norm, stats, nonlinearity=self.nonlinearity
            )
        self.track("", step, 1, used)
        return tuple(value.to(returned) for value in new)

    def _torch_is_fastest(self, x: Tensor, state: tuple[Tensor, ...]) -> bool:
        if self.backend != "auto" or self.kernel_norm.traits.normalizes or 0 in x.shape:
            return False
        B, D = x.shape
        # Training makes a difference to layers alone.
        return kernels.torch_is_fastest(
            self.cell, self.kernel_norm, x.device, x.dtype, 1, B, D, self.hidden_size, False
        )

    def _torch(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        function = getattr(torch._VF, {"rnn": f"rnn_{self.nonlinearity}"}.get(self.cell, self.cell) + "_cell")
        with without_autocast(x.device):
            params = self.params("", x.dtype) if self._prepared is None else self._prepared
            gate.check_sizes(self.cell, x, state[0], state[1] if self.cell == "lstm" else None, params)
            new = function(x, state if self.cell == "lstm" else state[0], *params[:4])
        self.note("torch.nn")
        return tuple(new) if self.cell == "lstm" else (new,)

    def extra_repr(self) -> str:
        return self.described((("bias", True), ("nonlinearity", "tanh")))


class LSTMCell(_Cell):
    """One step of `LSTM`, equations 20 to 22; parameters as there, without a suffix.

    forward(input, hx=None, step=None) -> (h, c): input (B, D), or (D) without a batch; hx: h and c, each (B, H), zeros
    if None; step: which step of the sequence this is, 0, 1, ..., needed by batch norm, whose statistics belong to
    steps. Errors as in `LSTM`.

    >>> cell, state = LSTMCell(8, 16), None
    >>> for x in torch.randn(5, 3, 8):
    ...     state = cell(x, state)
    >>> state[0].shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, device, dtype, norm, backend)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        h, c = self._call(input, hx, step)
        return h, c


class GRUCell(_Cell):
    """One step of `GRU`, equations 26 to 28; parameters as there, without a suffix.

    forward(input, hx=None, step=None) -> h (B, H): input (B, D); hx h (B, H); step as in `LSTMCell`. Errors as in
    `LSTM`.

    >>> GRUCell(8, 16, norm="batch")(torch.randn(3, 8), step=0).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
    ) -> None:
        super().__init__("gru", input_size, hidden_size, bias, device, dtype, norm, backend)

    def forward(self, input: Tensor, hx: Tensor | None = None, step: int | None = None) -> Tensor:
        (h,) = self._call(input, hx, step)
        return h


class RNNCell(_Cell):
    """One step of `RNN`, equation 4; parameters as there, without a suffix. Arguments and results as in `GRUCell`, with
    nonlinearity="tanh" or "relu".

    >>> RNNCell(8, 16)(torch.randn(3, 8)).shape
    torch.Size([3, 16])
    """

    lowered = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
    ) -> None:
        super().__init__("rnn", input_size, hidden_size, bias, device, dtype, norm, backend, nonlinearity)

    def forward(self, input: Tensor, hx: Tensor | None = None, step: int | None = None) -> Tensor:
        (h,) = self._call(input, hx, step)
        return h
