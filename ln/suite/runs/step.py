"""One training step, plain or as a captured CUDA graph, and the running means of what it returns."""

import logging
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor

from ln.kernels.graphs import captured
from ln.suite.config import Train
from ln.suite.errors import Mistake
from ln.suite.task import Task

log = logging.getLogger("ln")

GRAPH_WARMUP_STEPS = 3


def optimizer_of(train: Train, model: torch.nn.Module, device: torch.device) -> torch.optim.Optimizer:
    arguments = dict(train.optimizer)
    try:
        kind = get_class(arguments.pop("_target_"))
        optimizer = kind(model.parameters(), **arguments)
    except Exception as error:  # whatever a class of the user's choice says of its arguments
        raise Mistake(f"train.optimizer: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # its step count lives on the device, as CUDA graphs need
    return optimizer


def length(train: Train, steps_per_epoch: int) -> tuple[int, float]:
    """The last step, and the steps between two evaluations, of which there may be a fraction."""
    unit = steps_per_epoch if train.epochs is not None else 1
    whole = train.epochs if train.epochs is not None else train.steps
    assert whole is not None
    return max(1, round(whole * unit)), train.evaluate_every_steps or (train.evaluate_every or 0) * unit


class Step:
    """Loss, backward, clip and update; on CUDA, after a few steps, captured once and replayed as one graph.

    A graph computes with the Python numbers of its capture, so it is made anew when the optimizer's settings change.
    """

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, train: Train, graph: str = "auto"):
        self.task, self.optimizer, self.train = task, optimizer, train
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.names: list[str] = []
        self.settings: list[dict[str, Any]] = []
        self.steady = 0  # steps taken with these settings
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static_batch: tuple[Tensor, ...] = ()
        self.static_values = torch.empty(0)
        self.can_graph = task.device.type == "cuda" and task.static_shapes and graph == "auto"

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        """(K,) the scalars that the task's loss names, detached, in the order of `names`."""
        if not self.can_graph:
            return self._eager(batch)
        settings = [{key: v for key, v in group.items() if key != "params"} for group in self.optimizer.param_groups]
        if settings != self.settings:
            self.settings, self.steady, self.graph = settings, 0, None
        self.steady += 1
        if self.steady <= GRAPH_WARMUP_STEPS:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                values = self._eager(batch)
            torch.cuda.current_stream().wait_stream(side)
            return values
        if self.graph is None and not self._capture(batch):
            return self._eager(batch)
        for static, new in zip(self.static_batch, batch, strict=True):
            static.copy_(new, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.static_values.clone()

    def _capture(self, batch: tuple[Tensor, ...]) -> bool:
        """Whether the step is a graph now. If it cannot be one, that is said, and every step is launched by itself."""
        self.static_batch = tuple(part.clone() for part in batch)

        def work() -> None:
            self.static_values = self._eager(self.static_batch)

        try:
            self.graph = captured(work)
        except RuntimeError as error:
            self.can_graph, self.static_batch = False, ()
            log.warning("the training step cannot be captured as a CUDA graph and runs uncaptured, slower (%s)", error)
        return self.can_graph

    def _eager(self, batch: tuple[Tensor, ...]) -> Tensor:
        losses = self.task.loss(batch)
        self.names = list(losses)
        # The gradients' memory is kept, so that a captured graph writes where the optimizer reads.
        self.optimizer.zero_grad(set_to_none=not self.can_graph)
        losses["loss"].backward()
        self._clip()
        self.optimizer.step()
        return torch.stack([value.detach() for value in losses.values()])

    def _clip(self) -> None:
        limit = self.train.clip_norm
        if limit is None:
            return
        if self.train.clip_per_tensor:
            for name, parameter in self.task.model.named_parameters():
                if parameter.grad is not None:
                    for part in self.task.tensors(name, parameter.grad):
                        # Without asking how long it is, which would make a GPU wait.
                        part.mul_((limit / (torch.linalg.vector_norm(part) + 1e-6)).clamp(max=1.0))
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters, limit)


class Means:
    """Running means of the training scalars since the last evaluation, in float64, and the first step that is not
    finite."""

    def __init__(self) -> None:
        self.pending: list[Tensor] = []
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor) -> None:
        self.pending.append(values)

    def flush(self, step: int) -> int | None:
        """Take in what is pending up to and including `step`; the first step that is not finite, or None."""
        if not self.pending:
            return None
        values = torch.stack(self.pending).double().cpu()  # (N, K)
        self.pending = []
        finite = values.isfinite().all(1)
        if not finite.all():
            return step - len(finite) + 1 + int(finite.logical_not().nonzero()[0])
        self.sums = values.sum(0) if self.sums is None else self.sums + values.sum(0)
        self.count += len(values)
        return None

    def take(self, names: list[str]) -> dict[str, float]:
        means = {} if self.sums is None else dict(zip(names, (self.sums / self.count).tolist(), strict=True))
        self.sums, self.count = None, 0
        return means

    def state(self) -> dict[str, Any]:
        # Pending values as they are: taking them in early would group the float64 sum otherwise and change its bits.
        return {"pending": self.pending, "sums": self.sums, "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        self.pending, self.count = state["pending"], state["count"]
        self.sums = state["sums"].cpu() if state["sums"] is not None else None
