"""Sequential MNIST, pixel by pixel (Cooijmans et al. 2016, arXiv 1603.09025): an LSTM of 100 units reads the pixels of
a digit one at a time, in scanline order or in one fixed random order, and names the digit after the last.

Not an experiment of the layer norm paper: it is where recurrent batch norm was published, and layer norm's curve stands
beside it. Shapes: B batch, T steps, H hidden.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.classification import Classification
from ln import LSTM, NormConfig
from ln.suite.config import Recipe, zero_allowed
from ln.suite.data import Source, mnist, resolve
from ln.suite.errors import Mistake

CLASSES = 10
EVALUATION_BATCH = 1000
PERMUTATION_SEED = 0  # one order for all runs, as there is one data set


@dataclass
class Settings:
    hidden: int = 100
    side: int = 28  # images are averaged down to side x side pixels
    permutation: str = "none"  # none | true | replacement (the published code's draw, which repeats pixels)
    noise: float = zero_allowed(0.1)  # standard deviation added to h0 while training with batch norm
    layer_gain: float = 1.0  # initial gains where statistics go over the features
    evaluation_examples: int = 10000  # of the validation split, on the way


def shrink(images: Tensor, side: int) -> Tensor:
    """(N, P) square images averaged down to side x side pixels, still (N, side * side)."""
    size = round(images.shape[1] ** 0.5)
    if size % side:
        raise Mistake(f"model.side={side} does not divide the {size} pixels of an image's side")
    return F.avg_pool2d(images.view(-1, 1, size, size), size // side).flatten(1)


def pixel_order(steps: int, permutation: str) -> Tensor:
    """(T,) which pixel is read at each step."""
    rng = np.random.default_rng(PERMUTATION_SEED)
    orders = {
        "none": lambda: np.arange(steps),
        "true": lambda: rng.permutation(steps),
        # The published code draws with replacement, so that about a third of the pixels is never seen.
        "replacement": lambda: rng.integers(0, steps, steps),
    }
    if permutation not in orders:
        raise Mistake(f"model.permutation={permutation} is unknown; choose one of {', '.join(orders)}")
    return torch.from_numpy(orders[permutation]())


def norm_for_pixels(norm: NormConfig, steps: int, settings: Settings) -> NormConfig:
    """Batch norm keeps statistics for every step. Layer norm of a scalar times a vector would lose the grey level, so
    the bias goes inside its input normalization, as in the layer norm authors' code."""
    if norm.traits.population:
        return dataclasses.replace(norm, max_steps=steps)
    if norm.traits.axis == "features":
        return dataclasses.replace(norm, inner_bias=True, gain_init=settings.layer_gain)
    return norm


class Reader(nn.Module):
    """(T, B, 1) pixels -> (B, 10) logits of the last hidden state."""

    def __init__(self, norm: NormConfig, hidden: int):
        super().__init__()
        self.lstm = LSTM(1, hidden, norm=norm, learn_state=True)
        self.output = nn.Linear(hidden, CLASSES)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """As in the published code, under every norm: the identity from state to candidate; one orthogonal matrix
        (H, 3H) from state to the three gates, whose columns it shares out; forget bias 1."""
        hidden = self.lstm.hidden_size
        weight_ih = nn.init.orthogonal_(torch.empty(4 * hidden, 1))
        i, f, o = nn.init.orthogonal_(torch.empty(hidden, 3 * hidden)).t().chunk(3)
        weight_hh = torch.cat([i, f, torch.eye(hidden), o])
        self.lstm.set_weight("weight_ih_l0", weight_ih)
        self.lstm.set_weight("weight_hh_l0", weight_hh)
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(self.lstm.get_parameter(name))
        self.lstm.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = 1.0
        nn.init.orthogonal_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, pixels: Tensor, noise: float) -> Tensor:
        batch, hidden = pixels.shape[1], self.lstm.hidden_size
        h0, c0 = (self.lstm.get_parameter(name).expand(1, batch, hidden) for name in ("h0_l0", "c0_l0"))
        if noise:
            # The first pixels are black in every image: without noise their batch variance is zero.
            h0 = h0 + noise * torch.randn_like(h0)
        _, (h, _) = self.lstm(pixels, (h0.contiguous(), c0.contiguous()))
        return self.output(h[0])


class SeqMnist(Classification):
    Settings = Settings
    static_shapes = True

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        digits: mnist.Digits = source.load()
        settings: Settings = recipe.model
        side = min(settings.side, round(digits.pixels**0.5))  # embedded digits have 8 x 8 pixels
        steps = side * side
        order = pixel_order(steps, settings.permutation)
        pixels = {split: shrink(images, side)[:, order] for split, images in digits.images.items()}
        super().__init__(recipe, source, device, pixels, digits.labels)
        self.noise = settings.noise if recipe.norm.traits.axis == "batch" and settings.permutation == "none" else 0.0
        self.model = Reader(norm_for_pixels(recipe.norm, steps, settings), settings.hidden)

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": lambda: mnist.original(valid=10000), "embedded": mnist.embedded})

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, T) pixels -> (B, 10)."""
        return self.model(inputs.T.unsqueeze(-1).contiguous(), self.noise if self.model.training else 0.0)

    def evaluate(self, split: str) -> dict[str, float]:
        count = self.examples[split]
        if split != "test":
            count = min(count, self.recipe.model.evaluation_examples)
        nll, errors = self.answers(split, EVALUATION_BATCH, count)
        return {"nll": nll, "accuracy": 100 * (count - errors) / count}
