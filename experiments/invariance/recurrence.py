"""What a recurrence does to its summed inputs and gradients (section 3.1). B batch, D input, H units, T steps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.invariance.network import Settings, cases_of, normalized

# Of recurrent units: the function, and the gain of random weights that keeps the size of (small) states.
UNITS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "rectified": (torch.relu, math.sqrt(2)),
    "tanh": (torch.tanh, 1.0),
}
FACTORS = {"half": 0.5, "twice": 2.0}  # of that gain
STEPS = 50


def recurrence(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """What a recurrent network's steps do to its summed inputs and to a gradient (section 3.1), in decades: the mean of
    K random networks whose recurrent weights are half or twice as large as would keep the states of their units. The
    drift is the larger change of the two."""
    measured: dict[str, float] = {}
    for unit, (function, kept) in UNITS.items():
        for name, factor in FACTORS.items():
            draws = []
            for _ in range(settings.draws):
                x = cases_of(images, settings)
                draws.append(through_time(norm, x, settings.hidden, function, factor * kept))
            forward, back = (sum(values) / len(values) for values in zip(*draws, strict=True))
            measured |= {f"summed_inputs_{unit}_{name}": forward, f"gradient_{unit}_{name}": back}
        measured[f"gradient_{unit}_drift"] = max(abs(measured[f"gradient_{unit}_{name}"]) for name in FACTORS)
    return measured


def through_time(
    norm: str, x: Tensor, hidden: int, function: Callable[[Tensor], Tensor], gain: float
) -> tuple[float, float]:
    """Equation 4 for inputs x (B, D), left to itself after the first: by how many decades the root mean square of the
    summed inputs, before they are normalized, changes from the first of T steps to the last, and the norm of a random
    gradient by the last state (B, H) on its way back to the first."""
    w = gain * torch.randn(hidden, hidden, dtype=torch.float64) / math.sqrt(hidden)
    w_x = torch.randn(hidden, x.shape[1], dtype=torch.float64) / math.sqrt(x.shape[1])
    first = function(normalized(norm, x @ w_x.T, w_x)).requires_grad_()
    h, sizes = first, []
    with torch.enable_grad():
        for _ in range(STEPS):
            a = h @ w.T
            sizes.append(a.detach().square().mean().sqrt())
            h = function(normalized(norm, a, w))
        gradient = torch.randn_like(h)
        (arrived,) = torch.autograd.grad(h, first, gradient)
    return math.log10(sizes[-1] / sizes[0]), math.log10(arrived.norm() / gradient.norm())
