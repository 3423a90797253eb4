"""Weights of other implementations, judged by those implementations' own equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ln import convert


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


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="proj_size=2 is not supported"):
        convert.from_torch(nn.LSTM(3, 5, proj_size=2))
    with pytest.raises(TypeError, match="no layer here for a Linear"):
        convert.from_torch(nn.Linear(3, 5))
    with pytest.raises(ValueError, match="haste's LayerNormLSTM has kernel"):
        convert.from_haste({"kernel": torch.ones(3, 20)})


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
