"""Permutation-invariant MNIST (section 6.6, Figure 6): an MLP 784-1000-1000-10 at batch 128 and batch 4.

Placement as in the paper: layer norm on the two hidden layers and not on the softmax layer, batch norm on every layer
including the logits. Weight norm reparameterizes every layer. Shapes: B batch, P pixels, H hidden, C classes.
"""

from dataclasses import dataclass

import torch
from torch import nn

from experiments.classification import Classification
from ln import norms
from ln.suite.config import Recipe
from ln.suite.data import Source, mnist, resolve

CLASSES = 10
EVALUATION_BATCH = 2500


@dataclass
class Settings:
    hidden: int = 1000
    batch_norm_logits: bool = True
    unbiased_variance: bool = False  # batch norm's training variance divides by B - 1
    train_evaluated: int | None = None  # train_nll is that of the first so many training digits; null: of all


def mlp(pixels: int, norm: str, settings: Settings) -> nn.Sequential:
    """(B, P) -> (B, C) logits. A normalized layer's bias is the normalizer's."""
    normalization = norms.get(norm)
    layers: list[nn.Module] = []
    for inputs, units in ((pixels, settings.hidden), (settings.hidden, settings.hidden), (settings.hidden, CLASSES)):
        logits = units == CLASSES
        normalized = normalization.axis == "features" and not logits
        if normalization.axis == "batch":
            normalized = not logits or settings.batch_norm_logits
        # One draw per weight matrix and no other: runs of one seed start from the same weights whatever the norm.
        linear = nn.utils.skip_init(nn.Linear, inputs, units, bias=not normalized)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear" if logits else "relu")
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers.append(normalization.wrap_linear(linear))
        if normalized:
            layers.append(normalization.make(units, unbiased=settings.unbiased_variance))
        if not logits:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Mnist(Classification):
    Settings = Settings
    static_shapes = True
    # Figure 6 shows the training split after each epoch, which the mean over the epoch's minibatches (train_loss) is
    # not, and the test split; nothing is selected on either.
    curve_splits = ("train", "valid", "test")

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        digits: mnist.Digits = source.load()
        super().__init__(recipe, source, device, digits.images, digits.labels)
        self.model = mlp(digits.pixels, recipe.norm.name, recipe.model)

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": mnist.original, "embedded": mnist.embedded})

    def evaluate(self, split: str) -> dict[str, float]:
        count = self.examples[split]
        if split == "train" and self.recipe.model.train_evaluated is not None:
            count = min(count, self.recipe.model.train_evaluated)
        nll, errors = self.answers(split, EVALUATION_BATCH, count)
        return {"nll": nll, "error": errors / count}
