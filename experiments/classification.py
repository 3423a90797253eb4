"""What the experiments that name one of K classes share: minibatches of examples that are on the device as a whole,
cross-entropy, and the share of wrong answers.

Shapes: N examples, B batch, K classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ln.suite.config import Recipe
from ln.suite.data import Source
from ln.suite.task import Shuffled, Task, wrong


class Classification(Task):
    """A task of inputs (N, ...) and labels (N,) for each split; a subclass makes `model`."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        device: torch.device,
        inputs: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
    ):
        super().__init__(recipe, source, device)
        self.inputs = {split: part.to(device) for split, part in inputs.items()}
        self.labels = {split: part.to(device) for split, part in labels.items()}
        self.examples = {split: len(part) for split, part in labels.items()}
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed, device)
        self.steps_per_epoch = self.order.steps_per_epoch

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, K)."""
        logits: Tensor = self.model(inputs)
        return logits

    def batch(self, step: int) -> tuple[Tensor, ...]:
        chosen = self.order.indices(step)
        return self.inputs["train"][chosen], self.labels["train"][chosen]

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        inputs, labels = batch
        return {"loss": F.cross_entropy(self.logits(inputs), labels)}

    def answers(self, split: str, at_a_time: int, first: int | None = None) -> tuple[float, float]:
        """Mean negative log-likelihood in nats, and the number of wrong answers, over a split or its first examples."""
        nll, errors = 0.0, 0.0
        inputs, labels = self.inputs[split][:first], self.labels[split][:first]
        for x, y in zip(inputs.split(at_a_time), labels.split(at_a_time), strict=True):
            logits = self.logits(x)
            nll += float(F.cross_entropy(logits, y, reduction="sum"))
            errors += wrong(logits, y)
        return nll / len(labels), errors
