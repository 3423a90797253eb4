"""Where a run is computed: its device, and the backend of its model's recurrent layers."""

import fcntl
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

import torch
from torch import nn

from ln import kernels
from ln.parameters import NormalizedRecurrence
from ln.suite.errors import Mistake

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# torch then asks the driver's library whether there is a GPU and does not start CUDA, after which none can be chosen.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_gpu_lock: IO[str] | None = None  # held to the end of the process


def device_of(request: str, profile: str = "laptop") -> torch.device:
    """The device that a recipe asks for.

    Raises:
        Mistake: it is not there; or `auto` would take weeks on the CPU beside a GPU that torch cannot use.
    """
    if request == "cuda" and not torch.cuda.is_available():
        raise Mistake("device=cuda, but torch sees no CUDA device here; use device=cpu or device=auto")
    if request == "auto":
        request = "cuda" if torch.cuda.is_available() else "cpu"
        unused = unusable_gpu(NVIDIA_DRIVER) if request == "cpu" else None
        if unused and profile == "full":
            raise Mistake(f"{unused}; mend that, or ask for device=cpu")
        if unused:
            print(f"warning: {unused}; going on with the CPU", file=sys.stderr, flush=True)
    return torch.device(request)


def unusable_gpu(driver: Path) -> str | None:
    """Why torch cannot use the NVIDIA GPU that this machine has a driver for; None where it has none, or none is to be
    seen."""
    if not driver.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        torch.cuda.init()
        reason = "it sees no device"
    except Exception as error:  # an old driver, a torch without CUDA: each says so in its own class
        reason = str(error).splitlines()[0]
    return f"there is an NVIDIA driver ({driver.read_text().splitlines()[0]}), but torch cannot use the GPU ({reason})"


def take_gpu() -> None:
    """Where there are several GPUs, show this process only the one that fewest others of ours on this machine hold."""
    global _gpu_lock
    count = torch.cuda.device_count()
    if _gpu_lock is not None or count < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(count)]
    for turn in itertools.count():  # more runs than GPUs: each GPU gets a second one before any gets a third
        for device in devices:
            lock = (Path(tempfile.gettempdir()) / f"ln-gpu-{os.getuid()}-{device}-{turn}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _gpu_lock = lock
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            return


def ask_for(backend: str, model: nn.Module, device: torch.device) -> None:
    """Have the model's recurrent layers computed by a backend; models without any do not mind.

    Raises:
        Mistake: it cannot run one of them on this device.
    """
    if backend == "auto":
        return
    for module in model.modules():
        if isinstance(module, NormalizedRecurrence):
            module.backend = backend
            try:
                kernels.resolve(backend, device, torch.float32, module.cell, module.kernel_norm)
            except RuntimeError as refusal:
                raise Mistake(str(refusal)) from refusal


def backends_of(model: nn.Module) -> str:
    """The backends that have run the model's recurrent layers so far, by name; torch where it has none."""
    used = {module.backend_used for module in model.modules() if isinstance(module, NormalizedRecurrence)}
    return ", ".join(sorted(name for name in used if name)) or "torch"
