"""The norms: what each does to the weights and to the summed inputs of a layer, and its settings in recurrent layers.

A norm is an entry of `NORMS`. Weight norm changes weights and batch and layer norm change activations, so an entry is a
pair of functions and every model applies both. `NormConfig` holds what the recurrent layers need to know beyond the
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SITES = ("input", "recurrent", "cell", "sum")
CELL_SITES = {
    "lstm": ("input", "recurrent", "cell"),
    "gru": ("input", "recurrent"),
    "rnn": ("input", "recurrent", "sum"),
}
_DEFAULT_SITES = CELL_SITES | {"rnn": ("sum",)}


@dataclass(frozen=True)
class Normalization:
    """One norm for feed-forward layers.

    wrap_linear: a linear or convolutional module -> the same computation with its weights reparameterized.
    make: (num_features, eps=1e-5, unbiased=False) -> a module for summed inputs (N, num_features). `unbiased` concerns
        the variance over a batch during training, and so batch norm only.
    """

    wrap_linear: Callable[[nn.Module], nn.Module]
    make: Callable[..., nn.Module]


class UnbiasedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d that also normalizes by the unbiased variance (n - 1) while training; torch uses it for the average
    only.

    Input and output (N, C) or (N, C, L). The estimator matters at batch size 4, the right half of the paper's figure 6.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        n = input.numel() // input.shape[1]
        if n < 2:
            raise ValueError(
                f"the unbiased variance needs at least 2 values per feature, but the input is {tuple(input.shape)}"
            )
        # (x - m) / sqrt(v n/(n-1) + eps) = sqrt(s) (x - m) / sqrt(v + s eps), with s = (n-1)/n and v the biased
        # variance.
        s = (n - 1) / n
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        gain = self.weight * math.sqrt(s)
        return F.batch_norm(
            input, self.running_mean, self.running_var, gain, self.bias, True, self.momentum, s * self.eps
        )


def _same(linear: nn.Module) -> nn.Module:
    return linear


def _no_norm(num_features: int, *, eps: float = 1e-5, unbiased: bool = False) -> nn.Module:
    return nn.Identity()


def _batch_norm(num_features: int, *, eps: float = 1e-5, unbiased: bool = False) -> nn.Module:
    return (UnbiasedBatchNorm1d if unbiased else nn.BatchNorm1d)(num_features, eps=eps)


def _layer_norm(num_features: int, *, eps: float = 1e-5, unbiased: bool = False) -> nn.Module:
    return nn.LayerNorm(num_features, eps=eps)


NORMS: dict[str, Normalization] = {
    "none": Normalization(_same, _no_norm),
    "batch": Normalization(_same, _batch_norm),
    "weight": Normalization(weight_norm, _no_norm),  # one gain per output unit: dim 0 is weight_norm's default
    "layer": Normalization(_same, _layer_norm),
}


def get(name: str) -> Normalization:
    """The norm of that name; ValueError for a name that is none."""
    if name not in NORMS:
        raise ValueError(f"norm={name} is not a normalization; choose one of {', '.join(NORMS)}")
    return NORMS[name]


@dataclass(frozen=True)
class NormConfig:
    """A norm inside a recurrent layer. Hashable; a setting that makes no sense raises ValueError.

    name: none, batch, weight or layer.
    sites: which terms are normalized; None means the cell's default: LSTM (input, recurrent, cell), GRU (input,
        recurrent), RNN (sum). ("cell",) is the LSTM of the paper's DRAW model; "sum" is equation 4.
    eps: added to the variance, inside the root. gain_init: None means 1.0, or 0.1 for batch norm (Cooijmans et al.).
    inner_bias: normalize W_ih x + inner_bias_ih in place of W_ih x (layer norm; keeps a scalar input's grey level).
    max_steps, momentum: steps with batch statistics of their own, and the weight of a new batch in their average.
    """

    name: str = "layer"
    sites: tuple[str, ...] | None = None
    eps: float = 1e-5
    gain_init: float | None = None
    inner_bias: bool = False
    max_steps: int = 1024
    momentum: float = 0.1

    def __post_init__(self) -> None:
        get(self.name)
        if self.sites is not None:
            for site in self.sites:
                if site not in SITES:
                    raise ValueError(f"site {site!r} is unknown; choose from {', '.join(SITES)}")
            object.__setattr__(self, "sites", tuple(site for site in SITES if site in self.sites))
            if self.sites and self.name in ("none", "weight"):
                raise ValueError(
                    f"norm={self.name} normalizes no summed inputs, so sites={self.sites} has no meaning; leave it out"
                )
            if "sum" in self.sites and len(self.sites) > 1:
                raise ValueError(
                    f"site 'sum' stands alone, since it replaces input and recurrent, but sites={self.sites}"
                )
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps={self.eps} must be a finite number >= 0")
        if self.inner_bias and self.name != "layer":
            raise ValueError(f"inner_bias enters the normalization of layer norm; norm={self.name} has no use for it")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must lie in (0, 1]")

    @staticmethod
    def of(norm: str | NormConfig) -> NormConfig:
        """The config itself, or the defaults of the norm of that name."""
        return norm if isinstance(norm, NormConfig) else NormConfig(norm)

    @property
    def initial_gain(self) -> float:
        """What gains start from."""
        return self.gain_init if self.gain_init is not None else (0.1 if self.name == "batch" else 1.0)

    def sites_for(self, cell: str) -> tuple[str, ...]:
        """The normalized sites in a cell ("lstm", "gru" or "rnn"), in the order of SITES; ValueError where it has no
        such site."""
        if self.name in ("none", "weight"):
            return ()
        sites = _DEFAULT_SITES[cell] if self.sites is None else self.sites
        for site in sites:
            if site not in CELL_SITES[cell]:
                raise ValueError(f"site {site!r} does not exist in {cell}; choose from {', '.join(CELL_SITES[cell])}")
        if self.inner_bias and "input" not in sites:
            raise ValueError(
                f"inner_bias enters the normalization of the site 'input', but {cell} normalizes {', '.join(sites)}"
            )
        return sites
