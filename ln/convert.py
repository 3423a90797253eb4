"""Layers with the weights of other implementations.

Shapes: D input, H hidden, G gates. What loads as it is needs no function here: a state dict of torch.nn's LSTM, GRU,
RNN and their cells, and of torch.nn.utils.weight_norm around them, through `load_state_dict`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ln.cells import GRUCell, LSTMCell, RNNCell
from ln.norms import NormConfig
from ln.rnn import GRU, LSTM, RNN

_Layer = TypeVar("_Layer", LSTM, GRU)
_OURS: dict[type[nn.Module], Any] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_OPTIONS = ("bias", "num_layers", "batch_first", "dropout", "bidirectional", "nonlinearity", "proj_size")
# haste has i, g, f, o and z, r, n; here it is torch's i, f, g, o and r, z, n.
_HASTE_LSTM, _HASTE_GRU = (0, 2, 1, 3), (1, 0, 2)
_CONTRIB_GATES = ("input", "forget", "transform", "output")  # i, f, g, o; the kernel's are i, g, f, o


def from_torch(module: nn.Module, norm: str | NormConfig = "none", **options: Any) -> Any:
    """The layer here that stands for torch.nn's LSTM, GRU, RNN or a cell of theirs, with its options and weights.

    Without norm and under weight norm it computes the same; under the others it starts from these weights, and the
    gains and biases of the norm from their own initial values. Weights under torch.nn.utils' weight_norm, in either
    form, are taken too, and what is frozen stays so. options: those that only the layers here have, such as backend.

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
    trained = {_plain_name(name): value.requires_grad for name, value in module.named_parameters()}
    for name, parameter in layer.named_parameters():
        forms = (name, f"{name}_g", f"{name}_v", re.sub("_[gv]$", "", name))  # weight norm may have come or gone
        before = [trained[form] for form in forms if form in trained]
        parameter.requires_grad_(any(before) or not before)
    return layer.train(module.training)


def _plain_name(name: str) -> str:
    """What torch.nn.utils.parametrizations.weight_norm calls original0 and original1 is g and v elsewhere."""
    found = re.fullmatch(r"parametrizations\.(\w+)\.original([01])", name)
    return name if found is None else f"{found[1]}_{'gv'[int(found[2])]}"


def from_haste(weights: Mapping[str, Tensor], **options: Any) -> LSTM | GRU:
    """The layer with layer norm that computes what haste's LayerNormLSTM or LayerNormGRU of these weights computes.

    weights: its state dict: kernel (D, G), recurrent_kernel (H, G), bias (G), gamma (2, G), in the LSTM gamma_h and
    beta_h (H), in the GRU recurrent_bias (G). The GRU's statistics are over all 3H. Dropout and zoneout are of training
    and are not carried over. options: those of `LSTM`, such as batch_first.

    ValueError: something else than such a state dict.

    >>> import torch
    >>> shapes = {"kernel": (3, 20), "recurrent_kernel": (5, 20), "bias": (20,), "gamma": (2, 20), "gamma_h": (5,)}
    >>> weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    >>> from_haste(weights | {"beta_h": torch.zeros(5)}).hidden_size
    5
    """
    common = {"kernel", "recurrent_kernel", "bias", "gamma"}
    cells = {"LayerNormLSTM": common | {"gamma_h", "beta_h"}, "LayerNormGRU": common | {"recurrent_bias"}}
    kind = next((name for name, own in cells.items() if set(weights) == own), None)
    if kind is None:
        known = "; ".join(f"haste's {name} has {', '.join(sorted(own))}" for name, own in cells.items())
        raise ValueError(f"{known}; but these are {', '.join(weights)}")
    order = _HASTE_LSTM if kind == "LayerNormLSTM" else _HASTE_GRU

    values = {
        "weight_ih": weights["kernel"].t(),
        "weight_hh": weights["recurrent_kernel"].t(),
        "bias_ih": weights["bias"],
        "bias_hh": weights.get("recurrent_bias", torch.zeros_like(weights["bias"])),
        "gain_ih": weights["gamma"][0],
        "gain_hh": weights["gamma"][1],
    }
    values = {name: _ordered(value, order) for name, value in values.items()}
    if kind == "LayerNormGRU":
        return _filled(GRU, values, NormConfig(gates="joint"), options)
    values |= {"gain_c": weights["gamma_h"], "bias_c": weights["beta_h"]}
    return _filled(LSTM, values, NormConfig(), options)


def from_fastrnns(weights: Mapping[str, Tensor], **options: Any) -> LSTM:
    """The LSTM that computes what the LayerNormLSTMCell of PyTorch's benchmarks/fastrnns computes, over a sequence.

    weights: the cell's state dict: weight_ih (4H, D), weight_hh (4H, H), and weight and bias of layernorm_i,
    layernorm_h (4H) and layernorm_c (H). options: those of `LSTM`.

    ValueError: something else than such a state dict.
    """
    names = {"weight_ih": "weight_ih", "weight_hh": "weight_hh"}
    for letter, field in (("i", "ih"), ("h", "hh"), ("c", "c")):
        names |= {f"layernorm_{letter}.weight": f"gain_{field}", f"layernorm_{letter}.bias": f"bias_{field}"}
    if set(weights) != set(names):
        raise ValueError(f"fastrnns' LayerNormLSTMCell has {', '.join(names)}, but these are {', '.join(weights)}")
    values = {names[name]: value for name, value in weights.items()}
    return _filled(LSTM, values, NormConfig(carry_normalized=True), options)


def from_tfa(weights: Mapping[str, Tensor], eps: float = 1e-3, **options: Any) -> LSTM:
    """The LSTM that computes what TensorFlow Addons' LayerNormLSTMCell computes, over a sequence.

    weights, by the names that Keras gives them: kernel (D, 4H), recurrent_kernel (H, 4H), bias (4H), and gamma and beta
    of kernel_norm, recurrent_norm (4H) and state_norm (H), as tensors; eps: its norm_epsilon. options: those of `LSTM`.

    ValueError: other names.
    """
    norms = {"kernel_norm": "ih", "recurrent_norm": "hh", "state_norm": "c"}
    names = ["kernel", "recurrent_kernel", "bias", *(f"{norm}/{kind}" for norm in norms for kind in ("gamma", "beta"))]
    if set(weights) != set(names):
        raise ValueError(f"tfa's LayerNormLSTMCell has {', '.join(names)}, but these are {', '.join(weights)}")
    values = {"weight_ih": weights["kernel"].t(), "weight_hh": weights["recurrent_kernel"].t()}
    values |= {f"gain_{field}": weights[f"{norm}/gamma"] for norm, field in norms.items()}
    values |= {f"bias_{field}": weights[f"{norm}/beta"] for norm, field in norms.items()}
    values["bias_ih"] = values["bias_ih"] + weights["bias"]
    return _filled(LSTM, values, NormConfig(eps=eps, carry_normalized=True), options)


def from_tf_contrib(weights: Mapping[str, Tensor], forget_bias: float = 1.0, **options: Any) -> LSTM:
    """The LSTM that computes what TensorFlow 1's contrib.rnn.LayerNormBasicLSTMCell computes, over a sequence.

    weights, by their names in the cell's scope: kernel (D + H, 4H), and gamma and beta (H) of input, transform, forget,
    output and state, as tensors. Statistics are of each gate's W [x, h], eps is 1e-12. Dropout is of training and not
    carried over. options: those of `LSTM`.

    ValueError: other names.
    """
    names = ["kernel", *(f"{norm}/{kind}" for norm in (*_CONTRIB_GATES, "state") for kind in ("gamma", "beta"))]
    if set(weights) != set(names):
        raise ValueError(f"contrib's LayerNormBasicLSTMCell has {', '.join(names)}, but these are {', '.join(weights)}")
    H = len(weights["state/gamma"])
    weight = _ordered(weights["kernel"].t(), (0, 2, 1, 3))
    gain, bias = (torch.cat([weights[f"{gate}/{kind}"] for gate in _CONTRIB_GATES]) for kind in ("gamma", "beta"))
    bias[H : 2 * H] += forget_bias
    values = {"weight_ih": weight[:, :-H], "weight_hh": weight[:, -H:], "gain_ih": gain, "bias_ih": bias}
    values |= {"bias_hh": torch.zeros_like(bias), "gain_c": weights["state/gamma"], "bias_c": weights["state/beta"]}
    norm = NormConfig(sites=("sum", "cell"), eps=1e-12, gates="each", carry_normalized=True)
    return _filled(LSTM, values, norm, options)


def from_dreamer(weights: Mapping[str, Tensor], eps: float = 1e-3, update_bias: float = -1.0, **options: Any) -> GRU:
    """The GRU that computes what the GRUCell of DreamerV2, and of DreamerV3 in PyTorch, computes over a sequence.

    weights: its state dict in PyTorch: _layer.weight (3H, D + H), _layer.bias (3H) where it has one, _norm.weight and
    _norm.bias (3H); layers.GRU_linear and layers.GRU_norm are the same. Of Keras' weights _layer.weight is the kernel
    transposed. Its update gate is 1 - z here, so that z takes the negative of that gate's gain and bias, update_bias
    included. options: those of `GRU`.

    ValueError: other names.
    """
    renamed = [name.replace("layers.GRU_linear", "_layer").replace("layers.GRU_norm", "_norm") for name in weights]
    given = dict(zip(renamed, weights.values(), strict=True))
    names = ("_layer.weight", "_norm.weight", "_norm.bias")
    if set(given) - {"_layer.bias"} != set(names):
        raise ValueError(f"Dreamer's GRUCell has {', '.join(names)}, but these are {', '.join(weights)}")
    H = len(given["_norm.bias"]) // 3
    weight, gain, bias = (_ordered(given[name], (0, 2, 1)) for name in names)
    bias[H : 2 * H] += update_bias
    for value in (gain, bias):
        value[H : 2 * H].neg_()
    values = {"weight_ih": weight[:, :-H], "weight_hh": weight[:, -H:], "gain_ih": gain, "bias_ih": bias}
    values["bias_hh"] = torch.zeros_like(bias)
    if inner := "_layer.bias" in given:
        values["inner_bias_ih"] = _ordered(given["_layer.bias"], (0, 2, 1))
    return _filled(GRU, values, NormConfig(sites=("sum",), eps=eps, inner_bias=inner, gates="joint"), options)


def _ordered(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """The gates of a value (G, ...) in another order."""
    pieces = value.chunk(len(order))
    return torch.cat([pieces[n] for n in order])


@torch.no_grad()
def _filled(kind: type[_Layer], values: dict[str, Tensor], norm: NormConfig, options: dict[str, Any]) -> _Layer:
    """A layer of these parameters, given without their suffix."""
    one = values["weight_ih"]
    layer = kind(one.shape[1], values["weight_hh"].shape[1], norm=norm, device=one.device, dtype=one.dtype, **options)
    # Shapes and names are checked here: weights of one direction would leave more layers as they were drawn.
    layer.load_state_dict({f"{name}_l0": value for name, value in values.items()})
    return layer
