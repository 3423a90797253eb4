"""The equations of the paper, each against a NumPy transcription of its own, and the placements that are not the
paper's.

Shapes: T time, B batch, D input, H hidden, G gates. All in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ln import reference
from ln.norms import NormConfig
from ln.reference import Params, Stats
from tests.recurrent_cases import random_params

LAYER, BATCH, NONE = NormConfig("layer"), NormConfig("batch"), NormConfig("none")
T, B, D, H = 3, 5, 4, 6


def normalized(z: np.ndarray, axis: int, eps: float = 1e-5) -> np.ndarray:
    mu = z.sum(axis, keepdims=True) / z.shape[axis]
    sigma2 = ((z - mu) ** 2).sum(axis, keepdims=True) / z.shape[axis]
    return (z - mu) / np.sqrt(sigma2 + eps)


def root_mean_square(z: np.ndarray, axis: int, eps: float = 1e-5) -> np.ndarray:
    return z / np.sqrt((z**2).sum(axis, keepdims=True) / z.shape[axis] + eps)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def arrays(p: Params) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in p._asdict().items() if value is not None}


def equal(a: torch.Tensor, b: np.ndarray) -> None:
    np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-12)


def different(a: torch.Tensor, b: np.ndarray) -> None:
    assert np.abs(a.numpy() - b).max() > 1e-3


@pytest.fixture
def state() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(B, n, dtype=torch.float64) for n in (D, H, H))


def lstm_step(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, p: Params, cfg: NormConfig) -> tuple[Any, ...]:
    """h, c and the statistics after one step."""
    return reference.lstm(x[None], h, c, p, cfg)[1:]


def gru_step(x: torch.Tensor, h: torch.Tensor, p: Params, cfg: NormConfig) -> tuple[Any, ...]:
    """h and the statistics after one step."""
    return reference.gru(x[None], h, p, cfg)[1:]


def np_lstm(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, p: Params, variant: str = "paper", axis: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Equations 20 to 22 with one placement changed by `variant`; axis 0 is batch norm."""
    w, X, Hp, C = arrays(p), x.numpy(), h.numpy(), c.numpy()
    zx, zh = X @ w["weight_ih"].T, Hp @ w["weight_hh"].T
    if variant == "sum normalized once":
        a = normalized(zx + zh, axis) * w["gain_ih"]
    elif variant == "statistics per gate":
        per_gate = [np.hsplit(z, 4) for z in (zx, zh)]
        nx, nh = (np.hstack([normalized(gate, axis) for gate in gates]) for gates in per_gate)
        a = nx * w["gain_ih"] + nh * w["gain_hh"]
    else:
        a = normalized(zx, axis) * w["gain_ih"] + normalized(zh, axis) * w["gain_hh"]
    if variant != "bias dropped":
        a = a + w["bias_ih"] + w["bias_hh"]
    i, f, g, o = np.hsplit(a, 4)
    c_new = sigmoid(f) * C + sigmoid(i) * np.tanh(g)
    c_out = normalized(c_new, axis) * w["gain_c"] + w["bias_c"]
    if variant == "cell site omitted":
        c_out = c_new
    if variant == "normalized cell carried on":
        c_new = c_out
    return sigmoid(o) * np.tanh(c_out), c_new


def np_gru(x: torch.Tensor, h: torch.Tensor, p: Params, variant: str = "paper", axis: int = 1) -> np.ndarray:
    """Equations 26 to 28 with one placement changed by `variant`."""
    w, X, Hp = arrays(p), x.numpy(), h.numpy()
    zx, zh = X @ w["weight_ih"].T, Hp @ w["weight_hh"].T
    n_units = Hp.shape[1]

    def split_norm(z: np.ndarray) -> np.ndarray:
        groups = {"paper": [2 * n_units], "statistics per gate": [n_units, 2 * n_units], "all gates together": []}[
            variant
        ]
        return np.hstack([normalized(part, axis) for part in np.split(z, groups, axis=1)])

    ax, ah = split_norm(zx) * w["gain_ih"] + w["bias_ih"], split_norm(zh) * w["gain_hh"] + w["bias_hh"]
    rx, ux, nx = np.hsplit(ax, 3)
    rh, uh, nh = np.hsplit(ah, 3)
    r, u = sigmoid(rx + rh), sigmoid(ux + uh)
    return (1 - u) * np.tanh(nx + r * nh) + u * Hp


def test_eq15_layer_norm_scales_by_its_gain_and_adds_no_bias() -> None:
    z, gain = torch.randn(B, H, dtype=torch.float64), torch.randn(H, dtype=torch.float64)
    equal(reference.layer_norm(z, gain, 1e-5), normalized(z.numpy(), 1) * gain.numpy())


def test_eq16_statistics_are_of_one_case_and_biased() -> None:
    z = torch.randn(B, H, dtype=torch.float64)
    y = reference.layer_norm(z, torch.ones(H, dtype=torch.float64), 0.0).numpy()
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose((y**2).mean(1), 1, rtol=1e-12)


def test_zhang_sennrich_eq4_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    z, gain = torch.randn(B, H, dtype=torch.float64), torch.randn(H, dtype=torch.float64)
    root = np.sqrt((z.numpy() ** 2).sum(1, keepdims=True) / H + 1e-5)
    equal(reference.rms_norm(z, gain, 1e-5), z.numpy() / root * gain.numpy())


def test_rms_norm_stands_where_layer_norm_does(state: tuple[torch.Tensor, ...], monkeypatch) -> None:
    x, h, c = state
    cfg = NormConfig("rms")
    p, q = random_params("lstm", cfg, D, H), random_params("gru", cfg, D, H)
    lstm, gru = lstm_step(x, h, c, p, cfg), gru_step(x, h, q, cfg)
    monkeypatch.setattr("tests.test_reference.normalized", root_mean_square)
    for found, expected in zip(lstm, np_lstm(x, h, c, p), strict=False):
        equal(found, expected)
    equal(gru[0], np_gru(x, h, q))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_eq4_rnn_normalizes_the_sum_once(state: tuple[torch.Tensor, ...], nonlinearity: str) -> None:
    x, h, _ = state
    p = random_params("rnn", LAYER, D, H)
    w = arrays(p)
    a = normalized(x.numpy() @ w["weight_ih"].T + h.numpy() @ w["weight_hh"].T, 1) * w["gain_ih"]
    a = a + w["bias_ih"] + w["bias_hh"]
    _, new, _ = reference.rnn(x[None], h, p, LAYER, nonlinearity=nonlinearity)
    equal(new, np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0))


def test_eq4_rnn_with_separate_terms_is_another_model(state: tuple[torch.Tensor, ...]) -> None:
    x, h, _ = state
    cfg = NormConfig("layer", sites=("input", "recurrent"))
    p = random_params("rnn", cfg, D, H)
    _, separate, _ = reference.rnn(x[None], h, p, cfg)
    _, once, _ = reference.rnn(x[None], h, p._replace(gain_hh=None), LAYER)
    w = arrays(p)
    a = (
        normalized(x.numpy() @ w["weight_ih"].T, 1) * w["gain_ih"]
        + normalized(h.numpy() @ w["weight_hh"].T, 1) * w["gain_hh"]
    )
    equal(separate, np.tanh(a + w["bias_ih"] + w["bias_hh"]))
    different(separate, once.numpy())


def test_eq20_lstm_gates_share_one_statistic(state: tuple[torch.Tensor, ...]) -> None:
    p = random_params("lstm", LAYER, D, H)
    h, _, _ = lstm_step(*state, p, LAYER)
    equal(h, np_lstm(*state, p)[0])


def test_eq21_the_cell_state_carried_on_is_not_normalized(state: tuple[torch.Tensor, ...]) -> None:
    p = random_params("lstm", LAYER, D, H)
    _, c, _ = lstm_step(*state, p, LAYER)
    equal(c, np_lstm(*state, p)[1])


def test_eq22_the_cell_is_normalized_on_its_way_out(state: tuple[torch.Tensor, ...]) -> None:
    p = random_params("lstm", NormConfig(sites=("cell",)), D, H)  # the LSTM of DRAW
    h, c, _ = lstm_step(*state, p, NormConfig(sites=("cell",)))
    w = arrays(p)
    a = state[0].numpy() @ w["weight_ih"].T + state[1].numpy() @ w["weight_hh"].T + w["bias_ih"] + w["bias_hh"]
    o = np.hsplit(a, 4)[3]
    equal(h, sigmoid(o) * np.tanh(normalized(c.numpy(), 1) * w["gain_c"] + w["bias_c"]))


WRONG = [
    "statistics per gate",
    "normalized cell carried on",
    "cell site omitted",
    "sum normalized once",
    "bias dropped",
]


@pytest.mark.parametrize("variant", WRONG)
def test_lstm_is_not_the_wrong_placement(state: tuple[torch.Tensor, ...], variant: str) -> None:
    p = random_params("lstm", LAYER, D, H)
    x, h, c = state
    right_h, right_c = np_lstm(x, h, c, p)
    wrong_h, wrong_c = np_lstm(x, h, c, p, variant)
    # Two steps, so that a wrong cell state shows in h as well.
    right_h, _ = np_lstm(x, torch.from_numpy(right_h), torch.from_numpy(right_c), p)
    wrong_h, _ = np_lstm(x, torch.from_numpy(wrong_h), torch.from_numpy(wrong_c), p, variant)
    output, _, _, _ = reference.lstm(torch.stack([x, x]), h, c, p, LAYER)
    equal(output[1], right_h)
    different(output[1], wrong_h)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("statistics per gate", {"gates": "each"}),
        ("normalized cell carried on", {"carry_normalized": True}),
        ("sum normalized once", {"sites": ("sum", "cell")}),
        ("paper", {"gates": "joint"}),
    ],
)
def test_an_lstm_with_the_option_is_the_other_placement(
    state: tuple[torch.Tensor, ...], variant: str, options: dict[str, Any]
) -> None:
    cfg = NormConfig(**options)
    p = random_params("lstm", cfg, D, H)
    h, c, _ = lstm_step(*state, p, cfg)
    for found, expected in zip((h, c), np_lstm(*state, p, variant), strict=True):
        equal(found, expected)


@pytest.mark.parametrize(("variant", "gates"), [("statistics per gate", "each"), ("all gates together", "joint")])
def test_a_gru_with_the_option_is_the_other_placement(
    state: tuple[torch.Tensor, ...], variant: str, gates: str
) -> None:
    x, h, _ = state
    cfg = NormConfig(gates=gates)
    p = random_params("gru", cfg, D, H)
    equal(gru_step(x, h, p, cfg)[0], np_gru(x, h, p, variant))


@pytest.mark.parametrize("gates", [None, "each", "joint"])
def test_reset_multiplies_the_whole_candidate_where_the_sum_is_normalized(
    state: tuple[torch.Tensor, ...], gates: str | None
) -> None:
    x, h, _ = state
    cfg = NormConfig(sites=("sum",), inner_bias=True, gates=gates)
    p = random_params("gru", cfg, D, H)
    w = arrays(p)
    z = x.numpy() @ w["weight_ih"].T + h.numpy() @ w["weight_hh"].T + w["inner_bias_ih"]
    cuts = {None: [2 * H], "each": [H, 2 * H], "joint": []}[gates]
    a = np.hstack([normalized(part, 1) for part in np.split(z, cuts, axis=1)]) * w["gain_ih"]
    r, u, n = np.hsplit(a + w["bias_ih"] + w["bias_hh"], 3)
    u = sigmoid(u)
    equal(gru_step(x, h, p, cfg)[0], (1 - u) * np.tanh(sigmoid(r) * n) + u * h.numpy())


def test_eq26_gru_gates_share_one_statistic_and_the_candidate_has_its_own(state: tuple[torch.Tensor, ...]) -> None:
    x, h, _ = state
    p = random_params("gru", LAYER, D, H)
    new, _ = gru_step(x, h, p, LAYER)
    equal(new, np_gru(x, h, p))
    different(new, np_gru(x, h, p, "statistics per gate"))
    different(new, np_gru(x, h, p, "all gates together"))


def test_eq27_reset_multiplies_the_normalized_product_with_its_bias(state: tuple[torch.Tensor, ...]) -> None:
    x, h, _ = state
    p = random_params("gru", LAYER, D, H)
    assert p.bias_ih is not None
    closed, shut = p.bias_ih.clone(), -60.0  # r = 0: the recurrent term, its bias included, must vanish from n
    closed[:H], closed[H : 2 * H] = shut, shut
    new, _ = gru_step(x, h, p._replace(bias_ih=closed), LAYER)
    w = arrays(p)
    n = normalized((x.numpy() @ w["weight_ih"].T)[:, 2 * H :], 1) * w["gain_ih"][2 * H :] + w["bias_ih"][2 * H :]
    equal(new, np.tanh(n))


def test_eq28_an_open_update_gate_keeps_the_state(state: tuple[torch.Tensor, ...]) -> None:
    x, h, _ = state
    p = random_params("gru", LAYER, D, H)
    assert p.bias_ih is not None
    opened = p.bias_ih.clone()
    opened[H : 2 * H] = 60.0
    new, _ = gru_step(x, h, p._replace(bias_ih=opened), LAYER)
    equal(new, h.numpy())


def test_batch_norm_lstm_takes_statistics_over_the_batch(state: tuple[torch.Tensor, ...]) -> None:
    p = random_params("lstm", BATCH, D, H)
    h, c, stats = lstm_step(*state, p, BATCH)
    right_h, right_c = np_lstm(*state, p, axis=0)
    equal(h, right_h)
    equal(c, right_c)
    assert stats is not None
    assert stats.mean_ih is not None
    assert stats.var_c is not None
    equal(stats.mean_ih[0], (state[0] @ p.weight_ih.T).numpy().mean(0))
    equal(stats.var_c[0], c.numpy().var(0))


def test_batch_norm_gru_takes_statistics_over_the_batch(state: tuple[torch.Tensor, ...]) -> None:
    x, h, _ = state
    p = random_params("gru", BATCH, D, H)
    equal(gru_step(x, h, p, BATCH)[0], np_gru(x, h, p, axis=0))


def test_batch_statistics_ignore_rows_past_their_end() -> None:
    torch.manual_seed(2)
    x, h, c = (torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), (B, H), (B, H)))
    p = random_params("lstm", BATCH, D, H)
    lengths = torch.tensor([3, 3, 3, 1, 0])
    output, _, _, stats = reference.lstm(x, h, c, p, BATCH, lengths)
    _, _, _, alone = reference.lstm(x[:, :3], h[:3], c[:3], p, BATCH)
    assert stats is not None
    assert alone is not None
    first = (x[0, :4] @ p.weight_ih.T).mean(0)
    assert stats.mean_ih is not None
    equal(stats.mean_ih[0], first.numpy())
    equal(stats.mean_ih[2], (x[2, :3] @ p.weight_ih.T).mean(0).numpy())
    assert not output[1:, 3].any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_given_statistics_replace_those_of_the_batch(cell: str) -> None:
    torch.manual_seed(3)
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), *[(B, H)] * (2 if cell == "lstm" else 1))]
    p = random_params(cell, BATCH, D, H)
    run = getattr(reference, cell)
    output, *_, stats = run(*tensors, p, BATCH)
    same, *_, used = run(*tensors, p, BATCH, None, stats)
    equal(same, output.numpy())
    one_row, *_ = run(*(v[..., :1, :] for v in tensors), p, BATCH, None, stats)
    equal(one_row[:, 0], output[:, 0].numpy())
    assert all(torch.equal(a, b) for a, b in zip(stats, used, strict=True) if a is not None)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("cfg", [LAYER, BATCH, NONE], ids=lambda c: c.name)
def test_rows_end_at_their_own_length(cell: str, cfg: NormConfig) -> None:
    torch.manual_seed(4)
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), *[(B, H)] * (2 if cell == "lstm" else 1))]
    p = random_params(cell, cfg, D, H)
    run = getattr(reference, cell)
    lengths = torch.tensor([3, 1, 2, 0, 3])
    _, *_, stats = run(*tensors, p, cfg)
    output, *states, _ = run(*tensors, p, cfg, lengths, stats)
    whole, *_ = run(*tensors, p, cfg, None, stats)
    for row, length in enumerate(lengths.tolist()):
        equal(output[:length, row], whole[:length, row].numpy())
        assert not output[length:, row].any()
        cut = Stats(*(None if v is None else v[:length] for v in stats)) if stats is not None else None
        if length == 0:
            finals = [v[row] for v in tensors[1:]]
        else:
            one = [tensors[0][:length, row : row + 1], *(v[row : row + 1] for v in tensors[1:])]
            finals = [v[0] for v in run(*one, p, cfg, None, cut)[1:-1]]
        for found, wanted in zip(states, finals, strict=True):
            equal(found[row], wanted.numpy())


def _differentiable(cell: str, cfg: NormConfig, recompute: bool) -> tuple[object, list[torch.Tensor]]:
    torch.manual_seed(5)
    shapes = [(2, 3, 2), *[(3, 2)] * (2 if cell == "lstm" else 1)]
    p = random_params(cell, cfg, 2, 2)
    names = [n for n, v in zip(Params._fields, p, strict=True) if v is not None]
    # eps well above the curvature of 1/sqrt near zero variance, so that finite differences are exact enough.
    inputs = [torch.randn(s, dtype=torch.float64) for s in shapes] + [getattr(p, n) for n in names]
    lengths = torch.tensor([2, 1, 2])

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        params = Params(**dict(zip(names, values[len(shapes) :], strict=True)))
        return getattr(reference, cell)(*values[: len(shapes)], params, cfg, lengths, recompute=recompute)[:-1]

    return run, [v.requires_grad_() for v in inputs]


VARIANTS = [
    ("lstm", NormConfig(eps=0.1, carry_normalized=True)),
    ("lstm", NormConfig(sites=("sum", "cell"), eps=0.1, gates="each")),
    ("gru", NormConfig(eps=0.1, gates="joint")),
    ("gru", NormConfig("rms", eps=0.1, gates="each")),
    ("gru", NormConfig(sites=("sum",), eps=0.1, inner_bias=True)),
    ("gru", NormConfig("batch", sites=("sum",), eps=0.1)),
]
CASES = [
    *(
        (cell, NormConfig(name, eps=0.1))
        for name in ("none", "layer", "rms", "batch")
        for cell in ("lstm", "gru", "rnn")
    ),
    *VARIANTS,
]
IDS = [f"{cell}-{cfg.name}-{'-'.join(cfg.sites_for(cell))}-{cfg.gates}" for cell, cfg in CASES]


@pytest.mark.parametrize(("cell", "cfg"), CASES, ids=IDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_finite_differences(cell: str, cfg: NormConfig, recompute: bool) -> None:
    run, inputs = _differentiable(cell, cfg, recompute)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(("cell", "cfg"), CASES[3:], ids=IDS[3:])
def test_second_gradients_are_those_of_finite_differences(cell: str, cfg: NormConfig) -> None:
    run, inputs = _differentiable(cell, cfg, False)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


# Table 1, for the recurrent layers. eps = 0, since eps in the root breaks exactness; a positive factor, since a
# negative one flips the sign; the data rows change x of the whole batch.


def _invariance(cell: str, cfg: NormConfig) -> tuple[list[torch.Tensor], Params, object]:
    torch.manual_seed(6)
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((T, B, D), *[(B, H)] * (2 if cell == "lstm" else 1))]
    return tensors, random_params(cell, cfg, D, H), getattr(reference, cell)


def _changed(row: str, tensors: list[torch.Tensor], p: Params, cell: str) -> tuple[list[torch.Tensor], Params]:
    x, *states = tensors
    if row == "weight matrix re-scaling":
        return tensors, p._replace(weight_ih=p.weight_ih * 1.7, weight_hh=p.weight_hh * 1.7)
    if row == "weight matrix re-centering":
        gamma_x, gamma_h = torch.linspace(-1, 1, D, dtype=torch.float64), torch.linspace(1, 2, H, dtype=torch.float64)
        return tensors, p._replace(weight_ih=p.weight_ih + gamma_x, weight_hh=p.weight_hh + gamma_h)
    if row == "weight vector re-scaling":
        factors = torch.linspace(0.5, 3, p.weight_ih.shape[0], dtype=torch.float64).unsqueeze(-1)
        return tensors, p._replace(weight_ih=p.weight_ih * factors, weight_hh=p.weight_hh * factors)
    if row == "dataset re-scaling":
        return [x * 1.7, *states], p
    if row == "dataset re-centering":
        return [x + torch.linspace(-1, 1, D, dtype=torch.float64), *states], p
    factors = torch.linspace(0.5, 3, B, dtype=torch.float64).unsqueeze(-1)
    return [x * factors, *states], p


TABLE_1 = {
    "weight matrix re-scaling": {"batch": True, "layer": True, "rms": True},
    "weight matrix re-centering": {"batch": False, "layer": True, "rms": False},
    "weight vector re-scaling": {"batch": True, "layer": False, "rms": False},
    "dataset re-scaling": {"batch": True, "layer": True, "rms": True},
    "dataset re-centering": {"batch": True, "layer": False, "rms": False},
    "single case re-scaling": {"batch": False, "layer": True, "rms": True},
}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["batch", "layer", "rms"])
@pytest.mark.parametrize("row", TABLE_1)
def test_table1_invariances_hold_in_recurrence(cell: str, name: str, row: str) -> None:
    cfg = NormConfig(name, eps=0.0)
    tensors, p, run = _invariance(cell, cfg)
    before = run(*tensors, p, cfg)[0]
    changed, q = _changed(row, tensors, p, cell)
    after = run(*changed, q, cfg)[0]
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9) == TABLE_1[row][name]


def test_trap4_a_scalar_input_loses_its_grey_level_unless_a_bias_enters_the_norm() -> None:
    torch.manual_seed(7)
    h, c = torch.zeros(1, H, dtype=torch.float64), torch.zeros(1, H, dtype=torch.float64)
    dark, bright = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.2, 0.9))
    for inner, kept in ((False, False), (True, True)):
        cfg = NormConfig("layer", eps=0.0, sites=("input",), inner_bias=inner)
        p = random_params("lstm", cfg, 1, H)
        outputs = [lstm_step(x, h, c, p, cfg)[0] for x in (dark, bright)]
        assert (not torch.allclose(*outputs)) == kept
