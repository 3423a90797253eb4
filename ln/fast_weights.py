"""Fast weights (Ba, Hinton, Mnih, Leibo & Ionescu 2016, arXiv 1610.06258): a recurrent layer with a second, quickly
changing weight matrix that holds its recent hidden states.

    A(t) = decay A(t-1) + rate h(t) h(t)^T                                (equation 1)
    h_0(t+1) = f(W h(t) + C x(t))
    h_s+1(t+1) = f(LN[W h(t) + C x(t) + A(t) h_s(t+1)]),  s = 0 ... S-1   (equation 2, with its layer norm)

What A adds is attention to the past states: A(t) h_s = rate sum_u decay^(t-u) h(u) (h(u) . h_s), so that A need not
be built where the sequence is short (equation 4).

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ln import checks
from ln.inputs import checked_lengths
from ln.kernels import gate
from ln.norms import NormConfig

_FORMS = ("auto", "attention", "matrix")
_NONLINEARITIES = {"relu": torch.relu, "tanh": torch.tanh}


class FastState(NamedTuple):
    """What one call hands to the next."""

    h: Tensor  # (B, H) hidden state
    A: Tensor  # (B, H, H) fast weights


class _FastWeights(nn.Module):
    """Slow weights, norm and one step of both modules."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        decay: float = 0.95,
        rate: float = 0.5,
        inner_steps: int = 1,
        nonlinearity: str = "relu",
        norm: str | NormConfig = "layer",
        identity: float = 0.05,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.size("input_size", input_size)
        checks.size("hidden_size", hidden_size)
        checks.size("inner_steps", inner_steps)
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate={rate} must be finite and not negative")
        if nonlinearity not in _NONLINEARITIES:
            raise ValueError(f"nonlinearity={nonlinearity} is unknown; choose one of {', '.join(_NONLINEARITIES)}")
        self.norm = NormConfig.of(norm)
        traits = self.norm.traits
        if traits.reparameterizes or traits.axis == "batch":
            raise ValueError(f"norm={self.norm.name} does not fit fast weights; choose one over the layer's own units")
        if self.norm != NormConfig(self.norm.name, eps=self.norm.eps):
            raise ValueError(f"fast weights take name and eps alone of a norm, but it is {self.norm}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.decay, self.rate, self.inner_steps = checks.share("decay", decay), rate, inner_steps
        self.nonlinearity, self.identity = nonlinearity, identity

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih, self.weight_hh = parameter(hidden_size, input_size), parameter(hidden_size, hidden_size)
        self.bias = parameter(hidden_size)
        self.normalize = traits.make(hidden_size, eps=self.norm.eps).to(device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the initial weights that `FastWeights` describes."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for parameter in (self.weight_ih, self.bias):
                parameter.uniform_(-bound, bound)
            self.weight_hh.copy_(self.identity * torch.eye(self.hidden_size))
            if self.norm.traits.normalizes:
                self.normalize.reset_parameters()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, decay={self.decay}, rate={self.rate}, "
            f"inner_steps={self.inner_steps}, nonlinearity={self.nonlinearity}"
        )

    def _drive(self, x: Tensor) -> Tensor:
        """x (..., D) -> C x + b (..., H). ValueError: a parameter was replaced by one of another size, dtype or device,
        which torch would broadcast, or on the meta device take for memory."""
        H, dtype = self.hidden_size, self.weight_ih.dtype
        sizes = {"weight_ih": (H, self.input_size), "weight_hh": (H, H), "bias": (H,)}
        found = [(name, getattr(self, name), size) for name, size in sizes.items()]
        if self.norm.traits.normalizes:
            found += [(f"normalize.{name}", getattr(self.normalize, name), (H,)) for name in ("weight", "bias")]
        for name, value, size in found:
            if value.shape != size or value.dtype is not dtype or value.device != x.device:
                raise ValueError(gate.mismatch(name, value, size, dtype, x.device))
        return F.linear(x, self.weight_ih, self.bias)

    def _step(self, drive: Tensor, h: Tensor, recall: Callable[[Tensor], Tensor]) -> Tensor:
        """drive (B, H) = C x(t) + b, h (B, H) -> h(t+1) (B, H); recall: h_s (B, H) -> A(t) h_s."""
        f = _NONLINEARITIES[self.nonlinearity]
        sustained = drive + F.linear(h, self.weight_hh)
        h = f(sustained)
        for _ in range(self.inner_steps):
            h = f(self.normalize(sustained + recall(h)))
        return h

    def _matrix_step(self, drive: Tensor, h: Tensor, A: Tensor) -> FastState:
        """drive and h (B, H), A (B, H, H) -> both after this step."""
        now = self._step(drive, h, lambda v: torch.einsum("bij,bj->bi", A, v))
        return FastState(now, self.decay * A + self.rate * now[:, :, None] * now[:, None, :])

    def _checked_state(self, state: FastState, B: int) -> tuple[Tensor, Tensor]:
        H = self.hidden_size
        h, A = state
        if h.shape != (B, H) or A.shape != (B, H, H):
            raise ValueError(
                f"state must be h {(B, H)} and A {(B, H, H)}, but is h {tuple(h.shape)} and A {tuple(A.shape)}"
            )
        return h, A


class FastWeights(_FastWeights):
    """A layer of `hidden_size` units with fast weights over sequences (T, B, D), or (B, T, D) with batch_first.

    Slow weights: weight_hh (H, H) starts as `identity` times the identity, weight_ih (H, D) and bias (H) uniform in
    +-1/sqrt(H), as in the paper's appendix A.1; `normalize` holds the norm's gain and bias, from 1 and 0.

    Args:
        decay: lambda, the share of A that a step keeps; in [0, 1].
        rate: eta, how strongly the present hidden state is written into A; not negative.
        inner_steps: S, how often A is applied within a step; at least 1.
        nonlinearity: "relu" or "tanh".
        norm: "layer", "rms" or "none", or a `NormConfig` of such a norm, on the summed inputs of the inner loop.
        form: "matrix" builds A (B, H, H); "attention" sums over past states, which is cheaper while T S < H (S + 1);
            "auto" takes the cheaper. Both compute the same.
        identity: what weight_hh starts from, as a multiple of the identity.

    Raises:
        ValueError: a size, decay, rate or inner_steps out of range, an unknown nonlinearity or form, a norm over other
            than the layer's own units, an input, state or lengths of the wrong shape.

    >>> layer = FastWeights(8, 16)
    >>> output, state = layer(torch.randn(5, 3, 8))
    >>> output.shape, state.A.shape
    (torch.Size([5, 3, 16]), torch.Size([3, 16, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        decay: float = 0.95,
        rate: float = 0.5,
        inner_steps: int = 1,
        nonlinearity: str = "relu",
        norm: str | NormConfig = "layer",
        form: str = "auto",
        identity: float = 0.05,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if form not in _FORMS:
            raise ValueError(f"form={form} is unknown; choose one of {', '.join(_FORMS)}")
        super().__init__(
            input_size,
            hidden_size,
            decay=decay,
            rate=rate,
            inner_steps=inner_steps,
            nonlinearity=nonlinearity,
            norm=norm,
            identity=identity,
            device=device,
            dtype=dtype,
        )
        self.form, self.batch_first = form, checks.flag("batch_first", batch_first)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}"

    def forward(
        self, input: Tensor, state: FastState | None = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, FastState]:
        """input (T, B, D), state from an earlier call or None for zeros, lengths (B) integers of 0 ... T ->
        hidden states (T, B, H), zeros past a row's end, and the state after each row's last step."""
        x = self._checked(input)
        (T, B, _), H = x.shape, self.hidden_size
        valid = self._valid(lengths, x)
        if valid is not None:
            # Whatever the padding holds, infinities included, must touch neither results nor gradients.
            x = x.masked_fill(~valid, 0)
        if state is None:
            h, A = x.new_zeros(B, H), None
        else:
            h, A = self._checked_state(state, B)
        run = self._attention if self._attends(T) else self._matrix
        outputs, state = run(self._drive(x), h, A, valid)
        return (outputs.transpose(0, 1) if self.batch_first else outputs), state

    def _attends(self, T: int) -> bool:
        if self.form == "auto":  # per step and case: about T S H multiplications against H^2 (S + 1)
            return self.inner_steps * T < (self.inner_steps + 1) * self.hidden_size
        return self.form == "attention"

    def _matrix(self, drive: Tensor, h: Tensor, A: Tensor | None, valid: Tensor | None) -> tuple[Tensor, FastState]:
        _, B, H = drive.shape
        A = drive.new_zeros(B, H, H) if A is None else A
        outputs = []
        for t, drive_t in enumerate(drive.unbind()):  # a trace of this loop refuses sequences of another length
            now, written = self._matrix_step(drive_t, h, A)
            if valid is None:
                h, A = now, written
                outputs.append(now)
            else:
                on = valid[t]
                h, A = torch.where(on, now, h), torch.where(on[:, :, None], written, A)
                outputs.append(torch.where(on, now, 0))
        return torch.stack(outputs), FastState(h, A)

    def _attention(self, drive: Tensor, h: Tensor, A: Tensor | None, valid: Tensor | None) -> tuple[Tensor, FastState]:
        T = drive.shape[0]
        outputs: list[Tensor] = []
        # How much of what was written k steps ago is left, for k = 0 ... T - 1, and of the A of before all steps.
        kept = self.decay ** torch.arange(T + 1, device=drive.device, dtype=drive.dtype)

        def recall(v: Tensor) -> Tensor:
            t = len(outputs)
            found = torch.zeros_like(v) if A is None else kept[t] * torch.einsum("bij,bj->bi", A, v)
            if t:
                past = torch.stack(outputs, 1)  # (B, t, H)
                scores = torch.einsum("bth,bh->bt", past, v) * (self.rate * kept[:t].flip(0))
                found = found + torch.einsum("bt,bth->bh", scores, past)
            return found

        for t, drive_t in enumerate(drive.unbind()):
            now = self._step(drive_t, h, recall)
            if valid is not None:
                h, now = torch.where(valid[t], now, h), torch.where(valid[t], now, 0)
            else:
                h = now
            outputs.append(now)
        return torch.stack(outputs), FastState(h, self._written(torch.stack(outputs), A, valid, kept))

    def _written(self, outputs: Tensor, A: Tensor | None, valid: Tensor | None, kept: Tensor) -> Tensor:
        """The fast weights (B, H, H) after each row's last step, from all its hidden states (T, B, H)."""
        T, B, _ = outputs.shape
        steps = torch.full((B,), T, device=outputs.device) if valid is None else valid.sum(0).squeeze(1)
        age = steps - 1 - torch.arange(T, device=outputs.device)[:, None]  # (T, B); of no account past the end
        share = self.rate * kept[age.clamp(min=0)]
        written = torch.einsum("tb,tbi,tbj->bij", share, outputs, outputs)
        return written if A is None else written + kept[steps][:, None, None] * A

    def _checked(self, input: Tensor) -> Tensor:
        """input, after the check of its shape, as (T, B, D)."""
        shape = "(B, T, D)" if self.batch_first else "(T, B, D)"
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor {shape}, but is a {type(input).__name__}")
        x = input.transpose(0, 1) if self.batch_first and input.dim() == 3 else input
        if x.dim() != 3 or x.shape[2] != self.input_size or x.shape[0] == 0:
            raise ValueError(f"input must be {shape} with T > 0 and D = {self.input_size}, but is {tuple(input.shape)}")
        return x

    @staticmethod
    def _valid(lengths: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
        """(T, B, 1): which steps of x (T, B, D) count; None where all do."""
        T, B, _ = x.shape
        given = None if lengths is None else checked_lengths(lengths, T, B, gate.beyond_eager((x,)))
        if given is None:
            return None
        return (torch.arange(T, device=x.device)[:, None] < given.to(x.device))[..., None]


class FastWeightsCell(_FastWeights):
    """One step of `FastWeights`, for models whose input depends on their own state; arguments, parameters and errors
    as there, without form and batch_first.

    forward(input, state=None) -> (h, A): input (B, D); state: h (B, H) and A (B, H, H), zeros if None.

    >>> cell, state = FastWeightsCell(8, 16), None
    >>> for x in torch.randn(5, 3, 8):
    ...     state = cell(x, state)
    >>> state.h.shape, state.A.shape
    (torch.Size([3, 16]), torch.Size([3, 16, 16]))
    """

    def forward(self, input: Tensor, state: FastState | None = None) -> FastState:
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor (B, D), but is a {type(input).__name__}")
        if input.dim() != 2 or input.shape[1] != self.input_size:
            raise ValueError(f"input must be (B, D) with D = {self.input_size}, but is {tuple(input.shape)}")
        B, H = input.shape[0], self.hidden_size
        if state is None:
            h, A = input.new_zeros(B, H), input.new_zeros(B, H, H)
        else:
            h, A = self._checked_state(state, B)
        return self._matrix_step(self._drive(input), h, A)
