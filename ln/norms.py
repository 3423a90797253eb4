"""The norms: what each does to the weights and to the summed inputs of a layer, and its settings in recurrent layers.

A norm is an entry of `NORMS`: its traits, by which everything else decides (nothing asks for a norm's name), and a pair
of functions for feed-forward layers, since weight norm changes weights and the others change activations. `NormConfig`
holds what the recurrent layers need to know beyond the traits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SITES = ("input", "recurrent", "sum", "cell")
CELL_SITES = {
    "lstm": ("input", "recurrent", "sum", "cell"),
    "gru": ("input", "recurrent", "sum"),
    "rnn": ("input", "recurrent", "sum"),
}
_DEFAULT_SITES = {"lstm": ("input", "recurrent", "cell"), "gru": ("input", "recurrent"), "rnn": ("sum",)}
_SHARING = {"lstm": (4,), "gru": (2, 1), "rnn": (1,)}  # the gates that share statistics in the paper


class Statistics(NamedTuple):
    """How a norm takes its statistics of summed inputs: what a backend of the recurrent layers implements or not.

    axis: over the features of each case, over the batch, or none at all. centred: the mean is subtracted and the scale
    is the standard deviation, else the scale is the root of the mean square.
    """

    axis: Literal["features", "batch", "none"]
    centred: bool

    def __str__(self) -> str:
        return f"{'centred' if self.centred else 'uncentred'} statistics over the {self.axis}"


def same(linear: nn.Module) -> nn.Module:
    """The weights as they are."""
    return linear


def no_norm(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    """Summed inputs as they are."""
    return nn.Identity()


@dataclass(frozen=True)
class Normalization:
    """A norm's traits and what it does in feed-forward layers. In recurrent layers the traits say all of it.

    label, colour: in figures and pages; a colour is #rrggbb.
    axis, centred: of its statistics, see `Statistics`.
    population: averages over many batches take the place of a batch's statistics in evaluation.
    reparameterizes: weights are g v / ||v|| for each output unit, whatever is done to the summed inputs.
    recurrent_gain: what gains start from in recurrent layers.
    wrap_linear: a linear or convolutional module -> the same computation with its weights reparameterized.
    make: (num_features, eps=1e-5, momentum=0.1, unbiased=False) -> a module for summed inputs (N, num_features) with a
        gain and a bias. `momentum` is the weight of a new batch in population averages; `unbiased` concerns the
        variance over a batch during training.
    """

    label: str
    colour: str
    axis: Literal["features", "batch", "none"] = "none"
    centred: bool = True
    population: bool = False
    reparameterizes: bool = False
    recurrent_gain: float = 1.0
    wrap_linear: Callable[[nn.Module], nn.Module] = same
    make: Callable[..., nn.Module] = no_norm

    @property
    def normalizes(self) -> bool:
        """Whether it changes summed inputs."""
        return self.axis != "none"

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.axis, self.centred)


class UnbiasedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d that also normalizes by the unbiased variance (n - 1) while training; torch uses it for the average
    only.

    Input and output (N, C) or (N, C, L). The estimator matters at batch size 4, the right half of the paper's figure 6.
    """

    momentum: float

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)

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
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        gain = self.weight * math.sqrt(s)
        return F.batch_norm(
            input, self.running_mean, self.running_var, gain, self.bias, True, self.momentum, s * self.eps
        )


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with the bias that the paper's equation 4 leaves to the layer: (..., n) -> (..., n)."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps=eps)
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


def _batch_norm(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    return (UnbiasedBatchNorm1d if unbiased else nn.BatchNorm1d)(num_features, eps=eps, momentum=momentum)


def _layer_norm(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    return nn.LayerNorm(num_features, eps=eps)


def _rms_norm(num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, unbiased: bool = False) -> nn.Module:
    return RMSNorm(num_features, eps=eps)


# Figures show them in this order. The colours are Okabe & Ito's, safe for colour-blind readers.
NORMS: dict[str, Normalization] = {
    "none": Normalization("no norm", "#555555"),
    # The recurrent gain is Cooijmans et al.'s.
    "batch": Normalization("batch norm", "#E69F00", "batch", population=True, recurrent_gain=0.1, make=_batch_norm),
    # One gain per output unit: dim 0 is weight_norm's default.
    "weight": Normalization("weight norm", "#009E73", reparameterizes=True, wrap_linear=weight_norm),
    "layer": Normalization("layer norm", "#0072B2", "features", make=_layer_norm),
    "rms": Normalization("RMS norm", "#CC79A7", "features", centred=False, make=_rms_norm),
}


def get(name: str) -> Normalization:
    """The norm of that name; ValueError for a name that is none."""
    if not isinstance(name, str) or name not in NORMS:
        raise ValueError(f"norm={name} is not a normalization; choose one of {', '.join(NORMS)}")
    return NORMS[name]


def refusal(cell: str, cfg: NormConfig, implemented: Collection[Statistics]) -> str | None:
    """Why a backend that implements these statistics cannot run a cell ("lstm", "gru" or "rnn") with the norm, or
    None."""
    traits = cfg.traits
    if cfg.carry_normalized:
        return "it does not implement carry_normalized"
    if cfg.gates is not None:
        return f"it does not implement gates={cfg.gates}"
    if cell != "rnn" and "sum" in cfg.sites_for(cell):
        return f"it does not implement the site 'sum' in the {cell}"
    if not traits.normalizes or traits.statistics in implemented:
        return None
    return f"it does not implement norm={cfg.name}, {traits.statistics}"


@dataclass(frozen=True)
class NormConfig:
    """A norm inside a recurrent layer. Hashable; a setting that makes no sense raises ValueError.

    name: of an entry of `NORMS`.
    sites: which terms are normalized; None means the cell's default: LSTM (input, recurrent, cell), GRU (input,
        recurrent), RNN (sum). ("cell",) is the LSTM of the paper's DRAW model. "sum" is of W_ih x + W_hh h, in place of
        input and recurrent, as in equation 4; in the GRU r then multiplies the candidate's whole sum.
    eps: added to the variance, inside the root. gain_init: None means the norm's own, 1.0, or 0.1 for batch norm.
    inner_bias: normalize W_ih x + inner_bias_ih in place of W_ih x, so that statistics over the features keep a scalar
        input's grey level; in "sum" too.
    carry_normalized: in the LSTM the normalized cell state is the one carried on, as in TensorFlow Addons and fastrnns;
        the paper carries it on un-normalized.
    gates: which gates share statistics over the features: "joint" is all, as in haste's GRU, "each" none, as in
        TensorFlow's contrib; None means the paper's: all in the LSTM, (r, z) in the GRU.
    max_steps, momentum: steps with batch statistics of their own, and the weight of a new batch in their average.

    >>> NormConfig("layer", sites=("cell",), gain_init=0.1).sites
    ('cell',)
    """

    name: str = "layer"
    sites: tuple[str, ...] | None = None
    eps: float = 1e-5
    gain_init: float | None = None
    inner_bias: bool = False
    max_steps: int = 1024
    momentum: float = 0.1
    carry_normalized: bool = False
    gates: str | None = None

    def __post_init__(self) -> None:
        get(self.name)
        if isinstance(self.sites, str):
            raise ValueError(f"sites={self.sites!r} must be a tuple of names, such as ('cell',)")
        if self.sites is not None:
            for site in self.sites:
                if site not in SITES:
                    raise ValueError(f"sites: {site!r} is unknown; choose from {', '.join(SITES)}")
            object.__setattr__(self, "sites", tuple(site for site in SITES if site in self.sites))
            if self.sites and not self.traits.normalizes:
                raise ValueError(
                    f"norm={self.name} normalizes no summed inputs, so sites={self.sites} has no meaning; leave it out"
                )
            if "sum" in self.sites and {"input", "recurrent"} & set(self.sites):
                raise ValueError(f"sites={self.sites}: 'sum' stands in place of input and recurrent, not beside them")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps={self.eps} must be a finite number >= 0")
        if self.gain_init is not None and not math.isfinite(self.gain_init):
            raise ValueError(f"gain_init={self.gain_init} must be a finite number")
        if self.inner_bias and self.traits.axis != "features":
            raise ValueError(f"inner_bias enters a normalization over the features; norm={self.name} has no use for it")
        if self.carry_normalized and not self.traits.normalizes:
            raise ValueError(
                f"carry_normalized has no meaning without a normalized cell state, and norm={self.name} has none"
            )
        if self.gates not in (None, "joint", "each"):
            raise ValueError(f"gates={self.gates!r} is unknown; choose 'joint' or 'each', or leave it out")
        if self.gates is not None and self.traits.axis != "features":
            raise ValueError(f"gates is of statistics over the features; norm={self.name} has no use for it")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must lie in (0, 1]")

    @staticmethod
    def of(norm: str | NormConfig) -> NormConfig:
        """The config itself, or the defaults of the norm of that name."""
        return norm if isinstance(norm, NormConfig) else NormConfig(norm)

    @property
    def traits(self) -> Normalization:
        """The norm's entry in the registry."""
        return get(self.name)

    @property
    def initial_gain(self) -> float:
        """What gains start from."""
        return self.traits.recurrent_gain if self.gain_init is None else self.gain_init

    @property
    def loses_scalars(self) -> bool:
        """Whether the site "input" maps w x to the same for every x > 0: over the features, the statistics of w x are
        |x| times those of w, up to eps."""
        return self.traits.axis == "features" and not self.inner_bias

    def sites_for(self, cell: str) -> tuple[str, ...]:
        """The normalized sites in a cell ("lstm", "gru" or "rnn"), in the order of SITES; ValueError where it has no
        such site."""
        if not self.traits.normalizes:
            return ()
        if self.carry_normalized and cell != "lstm":
            raise ValueError(f"carry_normalized is an option of the lstm, not of the {cell}")
        if self.gates is not None and cell == "rnn":
            raise ValueError("gates is an option of the lstm and the gru; the rnn has only one")
        sites = _DEFAULT_SITES[cell] if self.sites is None else self.sites
        for site in sites:
            if site not in CELL_SITES[cell]:
                raise ValueError(f"site {site!r} does not exist in {cell}; choose from {', '.join(CELL_SITES[cell])}")
        if self.carry_normalized and "cell" not in sites:
            raise ValueError("carry_normalized needs the site 'cell'; add it to sites or leave out the option")
        if self.gates is not None and not set(sites) - {"cell"}:
            raise ValueError(f"gates={self.gates} is of summed inputs, and sites={sites} normalizes none")
        if self.inner_bias and not {"input", "sum"} & set(sites):
            raise ValueError(
                f"inner_bias enters the normalization of the site 'input' or 'sum', but {cell} normalizes "
                f"{', '.join(sites)}"
            )
        return sites

    def gate_groups(self, cell: str) -> tuple[int, ...]:
        """How many gates, in their order, share statistics over the features."""
        paper = _SHARING[cell]
        return {"joint": (sum(paper),), "each": (1,) * sum(paper), None: paper}[self.gates]
