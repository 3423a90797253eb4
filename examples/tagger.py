"""A tagger: which mark follows each word of a text that has lost its marks.

    .venv/bin/python -m examples.tagger --norm layer [--rate 0.003] [--text mine.txt]

Shapes: N words of a text, T steps, B rows, V words of the vocabulary.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ln
from examples.word_model import open_forget_gates
from examples.words import encoded, split, windows, words_of
from ln.norms import NORMS

MARKS = ("", ",", ".?!", ";:")  # the tags: no mark, a comma, a sentence's end, another pause
V, HIDDEN = 1000, 64
T, B = 32, 16


class Tagger(nn.Module):
    """ids (T, B) -> logits (T, B, tags). recurrence: nn.LSTM, or any layer that is called as it is."""

    def __init__(self, recurrence: Callable[..., nn.Module]):
        super().__init__()
        self.embedding = nn.Embedding(V, HIDDEN)
        self.lstm = recurrence(HIDDEN, HIDDEN, bidirectional=True)
        self.output = nn.Linear(2 * HIDDEN, len(MARKS))

    def forward(self, ids: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(ids))
        logits: Tensor = self.output(output)
        return logits


def tagged(words: list[str]) -> Tensor:
    """(N, 2): the id of each word that is no mark, and the tag of the mark behind it."""
    tag_of = {mark: tag for tag, marks in enumerate(MARKS) for mark in marks}
    followed = zip(words, [*words[1:], "."], strict=True)
    pairs = [(word, tag_of.get(behind, 0)) for word, behind in followed if word not in tag_of]
    return torch.stack([encoded([word for word, _ in pairs], V), torch.tensor([tag for _, tag in pairs])], 1)


def nats(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean loss of a tag; rows (T, B, 2)."""
    return cross_entropy(model(rows[..., 0]).flatten(0, 1), rows[..., 1].flatten())


def train(model: nn.Module, rows: Tensor, rate: float, steps: int, seed: int = 0) -> list[float]:
    """Take steps on windows of the training rows (N, 2); the loss of each step."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = nats(model, windows(rows, T, B, random))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def tested(model: nn.Module, rows: Tensor) -> float:
    """Nats a tag over windows evenly spread over rows (N, 2)."""
    model.eval()
    return nats(model, windows(rows, T, 16 * B)).item()


def learn(
    rows: Tensor,
    norm: str | ln.NormConfig = "layer",
    rate: float = 0.001,
    forget_bias: float | None = None,
    steps: int = 150,
    seed: int = 0,
) -> tuple[float, float]:
    """Train on the first 80 % of a text's rows (N, 2): nats a tag on its validation and on its test part."""
    torch.manual_seed(seed)
    training, valid, test = split(rows)
    model = Tagger(lambda *sizes, **flags: ln.LSTM(*sizes, **flags, norm=norm))
    if forget_bias is not None:
        assert isinstance(model.lstm, ln.LSTM)
        open_forget_gates(model.lstm, forget_bias)
    train(model, training, rate, steps, seed)
    return tested(model, valid), tested(model, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=NORMS, default="layer")
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", help="a text file (default: Python's documentation)")
    given = parser.parse_args()
    valid, test = learn(tagged(words_of(given.text)), given.norm, given.rate, None, given.steps, given.seed)
    print(f"{given.norm}, {given.steps} steps: {valid:.3f} nats a tag on validation, {test:.3f} on test")


if __name__ == "__main__":
    main()
