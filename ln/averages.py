"""Batch norm's moving averages in recurrent layers: a mean and a variance for each time step (Cooijmans et al. 2016).

Shapes: T time, B batch, D input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ln import checks
from ln.kernels import gate
from ln.norms import NormConfig
from ln.reference import Stats


class MovingAverages(nn.Module):
    """The averages of each layer and direction, told apart by a suffix, as buffers with a row for each step."""

    norm: NormConfig
    kernel_norm: NormConfig  # `norm`, or none where the recurrence has no site for it

    def __init__(self) -> None:
        super().__init__()
        self._suffixes: list[str] = []
        self._collecting = False

    def add_averages(self, suffix: str, widths: Mapping[str, int], factory: dict[str, Any]) -> None:
        """Register those of one layer and direction; widths: how many features each of its normalized terms has."""
        # One step's until more are seen: for all of max_steps they would outgrow the parameters.
        for field, width in widths.items():
            self.register_buffer(f"running_mean_{field}{suffix}", torch.zeros(1, width, **factory))
            self.register_buffer(f"running_var_{field}{suffix}", torch.ones(1, width, **factory))
        tracked = torch.zeros(1, dtype=torch.int64, device=factory["device"])
        self.register_buffer(f"batches_tracked{suffix}", tracked)

    def reset_averages(self) -> None:
        """As if no batch had been seen."""
        if self._batch_statistics():
            self._keep_steps(1)
        for name, buffer in self._batch_statistics():
            buffer.fill_(1 if name.startswith("running_var_") else 0)

    def make_room_for(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Give the buffers as many steps as those of a state dict have."""
        tracked = [state_dict.get(f"{prefix}batches_tracked{suffix}") for suffix in self._suffixes]
        steps = {len(value) for value in tracked if isinstance(value, Tensor) and value.dim() == 1}
        if self.kernel_norm.traits.population and len(steps) == 1 and 0 < max(steps) <= self.norm.max_steps:
            self._keep_steps(max(steps))

    @property
    def uses_batch_statistics(self) -> bool:
        traits = self.kernel_norm.traits
        return traits.axis == "batch" and (self.training or self._collecting or not traits.population)

    def population(self, suffix: str, first: int, steps: int, dtype: torch.dtype) -> Stats | None:
        """The moving averages of steps first ... first + steps - 1 for evaluation; past the last step ever trained, its
        own."""
        if not self.kernel_norm.traits.population or self.uses_batch_statistics:
            return None
        tracked: Tensor = getattr(self, f"batches_tracked{suffix}")
        last = (torch.arange(len(tracked), device=tracked.device) * (tracked > 0)).max()
        rows = torch.arange(first, first + steps, device=tracked.device).minimum(last)
        values = (getattr(self, f"running_{name}{suffix}", None) for name in Stats._fields)
        return Stats(*(None if value is None else value[rows].to(dtype) for value in values))

    @torch.no_grad()
    def track(self, suffix: str, first: int, steps: int, used: Stats | None, lengths: Tensor | None = None) -> None:
        """Move the averages of steps first ... first + steps - 1 towards the statistics used, up to the last step that
        any row of `lengths` (B) has."""
        if used is None or not (self.kernel_norm.traits.population and self.uses_batch_statistics):
            return
        tracked = getattr(self, f"batches_tracked{suffix}")[first : first + steps]
        reached = torch.arange(steps, device=tracked.device) < (steps if lengths is None else lengths.max())
        tracked += reached
        # The plain mean of all batches until it weighs a new batch less than momentum does: no trace of the init
        # remains.
        share = (1 / tracked.float()).clamp(min=0.0 if self._collecting else self.norm.momentum)
        share = torch.where(reached, share, 0).unsqueeze(-1)
        for name, value in zip(Stats._fields, used, strict=True):
            if value is not None:
                running = getattr(self, f"running_{name}{suffix}")[first : first + steps]
                running.lerp_(value.detach().to(running.dtype), share.to(running.dtype))

    def start_collecting(self) -> None:
        """Forget the moving averages and average the statistics of the batches to come, whatever the mode."""
        for suffix in self._suffixes:
            getattr(self, f"batches_tracked{suffix}").zero_()
        self._collecting = True

    def stop_collecting(self) -> None:
        self._collecting = False

    def check_batch(self, first: int, steps: int, inputs: Sequence[Tensor], beyond: str | None) -> None:
        """Batch norm in training has no statistics of a single case, and none to keep beyond max_steps; up to there it
        makes room for them. Past the first step a single case may be what is left of a ragged batch. inputs: x
        (..., B, D) and the states."""
        if not self.uses_batch_statistics:
            return
        cases = inputs[0].shape[-2]
        if cases < 2 and first == 0:
            raise ValueError(f"batch norm in training needs at least 2 cases for its statistics, but B = {cases}")
        if not self.kernel_norm.traits.population:
            return
        averages = (buffer for _, buffer in self._batch_statistics())
        if beyond is not None and gate.out_of_reach(averages, (*inputs, *self._parameters.values())):
            raise RuntimeError(
                f"batch norm in training cannot move its averages under {beyond} that does not reach them; make the "
                "buffers arguments of the transformed function (torch.func.functional_call), or call eval() before"
            )
        last = first + steps
        if last > self.norm.max_steps:
            raise ValueError(
                f"batch norm keeps statistics for max_steps={self.norm.max_steps} steps, but training reached step "
                f"{last}; raise NormConfig.max_steps or cut the sequences"
            )
        if last > self._steps_kept():
            if beyond not in (None, gate.COMPILING):
                raise RuntimeError(
                    f"batch norm meets step {last} for the first time under {beyond}; train on one such batch in plain "
                    "eager code before"
                )
            if (processes := gate.processes()) > 1:  # whose buffers would silently cease to have one size
                raise RuntimeError(
                    f"batch norm meets step {last} for the first time in one of {processes} processes, where its "
                    "statistics cannot grow; call reserve_steps(T) of each such layer, T the longest sequence's, before"
                )
            self._keep_steps(last, in_place=beyond is None)

    def reserve_steps(self, steps: int) -> None:
        """Make room for batch norm's statistics of so many steps, as training does by itself where it meets longer
        sequences. Only needed before the module is shared between processes. ValueError: beyond max_steps."""
        steps = checks.size("steps", steps)
        if not self.kernel_norm.traits.population:
            return
        if steps > self.norm.max_steps:
            raise ValueError(f"steps must be at most max_steps={self.norm.max_steps}, but is {steps}")
        if steps > self._steps_kept():
            self._keep_steps(steps)

    def _steps_kept(self) -> int:
        return len(getattr(self, f"batches_tracked{self._suffixes[0]}"))

    @torch.no_grad()
    def _keep_steps(self, steps: int, in_place: bool = True) -> None:
        """Make the buffers of batch statistics so long: in place, so that whoever holds them holds them still; in a
        compiled graph by others in their stead. The memory is new: that of a file or of other processes has its size.
        """
        named = [(name, buffer) for name, buffer in self._batch_statistics() if len(buffer) != steps]
        if in_place and any(_is_shared(buffer) for _, buffer in named):
            raise RuntimeError(
                f"batch norm's statistics lie in shared memory, where they cannot become {steps} steps long; call "
                "reserve_steps(T), T the longest sequence's, before share_memory()"
            )
        for name, buffer in named:
            start = 1 if name.startswith("running_var_") else 0
            added = buffer.new_full((max(0, steps - len(buffer)), *buffer.shape[1:]), start)
            new = torch.cat([buffer[:steps], added])
            if in_place:
                buffer.set_(new)  # type: ignore[call-overload]
            else:
                setattr(self, name, new)

    def _batch_statistics(self) -> list[tuple[str, Tensor]]:
        named = self.named_buffers(recurse=False)
        return [(name, buffer) for name, buffer in named if name.startswith(("running_", "batches_tracked"))]


def _is_shared(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and bool(tensor.is_shared())  # type: ignore[no-untyped-call]


def recompute_statistics(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None) -> None:
    """Replace the moving averages of every batch-normalized recurrence in `model` by plain means over `batches`.

    `forward` runs the model on one element of batches; by default it is the model itself. Dropout is off meanwhile, and
    feed-forward BatchNorm layers keep the statistics they have. ValueError if batches is empty. What ends this early
    leaves the averages as they were.

    >>> from ln import LSTM
    >>> layer = LSTM(8, 16, norm="batch")
    >>> recompute_statistics(layer, [torch.randn(5, 32, 8) for _ in range(4)])
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, MovingAverages) and module.kernel_norm.traits.population
    ]
    modes = {module: module.training for module in model.modules()}
    before = [{name: buffer.clone() for name, buffer in layer._batch_statistics()} for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.start_collecting()
        count = 0
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                (forward or model)(batch)
        if count == 0:
            raise ValueError("batches must hold at least one batch to compute statistics from")
    except BaseException:
        for layer, averages in zip(layers, before, strict=True):
            layer.load_state_dict(averages, strict=False)
        raise
    finally:
        for layer in layers:
            layer.stop_collecting()
        for module, mode in modes.items():
            module.training = mode
