"""Graves' synthesis network: three LSTMs with skip connections, a window over the text, a mixture density for the pen.

Equation numbers G46 and so on are those of Graves, "Generating Sequences With Recurrent Neural Networks" (2013),
arXiv 1308.0850. Shapes: T steps, B batch, U characters of a text, A alphabet, H hidden, K Gaussians of the window,
M mixture components.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ln import LSTM, LSTMCell, NormConfig, kernels
from ln.kernels import gate
from ln.suite.errors import Mistake

# Float32 is safe within these: a deviation near 0 or a correlation near 1 makes the density grow without bound.
SMALLEST_DEVIATION = 1e-3  # of the offsets' own
LARGEST_CORRELATION = 0.999


def mixture(outputs: Tensor, bias: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log weights (..., M), means (..., M, 2), log deviations (..., M, 2), correlations (..., M) and the logit (...) of
    lifting the pen, of network outputs (..., 6M + 1).

    Equations G18 to G22, or G61 and G62 with a probability bias, which makes a sampled hand neater. Deviations and
    correlations are bounded, and a larger logit means a lifted pen, where G18 has the sign turned.
    """
    logit, rest = outputs[..., 0], outputs[..., 1:]
    weights, means, deviations, correlations = rest.tensor_split([c * rest.shape[-1] // 6 for c in (1, 3, 5)], -1)
    log_smallest = deviations.new_full((), math.log(SMALLEST_DEVIATION))
    return (
        F.log_softmax(weights * (1 + bias), -1),
        means.unflatten(-1, (-1, 2)),
        torch.logaddexp(deviations - bias, log_smallest).unflatten(-1, (-1, 2)),
        LARGEST_CORRELATION * torch.tanh(correlations),
        logit,
    )


def mixture_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """(...) nats of the offsets and pen bits `targets` (..., 3) under outputs (..., 6M + 1); equations G23 to G26."""
    log_weights, means, log_deviations, correlations, logit = mixture(outputs)
    z = (targets[..., None, :2] - means) * torch.exp(-log_deviations)
    left = (1 - correlations) * (1 + correlations)
    # x given y, times y: the two squares cannot cancel as the three terms of G25 do near correlation 1.
    squares = (z[..., 0] - correlations * z[..., 1]).square() / left + z[..., 1].square()
    log_densities = -0.5 * (squares + torch.log(left)) - log_deviations.sum(-1) - math.log(2 * math.pi)
    offset = -torch.logsumexp(log_weights + log_densities, -1)
    return offset + F.binary_cross_entropy_with_logits(logit, targets[..., 2], reduction="none")


def draw_offsets(outputs: Tensor, bias: float) -> Tensor:
    """(B, 3) offsets and pen bits drawn from outputs (B, 6M + 1), with torch's global random numbers."""
    log_weights, means, log_deviations, correlations, logit = mixture(outputs, bias)
    chosen = torch.multinomial(log_weights.exp(), 1)
    rho = correlations.gather(1, chosen)[:, 0]
    pick = chosen[..., None].expand(-1, -1, 2)
    mean, deviation = means.gather(1, pick)[:, 0], log_deviations.gather(1, pick)[:, 0].exp()
    noise = torch.randn_like(mean)
    y = rho * noise[:, 0] + torch.sqrt(1 - rho**2) * noise[:, 1]
    offsets = mean + deviation * torch.stack([noise[:, 0], y], 1)
    return torch.cat([offsets, torch.bernoulli(torch.sigmoid(logit)).unsqueeze(1)], 1)


class Network(nn.Module):
    """The synthesis network, with what it needs to write by itself: its alphabet and the units of its offsets.

    Each LSTM reads the pen's point; the first also the last step's window, the others the layer below and this step's
    window. The inputs of a layer are concatenated, so that layer norm takes one statistic over them (one W_x).
    Without peepholes: equations 20 to 22 have none.
    """

    letters: Tensor  # (A,) code points
    mean: Tensor  # (2,) of the training offsets
    deviation: Tensor  # (2,)
    pace: Tensor  # () pen points to a character

    def __init__(self, alphabet_size: int, hidden: int, window: int, mixtures: int, norm: NormConfig):
        super().__init__()
        A, H = alphabet_size, hidden
        self.first = LSTMCell(3 + A, H, norm=norm)
        self.second = LSTM(3 + A + H, H, norm=norm)
        self.third = LSTM(3 + A + H, H, norm=norm)
        self.window = nn.Linear(H, 3 * window)
        self.output = nn.Linear(3 * H, 6 * mixtures + 1)
        self.register_buffer("letters", torch.zeros(A, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("deviation", torch.ones(2))
        self.register_buffer("pace", torch.ones(()))

    @torch.no_grad()
    def fit(self, alphabet: str, points: list[np.ndarray], texts: list[str]) -> None:
        """Take the alphabet, and from the training lines (N, 3) the units of offsets and the speed of the window."""
        self.letters.copy_(torch.tensor([ord(letter) for letter in alphabet]))
        offsets = torch.from_numpy(np.concatenate([line[1:, :2] for line in points])).double()
        self.mean.copy_(offsets.mean(0))
        self.deviation.copy_(offsets.std(0))
        self.pace.fill_(sum(map(len, points)) / sum(map(len, texts)))
        # At the start the Gaussians share weight 1 and walk at the hand's mean speed; G51's exp(0) would leave the text
        # behind within a character or two.
        K = self.window.out_features // 3
        self.window.bias.copy_(torch.tensor([1 / K, 1.0, 1 / float(self.pace)]).log().repeat_interleave(K))

    def normalized(self, points: Tensor) -> Tensor:
        """Points (..., 3) in the source's unit -> with offsets of mean 0 and deviation 1 over the training lines."""
        return torch.cat([(points[..., :2] - self.mean) / self.deviation, points[..., 2:]], -1)

    def indices(self, text: str) -> Tensor:
        """(U,) the classes of a text's characters.

        Raises:
            Mistake: an empty text, or characters outside the alphabet.
        """
        alphabet = {chr(code): index for index, code in enumerate(self.letters.tolist())}
        if not text:
            raise Mistake("the text is empty; give at least one character")
        unknown = sorted(set(text) - alphabet.keys())
        if unknown:
            known = "".join(letter for letter in alphabet if letter.isprintable())
            raise Mistake(f"the text has characters outside the alphabet: {' '.join(unknown)}; choose from `{known}`")
        return torch.tensor([alphabet[letter] for letter in text], device=self.letters.device)

    def one_hot(self, texts: Tensor) -> Tensor:
        """(B, U, A) of texts (B, U); the class A, which pads, is nothing."""
        A = len(self.letters)
        return torch.eye(A + 1, A, dtype=self.mean.dtype, device=texts.device)[texts]

    def look(self, h: Tensor, kappa: Tensor, characters: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The window after one step, equations G46 to G51.

        Returns what it shows (B, A), its Gaussians' new places (B, K, 1) and its weight on each character (B, U).

        h (B, H), kappa (B, K, 1) the places before, characters (B, U, A), positions (U,).
        """
        height, width, move = torch.exp(self.window(h)).unflatten(-1, (3, -1)).unsqueeze(-1).unbind(1)
        kappa = kappa + move
        weights = (height * torch.exp(-width * (kappa - positions).square())).sum(1)
        return torch.bmm(weights.unsqueeze(1), characters).squeeze(1), kappa, weights

    def initial(self, B: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """The first LSTM's state, the window's places and what it shows, before the first step."""
        H, K = self.first.hidden_size, self.window.out_features // 3
        zero = self.mean.new_zeros
        return (zero(B, H), zero(B, H)), zero(B, K, 1), zero(B, len(self.letters))

    def forward(self, points: Tensor, texts: Tensor, steps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(T, B, 6M + 1) the mixture after each point, and the window's weights (B, U) at each step.

        points (T, B, 3) normalized; texts (B, U) classes; steps (B,), of which only batch norm takes notice: padding
        comes after a line's end and cannot reach back.
        """
        characters = self.one_hot(texts)
        per_row = self.first.uses_batch_statistics
        if self._fused(points, texts):
            from experiments.handwriting.fused import pen_steps

            h1, looked = pen_steps(self.first, self.window, points, texts, characters)
            shown = torch.bmm(looked.transpose(0, 1), characters).transpose(0, 1)
            weights = list(looked)
        else:
            h1, shown, weights = self.one_by_one(points, characters, steps.tolist() if per_row else [])
        inputs = torch.cat([points, shown], -1)
        ends = steps if per_row else None
        h2, _ = self.second(torch.cat([inputs, h1], -1), lengths=ends)
        h3, _ = self.third(torch.cat([inputs, h2], -1), lengths=ends)
        return self.output(torch.cat([h1, h2, h3], -1)), weights

    def _fused(self, points: Tensor, texts: Tensor) -> bool:
        """Whether one kernel of Triton does a pen step, which spares a GPU nine launches of ten."""
        beyond = gate.beyond_eager((points, texts, *self.parameters()))
        if kernels.name_of(self.first.resolved(points, beyond)) != "triton" or points.dtype is not torch.float32:
            return False
        from experiments.handwriting.fused import fits

        return fits(self.first, self.window, texts.shape[1])

    def one_by_one(self, points: Tensor, characters: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What the first LSTM and its window make of all steps: the states (T, B, H), what the window shows (T, B, A),
        and its weights (B, U) at each step.

        points (T, B, 3), characters (B, U, A); lengths: those of the rows, where each takes part in a step's statistics
        as long as it lasts.
        """
        B, U, _ = characters.shape
        positions = torch.arange(U, device=points.device, dtype=points.dtype)
        state, kappa, shown = self.initial(B)
        hs, windows, weights = [], [], []
        with self.first.prepared():
            for t in range(len(points)):
                x = torch.cat([points[t], shown], 1)
                rows = [b for b, length in enumerate(lengths) if length > t]
                if lengths and len(rows) < B:
                    state = self._advance_rows(x, state, t, rows)
                else:
                    state = self.first(x, state, t)
                shown, kappa, weight = self.look(state[0], kappa, characters, positions)
                hs.append(state[0])
                windows.append(shown)
                weights.append(weight)
        return torch.stack(hs), torch.stack(windows), weights

    def _advance_rows(self, x: Tensor, state: tuple[Tensor, Tensor], t: int, rows: list[int]) -> tuple[Tensor, Tensor]:
        """A step of the first LSTM for some rows; the others keep their state."""
        if not rows:
            return state
        chosen = torch.tensor(rows, device=x.device)
        h, c = self.first(x[chosen], (state[0][chosen], state[1][chosen]), t)
        return state[0].index_copy(0, chosen, h), state[1].index_copy(0, chosen, c)

    @torch.no_grad()
    def write(self, texts: list[str], bias: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text a line (N, 3) in the source's unit and the window's weights (N - 1, U), in evaluation mode.

        A line ends when the window's weight past the text exceeds its weight on each of its characters (Graves, section
        5.3), or at twice the points that the training lines have for so many characters.
        """
        classes = [self.indices(text) for text in texts]
        B, A = len(texts), len(self.letters)
        padded = nn.utils.rnn.pad_sequence(classes, batch_first=True, padding_value=A)
        characters = self.one_hot(F.pad(padded, (0, 1), value=A))
        positions = torch.arange(padded.shape[1] + 1, device=padded.device, dtype=self.mean.dtype)
        second, third = stepping(self.second), stepping(self.third)
        state, kappa, shown = self.initial(B)
        states2 = states3 = None
        x = self.normalized(self.mean.new_zeros(B, 3))  # a line's first point
        lines, windows = [self.mean.new_zeros(B, 3)], []
        ends: list[int | None] = [None] * B
        for t in range(int(2 * float(self.pace) * padded.shape[1])):
            state = self.first(torch.cat([x, shown], 1), state, t)
            shown, kappa, weights = self.look(state[0], kappa, characters, positions)
            for b, text in enumerate(texts):
                if ends[b] is None and (weights[b, len(text)] > weights[b, : len(text)]).all():
                    ends[b] = t
            if None not in ends:
                break
            states2 = second(torch.cat([x, shown, state[0]], 1), states2, t)
            states3 = third(torch.cat([x, shown, states2[0]], 1), states3, t)
            x = draw_offsets(self.output(torch.cat([state[0], states2[0], states3[0]], 1)), bias)
            lines.append(torch.cat([x[:, :2] * self.deviation + self.mean, x[:, 2:]], 1))
            windows.append(weights)
        points, looked = torch.stack(lines, 1).cpu().numpy(), torch.stack(windows, 1).cpu().numpy()
        return [
            (points[b, : None if end is None else end + 1], looked[b, :end, : len(text)])
            for b, (end, text) in enumerate(zip(ends, texts, strict=True))
        ]


def stepping(layer: LSTM) -> LSTMCell:
    """The cell of a one-layer LSTM, with its parameters and statistics."""
    cell = LSTMCell(layer.input_size, layer.hidden_size, norm=layer.norm, backend=layer.backend)
    cell.load_state_dict({name.replace("_l0", ""): value for name, value in layer.state_dict().items()})
    return cell.to(next(layer.parameters()).device).train(layer.training)
