"""Permutation-invariant MNIST (section 6.6, Figure 6): an MLP 784-1000-1000-10 at batch 128 and batch 4.

Placement as in the paper: layer norm on the two hidden layers and not on the softmax layer, batch norm on every layer
including the logits. Weight norm reparameterizes every layer. Shapes: B batch, P pixels, H hidden, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ln import norms
from ln.suite.config import Recipe
from ln.suite.data import Source, mnist, resolve
from ln.suite.task import Shuffled, Task, wrong

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


class Mnist(Task):
    Settings = Settings
    static_shapes = True
    # Figure 6 shows the training split after each epoch, which the mean over the epoch's minibatches (train_loss) is
    # not, and the test split; nothing is selected on either.
    curve_splits = ("train", "valid", "test")

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        digits: mnist.Digits = source.load()
        self.images = {name: images.to(device) for name, images in digits.images.items()}
        self.labels = {name: labels.to(device) for name, labels in digits.labels.items()}
        self.model = mlp(digits.pixels, recipe.norm.name, recipe.model)
        self.order = Shuffled(len(self.images["train"]), recipe.train.batch_size, recipe.seed, device)
        self.examples = {name: len(labels) for name, labels in self.labels.items()}
        self.steps_per_epoch = self.order.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": mnist.original, "embedded": mnist.embedded})

    def batch(self, step: int) -> tuple[Tensor, ...]:
        chosen = self.order.indices(step)
        return self.images["train"][chosen], self.labels["train"][chosen]

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        return {"loss": loss}

    def evaluate(self, split: str) -> dict[str, float]:
        nll, errors = 0.0, 0.0
        first = self.recipe.model.train_evaluated if split == "train" else None
        images, labels = self.images[split][:first], self.labels[split][:first]
        for x, y in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            logits = self.model(x)
            nll += float(F.cross_entropy(logits, y, reduction="sum"))
            errors += wrong(logits, y)
        return {"nll": nll / len(labels), "error": errors / len(labels)}
