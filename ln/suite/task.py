"""What an experiment gives to the training loop."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ln.suite.config import Recipe
from ln.suite.data import Source
from ln.suite.errors import Mistake


class Task:
    """One experiment's data wiring, model, loss and evaluation; the loop in ln/suite/runs/train.py does the rest.

    A subclass sets `model`, `steps_per_epoch` and `examples` in its constructor. Batches are a pure function of the
    step, so a resumed run sees the same data without any iterator's state in its checkpoint.
    """

    Settings: ClassVar[type]  # dataclass of the recipe's `model` section
    curve_splits: ClassVar[tuple[str, ...]] = ("valid",)  # evaluated along the way; the test split is, at the end
    # A CUDA graph may hold the step: every batch has the same shapes, and `loss` waits for no value and depends on no
    # Python state that changes from step to step (tests/test_simulated_device.py compares captured with uncaptured).
    static_shapes: ClassVar[bool] = False
    model: nn.Module
    steps_per_epoch: int
    examples: dict[str, int]  # of each split; verdicts on proportions need them

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        self.recipe, self.source, self.device = recipe, source, device

    @staticmethod
    def find(request: str) -> Source:
        """The data for `data=<request>`; cheap, since a finished run is recognized by it.

        Raises:
            Mistake: what was asked for is not there, or a file is damaged.
        """
        raise NotImplementedError

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of training step `step` (from 0), on the device."""
        raise NotImplementedError

    def schedule(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Change the optimizer's settings before training step `step`; constant by default."""

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Scalars by name; `loss` is minimized, and each is logged as `train_<name>`, its mean since the last
        evaluation."""
        raise NotImplementedError

    def tensors(self, name: str, gradient: Tensor) -> Sequence[Tensor]:
        """What clipping tensor by tensor takes for one tensor: the gradient of the parameter `name`, or views of it
        where the published code has several."""
        return (gradient,)

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics of the model on a split, in evaluation mode and without gradients; logged as `<split>_<name>`."""
        raise NotImplementedError

    def evaluate_once(self) -> dict[str, float]:
        """More metrics of the test split, too dear to take more than once, at the end; logged as `test_<name>`."""
        return {}

    def draw(self, folder: Path) -> None:
        """Pictures of what the finished model does (samples, reconstructions); none by default."""


def wrong(scores: Tensor, labels: Tensor) -> float:
    """How many of `labels` (B,) are not the highest of `scores` (B, K). NaN where a score is: whatever is compared with
    it comes out one way or the other, and would be counted."""
    return math.nan if scores.isnan().any() else float((scores.argmax(1) != labels).sum())


@contextmanager
def evaluation(task: Task, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers of its own, so that evaluating changes no training step."""
    devices = [task.device] if task.device.type == "cuda" else []
    task.model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
    task.model.train()


class Shuffled:
    """Indices of minibatches, every epoch in an order of its own, as a pure function of seed and step.

    The last incomplete batch of an epoch is left out, as the minibatch code of the time did.
    """

    def __init__(self, examples: int, batch_size: int, seed: int, device: torch.device | None = None):
        if batch_size > examples:
            raise Mistake(f"train.batch_size={batch_size} is larger than the {examples} training examples")
        self.examples, self.batch_size, self.seed, self.device = examples, batch_size, seed, device
        self.steps_per_epoch = examples // batch_size
        self._epoch = -1

    def indices(self, step: int) -> Tensor:
        """(B,) int64 indices of training step `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            self._order = torch.randperm(self.examples, generator=generator).to(self.device)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def stream_seed(seed: int, stream: str, index: int = 0) -> int:
    """A seed for one of a run's independent random streams."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
