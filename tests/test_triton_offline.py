"""Every kernel launch of a layer, compiled for real GPUs without one: it fits their registers and spills next to
nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
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


def _compile(architecture: int, cell: str, B: int, H: int) -> list[str]:
    """What is wrong with any of the layer's kernels."""
    from ln.kernels.triton import kernels, tiles
    from tests import triton_offline

    driver = triton_offline.install()
    driver.device = triton_offline.ARCHITECTURES.index(architecture)
    # Of two architectures the flags that make the largest kernels, of the third all.
    norms = [value.value for value in (tiles.NO_NORM, tiles.LAYER, tiles.RMS, tiles.BATCH, tiles.GIVEN)]
    every = (
        itertools.product(norms, (False, True))
        if architecture == 90
        else [(tiles.LAYER.value, False), (tiles.BATCH.value, True)]
    )
    for norm, ragged in every:
        triton_offline.launch_everything(cell, B, H, norm, ragged)
    faults = []
    for name in (f"{cell}_forward", f"{cell}_backward"):
        found = list(triton_offline.compiled(getattr(kernels, name), driver))
        assert len(found) >= (8 if architecture == 90 else 2), f"only {len(found)} of {name} were compiled"
        for kernel in found:
            registers, stack = triton_offline.resources(kernel)
            if stack > 64:
                faults.append(f"{name} spills {stack} bytes a thread")
            if registers * kernel.metadata.num_warps * 32 > 65536:
                faults.append(f"{name} needs {registers} registers in each of {kernel.metadata.num_warps} warps")
    addresses = len(list(triton_offline.compiled(tiles.write_table, driver)))
    if addresses > 32:
        faults.append(f"write_table was compiled {addresses} times: the addresses' alignment is specialized on")
    return faults


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("cell", "B", "H"), [("lstm", 100, 100), ("gru", 64, 2400)], ids=str)
def test_every_launch_compiles(elsewhere: Any, architecture: int, cell: str, B: int, H: int) -> None:
    assert elsewhere(_compile, architecture, cell, B, H) == []
