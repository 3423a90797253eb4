"""The Fisher blocks of equations 13-14, against differentiation. B batch, D input, H units."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.invariance.network import Settings, cases_of, projected, statistics
from ln import norms


def glm_inputs(norm: str, theta: Tensor, x: Tensor) -> Tensor:
    """(B, H) natural parameters of the normalized GLM; theta (H, D + 2) holds w_i, b_i, g_i in its rows (eq. 13)."""
    w, b, g = theta[:, :-2], theta[:, -2], theta[:, -1]
    a = x @ w.T
    mu, sigma = statistics(norm, a, w)
    return g / sigma * (a - mu) + b


def covariance_at(z: Tensor) -> Tensor:
    """(B, H, H) Cov[y | x] of a softmax output with natural parameters z (B, H)."""
    p = torch.softmax(z, dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def fisher_by_equation(norm: str, theta: Tensor, x: Tensor) -> Tensor:
    """(H, D + 2, H, D + 2) the blocks of equation 13 with chi of equation 14, for a softmax output (phi = 1).

    d mu_i / d w_i and d sigma_i / d w_i in closed form; batch norm's run over the batch.
    """
    w, g = theta[:, :-2], theta[:, -1]
    batch, units = len(x), len(w)
    a = x @ w.T
    mu, sigma = (s.expand(batch, units) for s in statistics(norm, a, w))
    hat = (a - mu) / sigma
    inputs = x[:, None, :].expand(batch, units, -1)
    traits, zero = norms.get(norm), torch.zeros_like(inputs)
    # d sigma / d w_i has the same form whether sigma is a standard deviation or the root of a mean square.
    if traits.axis == "features":  # mu = sum_j a_j / H, so d mu / d w_i = x / H; d sigma / d w_i = hat_i x / H
        dmu, dsigma = inputs / units, hat[:, :, None] * inputs / units
    elif traits.axis == "batch":  # means over the batch of x and of hat_i x
        dmu = inputs.mean(0, keepdim=True).expand_as(inputs)
        dsigma = (hat[:, :, None] * inputs).mean(0, keepdim=True).expand_as(inputs)
    else:
        dmu = zero
        dsigma = (w / w.norm(dim=1, keepdim=True)).expand_as(inputs) if traits.reparameterizes else zero
    if not traits.centred:
        dmu = zero
    chi = inputs - dmu - hat[:, :, None] * dsigma
    rows = torch.cat([chi * (g / sigma)[:, :, None], torch.ones_like(a)[:, :, None], hat[:, :, None]], dim=2)
    return torch.einsum("nij,nia,njb->iajb", covariance_at(g * hat + theta[:, -2]), rows, rows) / batch


def fisher_by_differentiation(norm: str, theta: Tensor, x: Tensor, own: bool) -> Tensor:
    """(H, D + 2, H, D + 2) E[J^T Cov J] with J = d z / d theta by automatic differentiation.

    own: keep d z_i / d theta_i only, as equation 13 does. Under layer norm z_i depends on the other units' weights too.
    """
    jacobian = torch.func.jacrev(lambda t: glm_inputs(norm, t, x))(theta)  # (B, H, H, D + 2)
    if own:
        jacobian = jacobian * torch.eye(len(theta), dtype=x.dtype)[None, :, :, None]
    return torch.einsum("nij,niab,njcd->abcd", covariance_at(glm_inputs(norm, theta, x)), jacobian, jacobian) / len(x)


def fisher_row(norm: str, images: Tensor, settings: Settings) -> dict[str, float]:
    """How well equation 13 agrees with differentiation, and what doubling the weights does to its blocks.

    The errors are relative to the Fisher matrix: of the units' own blocks (i = j), of these as far as equation 13 goes
    (`own`), of their w-w parts, and of the whole matrix.
    """
    units, size = settings.fisher_units, settings.fisher_inputs
    x = projected(cases_of(images, settings), settings)
    theta = torch.cat(
        [torch.randn(units, size), 0.1 * torch.randn(units, 1), 1 + 0.1 * torch.randn(units, 1)], 1
    ).double()
    equation = fisher_by_equation(norm, theta, x)
    doubled = theta.clone()
    doubled[:, :-2] *= 2  # all of W: under layer norm a single w_i changes the shared sigma only in part
    twice = fisher_by_equation(norm, doubled, x)
    w, b = slice(0, size), size
    exact, own = (fisher_by_differentiation(norm, theta, x, own=only) for only in (False, True))

    def error(truth: Tensor, part: Callable[[Tensor], Tensor] = lambda f: f) -> float:
        return float((part(equation) - part(truth)).norm() / part(truth).norm())

    def blocks(f: Tensor) -> Tensor:
        return f.diagonal(dim1=0, dim2=2)  # (D + 2, D + 2, H)

    def ratio(block: Callable[[Tensor], Tensor]) -> float:
        return float(block(twice).norm() / block(equation).norm())

    return {
        "fisher_block_log10_error": math.log10(max(error(exact, blocks), 1e-18)),
        "fisher_own_log10_error": math.log10(max(error(own, blocks), 1e-18)),
        "fisher_block_error_ww": error(exact, lambda f: blocks(f)[w, w]),
        "fisher_cross_terms": error(exact),
        "curvature_ratio_ww": ratio(lambda f: f[:, w, :, w]),
        "curvature_ratio_wb": ratio(lambda f: f[:, w, :, b]),
        "distance_ratio": ratio(lambda f: f[:, w, :, w]) ** 0.5,  # sqrt(ds^2) of a step in w
    }
