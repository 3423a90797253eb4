"""Equation 13 under layer norm against the Fisher information itself, in float64: the curvature along the weights of H
independent logistic units that share a mean and a deviation.

Shapes: N cases, D inputs, H units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ln.reference import layer_norm

CASES, INPUTS = 256, 64


@dataclass(frozen=True)
class Curvature:
    """What equation 13 says of the weights of a layer."""

    least: float  # relative error of a unit's w-w block, the least over the units
    largest: float
    common: float  # the Fisher information along one vector that is added to every unit's weights,
    common_by_13: float  # and equation 13's: both relative to equation 13's where each unit has a vector of its own


def layer_curvature(units: int) -> Curvature:
    """Of so many units with random weights and inputs, gains 1 and biases 0.

    With z_k the normalized input of unit k, the Fisher information of vectors v_i added to the w_i is
    E[sum_k Cov_kk (sum_i dz_k/da_i v_i^T x)^2]; equation 13 keeps dz_i/da_i alone.
    """
    generator = torch.Generator().manual_seed(0)
    x, w, vectors = (
        torch.randn(rows, INPUTS, dtype=torch.float64, generator=generator) for rows in (CASES, units, units)
    )
    a, gain = x @ w.T / INPUTS**0.5, torch.ones(units, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.jacrev(lambda row: layer_norm(row[None], gain, eps=0.0)[0]))(a)  # dz_k/da_i
    p = torch.sigmoid(layer_norm(a, gain, eps=0.0))
    covariance = p * (1 - p)  # (N, H) Cov[y_k|x], with phi = 1
    exact = torch.einsum("nk,nki->ni", covariance, slopes**2)  # the factor of x x^T in the w-w block of unit i
    own = slopes.diagonal(dim1=1, dim2=2)
    by_13 = covariance * own**2

    def block(factor: Tensor) -> Tensor:
        return torch.einsum("ni,na,nb->iab", factor, x, x) / CASES

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
