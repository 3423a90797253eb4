"""DRAW's data wiring, loss and evaluation.

Shapes: T glimpses, B batch, A side of the image, Z latents, P pixels, N images.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from experiments.draw import pictures
from experiments.draw.network import Draw, Settings
from ln.suite.config import Recipe
from ln.suite.data import Source, binarized_mnist, resolve
from ln.suite.errors import Mistake
from ln.suite.task import Shuffled, Task

EVALUATION_BATCH = 500


def spread(images: Tensor, count: int) -> Tensor:
    """`count` of the images (N, P), evenly spaced: the test file is sorted by digit, its first thousand are zeros."""
    N = len(images)
    return images[torch.arange(min(count, N)) * N // min(count, N)]


class DrawTask(Task):
    Settings = Settings
    static_shapes = True
    curve_splits = ("valid", "test")  # Figure 4 shows the test bound; nothing is selected on it
    model: Draw

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        data: binarized_mnist.BinaryImages = source.load()
        settings: Settings = recipe.model
        if 1 in (settings.read, settings.write):
            raise Mistake("model.read, model.write: a patch of side 1 has no stride; take at least 2")
        side = data.side
        self.images = {
            split: spread(images, getattr(settings, f"{split}_examples")).view(-1, side, side).to(device)
            for split, images in data.images.items()
        }
        self.examples = {split: len(images) for split, images in self.images.items()}
        self.model = Draw(self.images["train"].mean(0).cpu(), settings, recipe.norm)
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed, device)
        self.steps_per_epoch = self.order.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        finders = {
            "original": binarized_mnist.original,
            "substitute": binarized_mnist.substitute,
            "embedded": binarized_mnist.embedded,
        }
        return resolve(request, finders)

    def noise(self, cases: int) -> Tensor:
        """(T, B, Z) standard normal, from torch's generator."""
        settings = self.model.settings
        return torch.randn(settings.glimpses, cases, settings.latents, device=self.device)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        return (self.images["train"][self.order.indices(step)],)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        (images,) = batch
        reconstruction, kl = self.model(images, self.noise(len(images)))
        reconstruction, kl = reconstruction / len(images), kl / len(images)
        return {"loss": reconstruction + kl, "reconstruction": reconstruction.detach(), "kl": kl.detach()}

    def evaluate(self, split: str) -> dict[str, float]:
        """The bound and its terms in nats per image, from one sample per case over the whole split."""
        batches = self.images[split].split(EVALUATION_BATCH)
        terms = torch.stack([torch.stack(self.model(images, self.noise(len(images)))) for images in batches])
        reconstruction, kl = (terms.double().sum(0) / self.examples[split]).tolist()
        return {"bound": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def evaluate_once(self) -> dict[str, float]:
        """-log p(x) of the test split in nats, estimated with `likelihood_samples` importance samples per case (Burda
        et al. 2015). It approaches the true value from above as samples are added, and is no number of the paper."""
        samples, total = self.model.settings.likelihood_samples, 0.0
        for images in self.images["test"].split(EVALUATION_BATCH):
            weights = torch.stack([self.model.log_weights(images, self.noise(len(images))) for _ in range(samples)])
            total += float((weights.double().logsumexp(0) - math.log(samples)).sum())
        return {"nll": -total / self.examples["test"]}

    def draw(self, folder: Path) -> None:
        if self.recipe.seed == 0:  # one set of pictures per norm is enough
            pictures.draw(self.model, self.images["test"], self.noise, folder)
