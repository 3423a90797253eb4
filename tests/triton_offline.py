"""Triton without a GPU: its own binder, specialization and compiler, for GPUs of our choice, up to the launch itself.

`install` has to come before anything of Triton runs, in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

ARCHITECTURES = (80, 90, 100)  # A100, H100, B200; each is the device of its number here
Launch = Callable[[Any, Any, tuple[int, ...], tuple[Any, ...]], None]  # source, metadata, grid, arguments


class Driver:
    """What Triton's JIT asks of a driver. A launch goes to `launch`, or nowhere."""

    def __init__(self, launch: Launch | None) -> None:
        self.launch, self.device = launch, ARCHITECTURES.index(90)
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launcher(
            x: int, y: int, z: int, stream: int, function: int, packed: Any, described: Any, enter: Any, leave: Any,
            *arguments: Any,
        ) -> None:  # fmt: skip
            if self.launch is not None:
                self.launch(source, metadata, (x, y, z), arguments)

        return launcher

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 48 * 1024}  # what every GPU gives without being asked

    def load_binary(self, *of: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCHITECTURES[self.device], 32)


def install(launch: Launch | None = None) -> Driver:
    driver = Driver(launch)
    triton.runtime.driver.set_active(driver)  # type: ignore[attr-defined]
    return driver


def compiled(kernel: Any, driver: Driver) -> Iterator[Any]:
    """What a kernel has been compiled to for the driver's present device."""
    yield from kernel.device_caches[driver.device][0].values()


def resources(kernel: Any) -> tuple[int, int]:
    """Registers and bytes of stack of a thread of a compiled kernel, from its machine code."""
    dump = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


def launch_everything(cell: str, B: int, H: int, norm: int, ragged: bool) -> None:
    """Every launch that a layer makes: forward with and without saving, the terms again, backward; if narrow, step by
    step and in one launch."""
    from ln.kernels.triton.loop import Loop, OneLaunch, Spec

    def e(*shape: int) -> Tensor:
        return torch.empty(shape)

    G, on, lstm = (4 if cell == "lstm" else 3) * H, norm != 0, cell == "lstm"
    spec = Spec(cell, B, H, norm, on, on and lstm, True, ragged, 1e-5, torch.device("cuda", 0))
    left = torch.ones(B, dtype=torch.int64) if ragged else None
    statistics = (*(e(G) if on else None for _ in "mv"), *(e(H) if on and lstm else None for _ in "mv"))
    pointers = (left, e(1, B, G), e(1, B, H), e(2, B, H), e(1, B, G))
    pointers = (*pointers, e(G) if on else None, e(H) if on and lstm else None, e(G), *statistics)
    weight = e(G, H)
    gradients = (e(1, B, G), e(1, B, G), e(1, B, H), e(1, B, H))
    for kind in (Loop, OneLaunch) if spec.in_one_launch(2) else (Loop,):
        for save in (True, False):
            kind(spec, False, save, weight).run([pointers], 1)
        kind(spec, True, False, weight).run([(*pointers, *gradients)], 1)
    Loop(spec, False, True, weight).rebuild(1, e(1, B, G), pointers)
