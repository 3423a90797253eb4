"""Weights of other implementations, judged by those implementations' own equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ln import GRU, LSTM, RNN, NormConfig, convert, kernels


@pytest.mark.parametrize("norm", ["none", "weight"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_layers_of_torch(name: str, norm: str) -> None:
    options = {"dtype": torch.float64} | ({} if "Cell" in name else {"num_layers": 2, "bidirectional": True})
    theirs = getattr(nn, name)(3, 5, **options)
    ours = convert.from_torch(theirs, norm)
    x = torch.randn(*((2, 3) if "Cell" in name else (4, 2, 3)), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_options_and_mode_are_carried_over() -> None:
    theirs = nn.RNN(3, 5, 2, "relu", False, True, 0.5, True).eval()
    ours = convert.from_torch(theirs, backend="reference")
    assert repr(ours) == (
        "RNN(3, 5, num_layers=2, nonlinearity='relu', bias=False, batch_first=True, dropout=0.5, bidirectional=True, "
        "norm='none', backend='reference')"
    )
    assert not ours.training
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm", ["none", "weight"])
def test_weight_normalized_layers_of_torch(norm: str) -> None:
    theirs = parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")
    with torch.no_grad():
        theirs.parametrizations.weight_hh_l0.original0.mul_(torch.linspace(0.5, 2, 20).unsqueeze(1))
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(convert.from_torch(theirs, norm)(x), theirs(x))


@pytest.mark.parametrize("reparameterized", [False, True])
@pytest.mark.parametrize("norm", ["none", "weight", "layer"])
def test_what_is_frozen_stays_so(norm: str, reparameterized: bool) -> None:
    theirs = nn.LSTM(3, 5)
    theirs.weight_hh_l0.requires_grad_(False)
    theirs.bias_ih_l0.requires_grad_(False)
    if reparameterized:
        theirs = parametrizations.weight_norm(theirs, "weight_hh_l0")
        theirs.parametrizations.weight_hh_l0.requires_grad_(False)
    frozen = {n for n, p in convert.from_torch(theirs, norm).named_parameters() if not p.requires_grad}
    weight = {"weight_hh_l0_g", "weight_hh_l0_v"} if norm == "weight" else {"weight_hh_l0"}
    assert frozen == {"bias_ih_l0", *weight}


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="proj_size=2 is not supported"):
        convert.from_torch(nn.LSTM(3, 5, proj_size=2))
    with pytest.raises(TypeError, match="no layer here for a Linear"):
        convert.from_torch(nn.Linear(3, 5))
    for function, said in (
        (convert.from_haste, "haste's LayerNormLSTM has beta_h"),
        (convert.from_fastrnns, "fastrnns' LayerNormLSTMCell has weight_ih"),
        (convert.from_tfa, "tfa's LayerNormLSTMCell has kernel"),
        (convert.from_tf_contrib, "contrib's LayerNormBasicLSTMCell has kernel"),
        (convert.from_dreamer, "Dreamer's GRUCell has _layer.weight"),
    ):
        with pytest.raises(ValueError, match=said):
            function({"kernel": torch.ones(3, 20)})


def test_layer_norm_lstm_of_haste() -> None:
    """Against its equations, gates in its order i, g, f, o."""
    torch.manual_seed(0)
    D, H, B, T = 3, 5, 2, 4
    sizes = {"kernel": (D, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,), "gamma": (2, 4 * H)}
    sizes |= {"gamma_h": (H,), "beta_h": (H,)}
    w = {name: torch.randn(*size, dtype=torch.float64) for name, size in sizes.items()}

    def norm(z: Tensor, gain: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], gain)

    x = torch.randn(T, B, D, dtype=torch.float64)
    h = c = torch.zeros(B, H, dtype=torch.float64)
    wanted = []
    for x_t in x:
        summed = norm(x_t @ w["kernel"], w["gamma"][0]) + norm(h @ w["recurrent_kernel"], w["gamma"][1]) + w["bias"]
        i, g, f, o = summed.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * (norm(c, w["gamma_h"]) + w["beta_h"]).tanh()
        wanted.append(h)
    output, (last_h, last_c) = convert.from_haste(w)(x)
    torch.testing.assert_close(output, torch.stack(wanted))
    torch.testing.assert_close((last_h[0], last_c[0]), (h, c))


T, B, D, H = 4, 2, 3, 5


def _random(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}


def _judge(layer: nn.Module, step: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]], states: int) -> None:
    """A layer against a step of the other's equations: outputs, last states, and gradients of x."""
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.zeros(B, H, dtype=torch.float64) for _ in range(states))
    wanted = []
    for x_t in x:
        state = step(x_t, state)
        wanted.append(state[0])
    output, last = layer(x)
    assert layer.backend_used == "reference"
    torch.testing.assert_close(output, torch.stack(wanted))
    torch.testing.assert_close([v[0] for v in last] if states == 2 else [last[0]], list(state))
    weights = torch.randn_like(output)
    grads = [torch.autograd.grad((value * weights).sum(), x)[0] for value in (output, torch.stack(wanted))]
    torch.testing.assert_close(*grads)


def test_layer_norm_gru_of_haste() -> None:
    """Statistics over 3H, gates z, r, g."""
    sizes = {"kernel": (D, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (3 * H,), "recurrent_bias": (3 * H,)}
    w = _random(**sizes, gamma=(2, 3 * H))

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        of_x = F.layer_norm(x @ w["kernel"], (3 * H,), w["gamma"][0]) + w["bias"]
        of_h = F.layer_norm(h @ w["recurrent_kernel"], (3 * H,), w["gamma"][1]) + w["recurrent_bias"]
        (zx, rx, gx), (zh, rh, gh) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        z, r = (zx + zh).sigmoid(), (rx + rh).sigmoid()
        return (z * h + (1 - z) * (gx + r * gh).tanh(),)

    _judge(convert.from_haste(w), step, 1)


def test_layer_norm_lstm_of_fastrnns() -> None:
    w = _random(weight_ih=(4 * H, D), weight_hh=(4 * H, H))
    for letter, width in (("i", 4 * H), ("h", 4 * H), ("c", H)):
        w |= {f"layernorm_{letter}.{kind}": torch.randn(width, dtype=torch.float64) for kind in ("weight", "bias")}

    def norm(z: Tensor, letter: str) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], w[f"layernorm_{letter}.weight"], w[f"layernorm_{letter}.bias"])

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, f, g, o = (norm(x @ w["weight_ih"].t(), "i") + norm(h @ w["weight_hh"].t(), "h")).chunk(4, -1)
        c = norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), "c")
        return o.sigmoid() * c.tanh(), c

    _judge(convert.from_fastrnns(w), step, 2)


def test_layer_norm_lstm_of_tensorflow_addons() -> None:
    w = _random(kernel=(D, 4 * H), recurrent_kernel=(H, 4 * H), bias=(4 * H,))
    for name, width in (("kernel_norm", 4 * H), ("recurrent_norm", 4 * H), ("state_norm", H)):
        w |= {f"{name}/{kind}": torch.randn(width, dtype=torch.float64) for kind in ("gamma", "beta")}

    def norm(z: Tensor, name: str) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], w[f"{name}/gamma"], w[f"{name}/beta"], 1e-3)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        z = norm(x @ w["kernel"], "kernel_norm") + norm(h @ w["recurrent_kernel"], "recurrent_norm") + w["bias"]
        i, f, g, o = z.chunk(4, -1)
        c = norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), "state_norm")
        return o.sigmoid() * c.tanh(), c

    _judge(convert.from_tfa(w), step, 2)


CONTRIB_GATES = ("input", "transform", "forget", "output")


def test_layer_norm_lstm_of_tensorflow_contrib() -> None:
    norms = {f"{name}/{kind}": (H,) for name in (*CONTRIB_GATES, "state") for kind in ("gamma", "beta")}
    w = _random(kernel=(D + H, 4 * H), **norms)

    def norm(z: Tensor, name: str) -> Tensor:
        return F.layer_norm(z, (H,), w[f"{name}/gamma"], w[f"{name}/beta"], 1e-12)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        gates = (torch.cat([x, h], -1) @ w["kernel"]).chunk(4, -1)
        i, j, f, o = (norm(z, name) for z, name in zip(gates, CONTRIB_GATES, strict=True))
        c = norm(c * (f + 1).sigmoid() + i.sigmoid() * j.tanh(), "state")
        return c.tanh() * o.sigmoid(), c

    _judge(convert.from_tf_contrib(w), step, 2)


def test_values_of_tensorflow_contrib_s_own_test() -> None:
    """Two cells with kernels of 0.5: the values that its test suite expects."""
    w = {"kernel": torch.full((4, 8), 0.5)}
    w |= {f"{name}/gamma": torch.ones(2) for name in (*CONTRIB_GATES, "state")}
    w |= {f"{name}/beta": torch.zeros(2) for name in (*CONTRIB_GATES, "state")}
    layer, x = convert.from_tf_contrib(w), torch.ones(1, 1, 2)
    for h, c in (([0.2, 0.3], [0.0, 0.1]), ([0.6, 0.7], [0.4, 0.5])):
        x, (_, last) = layer(x, (torch.tensor([[h]]), torch.tensor([[c]])))
        torch.testing.assert_close(x, torch.tensor([[[-0.38079708, 0.38079708]]]))
        torch.testing.assert_close(last, torch.tensor([[[-1.0, 1.0]]]))


@pytest.mark.parametrize(
    ("names", "bias"), [(("_layer", "_norm"), True), (("layers.GRU_linear", "layers.GRU_norm"), False)]
)
def test_layer_norm_gru_of_dreamer(names: tuple[str, str], bias: bool) -> None:
    linear, normalize = nn.Linear(D + H, 3 * H, bias).double(), nn.LayerNorm(3 * H, eps=1e-3).double()
    for parameter in normalize.parameters():
        nn.init.normal_(parameter)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        reset, candidate, update = normalize(linear(torch.cat([x, h], -1))).chunk(3, -1)
        update = (update - 1).sigmoid()
        return (update * (reset.sigmoid() * candidate).tanh() + (1 - update) * h,)

    modules = zip(names, (linear, normalize), strict=True)
    w = {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}
    _judge(convert.from_dreamer(w), step, 1)


@pytest.mark.parametrize(
    ("kind", "norm", "said"),
    [
        (LSTM, NormConfig(carry_normalized=True), "carry_normalized"),
        (LSTM, NormConfig(gates="each"), "gates=each"),
        (GRU, NormConfig(gates="joint"), "gates=joint"),
        (LSTM, NormConfig(sites=("sum",)), "the site 'sum' in the lstm"),
        (GRU, NormConfig("batch", sites=("sum",)), "the site 'sum' in the gru"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_fast_backends_refuse_variants_by_name(kind: type, norm: NormConfig, said: str, backend: str) -> None:
    if backend == "native" and kernels.load(backend).available():
        pytest.skip("no compiler")
    with pytest.raises(RuntimeError, match=f"backend={backend} cannot run .*: it does not implement {said}; ask for"):
        kind(D, H, norm=norm, backend=backend)(torch.randn(T, B, D))
    layer = kind(D, H, norm=norm)
    layer(torch.randn(T, B, D))
    assert layer.backend_used == "reference"


def test_variants_are_refused_where_they_have_no_meaning() -> None:
    with pytest.raises(ValueError, match="carry_normalized is an option of the lstm, not of the gru"):
        GRU(D, H, norm=NormConfig(carry_normalized=True))
    with pytest.raises(ValueError, match="gates is an option of the lstm and the gru; the rnn has only one"):
        RNN(D, H, norm=NormConfig(gates="each"))
    with pytest.raises(ValueError, match="carry_normalized needs the site 'cell'"):
        LSTM(D, H, norm=NormConfig(sites=("input",), carry_normalized=True))
    with pytest.raises(ValueError, match="norm=none has none"):
        NormConfig("none", carry_normalized=True)
    with pytest.raises(ValueError, match="gates is of statistics over the features"):
        NormConfig("batch", gates="joint")
    with pytest.raises(ValueError, match="gates=True is unknown; choose 'joint' or 'each', or leave it out"):
        NormConfig(gates=True)
    with pytest.raises(ValueError, match=r"gates=each is of summed inputs, and sites=\('cell',\) normalizes none"):
        LSTM(D, H, norm=NormConfig(sites=("cell",), gates="each"))
    assert "carry_normalized=True" in repr(LSTM(D, H, norm=NormConfig(carry_normalized=True)))
    assert "gates='joint'" in repr(GRU(D, H, norm=NormConfig(gates="joint")))


def test_weights_of_one_direction_fill_no_more_than_that() -> None:
    w = _random(
        kernel=(D, 4 * H), recurrent_kernel=(H, 4 * H), bias=(4 * H,), gamma=(2, 4 * H), gamma_h=(H,), beta_h=(H,)
    )
    for options in ({"num_layers": 2}, {"bidirectional": True}, {"bias": False}):
        with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key"):
            convert.from_haste(w, **options)
    with pytest.raises(RuntimeError, match="size mismatch"):
        convert.from_haste(w | {"bias": torch.zeros(4)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization_leaves_a_layer_in_floating_point() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.linear = LSTM(D, H), nn.Linear(H, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.layer(x)[0])

    model, x = Model().eval(), torch.randn(T, B, D)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert type(quantized.layer) is LSTM
    assert type(quantized.linear) is not nn.Linear
    assert torch.equal(quantized.layer(x)[0], model.layer(x)[0])
    torch.testing.assert_close(quantized(x), model(x), rtol=0, atol=0.02)
