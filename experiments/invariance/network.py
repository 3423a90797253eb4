"""The random networks that are measured, and equation 5. B batch, D input, H units."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ln import norms
from ln.suite.errors import Mistake

# The paper has no epsilon; torch insists on one. This one vanishes beside any variance.
NO_EPS = 1e-60


@dataclass
class Settings:
    hidden: int = 128
    draws: int = 5  # random networks per run, each with its own changes
    cases: int = 64  # inputs per draw
    fisher_units: int = 4
    fisher_inputs: int = 12


def network(inputs: int, hidden: int, norm: str, dtype: torch.dtype, eps: float) -> nn.Sequential:
    """(B, D) -> (B, 10): two normalized tanh layers and a linear one. tanh, because it forgives no change of scale."""
    normalization = norms.get(norm)
    layers: list[nn.Module] = []
    for size in (inputs, hidden):
        linear = nn.utils.skip_init(nn.Linear, size, hidden, bias=not normalization.normalizes)
        nn.init.xavier_normal_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers += [normalization.wrap_linear(linear), normalization.make(hidden, eps=eps), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10)).to(dtype)


def weight_of(linear: nn.Module) -> nn.Parameter:
    """(H, D) the weights that training moves: v under weight norm, whose gain stays as it is."""
    return linear.parametrizations.weight.original1 if hasattr(linear, "parametrizations") else linear.weight  # type: ignore[return-value,union-attr]


def positive(shape: tuple[int, ...]) -> Tensor:
    """Factors in [1.5, 4): a negative one would flip signs, which is not what the paper means by re-scaling."""
    return 1.5 + 2.5 * torch.rand(shape, dtype=torch.float64)


def cases_of(images: Tensor, settings: Settings) -> Tensor:
    """(B, D) random inputs in float64."""
    return images[torch.randperm(len(images))[: settings.cases]].double()


def projected(x: Tensor, settings: Settings) -> Tensor:
    """Inputs (B, D) in few enough random directions for a Hessian."""
    return x @ torch.randn(x.shape[1], settings.fisher_inputs, dtype=torch.float64) / math.sqrt(x.shape[1])


def statistics(norm: str, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """mu and sigma of equation 5 for summed inputs a (B, H) and weights w (H, D), each broadcastable to (B, H).

    Raises:
        Mistake: a norm of both weights and summed inputs, which equation 5 does not have.
    """
    traits = norms.get(norm)
    if traits.reparameterizes and traits.normalizes:
        raise Mistake(f"norm={norm} changes both weights and summed inputs, and equation 5 has one or the other")
    if traits.reparameterizes:
        return torch.zeros_like(a), w.norm(dim=1).expand_as(a)
    if not traits.normalizes:
        return torch.zeros_like(a), torch.ones_like(a)
    dim = 1 if traits.axis == "features" else 0
    if not traits.centred:
        return torch.zeros_like(a), a.square().mean(dim, keepdim=True).sqrt()
    return a.mean(dim, keepdim=True), a.std(dim, correction=0, keepdim=True)


def normalized(norm: str, a: Tensor, w: Tensor) -> Tensor:
    """(B, H) normalized summed inputs of equation 5, gain 1 and bias 0."""
    mu, sigma = statistics(norm, a, w)
    return (a - mu) / sigma
