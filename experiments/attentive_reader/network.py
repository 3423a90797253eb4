"""The attentive reader (Hermann et al. 2015) as Cooijmans et al. (2016) trained it, with norms in its two LSTMs.

Shapes: T words of a passage, U of a question, B batch, D input, H hidden, R = H, or 2H bidirectional, G = 4H gates, V
vocabulary.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ln import LSTM, NormConfig
from ln.reference import Params


class AttentiveReader(nn.Module):
    """Passage and question -> one score for each word of the vocabulary, and the attention on the passage.

    norm: inside the two LSTMs. everywhere: batch norm also on each term that enters the two tanh, but the similarity,
    as in the published BN-everywhere. pooled_input: batch norm's statistics of the LSTMs' input term are taken over all
    steps together instead of for each (BN-e*). steps: the longest passage and question, for batch norm's statistics.
    """

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        norm: NormConfig,
        *,
        dropout: float = 0.5,
        bidirectional: bool = False,
        everywhere: bool = False,
        pooled_input: bool = False,
        steps: tuple[int, int] = (1024, 1024),
    ):
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(vocabulary, hidden)
        kind = PooledInputLSTM if pooled_input and norm.traits.axis == "batch" else LSTM
        self.reader, self.asker = (
            kind(
                hidden,
                hidden,
                norm=dataclasses.replace(norm, max_steps=most),
                bidirectional=bidirectional,
                learn_state=True,
            )
            for most in steps
        )
        for lstm in (self.reader, self.asker):
            for name, parameter in lstm.named_parameters():
                if name.startswith("c0"):
                    parameter.requires_grad_(False)  # the published code learns h0 alone; the cell starts at 0
        R = 2 * hidden if bidirectional else hidden
        self.similar = nn.Linear(R, R, bias=False)  # A, for passage and question alike
        self.attend_word = nn.Linear(R, hidden)  # W_d
        self.attend_question = nn.Linear(R, hidden, bias=False)  # W_q
        self.attend = nn.Parameter(torch.empty(hidden).uniform_(-(hidden**-0.5), hidden**-0.5))  # v
        self.from_context = nn.Linear(R, hidden, bias=False)  # W_c
        self.from_question = nn.Linear(R, hidden)  # W_u
        self.from_mean = nn.Linear(R, hidden, bias=False)  # W_m
        self.output = nn.Linear(hidden, vocabulary)
        terms = ("attend_word", "attend_question", "from_context", "from_question", "from_mean")
        batch = everywhere and norm.traits.axis == "batch"
        self.norms = nn.ModuleDict()
        for term in terms if batch else ():
            self.norms[term] = module = norm.traits.make(hidden, eps=norm.eps, momentum=norm.momentum)
            nn.init.constant_(module.get_parameter("weight"), norm.initial_gain)

    def forward(self, passage: Tensor, lengths: Tensor, question: Tensor, question_lengths: Tensor) -> Tensor:
        """(B, V) scores; passage (T, B) and question (U, B) ids, lengths (B,) each."""
        return self.read(passage, lengths, question, question_lengths)[0]

    def read(
        self, passage: Tensor, lengths: Tensor, question: Tensor, question_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, V) scores and (T, B) attention, 0 past a passage's end; arguments as in `forward`."""
        d, _ = self.reader(self._embedded(passage), lengths=lengths)  # (T, B, R), 0 past the end
        _, (last, _) = self.asker(self._embedded(question), lengths=question_lengths)
        u = last.transpose(0, 1).flatten(1)  # (B, R)
        inside = torch.arange(len(d), device=d.device).unsqueeze(1) < lengths.to(d.device)  # (T, B)
        similarity = torch.einsum("tbr,br->tb", self.similar(d), self.similar(u))
        summed = self._words(d, inside) + self._term("attend_question", u) + similarity.unsqueeze(-1)
        logits = torch.tanh(summed) @ self.attend
        attention = logits.masked_fill(~inside, -torch.inf).softmax(0)
        context = torch.einsum("tb,tbr->br", attention, d)
        mean = d.sum(0) / lengths.to(d).unsqueeze(1)
        out = torch.tanh(
            self._term("from_context", context) + self._term("from_question", u) + self._term("from_mean", mean)
        )
        return self.output(F.dropout(out, self.dropout, self.training)), attention

    def _embedded(self, words: Tensor) -> Tensor:
        return F.dropout(self.embedding(words), self.dropout, self.training)

    def _term(self, name: str, x: Tensor) -> Tensor:
        y = getattr(self, name)(x)
        return self.norms[name](y) if name in self.norms else y

    def _words(self, d: Tensor, inside: Tensor) -> Tensor:
        """(T, B, H) W_d d; batch norm sees the passages' own words, of all steps together."""
        y = self.attend_word(d)
        if "attend_word" not in self.norms:
            return y
        return torch.zeros_like(y).masked_scatter(inside.unsqueeze(-1), self.norms["attend_word"](y[inside]))


class PooledInputLSTM(LSTM):
    """LSTM with recurrent batch norm whose input term W_ih x has one set of statistics for all steps, padding left out
    (sequence-wise normalization; the recurrent term and the cell keep one set a step).

    The mean and variance of w x are w m and w C w' for the inputs' mean m (D) and covariance C (D, D), so that the norm
    is folded into the weights. Gains and the input's moving averages are named as in `LSTM`. Errors as in `LSTM`.
    """

    input_mean: Tensor
    input_covariance: Tensor
    inputs_tracked: Tensor

    def __init__(self, input_size: int, hidden_size: int, *args: Any, norm: NormConfig, **options: Any) -> None:
        if not (norm.traits.centred and norm.traits.population):
            raise ValueError(f"norm={norm.name} has no pooled statistics here: they are centred, with averages")
        super().__init__(
            input_size, hidden_size, *args, norm=dataclasses.replace(norm, sites=("recurrent", "cell")), **options
        )
        for suffix in self._suffixes:
            gain = torch.full((4 * hidden_size,), self.norm.initial_gain)
            self.register_parameter(f"gain_ih{suffix}", nn.Parameter(gain))
        self.register_buffer("input_mean", torch.zeros(input_size))
        self.register_buffer("input_covariance", torch.eye(input_size))
        self.register_buffer("inputs_tracked", torch.zeros((), dtype=torch.int64))
        self._statistics: tuple[Tensor, Tensor] = (self.input_mean, self.input_covariance)

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None, lengths: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self._statistics = self._of_batch(input, lengths) if self.training else (self.input_mean, self.input_covariance)
        return super().forward(input, hx, lengths)

    def _of_batch(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        if lengths is None:
            rows = x.flatten(0, 1)
        else:
            rows = x[torch.arange(len(x), device=x.device).unsqueeze(1) < lengths.to(x.device)]
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        with torch.no_grad():
            self.inputs_tracked += 1
            # As in LSTM, the plain mean of all batches until momentum weighs a new one more.
            share = (1 / self.inputs_tracked).clamp(min=self.norm.momentum).to(mean.dtype)
            self.input_mean.lerp_(mean.detach(), share)
            self.input_covariance.lerp_(covariance.detach(), share)
        return mean, covariance

    def params(self, suffix: str, dtype: torch.dtype) -> Params:
        p = super().params(suffix, dtype)
        mean, covariance = (value.to(dtype) for value in self._statistics)
        variance = ((p.weight_ih @ covariance) * p.weight_ih).sum(1)
        gain = self.get_parameter(f"gain_ih{suffix}").to(dtype) / (variance + self.norm.eps).sqrt()
        weight = gain.unsqueeze(1) * p.weight_ih
        shift = weight @ mean
        return p._replace(weight_ih=weight, bias_ih=-shift if p.bias_ih is None else p.bias_ih - shift, gain_ih=None)


@torch.no_grad()
def publish_init(model: AttentiveReader) -> None:
    """The published code's initial weights: its every initializer seeds the generator anew, so that all matrices of one
    shape are equal, the four gates' among them, and so input and recurrent weights; square ones of the LSTMs and A are
    0.05 times an orthogonal matrix, the rest uniform in +-sqrt(6 / (in + out + 1)); biases 0.

    The one seed is drawn from torch's generator, so that runs differ; there it is always 123.
    """
    seed = int(torch.randint(2**31, ()))

    def weight(rows: int, columns: int, orthogonal: bool) -> Tensor:
        generator = np.random.default_rng(seed)
        if orthogonal and rows == columns:
            bound = (6 / (2 * columns + 1)) ** 0.5
            u, _, v = np.linalg.svd(generator.uniform(-bound, bound, (columns, columns)))
            return torch.from_numpy(0.05 * u @ v.T).float().T
        bound = (6 / (rows + columns + 1)) ** 0.5
        return torch.from_numpy(generator.uniform(-bound, bound, (columns, rows))).float().T

    for lstm in (model.reader, model.asker):
        hidden = lstm.hidden_size
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight_"):
                gate = weight(hidden, parameter.shape[1], orthogonal=True)
                parameter.copy_(gate.repeat(4, 1))
            elif name.startswith("bias_"):
                nn.init.zeros_(parameter)
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            module.weight.copy_(weight(rows, columns, orthogonal=name in ("similar", "attend_word")))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    vocabulary, hidden = model.embedding.weight.shape
    model.embedding.weight.copy_(weight(hidden, vocabulary, orthogonal=False).T)
    bound = hidden**-0.5
    model.attend.copy_(torch.from_numpy(np.random.default_rng(seed).uniform(-bound, bound, hidden)))
