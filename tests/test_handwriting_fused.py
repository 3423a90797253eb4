"""The fused pen step of handwriting against the loop of torch's operations: through Triton's interpreter, and on a
device where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.handwriting.network import Network
from ln import NormConfig
from ln.kernels.triton import backend
from tests.test_triton import _interpret

pytestmark = pytest.mark.skipif("not installed" in str(backend.available()), reason="the package triton is missing")
NORMS = ("none", "weight", "layer", "rms")
# T, B, H, K, U, A: odd everywhere; more units, characters and Gaussians than a power of two; one of each.
SIZES = [(3, 3, 5, 3, 7, 4), (2, 2, 33, 10, 19, 6), (1, 1, 1, 1, 1, 1)]
# A window is made of exponentials, and a GPU's err four times as much as a rounding does.
MACHINE = 2.0 * 4


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Any]:
    """interpreted(function, *arguments) -> what it returns or raises in the interpreter's process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_interpret) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def case(norm: str, sizes: tuple[int, ...], draw: int) -> tuple[Network, Tensor, Tensor]:
    """A network with parameters away from their start, points (T, B, 3) and texts (B, U) with padding, in float64."""
    T, B, H, K, U, A = sizes
    torch.manual_seed(1000 * draw + sum(sizes))
    network = Network(A, H, K, 1, NormConfig(norm)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        network.window.bias += 0.5
    texts = torch.randint(A, (B, U))
    texts[-1, U // 2 + 1 :] = A
    return network, torch.randn(T, B, 3, dtype=torch.float64), texts


def results(
    network: Network, points: Tensor, texts: Tensor, dtype: torch.dtype, fused: bool, device: str = "cpu"
) -> list[Tensor]:
    """States, what the window shows, its weights, and the gradients of all parameters, in float64."""
    network = network.to(device, dtype)
    network.first.backend = "reference"
    points, texts = points.to(device, dtype), texts.to(device)
    characters = network.one_hot(texts)
    if fused:
        from experiments.handwriting.fused import pen_steps

        states, weights = pen_steps(network.first, network.window, points, texts, characters)
        shown = torch.bmm(weights.transpose(0, 1), characters).transpose(0, 1)
    else:
        states, shown, parts = network.one_by_one(points, characters, [])
        weights = torch.stack(parts)
    out = [states, shown, weights]
    parameters = [*network.first.parameters(), *network.window.parameters()]
    loss = sum((v * torch.linspace(-1, 1, v.numel(), dtype=dtype, device=device).view_as(v)).sum() for v in out)
    grads = torch.autograd.grad(loss, parameters)  # type: ignore[arg-type]
    return [value.detach().double().cpu() for value in (*out, *grads)]


def judge(norm: str, sizes: tuple[int, ...], times: float = 2.0, device: str = "cpu") -> None:
    """At most so many times as far from float64 as torch's float32; one draw in three may exceed, where gradients
    cancel."""
    excesses = []
    for draw in range(3):
        network, points, texts = case(norm, sizes, draw)
        exact, yardstick, found = (
            results(network, points, texts, dtype, fused, device if fused else "cpu")
            for dtype, fused in ((torch.float64, False), (torch.float32, False), (torch.float32, True))
        )
        names = ("states", "shown", "weights", *(n for n, _ in network.first.named_parameters()), "window", "window")
        for name, truth, own, other in zip(names, exact, yardstick, found, strict=True):
            floor = 8 * torch.finfo(torch.float32).eps * max(1.0, float(truth.abs().max()))
            error, allowed = (float((value - truth).abs().max()) for value in (other, own))
            allowed = times * (allowed + floor)
            if not error <= allowed:
                excesses.append(f"{name}: error {error:.3g} > {allowed:.3g} in draw {draw}")
                break
        if draw == len(excesses) * 2:
            return
    raise AssertionError(excesses)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_fused_steps_match_the_loop(interpreted: Any, norm: str, sizes: tuple[int, ...]) -> None:
    interpreted(judge, norm, sizes)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [*SIZES, (40, 8, 400, 10, 70, 57)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_fused_steps_match_the_loop_on_a_gpu(norm: str, sizes: tuple[int, ...]) -> None:
    judge(norm, sizes, MACHINE, "cuda")


def route(norm: str) -> tuple[bool, float, int]:
    """Whether a network goes the fused way under the backend triton, how far it is then from the other way with and
    without gradients, and how many gradients are missing."""
    network, points, texts = case(norm, (3, 4, 6, 3, 5, 4), 0)
    network, points, steps = network.float(), points.float(), torch.tensor([3, 3, 3, 3])
    found = []
    for name in ("triton", "reference"):
        for layer in (network.first, network.second, network.third):
            layer.backend = name
        outputs, weights = network(points, texts, steps)
        found.append(torch.cat([outputs.flatten(), torch.stack(weights).flatten()]))
        with torch.no_grad():
            again, _ = network(points, texts, steps)
        found.append(again.flatten() - outputs.flatten())
        if name == "triton":
            fused = network._fused(points, texts)
            outputs.sum().backward()
    missing = sum(parameter.grad is None for parameter in network.parameters())
    return fused, max(float(d.abs().max()) for d in (found[0] - found[2], found[1], found[3])), missing


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_network_goes_the_fused_way_but_for_batch_norm(interpreted: Any, norm: str) -> None:
    fused, apart, missing = interpreted(route, norm)
    assert fused == (norm != "batch")
    assert apart < 1e-4
    assert missing == 0
