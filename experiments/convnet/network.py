"""ConvPool-CNN-C with a norm on every layer, as in the weight norm recipe (Salimans & Kingma 2016, arXiv 1602.07868).

Shapes: B batch, C channels, A side of an image or map, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ln import norms
from ln.norms import NormConfig
from ln.suite.config import zero_allowed
from ln.suite.errors import Mistake

SLOPE = 0.1  # of the leaky ReLU


@dataclass
class Settings:
    first: int = 96  # channels before the first pooling
    second: int = 192  # channels after it
    noise: float = zero_allowed(0.15)  # standard deviation of what is added to the images in training
    dropout: float = zero_allowed(0.5)
    init_deviation: float = 0.05  # of the initial weights
    layer_norm: str = "image"  # image | position | element: see LAYER_NORMS
    layer_norm_logits: bool = True  # layer norm on the last layer too, as the recipe has its norms there
    mean_only: bool = False  # weight norm with mean-only batch norm; other norms know nothing of it
    shrink: int = 1  # images are averaged over patches of shrink x shrink pixels
    train_examples: int = zero_allowed(0)  # 0: all
    valid_examples: int = zero_allowed(0)
    test_examples: int = zero_allowed(0)


class PositionNorm(nn.LayerNorm):
    """Layer norm over the channels at each position of its own, with a gain and a bias per channel: (B, C, A, A)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


# What "layer norm" means for a map of C channels and A x A positions. The paper's equation 3 takes the statistics over
# all units of a layer, which is the first and the third; the channels of a convolution share their weights over
# positions, and in the first their gain too.
LAYER_NORMS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "image": lambda C, A, eps: nn.GroupNorm(1, C, eps=eps),  # over channels and positions; a gain per channel
    "position": lambda C, A, eps: PositionNorm(C, eps=eps),  # over channels at each position; a gain per channel
    "element": lambda C, A, eps: nn.LayerNorm([C, A, A], eps=eps),  # over both; a gain per channel and position
}


class MapRMSNorm(nn.Module):
    """RMS norm of maps (B, C, A, A) with the mean square over `over` of their axes and a gain and a bias of `shape`."""

    def __init__(self, over: tuple[int, ...], shape: tuple[int, int, int], eps: float):
        super().__init__()
        self.over, self.eps = over, eps
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(self.over, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


# The same for RMS norm, which takes no mean away.
RMS_NORMS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "image": lambda C, A, eps: MapRMSNorm((1, 2, 3), (C, 1, 1), eps),
    "position": lambda C, A, eps: MapRMSNorm((1,), (C, 1, 1), eps),
    "element": lambda C, A, eps: MapRMSNorm((1, 2, 3), (C, A, A), eps),
}


class MeanOnlyBatchNorm(nn.Module):
    """t - mean[t] + b: the mean over the batch and, for maps, positions; at test its running mean (section 2.3 of
    Salimans & Kingma). Input (B, C) or (B, C, A, A)."""

    running_mean: Tensor

    def __init__(self, num_features: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        mean = self.running_mean
        if self.training:
            mean = input.transpose(0, 1).flatten(1).mean(1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
        return input + (self.bias - mean).view(-1, *[1] * (input.ndim - 2))


class Layer(nn.Module):
    """Summed inputs of a convolution or a dense layer, their norm, and the nonlinearity where there is one."""

    def __init__(self, linear: nn.Module, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.linear, self.norm, self.activation = linear, norm, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.linear(x)))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Give the summed inputs of this batch mean 0 and variance 1 in each channel, by weight norm's g (the weights
        where there is no norm) and b; the layer's output for the batch."""
        summed = self.linear(x)
        variance, mean = torch.var_mean(summed, [d for d in range(summed.ndim) if d != 1], correction=0, keepdim=True)
        parametrized = hasattr(self.linear, "parametrizations")
        gain: Tensor = self.linear.parametrizations.weight.original0 if parametrized else self.linear.weight  # type: ignore[assignment,union-attr]
        gain.div_(variance.sqrt().view(-1, *[1] * (gain.ndim - 1)))
        if isinstance(self.linear.bias, nn.Parameter):
            self.linear.bias.copy_((self.linear.bias - mean.flatten()) / variance.sqrt().flatten())
        return self.activation((summed - mean) / variance.sqrt())


class GaussianNoise(nn.Module):
    """Adds noise of this deviation in training."""

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x) if self.training else x


class GlobalAverage(nn.Module):
    """(B, C, A, A) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class ConvPool(nn.Sequential):
    """ConvPool-CNN-C: (B, C, A, A) images -> (B, K) logits."""

    def __init__(self, channels: int, side: int, classes: int, norm: NormConfig, settings: Settings):
        """
        Raises:
            Mistake: settings that make no sense, or images too small for the network.
        """
        if settings.layer_norm not in LAYER_NORMS:
            raise Mistake(f"model.layer_norm={settings.layer_norm} is unknown; choose one of {', '.join(LAYER_NORMS)}")
        first, second, half, quarter = settings.first, settings.second, side // 2, side // 4
        if quarter < 3:
            raise Mistake(
                f"images of {side} x {side} pixels are too small for two poolings and a 3x3 convolution, which need "
                f"12; lower model.shrink={settings.shrink}"
            )

        def conv(inputs: int, units: int, kernel: int, padding: int, side: int) -> Layer:
            """A convolution whose map has `side` positions to a side."""
            normalizer = summed_input_norm(units, side, norm, settings)
            linear = nn.utils.skip_init(
                nn.Conv2d, inputs, units, kernel, padding=padding, bias=isinstance(normalizer, nn.Identity)
            )
            return Layer(initialized(linear, norm, settings), normalizer, nn.LeakyReLU(SLOPE))

        logits = logits_norm(classes, norm, settings)
        dense = nn.utils.skip_init(nn.Linear, second, classes, bias=isinstance(logits, nn.Identity))
        super().__init__(
            GaussianNoise(settings.noise),
            conv(channels, first, 3, 1, side),
            conv(first, first, 3, 1, side),
            conv(first, first, 3, 1, side),
            nn.MaxPool2d(2),
            nn.Dropout(settings.dropout),
            conv(first, second, 3, 1, half),
            conv(second, second, 3, 1, half),
            conv(second, second, 3, 1, half),
            nn.MaxPool2d(2),
            nn.Dropout(settings.dropout),
            conv(second, second, 3, 0, quarter - 2),
            conv(second, second, 1, 0, quarter - 2),
            conv(second, second, 1, 0, quarter - 2),
            GlobalAverage(),
            Layer(initialized(dense, norm, settings), logits, nn.Identity()),
        )

    @property
    def layers(self) -> list[Layer]:
        return [module for module in self if isinstance(module, Layer)]

    @property
    def padded(self) -> list[Layer]:
        """The layers whose maps reach to the image's boundary."""
        return [layer for layer in self.layers if getattr(layer.linear, "padding", None) == (1, 1)]

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """The data-dependent initialization (section 3 of Salimans & Kingma) on one batch (B, C, A, A), with
        noise and dropout as in training."""
        for module in self:
            images = module.initialize(images) if isinstance(module, Layer) else module(images)


def initialized(linear: nn.Module, norm: NormConfig, settings: Settings) -> nn.Module:
    """Normal weights and zero bias, under weight norm where that is the norm. One draw per weight and no other: runs of
    one seed start from the same weights whatever the norm."""
    nn.init.normal_(linear.weight, std=settings.init_deviation)  # type: ignore[arg-type]
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    return norms.get(norm.name).wrap_linear(linear)


def summed_input_norm(channels: int, side: int, norm: NormConfig, settings: Settings) -> nn.Module:
    """What normalizes the summed inputs (B, C, A, A) of a convolution; Identity where nothing does.

    Raises:
        Mistake: a norm whose statistics are not written for maps.
    """
    traits = norm.traits
    if not traits.normalizes:
        mean_only = traits.reparameterizes and settings.mean_only
        return MeanOnlyBatchNorm(channels, norm.momentum) if mean_only else nn.Identity()
    if traits.axis == "features":
        return (LAYER_NORMS if traits.centred else RMS_NORMS)[settings.layer_norm](channels, side, norm.eps)
    if traits.axis == "batch" and traits.centred and traits.population:
        return nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum)
    raise Mistake(f"norm={norm.name}: the convolutions of this network have no {traits.statistics}")


def logits_norm(classes: int, norm: NormConfig, settings: Settings) -> nn.Module:
    """What normalizes the summed inputs (B, K) of the last layer."""
    traits = norm.traits
    if traits.reparameterizes and not traits.normalizes and settings.mean_only:
        return MeanOnlyBatchNorm(classes, norm.momentum)
    if traits.axis == "features" and not settings.layer_norm_logits:
        return nn.Identity()
    return traits.make(classes, eps=norm.eps, momentum=norm.momentum)
