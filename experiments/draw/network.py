"""DRAW (Gregor et al. 2015) on binarized MNIST (section 6.4, Figure 4): an autoencoder that reads and paints an image
in glimpses, with differentiable Gaussian attention.

Layer norm (and batch norm, an extension) acts on the cell state alone, h = o tanh(LN(c)), in encoder and decoder;
weight norm reparameterizes both cells and the two linear layers.

Shapes: T glimpses, B batch, A side of the image, H units, Z latents, R and W side of the patch that is read and
written, K = 2R + 2W filters: R along y and R along x to read, W along y and W along x to write.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ln import LSTMCell, NormConfig, norms

# What one attention window is aimed with: centre y and x; then stride, precision and intensity as logarithms.
AIM = 5
# Where both windows start: their outermost filters this share of the image apart, filters this many strides wide.
START_SHARE, START_WIDTH = 0.5, 0.5
INIT_DEVIATION = 0.01  # of all weights, as in jbornschein/draw, which the paper built on; all biases 0
MEAN_RANGE = (0.005, 0.995)  # of a pixel of the mean image, so that its logit is finite


@dataclass
class Settings:
    glimpses: int = 64
    hidden: int = 256
    latents: int = 100
    read: int = 2
    write: int = 5
    train_examples: int = 50_000  # so many of each split
    valid_examples: int = 10_000
    test_examples: int = 10_000
    likelihood_samples: int = 50  # per case, of the importance-weighted estimate at the end


class Gaussians(torch.autograd.Function):
    """mean, precision (B, K) -> (B, K, A) filters exp(-precision (a - mean)^2 / 2) over the pixels a, each divided by
    its sum over the image: a softmax over a, so that a filter far outside the image stays finite.

    A softmax's gradient sums to 0 over a. So terms without a drop out of the backward pass, and one product with
    grid (2, A), rows a and -a^2 / 2, gives all that is left.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, precision: Tensor, grid: Tensor) -> Tensor:
        logits = (grid[0] - mean[..., None]).square_().mul_(precision[..., None] * -0.5)
        filters = torch.softmax(logits, -1)
        ctx.save_for_backward(mean, precision, grid, filters)
        return filters

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, precision, grid, filters = ctx.saved_tensors
        d_logits = torch._softmax_backward_data(grads[0], filters, -1, filters.dtype)
        first, second = (d_logits @ grid.t()).unbind(-1)
        return first * precision, torch.addcmul(second, first, mean), None


class Filterbanks(nn.Module):
    """The filters of both attention windows in one go (equations 19 to 26 of Gregor et al.): filter i of N, from 0, has
    its mean at centre + (i - N/2 + 1/2) stride."""

    grid: Tensor
    offsets: Tensor
    which: Tensor

    def __init__(self, side: int, read: int, write: int) -> None:
        super().__init__()
        a = torch.arange(side) - (side - 1) / 2  # centred
        window = torch.tensor([0, 1]).repeat_interleave(torch.tensor([2 * read, 2 * write]))  # of each filter
        axis = torch.arange(4).repeat_interleave(torch.tensor([read, read, write, write]))
        places = [(torch.arange(n) - (n - 1) / 2) * (side - 1) / max(n - 1, 1) for n in (read, read, write, write)]
        columns = F.one_hot(window, 2).t()
        zeros = torch.zeros(2, len(window))
        self.register_buffer("grid", torch.stack([a, -a * a / 2]), persistent=False)  # (2, A)
        # (stride y/x read, write; precision read, write) -> (means' offsets, precisions) of all filters: (4, 2K)
        offsets = torch.cat([torch.cat([columns * torch.cat(places), zeros], 1), torch.cat([zeros, columns], 1)])
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("which", F.one_hot(axis, 4).t() * ((side + 1) / 2), persistent=False)  # (4, K)

    def forward(self, centres: Tensor, scales: Tensor) -> Tensor:
        """(B, K, A) from centres (B, 4): y, x to read, y, x to write, -1 ... 1 across the image; and scales (B, 4): the
        strides to read and write as a share of the widest, A - 1 over N - 1, and the precisions to read and write."""
        offsets, precision = (scales @ self.offsets).chunk(2, 1)
        return Gaussians.apply(torch.addmm(offsets, centres, self.which), precision, self.grid)


class Sample(torch.autograd.Function):
    """z ~ q(z_t | x, z_<t) and the KL from q to N(0, I), whose gradients (mean, variance - 1) are known in advance.

    latent (B, 2Z): means and log deviations; eps (B, Z) -> z (B, Z), KL in nats summed over the batch, a scalar. By the
    glimpse, since tensors of all glimpses would leave the caches.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = latent.chunk(2, 1)
        std = log_std.exp()
        ctx.save_for_backward(mean, std, eps)
        doubled = mean.square().addcmul_(std, std).sub_(log_std, alpha=2)
        return torch.addcmul(mean, std, eps), doubled.sub_(1).sum().mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mean, std, eps), (d_z, d_kl) = ctx.saved_tensors, grads
        d_log_std = torch.addcmul(-d_kl, std, std * d_kl).addcmul_(d_z * eps, std)
        return torch.cat([torch.addcmul(d_z, mean, d_kl), d_log_std], 1), None


@torch.no_grad()
def start_small(cell: LSTMCell) -> None:
    """Weights from N(0, INIT_DEVIATION^2) and biases 0; gains stay where the norm has them."""
    for name, columns in (("weight_ih", cell.input_size), ("weight_hh", cell.hidden_size)):
        cell.set_weight(name, torch.empty(4 * cell.hidden_size, columns).normal_(std=INIT_DEVIATION))
    for name, parameter in cell.named_parameters():
        if name.startswith("bias_"):
            nn.init.zeros_(parameter)


class Glimpse(NamedTuple):
    """One step of the unrolled model."""

    latent: Tensor | None  # (B, 2Z) means and log deviations of q(z_t | x, z_<t); None when painting from the prior
    kl: Tensor | None  # scalar, in nats, summed over the batch
    aim: tuple[Tensor, Tensor]  # (B, 10) what the read window was aimed with, and the write window
    canvas: Tensor  # (B, A, A) logits


class Draw(nn.Module):
    """The model; `mean` (A, A) is the mean training image, what the canvas starts from."""

    def __init__(self, mean: Tensor, settings: Settings, norm: NormConfig) -> None:
        super().__init__()
        side = len(mean)
        self.side, self.settings = side, settings
        H, R, W, Z = settings.hidden, settings.read, settings.write, settings.latents
        # The paper's DRAW normalizes the cell state only; the gates' summed inputs are left alone.
        cell_norm = replace(norm, sites=("cell",)) if norm.traits.normalizes else norm
        wrap = norms.get(norm.name).wrap_linear
        self.encoder = LSTMCell(2 * R * R + H, H, norm=cell_norm)
        self.decoder = LSTMCell(Z, H, norm=cell_norm)
        latent, brush = nn.Linear(H, 2 * Z), nn.Linear(H, W * W + 2 * AIM)
        for linear in (latent, brush):
            nn.init.normal_(linear.weight, std=INIT_DEVIATION)
            nn.init.zeros_(linear.bias)
        for cell in (self.encoder, self.decoder):
            start_small(cell)
        with torch.no_grad():
            # Windows as wide as the image would start with all four read filters in its empty corners.
            brush.bias[4:6] = math.log(START_SHARE)
            strides = torch.tensor([START_SHARE * (side - 1) / (patch - 1) for patch in (R, W)])
            brush.bias[6:8] = -2 * (START_WIDTH * strides).log()
        self.latent, self.brush = (cast(nn.Linear, wrap(linear)) for linear in (latent, brush))
        self.filterbanks = Filterbanks(side, R, W)
        # Initial states and canvas are learned (Gregor et al., section 2.1): encoder h, c, decoder h, c.
        self.states = nn.Parameter(torch.zeros(4, H))
        self.canvas = nn.Parameter(mean.clamp(*MEAN_RANGE).logit())

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the bound in nats, summed over the batch, from one sample per case: the reconstruction and
        the KL of every glimpse. images (B, A, A) of zeros and ones, noise (T, B, Z)."""
        kl = []
        for glimpse in self.unroll(images, noise):
            assert glimpse.kl is not None
            kl.append(glimpse.kl)
        reconstruction = F.binary_cross_entropy_with_logits(glimpse.canvas, images, reduction="sum")
        return reconstruction, torch.stack(kl).sum()

    def log_weights(self, images: Tensor, noise: Tensor) -> Tensor:
        """(B,) log p(x | z) + log p(z) - log q(z | x) of one sample z per case, in nats; arguments as in `forward`."""
        total = torch.zeros_like(noise[0, :, 0])
        for glimpse, eps in zip(self.unroll(images, noise), noise, strict=True):
            assert glimpse.latent is not None
            mean, log_std = glimpse.latent.chunk(2, 1)
            z = torch.addcmul(mean, log_std.exp(), eps)
            total += (0.5 * (eps.square() - z.square()) + log_std).sum(1)
        return total - F.binary_cross_entropy_with_logits(glimpse.canvas, images, reduction="none").sum((1, 2))

    def unroll(self, images: Tensor | None, noise: Tensor) -> Iterator[Glimpse]:
        """Glimpse by glimpse: images (B, A, A), or None to paint from the prior; noise (T, B, Z).

        The attention of the writing at t and of the reading at t + 1 both come from the decoder's h at t, so one
        product and one set of filters serve both.
        """
        R, W, B = self.settings.read, self.settings.write, noise.shape[1]
        rows = [R, R, W, W]
        h_enc, c_enc, h, c = (state.expand(B, -1) for state in self.states.unbind())
        canvas = self.canvas.expand(B, -1, -1)
        latent_weight, latent_bias = self.latent.weight, self.latent.bias
        brush_weight, brush_bias = self.brush.weight, self.brush.bias
        with self.encoder.prepared(), self.decoder.prepared():
            aim, _, gamma, _, banks = self._aimed(F.linear(h, brush_weight, brush_bias))
            read_y, read_x, *_ = banks.split(rows, 1)
            for t, eps in enumerate(noise.unbind()):
                before, latent, z, kl = aim, None, eps, None
                if images is not None:
                    patches = self._read(images, canvas, read_y, read_x, gamma)
                    h_enc, c_enc = self.encoder(torch.cat([patches, h], 1), (h_enc, c_enc), step=t)
                    latent = F.linear(h_enc, latent_weight, latent_bias)
                    z, kl = Sample.apply(latent, eps)
                h, c = self.decoder(z, (h, c), step=t)
                aim, patch, gamma, ink, banks = self._aimed(F.linear(h, brush_weight, brush_bias))
                read_y, read_x, write_y, write_x = banks.split(rows, 1)
                strokes = (patch * ink).view(B, W, W) @ write_x
                canvas = torch.baddbmm(canvas, write_y.transpose(1, 2), strokes)
                yield Glimpse(latent, kl, (before, aim), canvas)

    def _aimed(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """output (B, 10 + WW) of the brush -> aim (B, 10), patch to write (B, WW), intensities gamma of reading and
        1 / gamma of writing (B, 1), filters (B, K, A). 1 / sigma^2 and 1 / gamma are exponentials of outputs as they
        are, which saves a change of sign."""
        centres, logs, patch = output.split([4, 6, self.settings.write**2], 1)
        scales, gamma, ink = logs.exp().split([4, 1, 1], 1)
        return output[:, : 2 * AIM].detach(), patch, gamma, ink, self.filterbanks(centres, scales)

    @staticmethod
    def _read(images: Tensor, canvas: Tensor, read_y: Tensor, read_x: Tensor, gamma: Tensor) -> Tensor:
        """(B, 2RR): the patch of the image and that of the error image x - sigmoid(c), times the intensity (B, 1)."""
        lines = torch.cat([read_y @ images, read_y @ canvas.sigmoid()], 1)
        image, painted = (lines @ read_x.transpose(1, 2)).chunk(2, 1)
        return torch.cat([image, image - painted], 1).flatten(1) * gamma
