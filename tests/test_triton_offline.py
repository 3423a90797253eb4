"""Every kernel launch of a layer, compiled for real GPUs without one: it fits their registers and spills next to
nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from ln.kernels.triton import backend

pytestmark = pytest.mark.skipif("not installed" in str(backend.available()), reason="the package triton is missing")


def _start() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """elsewhere(function, *arguments) -> what it returns or raises in a process whose Triton has no interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _compile(architecture: int, cell: str, B: int, H: int, every: bool) -> list[str]:
    """What is wrong with any of the layer's kernels: those of the flags that make the largest, or of all."""
    from ln.kernels.triton import kernels, persistent, tiles
    from tests import triton_offline

    driver = triton_offline.install()
    driver.device = triton_offline.ARCHITECTURES.index(architecture)
    norms = [value.value for value in (tiles.NO_NORM, tiles.LAYER, tiles.RMS, tiles.BATCH, tiles.GIVEN)]
    largest = [(tiles.LAYER.value if cell == "lstm" else tiles.BATCH.value, cell == "gru")]
    asked = list(itertools.product(norms, (False, True))) if every else largest
    for norm, ragged in asked:
        triton_offline.launch_everything(cell, B, H, norm, ragged)
    faults = []
    for name in (f"{cell}_forward", f"{cell}_backward"):
        faults += _faults(name, getattr(kernels, name), driver, at_least=len(asked))
    narrow = len([norm for norm, _ in asked if norm < tiles.BATCH.value]) if H <= 128 else 0
    for name in ("forward", "backward"):
        faults += _faults(f"persistent.{name}", getattr(persistent, name), driver, at_least=narrow)
    addresses = len(list(triton_offline.compiled(tiles.write_table, driver)))
    if addresses > 32:
        faults.append(f"write_table was compiled {addresses} times: the addresses' alignment is specialized on")
    return faults


def _faults(name: str, kernel: Any, driver: Any, at_least: int) -> list[str]:
    from tests import triton_offline

    found = list(triton_offline.compiled(kernel, driver))
    assert len(found) >= at_least, f"only {len(found)} of {name} were compiled"
    faults = []
    for each in found:
        registers, stack = triton_offline.resources(each)
        if stack > 64:
            faults.append(f"{name} spills {stack} bytes a thread")
        if registers * each.metadata.num_warps * 32 > 65536:
            faults.append(f"{name} needs {registers} registers in each of {each.metadata.num_warps} warps")
    return faults


def slow(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


LARGEST = [("lstm", 100, 100, 80, False), ("lstm", 100, 100, 90, False), ("gru", 64, 2400, 100, False)]
EVERY = [
    (*size, each, True) for size in (("lstm", 100, 100), ("gru", 33, 128), ("gru", 64, 2400)) for each in (80, 90, 100)
]


@pytest.mark.parametrize(("cell", "B", "H", "architecture", "every"), [*LARGEST, *slow(EVERY)])
def test_every_launch_compiles(elsewhere: Any, architecture: int, cell: str, B: int, H: int, every: bool) -> None:
    assert elsewhere(_compile, architecture, cell, B, H, every) == []


def _compile_pen_steps(architecture: int, norm: str, hidden: int) -> list[str]:
    """What is wrong with the kernels of handwriting's pen steps, with and without what a backward pass needs."""
    import torch

    from experiments.handwriting import pen_kernels
    from experiments.handwriting.fused import pen_steps
    from experiments.handwriting.network import Network
    from ln import NormConfig
    from tests import triton_offline

    driver = triton_offline.install()
    driver.device = triton_offline.ARCHITECTURES.index(architecture)
    network, texts = Network(57, hidden, 10, 20, NormConfig(norm)), torch.zeros(8, 70, dtype=torch.int64)
    arguments = (network.first, network.window, torch.zeros(1, 8, 3), texts, network.one_hot(texts))
    with torch.no_grad():
        pen_steps(*arguments)
    states, weights = pen_steps(*arguments)
    (states.sum() + weights.sum()).backward()
    forward = _faults("pen_forward", pen_kernels.pen_forward, driver, 2)
    return forward + _faults("pen_backward", pen_kernels.pen_backward, driver, 1)


# Norm, units, architecture; 512 units are the most that they take.
PEN_STEPS = [("layer", 400, 80), ("layer", 400, 100), ("none", 400, 90), ("layer", 100, 90)]
PEN_STEPS += [("layer", 512, each) for each in (80, 90, 100)]


@pytest.mark.parametrize(("norm", "hidden", "architecture"), [("layer", 400, 90), *slow(PEN_STEPS)])
def test_pen_steps_compile(elsewhere: Any, norm: str, hidden: int, architecture: int) -> None:
    assert elsewhere(_compile_pen_steps, architecture, norm, hidden) == []
