"""LSTM, GRU and RNN modules with a norm inside, shaped after torch.nn.

Shapes: T time, B batch, D input, H hidden, L layers x directions, G gates (4H LSTM: i, f, g, o; 3H GRU: r, z, n; H
RNN). Equation numbers are those of "Layer Normalization" (Ba, Kiros, Hinton 2016), arXiv 1607.06450.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ln import checks, inputs, kernels
from ln.kernels import gate
from ln.norms import NormConfig
from ln.parameters import NormalizedRecurrence, without_autocast, working_dtype


class _Recurrent(NormalizedRecurrence):
    """Layers and directions around a backend's sequence function."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        norm: str | NormConfig,
        backend: str,
        learn_state: bool,
        recompute: bool,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__(cell, input_size, hidden_size, bias, norm, backend, {"device": device, "dtype": dtype})
        self.num_layers = checks.size("num_layers", num_layers)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.dropout = checks.share("dropout", dropout)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        self.learn_state = checks.flag("learn_state", learn_state)
        self.recompute = checks.flag("recompute", recompute)
        self.nonlinearity = checks.nonlinearity(nonlinearity)
        # As torch.nn's, of which some code asks them.
        self.proj_size, self.mode = 0, f"RNN_{nonlinearity.upper()}" if cell == "rnn" else cell.upper()
        if dropout and num_layers == 1:
            warnings.warn(f"dropout={dropout} acts between layers, and num_layers=1 has no such place", stacklevel=3)
        self.state_names = ("h0", "c0") if cell == "lstm" else ("h0",)
        self.num_directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = self._width(layer)
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: self.num_directions]:
                self.add_direction(suffix, width, self.state_names if learn_state else ())
        self.reset_parameters()

    def _width(self, layer: int) -> int:
        """D of a layer's input."""
        return self.input_size if layer == 0 else self.hidden_size * self.num_directions

    def _call(
        self, input: Tensor | PackedSequence, hx: Any, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Whatever form torch.nn takes, as a batch (T, B, D) and back again."""
        state = checks.states(hx, self.state_names, "(L, B, H)")
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("a packed sequence brings its own lengths; leave out lengths")
            x, sizes = pad_packed_sequence(input)
            output, state = self._run(x, state, sizes)
            return inputs.packed_like(input, output, sizes), state
        single = isinstance(input, Tensor) and input.dim() == 2
        if single:
            if lengths is not None:
                raise ValueError("a sequence (T, D) without a batch is as long as it is; leave out lengths")
            input, state = input.unsqueeze(1), inputs.with_batch(state, "(L, H)")
        elif self.batch_first and isinstance(input, Tensor) and input.dim() == 3:
            input = input.transpose(0, 1)
        output, state = self._run(input, state, lengths)
        if single:
            return output.squeeze(1), tuple(value.squeeze(1) for value in state)
        return (output.transpose(0, 1) if self.batch_first else output), state

    def _run(
        self, x: Tensor, state: tuple[Tensor, ...] | None, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers and directions over x (T, B, D); state and result: one tensor (L, B, H) per name in
        state_names."""
        given, x = x, self.matched(x, 3, "(B, T, D)" if self.batch_first else "(T, B, D)")
        returned = self.returned_dtype(given)
        T, B, _ = x.shape
        if T == 0:
            raise ValueError("input must hold at least one step, but T = 0")
        state = self._initial(x, state)
        beyond = gate.beyond_eager((x, *state, *self._parameters.values(), *self._buffers.values()))
        lengths = None if lengths is None else inputs.checked_lengths(lengths, T, B, beyond)
        if lengths is not None and beyond not in (None, gate.COMPILING) and self.uses_batch_statistics:
            raise RuntimeError(f"batch norm cannot train on sequences with lengths under {beyond}")
        self.check_batch(0, T, (x, *state), beyond)  # the last to refuse, since it makes room for T steps
        if lengths is None and self._torch_is_fastest(x, state, beyond):
            output, state = self._torch(x, state)
        else:
            output, state = self._layers(x, state, lengths, beyond)
        return output.to(returned), tuple(value.to(returned) for value in state)

    def _initial(self, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        L, B = len(self._suffixes), x.shape[1]
        shape = (L, B, self.hidden_size)
        if state is not None:
            pairs = zip(self.state_names, state, strict=True)
            return tuple(self.matched_state(value, name, x, shape, "(L, B, H)") for name, value in pairs)
        if not self.learn_state:
            return tuple(x.new_zeros(shape) for _ in self.state_names)
        learned = (
            torch.stack([getattr(self, name + suffix) for suffix in self._suffixes]) for name in self.state_names
        )
        return tuple(value.unsqueeze(1).expand(shape) for value in learned)

    def _layers(
        self, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, beyond: str | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype, T = x.dtype, x.shape[0]
        backend = self.resolved(x, beyond)
        x, state = x.to(working_dtype(dtype)), tuple(value.to(working_dtype(dtype)) for value in state)
        backwards = None
        if lengths is not None:
            lengths = lengths.to(x.device)
            time = torch.arange(T, device=x.device).unsqueeze(1)
            past = (time >= lengths).unsqueeze(-1)
            # Whatever the padding holds, infinities included, must touch neither results nor gradients.
            x = x.masked_fill(past, 0)
            backwards = torch.where(past.squeeze(-1), time, lengths - 1 - time).unsqueeze(-1)
        finals: list[tuple[Tensor, ...]] = []
        with without_autocast(x.device):
            for layer in range(self.num_layers):
                outputs = []
                for direction in range(self.num_directions):
                    index = layer * self.num_directions + direction
                    initial = tuple(value[index] for value in state)
                    turned = _reversed(x, backwards) if direction else x
                    output, final = self._direction(backend, self._suffixes[index], turned, initial, lengths)
                    outputs.append(_reversed(output, backwards) if direction else output)
                    finals.append(final)
                x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
                if layer < self.num_layers - 1:
                    x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(values) for values in zip(*finals, strict=True))

    def _direction(
        self,
        backend: kernels.Backend,
        suffix: str,
        x: Tensor,
        state: tuple[Tensor, ...],
        lengths: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        stats = self.population(suffix, 0, x.shape[0], x.dtype)
        output, final, used = kernels.sequence(
            backend,
            self.cell,
            x,
            state,
            self.params(suffix, x.dtype),
            self.kernel_norm,
            lengths,
            stats,
            recompute=self.recompute,
            nonlinearity=self.nonlinearity,
        )
        self.track(suffix, 0, x.shape[0], used, lengths)
        return output, final

    def _torch_is_fastest(self, x: Tensor, state: tuple[Tensor, ...], beyond: str | None) -> bool:
        """Whether torch.nn's own kernels run the layer. Traces keep torch's functions as they are, for sequences of any
        length."""
        if self.backend != "auto" or self.kernel_norm.traits.normalizes or self.recompute or 0 in x.shape:
            return False
        if beyond is not None:
            return beyond == gate.TRACING
        trains = self.trains(x, *state)
        T, B, D = x.shape
        return kernels.torch_is_fastest(
            self.cell, self.kernel_norm, x.device, x.dtype, T, B, D, self.hidden_size, trains
        )

    def _torch(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        function = getattr(torch._VF, {"rnn": f"rnn_{self.nonlinearity}"}.get(self.cell, self.cell))
        weights = []
        for n, suffix in enumerate(self._suffixes):
            p = self.params(suffix, x.dtype)
            gate.check_sizes(self.cell, x, state[0][n], None, p, self._width(n // self.num_directions))
            weights += [value for value in p[:4] if value is not None]
        hidden = state if self.cell == "lstm" else state[0]
        flags = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, False)
        output, *final = function(x, hidden, weights, *flags)
        self.note("torch.nn")
        return output, tuple(final)

    def flatten_parameters(self) -> None:
        """Nothing: torch.nn's gathers its weights in one piece of memory, which the backends here do by themselves."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, in the order of their registration."""
        names = list(self._parameters)
        ends = [(suffix, f"{suffix}_g", f"{suffix}_v") for suffix in self._suffixes]
        return [[getattr(self, name) for name in names if name.endswith(end)] for end in ends]

    def extra_repr(self) -> str:
        told = (
            ("num_layers", 1),
            ("nonlinearity", "tanh"),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("learn_state", False),
            ("recompute", False),
        )
        return self.described(told)


def _reversed(x: Tensor, backwards: Tensor | None) -> Tensor:
    """x (T, B, n) backwards in time, within each row's length where `backwards` (T, B, 1) gives the step to read."""
    return x.flip(0) if backwards is None else x.gather(0, backwards.expand(-1, -1, x.shape[-1]))


class LSTM(_Recurrent):
    """LSTM with a norm inside, equations 20 to 22 of the paper.

    input_size D, hidden_size H, num_layers, bias, batch_first, dropout, bidirectional: as torch.nn.LSTM.
    norm: "none", "batch", "weight", "layer", "rms" or a `NormConfig`. backend: "auto" or one of `ln.kernels.BACKENDS`;
    the one that ran is in `backend_used`. learn_state: initial states h0, c0 are parameters. recompute: store less for
    the backward pass and compute it again.

    forward(input, hx=None, lengths=None) -> (output, (h, c)): input (T, B, D), or (B, T, D) with batch_first, or (T, D)
    without a batch, or a `PackedSequence`, and the output in the same form; hx: h and c, each (L, B, H); lengths (B)
    integers, 0 ... T, best on the CPU (on a GPU their check waits for it); output (T, B, H) or (T, B, 2H), 0 past a
    row's end; h, c (L, B, H), each row's state at its own last step. The native backend computes the real steps only,
    whatever the order of the rows.

    Parameters, with suffix _l0, _l0_reverse, _l1, ...: weight_ih (G, D), weight_hh (G, H), bias_ih, bias_hh (G) as in
    torch.nn.LSTM, whose state dict loads under norm="none"; gain_ih, gain_hh (G), gain_c, bias_c (H) where a site is
    normalized. Under weight norm weight_ih_l0_g (G, 1) and weight_ih_l0_v (G, D) stand for weight_ih_l0.

    The paper normalizes all three sites in the attentive reader and in handwriting, ("input", "recurrent", "cell"), the
    default; in DRAW the cell alone: NormConfig(sites=("cell",)). The cell state is carried on un-normalized.

    A scalar input (D = 1, pixel by pixel) loses its grey level under layer norm: LN(w x) is the same for every x > 0,
    up to eps. NormConfig(inner_bias=True) normalizes w x + b in its place, as the authors' code does, and keeps it.

    Batch norm follows Cooijmans et al. 2016 (arXiv 1603.09025): each step has statistics of its own up to max_steps; in
    evaluation the last ones trained serve all later steps.

    ValueError: wrong shape, device or dtype, lengths outside 0 ... T, more than max_steps steps in training with batch
    norm. RuntimeError: the backend asked for cannot run here.

    >>> layer = LSTM(8, 16, norm="layer")
    >>> output, (h, c) = layer(torch.randn(5, 3, 8), lengths=[5, 2, 4])
    >>> output.shape, h.shape, bool((output[2:, 1] == 0).all())
    (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]), True)
    """

    lowered = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
        learn_state: bool = False,
        recompute: bool = False,
    ) -> None:
        checks.no_projection(proj_size)
        super().__init__(
            "lstm",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            norm,
            backend,
            learn_state,
            recompute,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        output, (h, c) = self._call(input, hx, lengths)
        return output, (h, c)


class GRU(_Recurrent):
    """GRU with a norm inside, equations 26 to 28 of the paper, with torch's sign: h' = (1 - z) n + z h.

    Arguments, parameters and errors as in `LSTM`, with gates r, z, n and without c. Layer norm takes its statistics
    over (r, z) together and over n by itself, for input and recurrent terms separately; r multiplies the normalized
    recurrent term.

    forward(input, hx=None, lengths=None) -> (output, h): input (T, B, D); hx and h (L, B, H); output (T, B, H) or
    (T, B, 2H).

    >>> output, h = GRU(8, 16, bidirectional=True, norm="weight")(torch.randn(5, 3, 8))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 32]), torch.Size([2, 3, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
        learn_state: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            "gru",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            norm,
            backend,
            learn_state,
            recompute,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Tensor]:
        output, (h,) = self._call(input, hx, lengths)
        return output, h


class RNN(_Recurrent):
    """Simple RNN with a norm inside, equation 4 of the paper: f(LN(W_ih x + W_hh h)), the sum normalized once.

    Arguments, parameters and errors as in `LSTM`, with one gate, without c, and with nonlinearity="tanh" or "relu";
    gain_ih is the gain of the sum. NormConfig(sites=("input", "recurrent")) normalizes the two terms separately.

    forward(input, hx=None, lengths=None) -> (output, h): input (T, B, D); hx and h (L, B, H); output (T, B, H) or
    (T, B, 2H).

    >>> output, h = RNN(8, 16, nonlinearity="relu", norm="rms")(torch.randn(5, 3, 8))
    >>> output.shape
    torch.Size([5, 3, 16])
    """

    lowered = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm: str | NormConfig = "layer",
        backend: str = "auto",
        learn_state: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            "rnn",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            norm,
            backend,
            learn_state,
            recompute,
            nonlinearity,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Tensor]:
        output, (h,) = self._call(input, hx, lengths)
        return output, h
