"""The machine code of the Triton backend, executed without a GPU, against float64: minutes, so `-m slow`.

`python -m tests.test_ptx_emulator` prints the table of errors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ln import reference
from ln.kernels.triton import backend
from ln.norms import NormConfig
from tests import test_handwriting_fused
from tests.ptx_memory import Copies, Fault, GlobalMemory, SharedMemory
from tests.recurrent_cases import judge, results
from tests.test_triton import case, population, step_by_step

missing = pytest.mark.skipif("not installed" in str(backend.available()), reason="the package triton is missing")
NAMES = ("none", "layer", "rms", "batch", "batch, given")
# Several rows and columns; more units than a warp has threads; several warps to a row.
SHAPES = [(3, 6, 2, 5), (2, 19, 3, 33), (2, 4, 2, 200)]
CASES = [
    (cell, name, shape, ragged, "each")
    for shape, cell, name, ragged in itertools.product(SHAPES, ("lstm", "gru"), NAMES, (False, True))
    if not (name == "batch" and shape[1] < 4)  # over one to three rows it divides by chance variances
]
# All steps in one launch: a warp, two, and eight to a program; one program and more.
CASES += [
    (cell, name, shape, ragged, "all")
    for shape in [(3, 6, 2, 5), (2, 19, 3, 33), (4, 5, 2, 100)]
    for cell, name, ragged in itertools.product(("lstm", "gru"), ("none", "layer", "rms"), (False, True))
]


def _start() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    emulate()


@pytest.fixture(scope="module")
def emulated() -> Iterator[Callable[..., Any]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def emulate(architecture: int = 90) -> None:
    """Execute every launch of this process on the machine, on tensors of the CPU, as a GPU would be given it."""
    from triton.compiler.compiler import CompiledKernel

    from ln.kernels.triton.loop import Spec
    from tests import triton_offline
    from tests.ptx_machine import Machine

    ptx: dict[int, str] = {}  # by the metadata of what it was compiled to
    begin = CompiledKernel._init_handles

    def kept(self: Any) -> None:
        begin(self)
        ptx[id(self.metadata)] = self.asm["ptx"]

    CompiledKernel._init_handles = kept
    Spec.on_gpu = True  # type: ignore[assignment, method-assign]
    table: list[tuple[int, int]] = []  # where the tensors lie whose addresses a loop's table holds

    def launch(source: Any, metadata: Any, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        values = flat(tuple(source.signature.values()), arguments)
        tensors = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in (v.untyped_storage() for v in only(values))]
        if source.fn.__name__ == "write_table":
            table[:] = tensors
        given = [v.data_ptr() if isinstance(v, Tensor) else v for v in values]
        Machine(ptx[id(metadata)], grid, given, metadata.shared, [*table, *tensors]).run()  # type: ignore[arg-type]

    driver = triton_offline.install(launch)
    driver.device = triton_offline.ARCHITECTURES.index(architecture)


def flat(signature: Any, arguments: Any) -> list[Any]:
    """The arguments that a kernel gets, out of tuples and without those that it was specialized on."""
    found = []
    for kind, value in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            found += flat(kind, value)
        elif kind != "constexpr":
            found.append(value)
    return found


def only(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _judge(cell: str, name: str, shape: tuple[int, int, int, int], ragged: bool, steps: str) -> None:
    """Where gradients nearly cancel the error of a single draw is luck; so one draw in three may exceed."""
    with nullcontext() if steps == "all" else step_by_step():
        _judge_draws(cell, name, shape, ragged)


def _judge_draws(cell: str, name: str, shape: tuple[int, int, int, int], ragged: bool) -> None:
    T, B, _, H = shape
    cfg = NormConfig(name.split(",")[0])
    lengths = torch.arange(B).mul(T).div(max(B - 1, 1), rounding_mode="floor").flip(0) if ragged else None
    excesses: list[AssertionError] = []
    for draw in range(3):
        tensors, p = case(cell, cfg, *shape, True, draw)
        stats = population(cell, cfg, T, H) if "given" in name else None
        try:
            judge("triton", cell, tensors, p, cfg, lengths=lengths, stats=stats)
        except AssertionError as excess:
            excesses.append(excess)
        if draw == len(excesses) * 2:
            return
    raise excesses[0]


@missing
@pytest.mark.slow
@pytest.mark.parametrize(("cell", "name", "shape", "ragged", "steps"), CASES, ids=str)
def test_machine_code_matches_the_reference(
    emulated: Any, cell: str, name: str, shape: Any, ragged: bool, steps: str
) -> None:
    emulated(_judge, cell, name, shape, ragged, steps)


@missing
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_machine_code_of_pen_steps_matches_the_loop(emulated: Any, norm: str) -> None:
    for sizes in [(2, 2, 5, 3, 7, 4), (2, 2, 70, 10, 19, 6)]:  # one warp to a row, and two
        emulated(test_handwriting_fused.judge, norm, sizes, test_handwriting_fused.MACHINE)


def _single_rows() -> float:
    """What batch norm over one row leaves of it, which is nothing."""
    from ln.kernels.triton import backend as triton_backend

    cfg = NormConfig("batch")
    tensors, p = case("lstm", cfg, 2, 1, 3, 8)
    outputs = [results(m, "lstm", tensors, p, cfg, None, None, torch.float32)[0] for m in (triton_backend, reference)]
    return float((outputs[0] - outputs[1]).abs().max())


@missing
@pytest.mark.slow
def test_one_row_is_its_own_mean(emulated: Any) -> None:
    assert emulated(_single_rows) < 1e-6


def _add_out_of_bounds() -> None:
    from tests import ptx_example

    x = torch.zeros(100)
    ptx_example.add_one[(1,)](x, 100, BLOCK=128)
    assert torch.equal(x, torch.ones(100))
    with pytest.raises(Fault, match="28 threads leave every tensor"):
        ptx_example.add_one[(1,)](x, 128, BLOCK=128)
    with pytest.raises(Fault, match="races between blocks"):
        ptx_example.add_one[(2,)](x, 100, BLOCK=128)


def test_what_is_copied_beside_the_threads_is_there_once_waited_for() -> None:
    source = torch.arange(1, 65, dtype=torch.float32)
    block, every = np.zeros(64, np.int64), np.ones(64, bool)
    at = source.data_ptr() + 4 * np.arange(64)
    for barrier in (False, True):
        shared = SharedMemory(256, 1, block)
        copies = Copies(GlobalMemory([(source.data_ptr(), source.data_ptr() + 256)], block), shared)
        copies.begin(4 * np.arange(64), at, 4, np.where(np.arange(64) < 60, 4, 0), every)
        copies.commit()
        assert np.isnan(shared.words.view(np.float32)).all()  # nothing has arrived
        copies.wait(0)
        shared.barrier(barrier)
        found = shared.load(4 * (np.arange(64) ^ 32), every).view(np.float32)  # what another warp has copied
        assert found.tolist() == [*range(33, 61), 0, 0, 0, 0, *range(1, 33)]
        if barrier:
            shared.check_races()
        else:
            with pytest.raises(Fault, match="races between warps"):
                shared.check_races()


@missing
def test_the_machine_notices_what_a_gpu_would_not(emulated: Any) -> None:
    emulated(_add_out_of_bounds)


def main() -> None:
    from ln.kernels.triton import backend as triton_backend

    _start()
    print("| cell | norm | T, B, D, H | ragged | steps a launch | error | float32 reference | within the bar |")
    print("|" + "---|" * 8)
    for cell, name, shape, ragged, steps in CASES:
        cfg = NormConfig(name.split(",")[0])
        tensors, p = case(cell, cfg, *shape)
        T, B, _, H = shape
        lengths = torch.arange(B).mul(T).div(max(B - 1, 1), rounding_mode="floor").flip(0) if ragged else None
        stats = population(cell, cfg, T, H) if "given" in name else None
        with nullcontext() if steps == "all" else step_by_step():
            exact, own, found = (
                results(module, cell, tensors, p, cfg, lengths, stats, dtype)
                for module, dtype in (
                    (reference, torch.float64), (reference, torch.float32), (triton_backend, torch.float32)
                )
            )  # fmt: skip
        errors = [
            tuple(float((some - truth).abs().max()) / max(1.0, float(truth.abs().max())) for some in (ours, theirs))
            for truth, ours, theirs in zip(exact, found, own, strict=True)
            if truth.numel()
        ]
        within = all(error <= 2 * allowed + 16 * torch.finfo(torch.float32).eps for error, allowed in errors)
        error, allowed = (max(column) for column in zip(*errors, strict=True))
        print(
            f"| {cell} | {name} | {', '.join(map(str, shape))} | {'yes' if ragged else 'no'} "
            f"| {'all' if steps == 'all' else 1} | {error:.1e} | {allowed:.1e} | {'yes' if within else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
