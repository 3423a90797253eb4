"""Building blocks of the torch backend: matrix products, and the norms of the sites with their backward passes.

Shapes: T time, B batch, n units of a site. Every function takes one step (B, n) or many (T, B, n).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ln.kernels import gate
from ln.norms import NormConfig
from ln.reference import Params, Stats

Saved = tuple[Tensor, ...]
Gradients = tuple[Any, Any, Any]  # of z, gain and bias; None for what is not asked for or not there


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return product


# Multiplications in a product. Below the first MKL is taken: a call of oneDNN's operator costs 15 us besides the work,
# which takes about as long. From the second on the trial is one at the size of many steps at once.
_SMALL, _LARGE = 1 << 20, 1 << 23


@functools.cache
def _cpu_product(large: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The faster of torch.mm (MKL, which holds back on CPUs that are not Intel's) and oneDNN for products of about this
    size, by a trial of milliseconds."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (built and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return _mm
    B, H, G = (128, 512, 1024) if large else (32, 128, 512)
    values, weight, gates = torch.ones(B, H), torch.ones(G, H), torch.ones(B, G)
    pairs = ((values, weight.t()), (gates, weight), (values.t(), gates))  # forward, backward, weight gradient
    best: dict[Callable[[Tensor, Tensor], Tensor], float] = {}
    for _ in range(6):
        for multiply in (_mm, _onednn):
            start = time.perf_counter()
            for a, b in pairs:
                multiply(a, b)
            best[multiply] = min(best.get(multiply, math.inf), time.perf_counter() - start)
    # Where the two are as fast as each other within the noise of so short a trial, oneDNN is the better on the other
    # shapes.
    return _mm if best[_mm] < 0.9 * best[_onednn] else _onednn


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, on the CPU by the faster library for matrices of this size."""
    size = a.shape[0] * b.numel()
    if size < _SMALL or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.mm(a, b)
    return _cpu_product(size >= _LARGE)(a, b)


def tanh_(x: Tensor) -> Tensor:
    """tanh(x) = 2 sigmoid(2x) - 1, in place; on the CPU torch.tanh takes several times as long as torch.sigmoid."""
    return x.tanh_() if x.is_cuda else x.mul_(2).sigmoid_().mul_(2).sub_(1)


class SiteNorm(Protocol):
    """norm(z) * gain + bias with its backward pass."""

    def forward(self, z: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Saved]:
        """-> the normalized z (z itself where there is nothing to do) and what `backward` needs. valid (..., B, 1): the
        rows that count; given: mean and variance (..., 1, n) to use in place of the batch's."""
        ...

    def backward(
        self, dy: Tensor, z: Tensor, saved: Saved, valid: Tensor | None, inputs: bool, params: bool
    ) -> Gradients:
        """-> the gradients of z (if inputs), gain and bias (if params), the latter summed over time and batch."""
        ...


class NoNorm:
    """z + bias, for a site that is off."""

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias

    def forward(self, z: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Saved]:
        return (z if self.bias is None else z + self.bias), ()

    def backward(
        self, dy: Tensor, z: Tensor, saved: Saved, valid: Tensor | None, inputs: bool, params: bool
    ) -> Gradients:
        return (dy if inputs else None), None, (dy.flatten(0, -2).sum(0) if params and self.bias is not None else None)


class LayerNorm:
    """Equations 15 and 16, by ATen's own kernels."""

    def __init__(self, gain: Tensor, bias: Tensor | None, eps: float) -> None:
        self.gain, self.bias, self.eps, self.shape = gain, bias, eps, gain.shape

    def forward(self, z: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Saved]:
        y, mean, rstd = torch.native_layer_norm(z, self.shape, self.gain, self.bias, self.eps)
        return y, (mean, rstd)

    def backward(
        self, dy: Tensor, z: Tensor, saved: Saved, valid: Tensor | None, inputs: bool, params: bool
    ) -> Gradients:
        mean, rstd = saved
        d_z = None
        if inputs:
            mask = [True, False, False]
            d_z, _, _ = torch.ops.aten.native_layer_norm_backward(dy, z, self.shape, mean, rstd, self.gain, None, mask)
        if not params:
            return d_z, None, None
        # ATen's kernel adds up one row after another, which costs a digit over thousands of rows; sum() goes by pairs.
        d_gain = (z - mean).mul_(rstd).mul_(dy).flatten(0, -2).sum(0)
        return d_z, d_gain, None if self.bias is None else dy.flatten(0, -2).sum(0)


class RMSNorm:
    """Equation 4 of Zhang & Sennrich: layer norm without the mean."""

    def __init__(self, gain: Tensor, bias: Tensor | None, eps: float) -> None:
        self.gain, self.bias, self.eps = gain, bias, eps

    def forward(self, z: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Saved]:
        rstd = z.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        y = (z * rstd).mul_(self.gain)
        return (y if self.bias is None else y.add_(self.bias)), (rstd,)

    def backward(
        self, dy: Tensor, z: Tensor, saved: Saved, valid: Tensor | None, inputs: bool, params: bool
    ) -> Gradients:
        (rstd,) = saved
        z_hat, d_z = z * rstd, None
        if inputs:
            d_z_hat = dy * self.gain
            d_z = d_z_hat.addcmul_(z_hat, (d_z_hat * z_hat).mean(-1, keepdim=True), value=-1).mul_(rstd)
        if not params:
            return d_z, None, None
        d_gain = z_hat.mul_(dy).flatten(0, -2).sum(0)
        return d_z, d_gain, None if self.bias is None else dy.flatten(0, -2).sum(0)


class BatchNorm:
    """Statistics over the valid rows of each step by themselves, or those given, which gradients do not reach."""

    def __init__(self, gain: Tensor, bias: Tensor | None, eps: float, frozen: bool) -> None:
        self.gain, self.bias, self.eps, self.frozen = gain, bias, eps, frozen

    def forward(self, z: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Saved]:
        if given is not None:
            mean, var = given
        elif valid is None:
            var, mean = torch.var_mean(z, -2, correction=0, keepdim=True)
        else:
            count = _count(valid)
            mean = (z * valid).sum(-2, keepdim=True) / count
            var = ((z - mean) * valid).square().sum(-2, keepdim=True) / count
        y = (z - mean).mul_((var + self.eps).rsqrt_().mul_(self.gain))
        return (y if self.bias is None else y.add_(self.bias)), (mean, var)

    def backward(
        self, dy: Tensor, z: Tensor, saved: Saved, valid: Tensor | None, inputs: bool, params: bool
    ) -> Gradients:
        mean, var = saved
        rstd = (var + self.eps).rsqrt_()
        if self.frozen and not params:
            return dy * (rstd * self.gain), None, None
        z_hat = (z - mean).mul_(rstd)
        sum_dy, sum_dyz = dy.sum(-2, keepdim=True), (dy * z_hat).sum(-2, keepdim=True)
        dz = None
        if inputs and self.frozen:
            dz = dy * (rstd * self.gain)
        elif inputs:
            count = z.shape[-2] if valid is None else _count(valid)
            dz = (dy - sum_dy / count).sub_(z_hat.mul_(sum_dyz / count)).mul_(rstd * self.gain)
            if valid is not None:
                dz = dz.mul_(valid)
        if not params:
            return dz, None, None
        dbias = None if self.bias is None else sum_dy.flatten(0, -2).sum(0)
        return dz, sum_dyz.flatten(0, -2).sum(0), dbias


def _count(valid: Tensor) -> Tensor:
    return valid.sum(-2, keepdim=True).clamp_(min=1)


class Setup(NamedTuple):
    """What a sequence function's forward and backward share besides tensors that need gradients."""

    cfg: NormConfig
    sites: tuple[str, ...]
    lengths: Tensor | None  # (B)
    valid: Tensor | None  # (T, B, 1) in x's dtype, for batch statistics over ragged rows
    ends: Tensor | None  # (T, B, 1) in x's dtype: 1 at each row's last step; None where all rows end at T
    given: Stats | None
    store: bool  # keep the activations for the backward pass; else it computes them again
    used: dict[str, Tensor]  # filled by forward: the batch statistics, by field of Stats

    def site(self, site: str, gain: Tensor | None, bias: Tensor | None) -> SiteNorm:
        if site not in self.sites:
            return NoNorm(bias)
        assert gain is not None
        if self.cfg.traits.axis == "features":
            return (LayerNorm if self.cfg.traits.centred else RMSNorm)(gain, bias, self.cfg.eps)
        return BatchNorm(gain, bias, self.cfg.eps, self.given is not None)

    def given_for(self, name: str, columns: slice = slice(None)) -> Saved | None:
        """Mean and variance (T, 1, n) given for a site."""
        mean = None if self.given is None else getattr(self.given, f"mean_{name}")
        if mean is None:
            return None
        return tuple(v[:, None, columns] for v in (mean, getattr(self.given, f"var_{name}")))

    def keep_statistics(self, name: str, saved: list[Saved]) -> None:
        """Note the batch statistics of all steps; `saved` holds them in pieces (..., 1, n), in the order of time."""
        if self.cfg.traits.axis != "batch" or not saved or not saved[0]:
            return
        for field, pieces in zip(("mean", "var"), zip(*saved, strict=True), strict=True):
            self.used[f"{field}_{name}"] = torch.cat([piece.flatten(0, -2) for piece in pieces])

    def reference_gradients(
        self, cell: str, inputs: Sequence[Tensor | None], needed: Sequence[bool], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The backward pass of the reference in place of the one written by hand."""
        return gate.reference_gradients(cell, self.cfg, self.lengths, self.given, inputs, needed, grads)

    def stats(self) -> Stats | None:
        return Stats(**self.used) if self.cfg.traits.axis == "batch" else None


def chunks(T: int, B: int, G: int) -> list[tuple[int, int]]:
    """Stretches of time (start, end) to work on at once: enough rows for a fast matrix product, and no more than that
    or a few MB of gates, which keeps temporary memory independent of T."""
    length = max(-(-2048 // max(B, 1)), 2**20 // max(B * G, 1), 1)
    return [(start, min(start + length, T)) for start in range(0, T, length)]


def told_apart(saved: Sequence[Any]) -> tuple[Params, Sequence[Any]]:
    """What a forward pass saved behind its states: the parameters, then the activations, in one piece each, as torch's
    kernels take them to be; a hook on saved tensors may bring them back with other strides."""
    count = len(Params._fields)
    return Params._make(saved[:count]), [value.contiguous() for value in saved[count:]]


def part(value: Saved | None, at: slice | int) -> Saved | None:
    """The rows `at` of given statistics."""
    return None if value is None else tuple(v[at] for v in value)


def stacked(steps: list[Saved]) -> Saved:
    """Per-step tensors as tensors over time."""
    return tuple(torch.stack(pieces) for pieces in zip(*steps, strict=True))


def previous(output: Tensor, h0: Tensor, start: int, end: int) -> Tensor:
    """The state before each of the steps start ... end - 1: (end - start, B, H)."""
    return torch.cat([h0[None], output[: end - 1]]) if start == 0 else output[start - 1 : end - 1]


def added(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """A running sum of gradients; None where there is nothing to add."""
    return total if term is None else (term if total is None else total.add_(term))


def affine_gradients(d_z: Tensor, values: Tensor, weight: Tensor, needs_values: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight (n, m) and, if needed, of values (t, B, m), from that of values @ weight^T (t, B, n)."""
    flat = d_z.flatten(0, 1)
    # values^T d_z and not its transpose: the layout that oneDNN multiplies fastest. Where the result is narrow, oneDNN
    # adds up thousands of rows one after another, and MKL is the more exact.
    narrow = values.shape[-1] < 16
    d_weight = (torch.mm if narrow else product)(values.flatten(0, 1).t(), flat).t()
    return d_weight, product(flat, weight).view_as(values) if needs_values else None


def summed(*biases: Tensor | None) -> Tensor | None:
    """The sum of the biases there are."""
    present = [bias for bias in biases if bias is not None]
    return sum(present[1:], present[0]) if present else None
