"""Statements of section 5 and the appendix that need no run: the equations themselves, in float64.

Shapes: N cases, D inputs, H units.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ln.reference import layer_norm

CASES, INPUTS, UNITS = 1_024, 64, 32
FEWER_CASES = 256  # where a case costs more


@dataclass(frozen=True)
class Curvature:
    """What equation 13 says of the weights of a layer."""

    least: float  # relative error of a unit's w-w block, the least over the units
    largest: float
    common: float  # the Fisher information along one vector that is added to every unit's weights,
    common_by_13: float  # and equation 13's: both relative to equation 13's where each unit has a vector of its own


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _logistic(parameter: Tensor, summed_of: Callable[[Tensor], Tensor], cases: int) -> tuple[Tensor, Tensor]:
    """A logistic unit's p(y = 1) (N,) and, for each case, the derivative of its summed input by the parameter (N, P).
    Its score is (y - p) times the latter."""
    copies = parameter.expand(cases, -1).clone().requires_grad_()  # one for each case, so that one pass serves all
    summed = summed_of(copies)
    return torch.sigmoid(summed).detach(), torch.autograd.grad(summed.sum(), copies)[0]


def doubled_weights() -> tuple[float, float]:
    """What doubling w does to a weight-normalized logistic unit's Fisher matrix along w, and to the distance
    sqrt(d' F d) of a step d: the two factors. The paper says 1/2 for the first (section 5.2.2)."""
    generator = _generator()
    x = torch.randn(CASES, INPUTS, dtype=torch.float64, generator=generator)
    w = torch.randn(INPUTS, dtype=torch.float64, generator=generator)
    step = torch.randn(INPUTS, dtype=torch.float64, generator=generator)
    lengths = []
    for scale in (1.0, 2.0):
        p, slopes = _logistic(scale * w, lambda v: (x * v).sum(1) / v.norm(dim=1), len(x))
        fisher = (slopes * (p * (1 - p))[:, None]).T @ slopes / len(x)
        lengths.append(float(step @ fisher @ step))
    return lengths[1] / lengths[0], (lengths[1] / lengths[0]) ** 0.5


def layer_curvature(units: int) -> Curvature:
    """Equation 13 under layer norm against the Fisher information itself: the curvature along the weights of so many
    logistic units that share a mean and a deviation. Random weights and inputs, gains 1 and biases 0.

    With z_k the normalized input of unit k, the Fisher information of vectors v_i added to the w_i is
    E[sum_k Cov_kk (sum_i dz_k/da_i v_i^T x)^2]; equation 13 keeps dz_i/da_i alone.
    """
    generator = _generator()
    x, w, vectors = (
        torch.randn(rows, INPUTS, dtype=torch.float64, generator=generator) for rows in (FEWER_CASES, units, units)
    )
    a, gain = x @ w.T / INPUTS**0.5, torch.ones(units, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.jacrev(lambda row: layer_norm(row[None], gain, eps=0.0)[0]))(a)  # dz_k/da_i
    p = torch.sigmoid(layer_norm(a, gain, eps=0.0))
    covariance = p * (1 - p)  # (N, H) Cov[y_k|x], with phi = 1
    exact = torch.einsum("nk,nki->ni", covariance, slopes**2)  # the factor of x x^T in the w-w block of unit i
    own = slopes.diagonal(dim1=1, dim2=2)
    by_13 = covariance * own**2

    def block(factor: Tensor) -> Tensor:
        return torch.einsum("ni,na,nb->iab", factor, x, x) / FEWER_CASES

    errors = (block(exact) - block(by_13)).flatten(1).norm(dim=1) / block(exact).flatten(1).norm(dim=1)
    moved = (x @ vectors[0])[:, None].expand(-1, units)  # (N, H) what the common vector adds to each summed input
    along = torch.einsum("nki,ni->nk", slopes, moved)
    scale = (by_13 * (x @ vectors.T) ** 2).sum(1).mean()
    return Curvature(
        float(errors.min()),
        float(errors.max()),
        float((covariance * along**2).sum(1).mean() / scale),
        float((by_13 * moved**2).sum(1).mean() / scale),
    )


def gain_information() -> tuple[float, float, float]:
    """The Fisher information of a batch-normalized logistic unit's gain: from the scores, with the expectation over y
    carried out; by equation 13's (g, g) entry; by equation 32."""
    a = torch.randn(CASES, dtype=torch.float64, generator=_generator())
    normalized = (a - a.mean()) / a.std(unbiased=False)
    gain = torch.tensor([1.5], dtype=torch.float64)
    p, slopes = _logistic(gain, lambda g: g[:, 0] * normalized + 0.5, CASES)
    scores = torch.stack([(y - p) * slopes[:, 0] for y in (0.0, 1.0)])
    exact = (torch.stack([1 - p, p]) * scores**2).sum(0).mean()
    covariance = p * (1 - p)  # Cov[y|x], with phi = 1
    return float(exact), float((covariance * normalized**2).mean()), float(covariance.mean())


def doubled_data() -> dict[str, float]:
    """By which part of their norm a layer's normalized summed inputs change when the whole dataset is doubled, for each
    norm of Table 1."""
    generator = _generator()
    x = torch.randn(CASES, INPUTS, dtype=torch.float64, generator=generator)
    weights = torch.randn(UNITS, INPUTS, dtype=torch.float64, generator=generator)
    gain = torch.ones(UNITS, dtype=torch.float64)
    normalized: dict[str, Callable[[Tensor], Tensor]] = {
        "batch": lambda a: (a - a.mean(0)) / a.std(0, unbiased=False),
        "weight": lambda a: a / weights.norm(dim=1),
        "layer": lambda a: layer_norm(a, gain, eps=0.0),
    }
    a = x @ weights.T
    return {norm: float((f(2 * a) - f(a)).norm() / f(a).norm()) for norm, f in normalized.items()}


def shifted_cases() -> tuple[float, float]:
    """By which part of its norm a layer-normalized layer's output changes when one number is added to all features of
    a case, and when it is added to all of its summed inputs."""
    generator = _generator()
    x = torch.randn(FEWER_CASES, INPUTS, dtype=torch.float64, generator=generator)
    weights = torch.randn(UNITS, INPUTS, dtype=torch.float64, generator=generator) / INPUTS**0.5
    shift = torch.randn(FEWER_CASES, 1, dtype=torch.float64, generator=generator)
    gain = torch.ones(UNITS, dtype=torch.float64)

    def change(summed: Tensor) -> float:
        before, after = (layer_norm(a, gain, eps=0.0) for a in (x @ weights.T, summed))
        return float((after - before).norm() / before.norm())

    return change((x + shift) @ weights.T), change(x @ weights.T + shift)
