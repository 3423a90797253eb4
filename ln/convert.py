"""Layers with the weights of other implementations.

Shapes: D input, H hidden. What loads as it is needs no function here: a state dict of torch.nn's LSTM, GRU, RNN and
their cells, and of torch.nn.utils.weight_norm around them, through `load_state_dict`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ln.cells import GRUCell, LSTMCell, RNNCell
from ln.norms import NormConfig
from ln.rnn import GRU, LSTM, RNN

_OURS: dict[type[nn.Module], Any] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_OPTIONS = ("bias", "num_layers", "batch_first", "dropout", "bidirectional", "nonlinearity", "proj_size")
_HASTE_GATES = (0, 2, 1, 3)  # haste has i, g, f, o; here it is torch's i, f, g, o


def from_torch(module: nn.Module, norm: str | NormConfig = "none", **options: Any) -> Any:
    """The layer here that stands for torch.nn's LSTM, GRU, RNN or a cell of theirs, with its options and weights.

    Without norm and under weight norm it computes the same; under the others it starts from these weights, and the
    gains and biases of the norm from their own initial values. Weights under torch.nn.utils' weight_norm, in either
    form, are taken too. options: those that only the layers here have, such as backend.

    ValueError: a projection. TypeError: another kind of module.

    >>> import torch
    >>> theirs = torch.nn.LSTM(3, 5)
    >>> x = torch.randn(4, 2, 3)
    >>> bool((from_torch(theirs)(x)[0] - theirs(x)[0]).abs().max() < 1e-5)
    True
    """
    ours: Any = next((own for kind, own in _OURS.items() if isinstance(module, kind)), None)
    if ours is None:
        kinds = ", ".join(kind.__name__ for kind in _OURS)
        raise TypeError(f"there is no layer here for a {type(module).__name__}; there is one for torch.nn's {kinds}")
    known = ("bias", "nonlinearity") if "Cell" in ours.__name__ else _OPTIONS
    shared = {name: getattr(module, name) for name in known if hasattr(module, name)}
    if ours is not LSTM:
        shared.pop("proj_size", None)
    if ours in (GRU, GRUCell, LSTM, LSTMCell):
        shared.pop("nonlinearity", None)
    weights = {_plain_name(name): value for name, value in module.state_dict().items()}
    one = next(iter(weights.values()))
    sizes: Any = (module.input_size, module.hidden_size)
    layer = ours(*sizes, **shared, device=one.device, dtype=one.dtype, norm=norm, **options)
    missing, unexpected = layer.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if name.startswith(("weight_", "bias_ih", "bias_hh"))]
    if lacking or unexpected:
        raise ValueError(f"the weights do not fit: missing {lacking}, unexpected {list(unexpected)}")
    return layer.train(module.training)


def _plain_name(name: str) -> str:
    """What torch.nn.utils.parametrizations.weight_norm calls original0 and original1 is g and v elsewhere."""
    found = re.fullmatch(r"parametrizations\.(\w+)\.original([01])", name)
    return name if found is None else f"{found[1]}_{'gv'[int(found[2])]}"


@torch.no_grad()
def from_haste(weights: Mapping[str, Tensor], **options: Any) -> LSTM:
    """The LSTM with layer norm that computes what haste's LayerNormLSTM of these weights computes.

    weights: its state dict, kernel (D, 4H), recurrent_kernel (H, 4H), bias (4H), gamma (2, 4H), gamma_h and beta_h (H).
    Its dropout and zoneout are of training and are not carried over. options: those of `LSTM`, such as batch_first.

    ValueError: something else than such a state dict.

    >>> import torch
    >>> shapes = {"kernel": (3, 20), "recurrent_kernel": (5, 20), "bias": (20,), "gamma": (2, 20), "gamma_h": (5,)}
    >>> weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    >>> from_haste(weights | {"beta_h": torch.zeros(5)}).hidden_size
    5
    """
    names = ("kernel", "recurrent_kernel", "bias", "gamma", "gamma_h", "beta_h")
    if set(weights) != set(names):
        raise ValueError(f"haste's LayerNormLSTM has {', '.join(names)}, but these are {', '.join(weights)}")
    D, G = weights["kernel"].shape
    H = G // 4
    kernel = weights["kernel"]
    layer = LSTM(D, H, norm="layer", device=kernel.device, dtype=kernel.dtype, **options)

    def gates(value: Tensor) -> Tensor:
        pieces = value.chunk(4)
        return torch.cat([pieces[n] for n in _HASTE_GATES])

    values = {
        "weight_ih": gates(kernel.t()),
        "weight_hh": gates(weights["recurrent_kernel"].t()),
        "bias_ih": gates(weights["bias"]),
        "bias_hh": torch.zeros_like(weights["bias"]),
        "gain_ih": gates(weights["gamma"][0]),
        "gain_hh": gates(weights["gamma"][1]),
        "gain_c": weights["gamma_h"],
        "bias_c": weights["beta_h"],
    }
    for name, value in values.items():
        layer.get_parameter(f"{name}_l0").copy_(value)
    return layer
