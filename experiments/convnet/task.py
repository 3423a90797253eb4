"""Convolutional networks (section 6.7): ConvPool-CNN-C on CIFAR-10 after the weight norm recipe, with each norm.

The paper reports in words that layer norm learns faster than no norm and that batch norm does better, and gives a
reason: units near the image's boundary are rarely on, so that the units of a layer differ in their statistics. Both are
measured.
Shapes: B batch, C channels, A side of an image or map.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.classification import Classification
from experiments.convnet import pictures
from experiments.convnet.network import ConvPool, Settings
from ln.suite.config import Recipe
from ln.suite.data import Source, cifar10, resolve
from ln.suite.errors import Mistake
from ln.suite.task import stream_seed

CLASSES = 10
EVALUATION_BATCH = 500
INITIALIZATION_BATCH = 500  # images of weight norm's data-dependent initialization
STATISTICS_IMAGES = 1000  # of the test split, for the maps of activations
LATE_BETA1 = 0.5  # Adam's first beta in the second half of training


def prepared(images: Tensor, examples: int, shrink: int) -> Tensor:
    """The first `examples` (0: all) of uint8 images, scaled and averaged: (N, C, A / shrink, A / shrink) float32."""
    side = images.shape[-1]
    if side % shrink:
        raise Mistake(f"model.shrink={shrink} does not divide the {side} pixels of an image's side")
    return F.avg_pool2d(cifar10.scaled(images[: examples or None]), shrink)


class ConvNet(Classification):
    Settings = Settings
    model: ConvPool

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        pictures: cifar10.Pictures = source.load()
        settings: Settings = recipe.model
        images = {
            split: prepared(part, getattr(settings, f"{split}_examples"), settings.shrink).to(device)
            for split, part in pictures.images.items()
        }
        whiten = cifar10.zca(images["train"], pictures.ridge)
        inputs = {split: whiten(part) for split, part in images.items()}
        labels = {split: pictures.labels[split][: len(part)] for split, part in images.items()}
        super().__init__(recipe, source, device, inputs, labels)
        _, channels, side, _ = self.inputs["train"].shape
        self.model = ConvPool(channels, side, CLASSES, recipe.norm, settings)
        train = recipe.train
        self.epochs = train.epochs if train.epochs is not None else (train.steps or 0) / self.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        finders = {
            "original": cifar10.original,
            "substitute": cifar10.substitute,
            "embedded": cifar10.embedded,
        }
        return resolve(request, finders)

    def schedule(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """In the second half of training the learning rate falls to 0 by equal steps, one an epoch, and beta1 is 0.5.

        The data-dependent initialization of weight norm, and of the network without a norm, is done here, before the
        very first step: a run that goes on from its checkpoint never comes back to it.
        """
        if step == 0 and not self.recipe.norm.traits.normalizes:
            self.initialize()
        epoch = step // self.steps_per_epoch
        factor = min(1.0, 2 * (1 - epoch / self.epochs))
        for group in optimizer.param_groups:
            group["lr"] = factor * optimizer.defaults["lr"]
            if "betas" in group:
                beta1, beta2 = optimizer.defaults["betas"]
                group["betas"] = (LATE_BETA1 if epoch >= self.epochs / 2 else beta1, beta2)

    def initialize(self) -> None:
        """The data-dependent initialization on a batch of training images; a function of the seed alone."""
        seed = stream_seed(self.recipe.seed, "data-dependent initialization")
        chosen = torch.randperm(self.examples["train"], generator=torch.Generator().manual_seed(seed))
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            self.model.initialize(self.inputs["train"][chosen[:INITIALIZATION_BATCH].to(self.device)])

    def evaluate(self, split: str) -> dict[str, float]:
        """nll in nats and the error in percent."""
        nll, errors = self.answers(split, EVALUATION_BATCH)
        return {"nll": nll, "error": 100 * errors / self.examples[split]}

    def evaluate_once(self) -> dict[str, float]:
        """How often the units at the boundary are on, and how much their summed inputs vary, over the same in the
        centre; means over the layers that reach to the boundary."""
        maps = pictures.activations(self.model, self.inputs["test"][:STATISTICS_IMAGES])
        on, variance = ([pictures.boundary_share(m) for m in per_layer] for per_layer in maps)
        return {"boundary_on": sum(on) / len(on), "boundary_variance": sum(variance) / len(variance)}

    def draw(self, folder: Path) -> None:
        if self.recipe.seed == 0:  # one picture per norm is enough
            images = self.inputs["test"][:STATISTICS_IMAGES]
            what = f"{self.recipe.experiment}, {self.recipe.norm.traits.label}"
            title = f"{what}: {self.source.name} [{self.source.status}], {len(images)} test images"
            pictures.draw(self.model, images, title, folder / "boundary.png")
