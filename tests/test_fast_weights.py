"""Fast weights against the equations of Ba et al. 2016 (arXiv 1610.06258), and associative retrieval."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.associative_retrieval import AssociativeRetrieval, Retriever, Settings
from ln import FastState, FastWeights, FastWeightsCell, NormConfig
from ln.suite.config import Recipe
from ln.suite.data import retrieval
from ln.suite.errors import Mistake

T, B, D, H = 6, 3, 5, 7
LENGTHS = torch.tensor([6, 2, 0])


def layer(form: str, norm: str = "layer", steps: int = 2, nonlinearity: str = "tanh") -> FastWeights:
    torch.manual_seed(0)
    made = FastWeights(
        D, H, decay=0.9, rate=0.3, inner_steps=steps, nonlinearity=nonlinearity, norm=norm, form=form, identity=0.5
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double()


def by_the_equations(m: FastWeights, x: Tensor) -> Tensor:
    """Equations 1 and 2 for each case by itself, with nothing of the layer's code."""
    rows = []
    for case in x.unbind(1):
        h, A, states = torch.zeros(H).double(), torch.zeros(H, H).double(), []
        for input in case:
            sustained = m.weight_hh @ h + m.weight_ih @ input + m.bias
            h = torch.tanh(sustained)
            for _ in range(m.inner_steps):
                z = sustained + A @ h
                z = (z - z.mean()) / (z.var(unbiased=False) + m.norm.eps).sqrt()
                h = torch.tanh(z * m.normalize.weight + m.normalize.bias)  # type: ignore[operator]
            A = m.decay * A + m.rate * torch.outer(h, h)
            states.append(h)
        rows.append(torch.stack(states))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("form", ["attention", "matrix", "auto"])
def test_eq2_hidden_states_attend_to_the_past(form: str) -> None:
    m, x = layer(form), torch.randn(T, B, D).double()
    assert torch.allclose(m(x)[0], by_the_equations(m, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("cls", [FastWeights, FastWeightsCell])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_replaced_parameters_are_refused_in_one_sentence(cls: type, norm: str) -> None:
    """torch would broadcast some of them, and of a matrix on the meta device make numbers."""
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda p: p[:1],
        lambda p: p.unsqueeze(0),
        lambda p: torch.cat([p, p]),
        lambda p: p.double(),
        lambda p: p.to("meta"),
    ]
    x = torch.randn(T, B, D) if cls is FastWeights else torch.randn(B, D)
    for name, value in cls(D, H, norm=norm).named_parameters():
        for change in changes:
            m = cls(D, H, norm=norm)
            owner, _, leaf = name.rpartition(".")
            m.get_submodule(owner).register_parameter(leaf, torch.nn.Parameter(change(value.detach())))
            with pytest.raises(ValueError, match=r"must be \(.*but is"):
                m(x)


def test_a_parametrized_weight_is_used() -> None:
    m, x = FastWeights(D, H), torch.randn(T, B, D)
    torch.nn.utils.parametrizations.spectral_norm(m, "weight_hh").eval()
    other = FastWeights(D, H)
    other.load_state_dict({name: getattr(m, name, None) for name in ("weight_ih", "weight_hh", "bias")}, strict=False)
    assert torch.equal(m(x)[0], other(x)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", ["attention", "matrix"])
def test_a_trace_computes_or_refuses(form: str) -> None:
    m, x = layer(form), torch.randn(T, B, D).double()
    traced = torch.jit.trace(m, x, check_trace=False)
    other = torch.randn(T, B + 1, D).double()
    torch.testing.assert_close(tuple(traced(other)), tuple(m(other)))
    for length in (T - 1, T + 2):
        with pytest.raises(RuntimeError, match="Expected"):
            traced(torch.randn(length, B, D).double())


@pytest.mark.parametrize(
    "settings", [{"gain_init": 0.3}, {"sites": ("cell",)}, {"inner_bias": True}, {"gates": "each"}]
)
def test_settings_of_a_norm_that_would_do_nothing_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="fast weights take name and eps alone of a norm, but it is NormConfig"):
        FastWeights(D, H, norm=NormConfig(**settings))
    assert FastWeights(D, H, norm=NormConfig("rms", eps=0.1)).normalize.eps == 0.1


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_both_forms_are_the_same_layer_and_carry_the_same_state(norm: str, lengths: Tensor | None) -> None:
    x = torch.randn(2, T, B, D).double()
    found = []
    for form in ("attention", "matrix"):
        m = layer(form, norm)
        first, state = m(x[0], lengths=lengths)
        second, last = m(x[1], state, lengths=lengths)
        (first.sum() + second.square().sum() + last.A.sum()).backward()
        found.append([first, second, *state, *last, *(p.grad for p in m.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_two_calls_are_one_long_call() -> None:
    m, x = layer("attention"), torch.randn(2 * T, B, D).double()
    whole, end = m(x)
    first, state = m(x[:T])
    second, last = m(x[T:], state)
    assert torch.allclose(whole, torch.cat([first, second]), rtol=0, atol=1e-13)
    assert torch.allclose(end.A, last.A, rtol=0, atol=1e-13)


def test_the_cell_is_one_step_of_the_layer() -> None:
    m, x = layer("attention"), torch.randn(T, B, D).double()
    cell = FastWeightsCell(D, H, decay=0.9, rate=0.3, inner_steps=2, nonlinearity="tanh").double()
    cell.load_state_dict(m.state_dict())
    state, steps = None, []
    for input in x:
        state = cell(input, state)
        steps.append(state.h)
    outputs, last = m(x)
    assert state is not None
    assert torch.allclose(torch.stack(steps), outputs, rtol=0, atol=1e-13)
    assert torch.allclose(state.A, last.A, rtol=0, atol=1e-13)


def test_a_padded_row_is_as_if_it_were_alone() -> None:
    for form in ("attention", "matrix"):
        m, x = layer(form), torch.randn(T, B, D).double()
        padded, state = m(x, lengths=LENGTHS)
        alone, own = m(x[:2, 1:2])
        assert torch.allclose(padded[:2, 1:2], alone)
        assert not padded[2:, 1].any()
        assert torch.allclose(state.A[1], own.A[0])
        assert torch.allclose(state.h[1], own.h[0])
        assert not state.A[2].any()


@pytest.mark.parametrize("form", ["attention", "matrix"])
def test_gradients_are_those_of_finite_differences(form: str) -> None:
    m = layer(form)
    x = torch.randn(3, 2, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: m(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: m(x)[0], (x,))


def test_the_cheaper_form_is_taken() -> None:
    m = FastWeights(D, 50)
    assert m._attends(11)
    assert not m._attends(200)


def test_initial_weights_are_the_papers() -> None:
    m = FastWeights(D, 64)
    assert torch.equal(m.weight_hh, 0.05 * torch.eye(64))
    assert m.weight_ih.abs().max() <= 1 / 8
    assert torch.equal(m.normalize.weight, torch.ones(64))  # type: ignore[arg-type]
    before = m.weight_ih.clone()
    m.reset_parameters()
    assert not torch.equal(before, m.weight_ih)


def test_batch_first() -> None:
    m = layer("auto")
    turned = layer("auto")
    turned.batch_first = True
    x = torch.randn(T, B, D).double()
    assert torch.equal(m(x)[0], turned(x.transpose(0, 1))[0].transpose(0, 1))


@pytest.mark.parametrize("form", ["attention", "matrix"])
def test_padding_has_no_effect_whatever_it_holds(form: str) -> None:
    m, x = FastWeights(D, H, form=form), torch.randn(T, B, D)
    dirty = x.clone()
    dirty[2:, 1], dirty[:, 2] = math.nan, math.inf
    found = [m(values, lengths=LENGTHS) for values in (x, dirty)]
    torch.testing.assert_close(found[1], found[0])
    for own, other in zip(
        *(torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, _ in found), strict=True
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("cls", [FastWeights, FastWeightsCell])
def test_a_list_is_no_input(cls: type) -> None:
    with pytest.raises(TypeError, match=r"input must be a tensor .* but is a list"):
        cls(D, H)([[0.0] * D])


def state(*shapes: tuple[int, ...]) -> FastState:
    return FastState(*(torch.zeros(shape) for shape in shapes))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "decay": (lambda: FastWeights(D, H, decay=1.1), "decay=1.1 must lie in [0, 1]"),
    "rate": (lambda: FastWeights(D, H, rate=-1.0), "rate=-1.0 must be finite and not negative"),
    "steps": (lambda: FastWeights(D, H, inner_steps=0), "inner_steps=0 must be at least 1"),
    "nonlinearity": (lambda: FastWeights(D, H, nonlinearity="sin"), "nonlinearity=sin is unknown; choose one of relu"),
    "form": (lambda: FastWeights(D, H, form="fast"), "form=fast is unknown; choose one of auto"),
    "batch norm": (lambda: FastWeights(D, H, norm="batch"), "norm=batch"),
    "weight norm": (lambda: FastWeights(D, H, norm="weight"), "norm=weight"),
    "input": (lambda: FastWeights(D, H)(torch.zeros(T, B, D + 1)), "input must be (T, B, D)"),
    "no steps": (lambda: FastWeights(D, H)(torch.zeros(0, B, D)), "T > 0"),
    "state": (lambda: FastWeights(D, H)(torch.zeros(T, B, D), state((B, H), (B, H))), "state must be h"),
    "cell input": (lambda: FastWeightsCell(D, H)(torch.zeros(B, D + 1)), "input must be (B, D)"),
    "cell state": (lambda: FastWeightsCell(D, H)(torch.zeros(B, D), state((B, H), (B, H))), "state must be h"),
    "lengths": (lambda: FastWeights(D, H)(torch.zeros(T, B, D), lengths=torch.tensor([1, 2, 9])), "lengths must lie"),
    "no batch": (lambda: FastWeights(D, H, batch_first=True)(torch.zeros(D)), "input must be (B, T, D)"),
    "float lengths": (lambda: FastWeights(D, H)(torch.zeros(T, B, D), lengths=torch.ones(B)), "integers"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence(what: str) -> None:
    call, sentence = BAD[what]
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_strings_ask_for_a_digit_that_they_hold() -> None:
    strings, digits = retrieval.generate(200, retrieval.PAIRS, 7)
    for characters, digit in zip(strings, digits, strict=True):
        text = retrieval.as_text(characters)
        assert re.fullmatch(r"([a-z][0-9]){4}\?\?[a-z]", text)
        pairs = dict(re.findall(r"([a-z])([0-9])", text[:8]))
        assert len(pairs) == 4
        assert pairs[text[-1]] == str(int(digit))
    assert torch.equal(strings, retrieval.generate(200, retrieval.PAIRS, 7)[0])
    assert len(digits.unique()) == 10


def test_splits_are_drawn_apart_and_always_the_same() -> None:
    data = retrieval.original().load()
    assert {split: len(digits) for split, digits in data.digits.items()} == retrieval.SIZES
    assert not torch.equal(data.strings["valid"][:100], data.strings["test"][:100])


def test_without_a_norm_the_inner_loop_blows_up() -> None:
    """The paper's reason for layer norm: with A written from ever larger states, states grow without bound."""
    torch.manual_seed(0)
    growth = {}
    for norm in ("none", "layer"):
        m = FastWeights(8, 32, norm=norm, rate=0.5, decay=0.95)
        with torch.no_grad():
            output, _ = m(torch.randn(40, 16, 8) * 4)
        norms = output.norm(dim=2).mean(1)
        growth[norm] = float(norms[-1] / norms[4])
    assert growth["layer"] < 2
    assert not growth["none"] < 1e6


def test_units_are_known(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(Mistake, match=r"model\.unit=gru is unknown"):
        Retriever(Settings(unit="gru"), NormConfig("none"))
    made = recipe("experiment=associative_retrieval", "norm=none", "model.unit=irnn")
    task = AssociativeRetrieval(made, AssociativeRetrieval.find("embedded"), torch.device("cpu"))
    assert torch.equal(task.model.recurrent.weight_hh_l0, torch.eye(made.model.hidden))
    with torch.no_grad():
        found = task.evaluate("valid")
    assert set(found) == {"nll", "error", "norm_first", "norm_last"}


def test_stability_is_pictured_where_there_is_a_norm(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    for norm, drawn in (("layer", ["stability.png"]), ("none", [])):
        made = recipe("experiment=associative_retrieval", f"norm={norm}", "profile=smoke", "data=embedded")
        task = AssociativeRetrieval(made, AssociativeRetrieval.find("embedded"), torch.device("cpu"))
        folder = tmp_path / norm
        folder.mkdir()
        with torch.no_grad():
            task.draw(folder)
        assert [path.name for path in folder.iterdir()] == drawn
