"""The contract of the backends: signatures, and one step as a sequence of one."""

import inspect

import pytest
import torch

from ln import kernels, reference
from ln.kernels import BACKENDS
from ln.kernels.contract import BackendWithRNN
from ln.norms import NORMS, NormConfig
from tests.recurrent_cases import random_params, usable

B, D, H = 4, 3, 6


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_the_signatures_of_the_contract(name: str) -> None:
    backend = kernels.load(name)
    assert kernels.name_of(backend) == name
    for function in ("available", "supports", "lstm", "gru", "rnn"):
        if function == "rnn" and backend.supports("rnn", NormConfig("none"), torch.device("cpu"), torch.float32):
            continue
        promised = list(inspect.signature(getattr(BackendWithRNN, function)).parameters.values())[1:]
        assert list(inspect.signature(getattr(backend, function)).parameters.values()) == promised


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_follows_the_step_before_it(norm: str, cell: str) -> None:
    """Two steps, each with its own row of statistics, are the sequence of two, in the reference to the bit."""
    cfg = NormConfig(norm)
    torch.manual_seed(0)
    x, p = torch.randn(2, B, D, dtype=torch.float64), random_params(cell, cfg, D, H)
    start = tuple(torch.randn(B, H, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1))
    _, last, used = kernels.sequence(reference, cell, x, start, p, cfg, nonlinearity="relu")
    state = start
    for t in range(2):
        row = None if used is None else reference.Stats(*(None if v is None else v[t : t + 1] for v in used))
        for stats in (row, None):  # given, or the batch's own
            new, own = kernels.step(reference, cell, x[t], state, p, cfg, stats, nonlinearity="relu")
            assert (own is None) == (row is None)
            for a, b in zip(own or (), row or (), strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        state = new
    for a, b in zip(state, last, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_fast_backend_takes_a_step(backend: str, cell: str) -> None:
    cfg = NormConfig("layer")
    usable(backend, cell, cfg)
    torch.manual_seed(0)
    x, p = torch.randn(B, D), random_params(cell, cfg, D, H, dtype=torch.float32)
    start = tuple(torch.randn(B, H) for _ in range(2 if cell == "lstm" else 1))
    found, _ = kernels.step(kernels.load(backend), cell, x, start, p, cfg)
    expected, _ = kernels.step(reference, cell, x, start, p, cfg)
    torch.testing.assert_close(found, expected)
