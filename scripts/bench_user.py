"""The layers as users call them, at sizes of public models, beside torch.nn's: `make bench BENCH="--shapes user"`.

Forward and backward with every gradient, and inference, on one and on two threads. All implementations of a case live
in one process and take turns, round by round; a time is the median over rounds, a ratio the median of the rounds'
ratios. On one thread the processor time counts, on two the wall time. "of limit" is the share of the time that the
matrix products alone take at the rate that the best library reached in the same round, since a busy machine's own speed
changes from one minute to the next.

Shapes: T time, B batch, D input, H hidden.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import ln
from ln.norms import NORMS
from ln.suite.showing.speeds import BASELINE, LOOP, ratio
from scripts.bench_peers import ALONE, PlainFastWeights, PlainGRU, PlainLSTM, PlainRNN, products

TARGETS = {"ln, layer norm": 1.1, "ln, weight norm": 1.0, "ln, no norm": 1.0}  # of torch.nn's time
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PLAIN: dict[str, Callable[[int, int], nn.Module]] = {"LSTM": PlainLSTM, "GRU": PlainGRU, "RNN": PlainRNN}
_PROBES = ((1600, 512, 128), (512, 1024, 512))  # the products whose rate is measured: M, N, K
_SHORTEST = 4e-3  # seconds: passes of less are timed several at once


@dataclass(frozen=True)
class Case:
    kind: str  # a class of torch.nn and of ln
    T: int
    B: int
    D: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    trains: bool = True  # else inference alone is of interest

    def __str__(self) -> str:
        more = f", {self.layers} layers" * (self.layers > 1) + ", bidirectional" * self.bidirectional
        return f"{self.kind} T{self.T} B{self.B} D{self.D} H{self.H}{more}"

    @property
    def is_cell(self) -> bool:
        return self.kind.endswith("Cell")

    @property
    def options(self) -> dict[str, Any]:
        """Of the module, beside its sizes."""
        return {} if self.is_cell else {"num_layers": self.layers, "bidirectional": self.bidirectional}

    def gflop(self, trains: bool) -> float:
        """Of the matrix products; those of the backward pass are twice the forward's. Fast weights: the slow ones'."""
        directions = 1 + self.bidirectional
        widths = [self.D] + [directions * self.H] * (self.layers - 1)
        columns = sum(directions * (width + self.H) for width in widths)
        gates = _GATES.get(self.kind.removesuffix("Cell"), 1)
        return 2e-9 * self.T * self.B * gates * self.H * columns * (3 if trains else 1)


CASES = (
    Case("RNN", 50, 32, 128, 128),
    Case("LSTMCell", 1, 64, 256, 256),
    Case("LSTMCell", 1, 97, 51, 51),
    Case("GRUCell", 1, 64, 256, 256),
    Case("LSTM", 50, 32, 128, 128, bidirectional=True),
    Case("LSTM", 11, 128, 100, 50),
    Case("GRU", 1, 1, 256, 256),
    Case("LSTM", 35, 20, 650, 650, layers=2),
    Case("LSTM", 500, 8, 400, 400, trains=False),
    Case("FastWeights", 23, 128, 37, 50),
)


class _Stacked(nn.Module):
    """Plain loops on top of one another, in one or two directions; x (T, B, D), or (B, D) for a single step."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        make, widths = _PLAIN[case.kind.removesuffix("Cell")], [case.D]
        widths += [case.H * (1 + case.bidirectional)] * (case.layers - 1)
        directions = range(1 + case.bidirectional)
        self.layers = nn.ModuleList(nn.ModuleList(make(width, case.H) for _ in directions) for width in widths)
        self.one_step = case.is_cell

    def forward(self, x: Tensor) -> Tensor:
        x = x[None] if self.one_step else x
        for layer in self.layers:
            ahead, *back = layer.children()
            x = torch.cat([ahead(x), *(loop(x.flip(0)).flip(0) for loop in back)], -1)
        return x[0] if self.one_step else x


def implementations(case: Case) -> dict[str, nn.Module]:
    """By name, the baseline first."""
    if case.kind == "FastWeights":
        return {
            BASELINE: nn.RNN(case.D, case.H, nonlinearity="relu"),
            LOOP: PlainFastWeights(case.D, case.H),
            "ln, layer norm": ln.FastWeights(case.D, case.H),
        }
    found = {BASELINE: getattr(nn, case.kind)(case.D, case.H, **case.options), LOOP: _Stacked(case)}
    for norm, traits in NORMS.items():
        if traits.axis == "batch" and case.B == 1:
            continue  # there are no statistics of one case
        found[f"ln, {traits.label}"] = getattr(ln, case.kind)(case.D, case.H, norm=norm, **case.options)
    return found


def passes(case: Case, module: nn.Module, trains: bool) -> Callable[[], None]:
    """One forward pass, and a backward pass to every parameter and the input."""
    torch.manual_seed(0)
    shape = (case.B, case.D) if case.is_cell else (case.T, case.B, case.D)
    x = torch.randn(shape, requires_grad=trains)
    steps = isinstance(module, ln.LSTMCell | ln.GRUCell | ln.RNNCell) and module.norm.traits.population
    module.train(trains or steps)

    def output() -> Tensor:
        found = module(x, step=0) if steps else module(x)
        return found[0] if isinstance(found, tuple) else found

    cotangent = torch.randn_like(output())

    def run() -> None:
        if not trains:
            with torch.no_grad():
                output()
            return
        x.grad = None
        module.zero_grad(set_to_none=True)
        output().backward(cotangent)

    return run


def measure(case: Case, trains: bool, threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By implementation: ms, the times of the rounds, and the products' time at the best rate in each round as a share
    of them."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    runs = {name: passes(case, module, trains) for name, module in implementations(case).items()}
    for run in runs.values():
        run()
        run()
    start = clock()
    runs[BASELINE]()
    repeats = max(1, round(_SHORTEST / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    contenders = [(2.0 * M * N * K, name, run) for M, N, K in _PROBES for name, run in products(M, N, K).items()]
    limits = []
    for _ in range(rounds):
        rate = 0.0  # FLOP a second
        for flop, name, product in contenders:
            for _ in range(3):
                start = clock()
                product()
                rate = max(rate, flop / (clock() - start) * (threads if ALONE in name else 1))
        limits.append(1e3 * 1e9 * case.gflop(trains) / rate)
        for name, run in runs.items():
            start = clock()
            for _ in range(repeats):
                run()
            times[name].append(1e3 * (clock() - start) / repeats)
    return {
        name: {
            "ms": median(found),
            "times": found,
            "share": median(limit / ms for limit, ms in zip(limits, found, strict=True)),
        }
        for name, found in times.items()
    }


def table(case: Case, trains: bool, threads: int, results: dict[str, dict[str, Any]]) -> str:
    lines = [f"\n{case}, {'forward + backward' if trains else 'inference'}, {threads} thread{'s' * (threads > 1)}"]
    lines.append(f"{'':20}{'ms':>10}{'/torch.nn':>11}{'/loop':>9}{'of limit':>10}")
    for name, found in results.items():
        to_nn, to_loop = (ratio(results, name, to) or math.nan for to in (BASELINE, LOOP))
        missed = ""
        if name in TARGETS and case.kind != "FastWeights" and to_nn > TARGETS[name]:
            missed = f"   missed: at most {TARGETS[name]:.1f} is wanted"
        shown = f"{found['ms']:10.3f}{to_nn:10.2f}x{to_loop:8.2f}x{found['share']:10.0%}"
        lines.append(f"{name:20}{shown}{missed}")
    return "\n".join(lines)


def run(rounds: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The tables, and what they were made from."""
    tables, measured = [], []
    for threads in (1, 2):
        for case in CASES:
            for trains in (True, False)[not case.trains :]:
                results = measure(case, trains, threads, rounds)
                tables.append(table(case, trains, threads, results))
                print(tables[-1], flush=True)
                measured.append({"case": str(case), "trains": trains, "threads": threads, "results": results})
    return tables, measured
