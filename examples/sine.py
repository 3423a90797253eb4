"""A regression on one number a step: the next value of a sine wave of unknown frequency and phase. With a scalar input
layer norm alone keeps its sign only; NormConfig(inner_bias=True) keeps its size.

    .venv/bin/python -m examples.sine --norm layer [--inner-bias]

Shapes: T steps, B rows.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import ln
from ln.norms import NORMS

HIDDEN, T, B = 32, 50, 32


class Regression(nn.Module):
    """x (T, B, 1) -> the next value (T, B, 1). norm: as `ln.LSTM` takes it."""

    def __init__(self, norm: str | ln.NormConfig):
        super().__init__()
        self.lstm = ln.LSTM(1, HIDDEN, norm=norm)
        self.output = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.output(self.lstm(x)[0])
        return found


def waves(B: int, random: torch.Generator) -> Tensor:
    """(T + 1, B, 1) sines of 2.5 to 10 periods in T steps, from anywhere in their period."""
    frequency, phase = torch.rand(2, B, generator=random)
    steps = torch.arange(T + 1).unsqueeze(1)
    return torch.sin(2 * torch.pi * ((0.05 + 0.15 * frequency) * steps + phase)).unsqueeze(-1)


def learn(
    norm: str | ln.NormConfig = "layer", rate: float = 0.01, steps: int = 300, seed: int = 0
) -> tuple[float, float]:
    """Mean squared errors on validation and test waves after training on others."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = Regression(norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        x = waves(B, random)
        loss = mse_loss(model(x[:-1]), x[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        held_out = waves(512, torch.Generator().manual_seed(10**6))
        errors = (model(held_out[:-1]) - held_out[1:]).square().flatten(2).mean((0, 2))
    return errors[:256].mean().item(), errors[256:].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=NORMS, default="layer")
    parser.add_argument("--inner-bias", action="store_true")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    norm = ln.NormConfig(given.norm, inner_bias=given.inner_bias)
    valid, test = learn(norm, given.rate, given.steps, given.seed)
    print(f"{given.norm}, {given.steps} steps: squared error {valid:.5f} on validation, {test:.5f} on test")


if __name__ == "__main__":
    main()
