"""The backends of the recurrent layers, and the choice between them.

Every backend is a module that fulfils `ln.kernels.contract.Backend`.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from ln import reference
from ln.kernels import gate
from ln.kernels.contract import Backend
from ln.kernels.native import backend as native
from ln.kernels.operators import OPERATORS
from ln.kernels.torch import backend as plain
from ln.kernels.triton import backend as triton
from ln.norms import NormConfig

log = logging.getLogger("ln")

_MODULES: dict[str, Backend] = {module.name: module for module in (reference, plain, native, triton)}
BACKENDS = tuple(_MODULES)
_DECIDING = ("name", "sites", "carry_normalized", "gates")  # fields of a norm that a backend may refuse
_LARGE_STEP = 3 << 22  # multiplications in a step, from which on better products outweigh what a call costs
_said: set[tuple[str, str]] = set()
_PREFERENCE = {
    "cpu": ("native", "torch", "reference"),
    "cuda": ("triton", "torch", "reference"),
    "meta": ("reference",),
}


def load(backend: str) -> Backend:
    """The module of a backend; ValueError for a name that is none."""
    if backend not in _MODULES:
        raise ValueError(f"backend={backend} is not a backend; choose one of auto, {', '.join(BACKENDS)}")
    return _MODULES[backend]


def name_of(module: Backend) -> str:
    """The name in BACKENDS of a backend's module or operator."""
    return module.name


@functools.lru_cache(maxsize=1024)
def _choose(backend: str, device: torch.device, dtype: torch.dtype, cell: str, cfg: NormConfig) -> Backend:
    layer = f"{cell} with norm={cfg.name} on {device.type} in {str(dtype).removeprefix('torch.')}"
    if backend != "auto":
        module = load(backend)
        reason = module.available() or module.supports(cell, cfg, device, dtype)
        if reason:
            raise RuntimeError(f"backend={backend} cannot run {layer}: {reason}; ask for backend=auto or another")
        log.info("backend %s runs %s, as asked for", backend, layer)
        return module
    passed_over: list[tuple[str, str, bool]] = []
    for name in _PREFERENCE.get(device.type, ("torch", "reference")):
        module = load(name)
        missing = module.available()
        reason = missing or module.supports(cell, cfg, device, dtype)
        if reason is None:
            # A faster backend that this machine lacks is worth a warning; one that is not made for this layer is not.
            lacking = {(other, text) for other, text, missing_here in passed_over if missing_here}
            level = logging.WARNING if lacking - _said else logging.INFO  # once, however many kinds of layers there are
            _said.update(lacking)
            why = "; ".join(f"not {other}: {text}" for other, text, _ in passed_over) or "the fastest there is"
            log.log(level, "backend %s runs %s (%s)", name, layer, why)
            return module
        passed_over.append((name, reason, missing is not None))
    raise AssertionError("the reference runs every layer")


@gate.constant
def _choose_name(backend: str, device: torch.device, dtype: torch.dtype, cell: str, *traits: Any) -> str:
    """traits: values of _DECIDING, since torch.compile of torch 2.11 takes no NormConfig as a constant, and of no
    version a number that it has made dynamic."""
    return name_of(_choose(backend, device, dtype, cell, NormConfig(**dict(zip(_DECIDING, traits, strict=True)))))


def resolve(
    backend: str, device: torch.device, dtype: torch.dtype, cell: str, cfg: NormConfig, beyond: str | None = None
) -> Backend:
    """The backend's module for a layer ("lstm", "gru" or "rnn") on a device: the one asked for, or with "auto" the
    fastest; or, where `beyond` names what goes on beyond eager code (`gate.beyond_eager`), the reference, but under
    torch.compile the backend's operator.

    Chosen once for each combination and said in one line of the logger "ln". RuntimeError where a backend was asked for
    that cannot run such a layer here, ValueError for an unknown name.
    """
    if beyond == gate.COMPILING:
        name = _choose_name(backend, device, dtype, cell, *(getattr(cfg, field) for field in _DECIDING))
        return OPERATORS.get(name, reference)  # type: ignore[return-value]
    if beyond is not None:
        if backend == "auto":
            return reference
        module = load(backend)
        if not gate.can_run(backend, beyond):
            raise RuntimeError(gate.refusal(backend, beyond))
        return module
    return _choose(backend, torch.device(device.type, device.index), dtype, cell, cfg)


def torch_is_fastest(
    cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype, T: int, B: int, D: int, H: int, trains: bool
) -> bool:
    """Whether torch's own kernels are the fastest for a layer without a norm inside its recurrence, x (T, B, D).

    trains: whether a gradient may be asked for.

    On CUDA they are cuDNN's. On the CPU the native backend's time was measured in units of theirs, in float32 on one
    thread of an AMD EPYC with AVX-512 (family 26 model 2), D = H unless said:
      one step of a cell, inference and training: LSTM 1.13, 1.14 at B 64, H 128; 0.76, 0.85 at B 128, H 128; 0.70, 1.01
        at B 64, H 256; GRU 1.06, 1.19; 0.85, 0.96; 0.88, 1.09; RNN 1.09, 1.22 at B 64, H 256; more below these sizes,
        up to 4.3 at B 1, H 256;
      an LSTM in inference: 1.15 at H 50, D 100, B 128, T 11; 1.18 at H 128, D 28, B 128, T 28; 1.07 at H 128, B 32,
        T 50; but 0.99 at H 400, 0.95 at H 256, D 900 and 0.77 at H 650;
      an LSTM in training: 1.10, 1.07 and 1.08 in the first three, 1.03 at H 400 and 650, but 0.4 at T 784, for which
        native is kept;
      GRU and RNN: 0.4 to 0.96, but for single steps.
    Without the native backend they are taken in place of the one in Python, but for a large GRU, whose products are
    oneDNN's there. An LSTM took 0.3 to 0.8 of its time at H 32 to 512 (B 32, float32); GRUs were not measured again.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return device.type == "cuda"
    if name_of(_choose("auto", device, dtype, cell, cfg)) != "native":
        return cell != "gru" or dtype == torch.float64 or H < 512
    if T == 1:
        return B * (D + H) * H * gate.GATES[cell] < _LARGE_STEP and not (cell == "lstm" and trains)
    return cell == "lstm" and not trains and H < 256
