"""The benchmark's command line, and that every peer computes the layer it is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import ln
from ln import reference
from ln.norms import NormConfig
from ln.reference import Params
from scripts import bench, bench_user
from scripts.bench_peers import (
    Packed,
    PlainFastWeights,
    PlainGRU,
    PlainLSTM,
    PlainRNN,
    ScriptedGRU,
    ScriptedLSTM,
    Shape,
)


def params(module: nn.Module) -> Params:
    """The peer's parameters as the reference takes them; nn.LayerNorm starts from gain 1 and bias 0."""
    weights = module.input.weight, module.recurrent.weight
    G, H = weights[1].shape
    ones, zeros = torch.ones(G), torch.zeros(G)
    cell = (torch.ones(H), torch.zeros(H)) if hasattr(module, "cell_norm") else (None, None)
    return Params(*weights, zeros, zeros, ones, ones, *cell)


@pytest.mark.parametrize("peer", [PlainLSTM, PlainGRU, ScriptedLSTM, ScriptedGRU])
def test_peers_compute_the_same_layer(peer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x, state = peer(5, 12), torch.randn(7, 4, 5), torch.zeros(4, 12)
    p, cfg = params(module), NormConfig("layer")
    expected = (
        reference.lstm(x, state, state, p, cfg)[0]
        if hasattr(module, "cell_norm")
        else reference.gru(x, state, p, cfg)[0]
    )
    torch.testing.assert_close(module(x), expected)


def test_quick_run_writes_table_json_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick", "--no-scaling", "--threads", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "plain loop" in printed
    assert "plain loop" in (tmp_path / "cpu-1-threads.txt").read_text()
    report = json.loads((tmp_path / "cpu-1-threads.json").read_text())
    (measured,) = report["shapes"]
    assert measured["results"]["torch.nn, no norm"]["ms"] > 0
    assert len(measured["results"]["plain loop"]["times"]) == 2
    assert {f.name for f in tmp_path.iterdir()} == {
        "cpu-1-threads.json",
        "cpu-1-threads.txt",
        "cpu-1-threads-bars.png",
        "cpu-1-threads-bars.svg",
    }


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    results = {"a": {"times": [2.0, 9.0, 30.0]}, "b": {"times": [1.0, 3.0, 20.0]}, "c": {"skipped": "no"}}
    assert bench.ratio(results, "a", "b") == 2.0
    assert bench.ratio(results, "a", "c") is None


def test_unknown_shape_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--shapes", "lstm9"])
    assert "no shape lstm9" in capsys.readouterr().err


def test_flops_of_a_shape() -> None:
    """Three products of (T B, D + H) with (4H): forward, dx and dh, dW."""
    assert Shape("", "lstm", 28, 128, 28, 128).gflop == pytest.approx(1.718, abs=1e-3)


def test_a_ragged_shape_counts_and_computes_the_real_steps() -> None:
    shape = Shape("", "lstm", 9, 5, 3, 4, ragged=True)
    lengths = shape.lengths()
    assert sorted(lengths.tolist()) == [1, 3, 5, 7, 9]
    assert shape.gflop == pytest.approx(Shape("", "lstm", 5, 5, 3, 4).gflop)
    layer = nn.LSTM(3, 4)
    x = torch.randn(9, 5, 3)
    output = Packed(layer, lengths)(x)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(output[:length, row], layer(x[:length, row])[0])
        assert not output[length:, row].any()


def test_plain_fast_weights_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    module, x = PlainFastWeights(5, 12), torch.randn(7, 4, 5)
    layer = ln.FastWeights(5, 12)
    layer.weight_ih, layer.weight_hh, layer.bias = module.input.weight, module.recurrent.weight, module.input.bias
    torch.testing.assert_close(module(x), layer(x)[0])


def test_a_plain_rnn_is_the_layer() -> None:
    torch.manual_seed(0)
    module, layer, x = PlainRNN(5, 12), ln.RNN(5, 12, backend="reference"), torch.randn(7, 4, 5)
    layer.weight_ih_l0, layer.weight_hh_l0 = module.input.weight, module.recurrent.weight
    torch.testing.assert_close(module(x), layer(x)[0])


def test_users_cases_are_timed_and_say_what_they_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (
        bench_user.Case("LSTM", 3, 4, 5, 6, layers=2, bidirectional=True),
        bench_user.Case("GRUCell", 1, 4, 5, 6, trains=False),
        bench_user.Case("FastWeights", 3, 4, 5, 6),
    )
    monkeypatch.setattr(bench_user, "CASES", cases)
    monkeypatch.setattr(bench_user, "_SHORTEST", 0.0)
    monkeypatch.setattr(bench_user, "TARGETS", {"ln, layer norm": 0.0})
    bench.main(["--shapes", "user", "--rounds", "1", "--out", str(tmp_path)])
    told = (tmp_path / "user.txt").read_text()
    assert told.count("forward + backward") == 2 * 2  # cases, threads
    assert told.count("missed: at most 0.0 is wanted") == 2 * (2 + 1)  # of the layer and of the cell
    measured = json.loads((tmp_path / "user.json").read_text())["cases"]
    assert {"torch.nn, no norm", "plain loop", "ln, batch norm"} <= set(measured[0]["results"])


def test_a_users_module_has_the_layers_and_directions_of_its_case() -> None:
    modules = bench_user.implementations(bench_user.Case("LSTM", 3, 4, 5, 6, layers=2, bidirectional=True))
    for name in (bench_user.BASELINE, "ln, layer norm"):
        assert (modules[name].num_layers, modules[name].bidirectional) == (2, True)


def test_flops_of_a_users_case() -> None:
    case = bench_user.Case("LSTM", 28, 128, 28, 128)
    assert case.gflop(trains=True) == pytest.approx(Shape("", "lstm", 28, 128, 28, 128).gflop)
    two = bench_user.Case("LSTM", 28, 128, 128, 128, layers=2)
    assert two.gflop(trains=False) == pytest.approx(2 * bench_user.Case("LSTM", 28, 128, 128, 128).gflop(trains=False))
