"""The time loop of the Triton backend: one launch for all steps of a narrow layer; else a matrix product and one kernel
per step, replayed from CUDA graphs where that is safe.

Shapes: B batch, H hidden, G gates.

One launch serves what fits a program: at most 128 units and 1024 rows, and statistics that need no other rows, so all
but batch norm's. Its advantage is counted, not measured: sequential MNIST's 784 steps take two launches for 3,136.

A graph holds a stretch of at most 64 steps. It touches memory in two ways only: the buffers of its `Loop`, which live
as long as the graph, and, through the loop's table of addresses, the tensors of the call at hand, written into the
table on the same stream right before the replay. Hence
- nothing that outlives a call lies in a loop's buffers: outputs and what autograd saves are the caller's own tensors,
  so two forward passes before a backward pass and retain_graph need no care;
- one graph serves sequences of any length, and the allocator may give the call's memory to others as soon as the replay
  is enqueued, as with any kernel on that stream;
- a loop is used by one thread at a time (its lock) and on one stream (part of its key), whose order keeps calls apart;
- while the current stream is itself being captured, the loop runs launch by launch in buffers of its own, and the
  steps, the writing of the table included, become part of the outer graph.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ln.kernels.gate import GATES
from ln.kernels.graphs import captured, graphs_allowed, use_graphs
from ln.kernels.triton import kernels, persistent
from ln.kernels.triton.tiles import BATCH, write_table

log = logging.getLogger("ln")

TILE = 4096  # elements of one gate that a program holds at most
_KEPT = 32  # loops kept, the least recently used goes first
_MOST_UNITS, _MOST_ROWS = 128, 1024  # of a loop in one launch: beyond them W_hh and the products keep an SM too long
_ROWS = 4  # of a program there: a step needs W_hh for few rows as for many, and more rows take longer to multiply

Pointers = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Spec:
    """What the kernels of a layer are specialized on. `bias`: bias_c in the LSTM, bias_hh in the GRU."""

    cell: str
    B: int
    H: int
    norm: int
    recurrent: bool
    cell_site: bool
    bias: bool
    ragged: bool
    eps: float
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Many programs fill a GPU; the interpreter likes few."""
        return self.device.type == "cuda"

    def in_one_launch(self, T: int) -> bool:
        narrow = self.H <= _MOST_UNITS and self.B <= _MOST_ROWS
        return narrow and self.norm < BATCH.value and T > 1

    def shape(self) -> tuple[int, dict[str, Any]]:
        """The number of programs of a step, and tile and launch settings."""
        B, H = triton.next_power_of_2(self.B), triton.next_power_of_2(self.H)
        if self.norm >= BATCH.value:
            # 8 floats are a memory sector.
            block_b, block_h = B, min(8, H, max(1, TILE // B))
            programs = triton.cdiv(self.H, block_h)
        else:
            # Several rows to a program only where there are enough to fill a GPU.
            wanted = 1024 if self.on_gpu else 2
            block_b, block_h = max(1, min(B // wanted, TILE // 4 // H)), H
            programs = triton.cdiv(self.B, block_b)
        warps = min(16, max(1, block_b * block_h // 128))
        flags = self.flags()
        if self.cell == "lstm":
            flags["CELL"] = self.cell_site
        return programs, flags | {"BLOCK_B": block_b, "BLOCK_H": block_h, "num_warps": warps}

    def shape_of_one_launch(self) -> tuple[int, dict[str, Any]]:
        """The number of programs, and tile and launch settings, where one launch takes all steps."""
        block_h = max(persistent.SLICE.value, triton.next_power_of_2(self.H))
        rows = _ROWS if self.on_gpu else max(1, triton.next_power_of_2(self.B) // 2)
        flags = self.flags() | {"CELL": self.cell_site, "GATES": GATES[self.cell]}
        sizes = {"BLOCK_B": rows, "BLOCK_H": block_h, "num_warps": min(8, max(1, rows * block_h // 64))}
        return triton.cdiv(self.B, rows), flags | sizes

    def flags(self) -> dict[str, Any]:
        # A product fused into a sum is rounded once, in some places and not in others: where the two nearly cancel, as
        # a centred sum over few rows does, what is left of a value depends on the place (6.7e-6 for 1.7e-7, emulated).
        found = {"NORM": self.norm, "RECURRENT": self.recurrent, "BIAS": self.bias, "RAGGED": self.ragged}
        return found | {"enable_fp_fusion": False}


class Loop:
    """The steps of one layer and direction of time, with their buffers at fixed addresses.

    state (B, H): h before the first step, then after the last; backward: the gradient of h after the last step, then
    before the first. d_c (B, H): the same for c, backward in the LSTM. Set them before `run` and read them after it.
    """

    stretch = 64  # steps between two writings of the table, those of one graph: enough to hide the launches around it

    def __init__(self, spec: Spec, backward: bool, save: bool, weight: Tensor) -> None:
        self.spec, self.backward, self.save, self.weight = spec, backward, save, weight
        self.programs, self.settings = spec.shape()
        self.table = torch.empty(16, dtype=torch.int64, device=weight.device)
        self.state, self.d_c = weight.new_empty(spec.B, spec.H), weight.new_empty(spec.B, spec.H)
        self.z = weight.new_empty(spec.B, weight.shape[0])
        # By number of steps; None: every step is launched by itself.
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] | None = None
        self.lock = threading.Lock()

    def run(self, stretches: list[Pointers], steps: int) -> None:
        """`steps` steps, in the loop's direction; stretches: what goes into the table for each `stretch` of them."""
        for index in reversed(range(len(stretches))) if self.backward else range(len(stretches)):
            write_table[(1,)](self.table, stretches[index], COUNT=len(stretches[index]), enable_fp_fusion=False)
            self._stretch(min(self.stretch, steps - index * self.stretch))

    def kept(self, buffer: Tensor) -> Tensor:
        """What a buffer holds, for good: a copy where later calls use the loop again."""
        return buffer if self.graphs is None else buffer.clone()

    def rebuild(self, steps: int, zh: Tensor, pointers: Pointers) -> None:
        """Gates and statistics of many steps at once, from zh (t, B, G) and the states around each step."""
        write_table[(1,)](self.table, pointers, COUNT=len(pointers), enable_fp_fusion=False)
        self._forward(zh, 0, steps, save=True, state=False)

    def _forward(self, zh: Tensor, k: int, steps: int, save: bool, state: bool) -> None:
        kernel = kernels.lstm_forward if self.spec.cell == "lstm" else kernels.gru_forward
        sizes = (self.spec.B, self.spec.H, k, self.spec.eps)
        kernel[(self.programs, steps)](self.table, self.state, zh, *sizes, SAVE=save, STATE=state, **self.settings)

    def _step(self, k: int) -> None:
        sizes = (self.spec.B, self.spec.H, k, self.spec.eps)
        if not self.backward:
            torch.mm(self.state, self.weight.t(), out=self.z)
            self._forward(self.z, k, 1, self.save, state=True)
        elif self.spec.cell == "lstm":
            kernels.lstm_backward[(self.programs,)](self.table, self.state, self.d_c, self.z, *sizes, **self.settings)
            if self.spec.ragged:
                self.state.addmm_(self.z, self.weight)
            else:
                torch.mm(self.z, self.weight, out=self.state)
        else:
            kernels.gru_backward[(self.programs,)](self.table, self.state, self.z, *sizes, **self.settings)
            self.state.addmm_(self.z, self.weight)

    def _steps(self, length: int) -> None:
        for k in reversed(range(length)) if self.backward else range(length):
            self._step(k)

    def _stretch(self, length: int) -> None:
        if self.graphs is None:
            self._steps(length)
        elif length not in self.graphs:
            # The first time compiles the kernels and sets up cuBLAS, which a capture must not; and a length seen once
            # only is not worth a graph.
            self._steps(length)
            self.graphs[length] = None
        else:
            graph = self.graphs[length] = self.graphs[length] or self._captured(length)
            if graph is None:
                self._steps(length)
            else:
                graph.replay()

    def _captured(self, length: int) -> torch.cuda.CUDAGraph | None:
        """The graph of so many steps; None, and no more graphs in this process, where capturing fails."""
        # cuBLAS keeps a workspace per stream. Graphs captured on one stream share it, so those that may be replayed at
        # the same time, on different streams, must not have been captured on the same one.
        stream = _capture_stream(torch.cuda.current_stream())
        try:
            with _capture_lock:
                return captured(lambda: self._steps(length), stream=stream, capture_error_mode="thread_local")
        except RuntimeError as error:
            use_graphs(False)
            log.warning(
                "the time loop cannot be captured as a CUDA graph; its steps are launched one by one (%s)", error
            )
            return None


class OneLaunch(Loop):
    """All steps of a call in one launch, where `Spec.in_one_launch` says so."""

    stretch = sys.maxsize

    def __init__(self, spec: Spec, backward: bool, save: bool, weight: Tensor) -> None:
        super().__init__(spec, backward, save, weight)
        self.own_programs, self.own_settings = spec.shape_of_one_launch()
        side, H = self.own_settings["BLOCK_H"], spec.H
        by_gate = weight.unflatten(0, (-1, H))
        self.matrices = weight.new_zeros(len(by_gate), side, side)
        self.matrices[:, :H, :H] = by_gate if backward else by_gate.mT

    def _stretch(self, length: int) -> None:
        B, H, eps, grid, settings = self.spec.B, self.spec.H, self.spec.eps, (self.own_programs,), self.own_settings
        states = (self.state, self.d_c, self.z) if self.backward else (self.state, self.z)
        if self.backward:
            persistent.backward[grid](self.table, *states, self.matrices, B, H, length, eps, **settings)
        else:
            persistent.forward[grid](self.table, *states, self.matrices, B, H, length, eps, SAVE=self.save, **settings)


@functools.cache
def _capture_stream(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    return torch.cuda.Stream(stream.device)


_capture_lock = threading.Lock()
_loops: OrderedDict[tuple[Any, ...], Loop] = OrderedDict()
_loops_lock = threading.Lock()


def _replays(spec: Spec, T: int) -> bool:
    if spec.device.type != "cuda" or T == 1 or not graphs_allowed():
        return False
    return not torch.cuda.is_current_stream_capturing()


@contextmanager
def loop_for(spec: Spec, backward: bool, save: bool, weight: Tensor, T: int) -> Iterator[Loop]:
    """A loop to use exclusively within the context, for sequences of T steps with W_hh = weight (G, H)."""
    with torch.cuda.device(spec.device) if spec.device.type == "cuda" else nullcontext():
        if spec.in_one_launch(T):
            yield OneLaunch(spec, backward, save, weight)
            return
        if not _replays(spec, T):
            yield Loop(spec, backward, save, weight)
            return
        # A graph keeps the precision that its products were captured with.
        precision = torch.backends.cuda.matmul.fp32_precision
        key = (spec, backward, save, torch.cuda.current_stream().cuda_stream, precision)
        with _loops_lock:
            if key not in _loops:
                # Buffers made under inference mode could not be written to outside of it.
                with torch.inference_mode(False):
                    _loops[key] = Loop(spec, backward, save, torch.empty_like(weight))
                _loops[key].graphs = {}
            _loops.move_to_end(key)
            while len(_loops) > _KEPT:
                _loops.popitem(last=False)
            loop = _loops[key]
        with loop.lock:
            loop.weight.copy_(weight)
            yield loop
