"""Random layers for the tests of the recurrent core, and the measure by which a backend is judged.

Shapes: T time, B batch, D input, H hidden, G gates.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ln import kernels, reference
from ln.norms import NormConfig
from ln.reference import Params, Stats

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def random_params(
    cell: str, cfg: NormConfig, D: int, H: int, bias: bool = True, dtype: torch.dtype = torch.float64
) -> Params:
    """Parameters of the fields that cell and norm have, all of them away from their initial values."""
    G, sites = GATES[cell] * H, cfg.sites_for(cell)
    sizes: dict[str, tuple[int, ...]] = {"weight_ih": (G, D), "weight_hh": (G, H)}
    if bias:
        sizes |= {"bias_ih": (G,), "bias_hh": (G,)}
    if "input" in sites or "sum" in sites:
        sizes["gain_ih"] = (G,)
    if "recurrent" in sites:
        sizes["gain_hh"] = (G,)
    if "cell" in sites:
        sizes |= {"gain_c": (H,)} | ({"bias_c": (H,)} if bias else {})
    if cfg.inner_bias:
        sizes["inner_bias_ih"] = (G,)
    scale = {"weight_ih": D**-0.5, "weight_hh": H**-0.5}
    return Params(**{n: torch.randn(s, dtype=dtype) * scale.get(n, 1.0) for n, s in sizes.items()})


def usable(backend: str, cell: str, cfg: NormConfig, dtype: torch.dtype = torch.float32) -> None:
    """Skip the test with the backend's own reason where it cannot run such a layer on the CPU."""
    module = kernels.load(backend)
    reason = module.available() or module.supports(cell, cfg, torch.device("cpu"), dtype)
    if reason:
        pytest.skip(f"{backend}: {reason}")


def results(
    module: object,
    cell: str,
    tensors: list[Tensor],
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None,
    stats: Stats | None,
    dtype: torch.dtype,
    **options: bool,
) -> list[Tensor]:
    """Outputs, states, statistics and gradients of everything, in float64, computed by a backend in `dtype`."""
    leaves = [v.to(dtype).requires_grad_() for v in tensors]
    names = [n for n, v in zip(Params._fields, p, strict=True) if v is not None]
    params = {n: getattr(p, n).to(dtype).requires_grad_() for n in names}
    given = None if stats is None else Stats(*(None if v is None else v.to(dtype) for v in stats))
    *out, used = getattr(module, cell)(*leaves, Params(**params), cfg, lengths, given, **options)
    weighted = [(v * torch.linspace(-1, 1, v.numel(), dtype=dtype).view_as(v)).sum() for v in out]
    grads = torch.autograd.grad(torch.stack(weighted).sum(), [*leaves, *params.values()])
    statistics = [v for v in used if v is not None] if used is not None else []
    return [v.detach().double() for v in (*out, *statistics, *grads)]


def hooked(backend: str, cell: str, cfg: NormConfig) -> None:
    """Assert that hooks which bring saved tensors back with other strides leave the gradients as they are."""
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5, 4), *(torch.randn(5, 6) for _ in range(2 if cell == "lstm" else 1))]
    p = random_params(cell, cfg, 4, 6)
    turned = (lambda t: t.movedim(0, -1).contiguous(), lambda t: t.movedim(-1, 0))
    plain = results(kernels.load(backend), cell, tensors, p, cfg, None, None, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(*turned):
        found = results(kernels.load(backend), cell, tensors, p, cfg, None, None, torch.float32)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def judge(backend: str, cell: str, tensors: list[Tensor], p: Params, cfg: NormConfig, **options: object) -> None:
    """Assert that a backend in float32 is at most twice as far from float64 as the float32 reference, on every result.

    Both errors are maxima over a tensor. Below the rounding of a plain sum of the N = T B terms of a gradient, about
    sqrt(N) units in the last place of the tensor's largest entry and at least 16, the ratio of two errors is chance.
    """
    lengths, stats = options.pop("lengths", None), options.pop("stats", None)
    exact = results(reference, cell, tensors, p, cfg, lengths, stats, torch.float64)
    yardstick = results(reference, cell, tensors, p, cfg, lengths, stats, torch.float32)
    found = results(kernels.load(backend), cell, tensors, p, cfg, lengths, stats, torch.float32, **options)
    assert len(found) == len(exact)
    units = max(16.0, (tensors[0].shape[0] * tensors[0].shape[1]) ** 0.5) * torch.finfo(torch.float32).eps
    for number, (truth, own, other) in enumerate(zip(exact, yardstick, found, strict=True)):
        if truth.numel() == 0:
            continue
        floor = units * max(1.0, float(truth.abs().max()))
        allowed = 2 * float((own - truth).abs().max()) + floor
        error = float((other - truth).abs().max())
        assert error <= allowed, f"result {number} of {backend} {cell} {cfg}: error {error:.3g} > {allowed:.3g}"
