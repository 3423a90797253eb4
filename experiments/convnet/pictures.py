"""What happens near the image's boundary: how often units are on, and how much their summed inputs vary.

Shapes: L layers, B images, C channels, A side of a map.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from experiments.convnet.network import ConvPool
from ln.suite.showing.figures import STYLE, save

BATCH = 250
LIMIT = 4.0  # the colours of a variance reach from 1 / LIMIT to LIMIT of the layer's mean


@torch.no_grad()
def activations(model: ConvPool, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Maps (A, A) of each layer that reaches to the boundary: the share of the units (images and channels) that are on
    at a position, and the variance of the summed inputs over the images, averaged over the channels.

    A unit is on where what goes into its nonlinearity is positive.
    """
    layers = model.padded
    on = [torch.zeros(()) for _ in layers]
    sums = [torch.zeros(()) for _ in layers]
    squares = [torch.zeros(()) for _ in layers]

    def watch(index: int) -> list[RemovableHandle]:
        def summed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = output.double()
            sums[index] = sums[index] + values.sum(0)
            squares[index] = squares[index] + values.square().sum(0)

        def normalized(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            on[index] = on[index] + (output > 0).double().mean(1).sum(0)

        layer = layers[index]
        return [layer.linear.register_forward_hook(summed), layer.norm.register_forward_hook(normalized)]

    handles = [handle for index in range(len(layers)) for handle in watch(index)]
    try:
        for batch in images.split(BATCH):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    B = len(images)
    variances = [(square / B - (total / B).square()).mean(0) for square, total in zip(squares, sums, strict=True)]
    return [(total / B).cpu() for total in on], [variance.cpu() for variance in variances]


def boundary_share(values: Tensor) -> float:
    """The mean of a map (A, A) over the positions at the boundary, over its mean in the central half of each side."""
    A = len(values)
    inner = values[1:-1, 1:-1]
    boundary = (values.sum() - inner.sum()) / (values.numel() - inner.numel())
    quarter = A // 4
    centre = values[quarter : A - quarter, quarter : A - quarter].mean()
    return float(boundary / centre)


def draw(model: ConvPool, images: Tensor, title: str, path: Path) -> None:
    """Two maps for each layer: where its units are on and where its summed inputs vary, and above each its mean at the
    boundary over that in the centre."""
    on, variances = activations(model, images)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(2, len(on), figsize=(1.6 * len(on) + 0.8, 3.9), squeeze=False, layout="constrained")
        for column, (share, variance) in enumerate(zip(on, variances, strict=True)):
            relative = (variance / variance.mean()).log2()
            shown = _map(axes[0, column], share, "magma", 0, 1)
            varied = _map(axes[1, column], relative, "PuOr_r", -np.log2(LIMIT), np.log2(LIMIT))
            axes[0, column].set_title(f"layer {column + 1}\nboundary/centre {boundary_share(share):.2f}", fontsize=8)
            axes[1, column].set_title(f"boundary/centre {boundary_share(variance):.2f}", fontsize=8)
        figure.suptitle(title, fontsize=10)
        axes[0, 0].set_ylabel("share of units on", fontsize=8)
        axes[1, 0].set_ylabel("variance over\nthe layer's mean", fontsize=8)
        figure.colorbar(shown, ax=axes[0])
        ticks = [-2, -1, 0, 1, 2]
        figure.colorbar(varied, ax=axes[1], ticks=ticks, extend="both").ax.set_yticklabels(
            [f"{2.0**tick:g}" for tick in ticks]
        )
        save(figure, path, vectors=False)


def _map(axes: Axes, values: Tensor, colours: str, low: float, high: float) -> AxesImage:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
