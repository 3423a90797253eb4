"""A model of your own with the norm as an argument: a two-layer LSTM that predicts a text's next word, with the sizes'
proportions, rate and clipping that PyTorch's own example of a word model has.

    .venv/bin/python -m examples.word_model --norm layer [--rate 5] [--text mine.txt]

Shapes: N words of a text, T steps, B rows, V words of the vocabulary.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ln
from examples.words import encoded, split, windows, words_of
from ln.norms import NORMS

V, HIDDEN = 1000, 100
T, B, CLIP = 20, 20, 0.25


class WordModel(nn.Module):
    """ids (T, B) -> logits (T, B, V) of the next word. norm: as `ln.LSTM` takes it."""

    def __init__(self, norm: str | ln.NormConfig):
        super().__init__()
        self.embedding = nn.Embedding(V, HIDDEN)
        self.lstm = ln.LSTM(HIDDEN, HIDDEN, num_layers=2, norm=norm)
        self.output = nn.Linear(HIDDEN, V)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(ids))
        logits: Tensor = self.output(output)
        return logits


def open_forget_gates(lstm: ln.LSTM, bias: float) -> None:
    """Start the forget gates' bias at a value, which torch.nn and the paper leave at about 0."""
    H = lstm.hidden_size
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_ih"):
                parameter[H : 2 * H] = bias


def nats(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean loss of a word of ids (T + 1, B), given those before it."""
    return cross_entropy(model(ids[:-1]).flatten(0, 1), ids[1:].flatten())


def learn(
    ids: Tensor,
    norm: str | ln.NormConfig = "layer",
    rate: float = 20,
    forget_bias: float | None = None,
    steps: int = 150,
    seed: int = 0,
) -> tuple[float, float]:
    """Train on the first 80 % of a text's ids (N,): nats a word on its validation and on its test part."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    train, valid, test = split(ids)
    model = WordModel(norm)
    if forget_bias is not None:
        open_forget_gates(model.lstm, forget_bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = nats(model, windows(train, T + 1, B, random))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = [nats(model, windows(part, T + 1, 8 * B)).item() for part in (valid, test)]
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=NORMS, default="layer")
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--gain", type=float, help="what the norm's gains start from")
    parser.add_argument("--forget-bias", type=float, help="what the forget gates' bias starts from")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", help="a text file (default: Python's documentation)")
    given = parser.parse_args()
    ids = encoded(words_of(given.text), V)
    norm = ln.NormConfig(given.norm, gain_init=given.gain)
    valid, test = learn(ids, norm, given.rate, given.forget_bias, given.steps, given.seed)
    print(f"{given.norm}, {given.steps} steps: {valid:.3f} nats a word on validation, {test:.3f} on test")


if __name__ == "__main__":
    main()
