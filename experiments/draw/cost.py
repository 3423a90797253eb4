"""What a training step of DRAW costs beside the parts it cannot do without.

Shapes: B batch, H units, Z latents, A side of the image, R and W sides of the patches.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from experiments.draw.network import Draw, Settings
from ln import NormConfig

BATCH, SIDE = 128, 28


def step_cost(norm: str = "layer", rounds: int = 5, settings: Settings | None = None) -> dict[str, float]:
    """Processor time in ms, at the paper's sizes unless told otherwise.

    "step": loss and gradients of one minibatch; "cells": the two cells alone, forward and backward with their products;
    "products": all other matrix products, forward and backward; "ratio": the first over the sum of the other two.
    Rounds take all three in turn; the medians count.
    """
    settings = settings or Settings()
    model = Draw(torch.full((SIDE, SIDE), 0.5), settings, NormConfig(norm))
    images = torch.bernoulli(torch.full((BATCH, SIDE, SIDE), 0.13))
    noise = torch.randn(settings.glimpses, BATCH, settings.latents)
    parts = {"step": lambda: _step(model, images, noise), "cells": _cells(model), "products": _products(settings)}
    for part in parts.values():
        part()
    times: list[dict[str, float]] = []
    for _ in range(rounds):
        times.append({})
        for name, part in parts.items():
            start = time.process_time()
            part()
            times[-1][name] = 1000 * (time.process_time() - start)
    ratio = median(t["step"] / (t["cells"] + t["products"]) for t in times)
    return {name: median(t[name] for t in times) for name in parts} | {"ratio": ratio}


def _step(model: Draw, images: Tensor, noise: Tensor) -> None:
    model.zero_grad()
    reconstruction, kl = model(images, noise)
    (reconstruction + kl).backward()


def _cells(model: Draw) -> Callable[[], None]:
    """Both cells at every glimpse, each step by itself."""
    H = model.settings.hidden
    inputs = [
        (cell, [torch.randn(BATCH, n).requires_grad_() for n in (cell.input_size, H, H)])
        for cell in (model.encoder, model.decoder)
    ]

    def run() -> None:
        for cell, (x, h, c) in inputs:
            with cell.prepared():
                states = [cell(x, (h, c), step=t) for t in range(model.settings.glimpses)]
            torch.autograd.backward(
                [tensor for state in states for tensor in state],
                [torch.ones_like(tensor) for state in states for tensor in state],
            )

    return run


def _products(settings: Settings) -> Callable[[], None]:
    """The products of the linear layers, the reading and the writing, and those of their gradients."""
    H, Z, R, W = settings.hidden, settings.latents, settings.read, settings.write
    # (a, b, whether a and b have a gradient): the image that is read has none.
    shapes = [
        ((BATCH, H), (H, 2 * Z), True),
        ((BATCH, H), (H, W * W + 10), True),
        ((BATCH, R, SIDE), (BATCH, SIDE, SIDE), False),
        ((BATCH, R, SIDE), (BATCH, SIDE, SIDE), True),
        ((BATCH, 2 * R, SIDE), (BATCH, SIDE, R), True),
        ((BATCH, W, W), (BATCH, W, SIDE), True),
        ((BATCH, SIDE, W), (BATCH, W, SIDE), True),
    ]
    operands = [(a := torch.randn(*m), b := torch.randn(*n), a @ b, both) for m, n, both in shapes]

    def run() -> None:
        for _ in range(settings.glimpses):
            for a, b, d, both in operands:
                torch.matmul(a, b)
                torch.matmul(d, b.mT)
                if both:
                    torch.matmul(a.mT, d)

    return run
