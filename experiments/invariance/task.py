"""The paper's analysis measured: Table 1's invariances, the Fisher blocks of equations 13-14, the growth of the weights
under training (section 5), and what a recurrence does to its summed inputs and gradients (section 3.1).

All but the growth, which is that of a network in training, is measured on random networks in float64 with real inputs.
"""

import torch
from torch import Tensor

from experiments.classification import Classification
from experiments.invariance.fisher import fisher_row
from experiments.invariance.network import Settings, network, weight_of
from experiments.invariance.recurrence import recurrence
from experiments.invariance.table import beyond_the_table, table_row
from ln.suite.config import Recipe
from ln.suite.data import Source, mnist, resolve
from ln.suite.task import wrong


class Invariance(Classification):
    Settings = Settings
    static_shapes = True

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        digits: mnist.Digits = source.load()
        super().__init__(recipe, source, device, digits.images, digits.labels)
        self.model = network(digits.pixels, recipe.model.hidden, recipe.norm.name, torch.float32, eps=1e-5)
        self.first_norm = float(self.weight_norm())

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": mnist.original, "embedded": mnist.embedded})

    def weight_norm(self) -> Tensor:
        """Mean length of the first layer's weight vectors."""
        return weight_of(self.model[0]).detach().norm(dim=1).mean()  # type: ignore[index]

    def evaluate(self, split: str) -> dict[str, float]:
        """On the way, how far the weights have grown; at the end, on test inputs, the table and the Fisher blocks."""
        logits = self.logits(self.inputs[split])
        growth = float(self.weight_norm()) / self.first_norm
        metrics = {
            "error": wrong(logits, self.labels[split]) / len(logits),
            "weight_growth": growth,
            "effective_rate": 1 / growth**2,  # the learning rate a scale-invariant function sees, relative to the start
        }
        if split == "test":
            norm, images, settings = self.recipe.norm.name, self.inputs[split].cpu(), self.recipe.model
            metrics |= table_row(norm, images, settings) | fisher_row(norm, images, settings)
            metrics |= beyond_the_table(norm, images, settings) | recurrence(norm, images, settings)
        return metrics
