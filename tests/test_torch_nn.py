"""Every call that torch.nn takes: the inputs of PyTorch's own module tests, and what public models do with a layer.

Shapes: T time, B batch, D input, H hidden, L layers x directions.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
import types
import unittest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import ln
from ln import GRU, LSTM, RNN, NormConfig

# PyTorch's list of module inputs lies beside its test cases, whose base class is in a package of its own; what is read
# here are the inputs alone.
if importlib.util.find_spec("expecttest") is None:
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]
module_db = importlib.import_module("torch.testing._internal.common_modules").module_db
# That import forbids the whole process to set torch.backends' flags; other tests do.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True  # type: ignore[attr-defined]

NORMS = ("none", "batch", "weight", "layer", "rms")
PAIRS = [(getattr(nn, name), getattr(ln, name)) for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")]
INFOS = [(info, ours) for info in module_db for theirs, ours in PAIRS if info.module_cls is theirs]


def _leaves(value: Any) -> list[Tensor]:
    """The numbers in nested results; of a packed sequence its data."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _cloned(value: Any, training: bool) -> Any:
    """The same inputs as leaves of their own."""
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.detach().clone().requires_grad_(training), *value[1:])
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(training)
    return type(value)(_cloned(v, training) for v in value) if isinstance(value, tuple | list) else value


def _gradients(model: nn.Module, arguments: Any, found: Any) -> list[Tensor | None]:
    loss = sum(
        (leaf * torch.linspace(1, 2, leaf.numel(), dtype=leaf.dtype).view_as(leaf)).sum() for leaf in _leaves(found)
    )
    wanted = [*_leaves(arguments), *model.parameters()]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


@pytest.mark.parametrize(("info", "ours"), INFOS, ids=[ours.__name__ for _, ours in INFOS])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_of_torchs_own_module_tests(info: Any, ours: type, norm: str, dtype: torch.dtype) -> None:
    """Without norm and under weight norm the results and gradients are torch's; under the others they are those of the
    same layer on the batched form of the input. Batch norm is in evaluation: most of these inputs are single cases."""
    packed = {} if "Cell" in ours.__name__ else {"with_packed_sequence": True}
    inputs = info.module_inputs_func(info, "cpu", dtype, True, True, **packed)
    assert len(inputs) > 1
    for given in inputs:
        options = dict(given.constructor_input.kwargs)
        positional = given.constructor_input.args
        if options.get("proj_size"):
            with pytest.raises(ValueError, match="proj_size=2 is not supported"):
                ours(*positional, **options, norm=norm)
            continue
        torch.manual_seed(0)
        theirs = info.module_cls(*positional, **options, dtype=dtype)
        model = ours(*positional, **options, dtype=dtype, norm=norm)
        model.load_state_dict(theirs.state_dict(), strict=norm in ("none", "weight"))
        if norm == "batch":
            model.eval()
        arguments = [_cloned(value, True) for value in given.forward_input.args]
        step = {"step": 0} if "Cell" in ours.__name__ else {}
        found = model(*arguments, **step)
        grads = _gradients(model, arguments, found)
        assert all(grad is not None for grad in grads[: len(_leaves(arguments))])
        if norm in ("none", "weight"):
            copies = [_cloned(value, True) for value in arguments]
            wanted = theirs(*copies)
            torch.testing.assert_close(_leaves(found), _leaves(wanted))
            inner = len(_leaves(arguments))
            torch.testing.assert_close(grads[:inner], _gradients(theirs, copies, wanted)[:inner])
        elif not isinstance(arguments[0], PackedSequence):
            batched = torch.utils._pytree.tree_map(lambda t: t.detach().unsqueeze(-2), arguments)
            if options.get("batch_first"):
                batched[0] = batched[0].transpose(0, 1)
            wanted = torch.utils._pytree.tree_map(lambda t: t.detach(), model(*batched, **step))
            if options.get("batch_first"):
                wanted = (wanted[0].transpose(0, 1), wanted[1])
            whole = torch.utils._pytree.tree_map(lambda t: t.squeeze(-2), wanted)
            torch.testing.assert_close(_leaves(found), _leaves(whole))


@pytest.mark.parametrize(("info", "ours"), INFOS, ids=[ours.__name__ for _, ours in INFOS])
def test_what_torch_refuses_is_refused(info: Any, ours: type) -> None:
    errors = info.module_error_inputs_func(info, "cpu", torch.float32, False, True)
    assert errors
    for error in errors:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            ours(*made.args, **made.kwargs)(*(given.args if given else ()), **(given.kwargs if given else {}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[ours.__name__ for _, ours in PAIRS])
def test_arguments_have_torchs_names_and_order(theirs: type, ours: type) -> None:
    parameters = inspect.signature(ours).parameters
    assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    wanted = list(inspect.signature(theirs).parameters)
    if "Cell" in ours.__name__:
        assert list(parameters)[: len(wanted)] == wanted
    call = list(inspect.signature(ours.forward).parameters)
    assert call[:3] == ["self", "input", "hx"]


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_packed_sequences_in_and_out(cls: type, norm: str, enforce: bool) -> None:
    torch.manual_seed(0)
    model = cls(3, 5, 2, bidirectional=True, norm=norm)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 5, 2, 2] if enforce else [2, 6, 1, 5])
    h = torch.randn(4, 4, 5)
    hx = (h, h.flip(0)) if cls is LSTM else h
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce)
    output, state = model(packed, hx)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    padded, sizes = pad_packed_sequence(output)
    assert torch.equal(sizes, lengths)
    wanted, wanted_state = model(x.transpose(0, 1), hx, lengths)
    torch.testing.assert_close(padded, wanted)
    torch.testing.assert_close(state, wanted_state)
    if norm == "none":
        plain = getattr(nn, cls.__name__)(3, 5, 2, bidirectional=True)
        plain.load_state_dict(model.state_dict())
        theirs, their_state = plain(packed, hx)
        torch.testing.assert_close(output.data, theirs.data)
        torch.testing.assert_close(state, their_state)
        for a, b in zip(output[1:], theirs[1:], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[ours.__name__ for _, ours in PAIRS])
def test_keywords_lists_and_empty_batches(theirs: type, ours: type) -> None:
    torch.manual_seed(0)
    plain, model = theirs(3, 5), ours(3, 5, norm="none")
    model.load_state_dict(plain.state_dict())
    shape = (3,) if "Cell" in ours.__name__ else (4, 3)
    x = torch.randn(shape[0], 2, 3) if len(shape) == 2 else torch.randn(2, 3)
    h = torch.randn(*((1, 2, 5) if len(shape) == 2 else (2, 5)))
    hx = (h, h) if "LSTM" in ours.__name__ else h
    torch.testing.assert_close(model(input=x, hx=hx), plain(input=x, hx=hx))
    empty = x[..., :0, :]
    for one in (model, ours(3, 5), ours(3, 5, backend="reference")):
        found, wanted = _leaves(one(empty)), _leaves(plain(empty))
        assert [v.shape for v in found] == [v.shape for v in wanted]
        sum(v.sum() for v in found).backward()
    if "Cell" not in ours.__name__:
        torch.testing.assert_close(model(x, lengths=[4, 2]), model(x, lengths=torch.tensor([4, 2])))


def test_what_models_call_on_a_layer() -> None:
    model = LSTM(3, 5, 2, bidirectional=True, norm="none")
    plain = nn.LSTM(3, 5, 2, bidirectional=True)
    plain.load_state_dict(model.state_dict())
    model.flatten_parameters()
    for own, other in zip(model.all_weights, plain.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert sum(len(weights) for weights in LSTM(3, 5, 2, norm="weight").all_weights) == 12
    assert repr(LSTM(3, 5, 2, dropout=0.5, norm=NormConfig(eps=0.1))) == (
        "LSTM(3, 5, num_layers=2, dropout=0.5, norm='layer', sites=('input', 'recurrent', 'cell'), eps=0.1, "
        "backend='auto')"
    )
    assert repr(ln.RNNCell(3, 5, nonlinearity="relu", norm="none")) == (
        "RNNCell(3, 5, nonlinearity='relu', norm='none', backend='auto')"
    )
    with pytest.warns(UserWarning, match="num_layers=1 has no such place"):
        LSTM(3, 5, dropout=0.5)
    assert ln.__version__[0].isdigit()


@pytest.mark.parametrize("norm", NORMS)
def test_a_replica_of_data_parallel_computes(norm: str) -> None:
    """Replicas have their parameters as plain attributes, and none to list."""
    model = LSTM(3, 5, norm=norm).eval()
    replica = model._replicate_for_data_parallel()
    for name, parameter in model.named_parameters():
        replica._parameters.pop(name, None)
        setattr(replica, name, parameter.detach() * 1)
    for name, buffer in model.named_buffers():
        replica._buffers[name] = buffer.clone()
    assert not list(replica.parameters())
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(replica(x), model(x))
    torch.testing.assert_close(nn.DataParallel(model)(x), model(x))


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_with_only_its_constructor_changed(norm: str) -> None:
    """A tagger as tutorials have it: embedding, packed bidirectional layer with dropout, linear; copied, saved, and
    trained for some steps."""

    class Tagger(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.embedding, self.layer, self.linear = nn.Embedding(20, 6), layer, nn.Linear(16, 3)

        def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
            output, _ = self.layer(packed)
            return self.linear(pad_packed_sequence(output, batch_first=True)[0])

    torch.manual_seed(0)
    model = Tagger(LSTM(6, 8, 2, bidirectional=True, batch_first=True, dropout=0.1, norm=norm))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    words, lengths = torch.randint(20, (8, 7)), torch.tensor([7, 3, 4, 7, 2, 6, 5, 5])
    tags = words % 3
    losses = []
    for _ in range(40):
        scores = model(words, lengths)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    again = copy.deepcopy(model).eval()
    other = Tagger(LSTM(6, 8, 2, bidirectional=True, batch_first=True, dropout=0.1, norm=norm)).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(again(words, lengths), other(words, lengths))


def test_sequences_of_one_length_pack_too() -> None:
    model = GRU(3, 5)
    output, _ = model(pack_sequence([torch.ones(4, 3), torch.ones(4, 3)]))
    assert output.data.shape == (8, 5)
