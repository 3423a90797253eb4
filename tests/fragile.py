"""A small task whose runs go wrong by seed: 1 raises, 2 is killed, 3 is asked to stop once and then goes on.

It needs no data set: reading one takes a sweep's processes longer than everything they do here. B batch of 4, 3 inputs.
"""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.mnist import Settings
from ln.suite.config import Recipe
from ln.suite.data import Source
from ln.suite.task import Task, stream_seed


class Fragile(Task):
    Settings = Settings

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        self.model = nn.Linear(3, 1)
        self.steps_per_epoch = 10
        self.examples = {"valid": 4, "test": 4}

    @staticmethod
    def find(request: str) -> Source:
        return Source("noise", "embedded", "none", lambda: None)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        seed, asked = self.recipe.seed, Path(self.recipe.results) / "asked"
        if step == 5 and seed == 1:
            raise RuntimeError("the disk is on fire")
        if step == 5 and seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 5 and seed == 3 and not asked.exists():
            asked.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        generator = torch.Generator().manual_seed(stream_seed(seed, "batch", step))
        return (torch.randn(4, 3, generator=generator),)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"loss": self.model(batch[0]).square().mean()}

    def evaluate(self, split: str) -> dict[str, float]:
        return {"error": float(self.model.weight.abs().sum())}
