"""Which implementation computes the recurrent layers of a run's model."""

import torch
from torch import nn

from ln import kernels
from ln.parameters import NormalizedRecurrence
from ln.suite.errors import Mistake


def ask_for(backend: str, model: nn.Module, device: torch.device) -> None:
    """Have the model's recurrent layers computed by a backend; models without any do not mind.

    Raises:
        Mistake: it cannot run one of them on this device.
    """
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
