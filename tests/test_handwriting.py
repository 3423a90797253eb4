"""Handwriting: the likelihood against scipy, the window, padding, writing, and one run of every norm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from scipy.special import logsumexp
from scipy.stats import bernoulli, multivariate_normal

from experiments.handwriting.network import (
    LARGEST_CORRELATION,
    SMALLEST_DEVIATION,
    Network,
    draw_offsets,
    mixture,
    mixture_nll,
)
from experiments.handwriting.task import Handwriting, padded
from ln import NormConfig
from ln.norms import NORMS
from ln.suite.config import CONFIGS, Recipe, recipe_of
from ln.suite.errors import Mistake
from ln.suite.runs.device import device_of
from ln.suite.runs.read import read_metrics
from ln.suite.runs.train import carry_out

EPS32 = float(np.finfo(np.float32).eps)


def recipe(norm: str, *overrides: str) -> Recipe:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shown = [f"norm={norm}", "profile=smoke", "threads=1", "tracking=disabled", *overrides]
        return recipe_of(compose("config", overrides=["experiment=handwriting", *shown]))


def task_of(norm: str = "layer", *overrides: str) -> Handwriting:
    torch.manual_seed(0)
    asked = recipe(norm, *overrides)
    return Handwriting(asked, Handwriting.find(asked.data), device_of("cpu"))


def small_network() -> Network:
    torch.manual_seed(0)
    network = Network(3, hidden=6, window=3, mixtures=4, norm=NormConfig("none"))
    line = np.array([[0, 0, 0], [1, 2, 0], [-1, 3, 1], [4, -2, 0], [1, 1, 1]], np.float32)
    network.fit(" ab", [line], ["ab"])
    return network


# --- likelihood


def test_mixture_nll_is_scipys_on_random_parameters() -> None:
    generator = np.random.default_rng(0)
    M, count = 5, 200
    outputs = generator.normal(0, 1, (count, 6 * M + 1))
    targets = np.concatenate([generator.normal(0, 2, (count, 2)), generator.integers(0, 2, (count, 1))], 1)
    expected = []
    for row, (x, y, pen) in zip(outputs, targets, strict=True):
        logits, means = row[1 : 1 + M], row[1 + M : 1 + 3 * M].reshape(M, 2)
        deviations = np.exp(row[1 + 3 * M : 1 + 5 * M].reshape(M, 2)) + SMALLEST_DEVIATION
        rhos = LARGEST_CORRELATION * np.tanh(row[1 + 5 * M :])
        logs = [
            multivariate_normal([*mean], [[s * s, rho * s * t], [rho * s * t, t * t]]).logpdf([x, y])
            for mean, (s, t), rho in zip(means, deviations, rhos, strict=True)
        ]
        weights = logits - logsumexp(logits)
        expected.append(-logsumexp(weights + logs) - bernoulli(1 / (1 + np.exp(-row[0]))).logpmf(int(pen)))
    found = mixture_nll(torch.from_numpy(outputs), torch.from_numpy(targets)).numpy()
    # Scipy inverts covariances by their eigenvalues, whose ratio is at most about exp(12) / (1 - rho).
    eps = np.finfo(np.float64).eps
    np.testing.assert_allclose(found, expected, rtol=eps * np.exp(12) / (1 - LARGEST_CORRELATION))


def test_mixture_nll_in_float32_is_as_near_to_float64_as_its_terms_allow() -> None:
    """Near correlation 1 and with narrow components, where equation G25's three terms would cancel."""
    torch.manual_seed(0)
    outputs = torch.randn(500, 6 * 20 + 1)
    outputs[:, 61:101] -= 4  # deviations of a hundredth
    outputs[:, 101:] += 5
    targets = torch.cat([torch.randn(500, 2), torch.bernoulli(torch.full((500, 1), 0.5))], 1)
    exact = mixture_nll(outputs.double(), targets.double())
    error = ((mixture_nll(outputs, targets) - exact).abs() / exact.abs()).max()
    # (1 - rho) keeps few digits of rho, which is what float32 knows of it: eps / (1 - rho), for a sum of some terms.
    assert error < 8 * EPS32 / (1 - LARGEST_CORRELATION)


def test_mixture_nll_and_its_gradient_are_finite_at_extreme_outputs() -> None:
    for value in (-200.0, -30.0, 30.0, 200.0):
        outputs = torch.full((3, 25), value, requires_grad=True)
        nll = mixture_nll(outputs, torch.tensor([[0.0, 0, 0], [50, -50, 1], [1e-4, 3, 1]]))
        nll.sum().backward()
        assert nll.isfinite().all()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()


def test_drawn_offsets_have_the_mixtures_moments() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(1, 6 * 3 + 1, dtype=torch.float64)
    log_weights, means, log_deviations, correlations, logit = (part[0] for part in mixture(outputs))
    weights, deviations = log_weights.exp(), log_deviations.exp()
    mean = weights @ means
    product = correlations * deviations.prod(-1) + means.prod(-1)
    count = 200_000
    drawn = draw_offsets(outputs.expand(count, -1), bias=0.0)
    error = drawn.std(0) / count**0.5
    assert ((drawn[:, :2].mean(0) - mean).abs() < 5 * error[:2]).all()
    assert (drawn[:, 2].mean() - torch.sigmoid(logit)).abs() < 5 * error[2]
    products = drawn[:, 0] * drawn[:, 1]
    assert (products.mean() - weights @ product).abs() < 5 * products.std() / count**0.5


def test_bias_makes_the_mixture_narrower_and_surer() -> None:
    outputs = torch.randn(50, 6 * 4 + 1, generator=torch.Generator().manual_seed(0))
    plain, biased = mixture(outputs), mixture(outputs, bias=1.0)
    assert (biased[2] < plain[2]).all()
    assert (biased[0].max(-1).values > plain[0].max(-1).values).all()


# --- window


def test_window_never_goes_back_and_weights_are_gaussians_of_the_places() -> None:
    network = small_network()
    torch.manual_seed(1)
    characters, positions = network.one_hot(torch.tensor([[1, 2, 0, 1], [2, 2, 3, 3]])), torch.arange(4.0)
    kappa = torch.zeros(2, 3, 1)
    for _ in range(30):
        h = 5 * torch.randn(2, 6)
        before = kappa
        shown, kappa, weights = network.look(h, kappa, characters, positions)
        assert (kappa > before).all()
        height, width, move = torch.exp(network.window(h)).chunk(3, 1)
        assert torch.equal(kappa[..., 0], before[..., 0] + move)
        for b in range(2):
            by_hand = [(height[b] * torch.exp(-width[b] * (kappa[b, :, 0] - u) ** 2)).sum() for u in range(4)]
            torch.testing.assert_close(weights[b], torch.stack(by_hand))
        # Padding shows nothing: the second text ends after two characters.
        torch.testing.assert_close(shown[1, 2], weights[1, :2].sum())
        assert shown[1, [0, 1]].abs().sum() == 0


def test_window_starts_at_the_hands_mean_speed() -> None:
    network = small_network()
    assert float(network.pace) == 2.5
    moves = torch.exp(network.window.bias[-3:])
    torch.testing.assert_close(moves, torch.full((3,), 1 / 2.5))


# --- padding


@pytest.mark.parametrize("norm", NORMS)
def test_padding_does_not_change_the_likelihood(norm: str) -> None:
    """In training, where batch norm's statistics must leave the padding out; and whatever the padding holds."""
    task = task_of(norm)
    points, steps, texts = task.batch(0)
    steps = torch.tensor([20, 7, 12, 1])
    nll = task.sequence_nll(points, steps, texts)
    spoilt = points.clone()
    for b, end in enumerate(steps):
        spoilt[end + 1 :, b] = 1e3
    longer = torch.cat([spoilt, spoilt[-5:]])
    wider = torch.nn.functional.pad(texts, (0, 4), value=len(task.network.letters))
    again = task.sequence_nll(longer, steps, wider)
    reference = task.network.double().requires_grad_(False)
    exact = task.sequence_nll(points.double(), steps, texts)
    assert reference is task.network
    yardstick = (nll - exact).abs().max()
    assert (again - nll).abs().max() <= 2 * yardstick


def test_likelihood_is_the_sum_over_a_lines_own_steps() -> None:
    task = task_of("layer")
    points, _, texts = task.batch(0)
    whole = task.sequence_nll(points, torch.full((4,), 20), texts)
    outputs, _ = task.network(points[:-1], texts, torch.full((4,), 20))
    torch.testing.assert_close(whole, mixture_nll(outputs, points[1:]).sum(0))
    assert (task.sequence_nll(points, torch.zeros(4, dtype=torch.int64), texts) == 0).all()


# --- the task


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_runs_and_learns(norm: str, tmp_path: Path) -> None:
    run = carry_out(recipe(norm, f"results={tmp_path}"))
    records = read_metrics(run.folder / "metrics.jsonl")
    assert run.info["status"] == "complete"
    assert run.info["data"]["status"] == "embedded"
    assert run.info["backend"] != ""
    assert records[-1]["final"]
    assert {"samples.png", "window.png"} <= {path.name for path in run.folder.iterdir()}
    curve = [record["valid_nll"] for record in records if "valid_nll" in record and not record.get("final")]
    assert curve[-1] < curve[0]


def test_full_size_has_the_papers_number_of_weights() -> None:
    """About 3.7 million; 3.65 without peepholes for 57 characters, and a bias on each side of the summed inputs."""
    network = Network(57, 400, 10, 20, NormConfig("none"))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(3.7e6, rel=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_writing_step_by_step_is_the_network(norm: str) -> None:
    """What `write` saw of its own line, point by point, is what the network sees when it reads that line whole."""
    network = task_of(norm).network.eval()
    torch.manual_seed(2)
    ((line, window),) = network.write(["hand"], bias=0.0)
    points = network.normalized(torch.from_numpy(line)).unsqueeze(1)
    with torch.no_grad():
        _, weights = network(points[:-1], network.indices("hand").unsqueeze(0), torch.tensor([len(points) - 1]))
    seen = torch.cat(weights).numpy()
    assert len(window) == len(line) - 1
    np.testing.assert_allclose(seen, window, rtol=1e3 * EPS32, atol=EPS32)


def test_a_text_outside_the_alphabet_is_refused_in_one_sentence() -> None:
    network = small_network()
    with pytest.raises(Mistake, match=r"outside the alphabet: ! é; choose from ` ab`"):
        network.indices("abé!")
    with pytest.raises(Mistake, match="empty"):
        network.write([""], bias=0.0)


def test_lines_are_cut_to_length_and_texts_to_characters() -> None:
    network = small_network()
    lines = padded([np.ones((9, 3), np.float32), np.ones((3, 3), np.float32)], ["ab", "b"], 4, network)
    assert lines.points.shape == (2, 5, 3)
    assert lines.steps.tolist() == [4, 2]
    assert (lines.points[1, 3:] == 0).all()
    assert lines.texts.tolist() == [[1, 2], [2, 3]]
