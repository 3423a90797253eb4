"""Order embeddings: errors, loss and ranks against slow transcriptions, batches, evaluation, pictures, and runs."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import experiments.order_embeddings.network as network_module
import experiments.order_embeddings.task as module
from experiments.order_embeddings.network import (
    BLOCK,
    OrderEmbedding,
    OrderViolation,
    blocks,
    contrastive_loss,
    errors,
    ranks,
    recalls,
)
from experiments.order_embeddings.pictures import ordered_pairs
from experiments.order_embeddings.task import OrderEmbeddings, Sentences
from ln import NormConfig
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.data import Source
from ln.suite.data.precomp import CAPTIONS, Captioned
from ln.suite.data.scenes import more_general
from ln.suite.runs.read import read_metrics
from ln.suite.runs.step import Step
from ln.suite.runs.train import carry_out

Make = Callable[..., Recipe]


@pytest.fixture
def task(recipe: Make) -> OrderEmbeddings:
    return task_of(recipe("experiment=order_embeddings", "norm=layer"))


def task_of(asked: Recipe, source: Source | None = None) -> OrderEmbeddings:
    torch.manual_seed(0)
    return OrderEmbeddings(asked, source or OrderEmbeddings.find("embedded"), torch.device("cpu"))


def embeddings(sentences: int, images: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, v = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (sentences, images))
    return (torch.nn.functional.normalize(x, dim=1).abs() for x in (s, v))  # type: ignore[return-value]


# --- errors and loss


def slow_error(s: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The published order violation, entry by entry."""
    found = np.zeros((len(s), len(v)))
    for i in range(len(s)):
        for j in range(len(v)):
            for k in range(s.shape[1]):
                found[i, j] += max(0.0, s[i, k] - v[j, k]) ** 2
    return found


def slow_loss(error: np.ndarray, margin: float) -> float:
    """The published contrastive loss, pair by pair."""
    total, B = 0.0, len(error)
    for i in range(B):
        for j in range(B):
            if i != j:
                total += max(0.0, margin - error[i, j] + error[i, i])  # sentence i against a wrong image
                total += max(0.0, margin - error[j, i] + error[i, i])  # image i against a wrong sentence
    return total


@pytest.mark.parametrize(("sentences", "images", "width"), [(1, 1, 1), (7, 5, 3), (13, 70, 11)])
def test_order_violation_is_the_slow_ones(sentences: int, images: int, width: int) -> None:
    s, v = embeddings(sentences, images, width)
    found = errors(s, v, symmetric=False)
    np.testing.assert_allclose(found.numpy(), slow_error(s.numpy(), v.numpy()), rtol=1e-12)


def test_order_violation_is_zero_for_what_is_below_and_not_turned_round() -> None:
    below, above = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.3, 0.2]])
    assert errors(below, above, symmetric=False).item() == 0
    assert errors(above, below, symmetric=False).item() == pytest.approx(0.04)


def test_blocks_change_neither_errors_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    s, v = (x.requires_grad_() for x in embeddings(70, 131, 9))
    weights = torch.randn(70, 131, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for size in (1, 700, 2**20):
        monkeypatch.setitem(BLOCK, "cpu", size)
        found = OrderViolation.apply(s, v)
        results.append((found, *torch.autograd.grad((found * weights).sum(), (s, v))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    down, across = blocks(5000, 1000, 1024, torch.device("cpu"))
    assert down * across * 1024 <= 2**20


def test_threads_change_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    s, v = embeddings(71, 9, 5)
    alone = errors(s, v, symmetric=False)
    monkeypatch.setattr(network_module, "LARGE", 1)
    torch.set_num_threads(2)
    with torch.no_grad():
        assert torch.equal(errors(s, v, symmetric=False), alone)
    assert torch.get_num_threads() == 2


def test_gradients_of_the_order_violation() -> None:
    s, v = (x.requires_grad_() for x in embeddings(6, 4, 5))
    assert torch.autograd.gradcheck(OrderViolation.apply, (s, v))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_loss_is_the_slow_sum_over_all_others(symmetric: bool, margin: float) -> None:
    s, v = embeddings(9, 9, 6)
    error = errors(s, v, symmetric)
    if symmetric:
        np.testing.assert_allclose(error.numpy(), -(s.numpy() @ v.numpy().T))
    assert float(contrastive_loss(error, margin)) == pytest.approx(slow_loss(error.numpy(), margin), rel=1e-12)


def test_the_diagonal_of_the_loss_has_no_gradient_of_its_own() -> None:
    """Where all others are far enough away nothing is left, though the right pair's own hinge would be the margin."""
    error = torch.full((4, 4), 5.0).fill_diagonal_(0.0).requires_grad_()
    loss = contrastive_loss(error, 0.05)
    loss.backward()
    assert loss.item() == 0
    assert error.grad is not None
    assert bool((error.grad == 0).all())


# --- ranks


def slow_ranks(error: np.ndarray) -> tuple[list[int], list[int]]:
    """By counting, a wrong one at the same distance before the right one."""
    S, V = error.shape
    of_sentences = [1 + sum(error[i, j] <= error[i, i // 5] for j in range(V) if j != i // 5) for i in range(S)]
    of_images = []
    for j in range(V):
        best = min(error[5 * j : 5 * j + 5, j])
        of_images.append(1 + sum(error[i, j] <= best for i in range(S) if i // 5 != j))
    return of_sentences, of_images


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_ranks_are_the_slow_ones_with_ties_and_without(levels: int) -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        error = generator.integers(0, levels, (35, 7)).astype(np.float64)
        by_sentence, by_image = ranks(torch.from_numpy(error))
        expected = slow_ranks(error)
        assert by_sentence.tolist() == expected[0]
        assert by_image.tolist() == expected[1]


def test_ranks_without_ties_are_those_of_sorting() -> None:
    error = np.random.default_rng(3).normal(size=(50, 10))
    by_sentence, by_image = ranks(torch.from_numpy(error))
    for i in range(50):
        assert by_sentence[i] == 1 + list(error[i].argsort()).index(i // 5)
    for j in range(10):
        order = list(error[:, j].argsort())
        assert by_image[j] == 1 + min(order.index(i) for i in range(5 * j, 5 * j + 5))


def test_a_model_that_tells_nothing_apart_ranks_last() -> None:
    by_sentence, by_image = ranks(torch.zeros(50, 10))
    assert by_sentence.tolist() == [10] * 50
    assert by_image.tolist() == [46] * 10  # behind the other images' 45 sentences


def test_recalls_are_shares_in_percent() -> None:
    found = recalls(torch.tensor([1, 2, 5, 6, 10, 11, 100, 1]))
    assert found == {"r1": 25.0, "r5": 50.0, "r10": 75.0, "mean_rank": 17.0}


def test_ranking_five_thousand_captions_of_a_thousand_images_is_fast_and_exact() -> None:
    """Under 2 seconds on two free cores; the bound here is generous, as tests share their machine."""
    s, v = (x.float() for x in embeddings(5000, 1000, 1024))
    begun = time.process_time()
    error = errors(s, v, symmetric=False)
    by_sentence, _ = ranks(error)
    assert time.process_time() - begun < 10
    for i in (0, 1234, 4999):
        exact = (s[i].double() - v.double()).clamp(min=0).square().sum(1)
        torch.testing.assert_close(error[i].double(), exact, rtol=1e-5, atol=1e-7)
        assert by_sentence[i] == (error[i] <= error[i, i // 5]).sum()


# --- model


@pytest.mark.parametrize("norm", NORMS)
def test_initial_weights_are_the_published_ones_under_every_norm(norm: str) -> None:
    torch.manual_seed(0)
    network = OrderEmbedding(20, 7, 5, 8, False, NormConfig(norm))
    weight_ih, weight_hh = (network.gru.weight(f"weight_{term}_l0").detach() for term in ("ih", "hh"))
    assert float(weight_ih.abs().max()) <= 0.1
    assert float(weight_ih.std()) == pytest.approx(0.1 / 3**0.5, rel=0.2)
    for gate in weight_hh.chunk(3):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(8), atol=1e-5, rtol=0)
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert bool((network.gru.get_parameter(name) == 0).all())
    assert bool((network.image.bias == 0).all())
    assert float(network.image.weight.detach().abs().max()) <= (6 / (7 + 8)) ** 0.5


def test_embeddings_have_length_one_and_signs_only_where_the_cosine_is_taken() -> None:
    words, lengths, features = torch.randint(20, (6, 30)), torch.randint(1, 7, (30,)), torch.randn(30, 7)
    for symmetric in (False, True):
        torch.manual_seed(0)
        network = OrderEmbedding(20, 7, 5, 8, symmetric, NormConfig("layer"))
        for placed in (network.sentences(words, lengths), network.images(features)):
            torch.testing.assert_close(placed.norm(dim=1), torch.ones(30))
            assert bool((placed < 0).any()) == symmetric


@pytest.mark.parametrize("norm", NORMS)
def test_a_sentences_vector_is_the_state_after_its_eos_whatever_follows(recipe: Make, norm: str) -> None:
    task = task_of(recipe("experiment=order_embeddings", f"norm={norm}"))
    words, lengths, _ = task.batch(0)
    assert bool((words[lengths - 1, torch.arange(len(lengths))] == 0).all())
    assert bool((words[lengths - 2, torch.arange(len(lengths))] > 1).all())
    task.loss(task.batch(0))  # batch norm's statistics
    task.model.eval()
    found = task.embedding.sentences(words, lengths)
    spoilt = words.clone()
    for b, end in enumerate(lengths):
        spoilt[end:, b] = 3
    assert torch.equal(task.embedding.sentences(spoilt, lengths), found)
    short = int(lengths.argmin())
    one = task.embedding.sentences(words[: lengths[short], short : short + 1], lengths[short : short + 1])
    torch.testing.assert_close(one[0], found[short])


# --- data


def test_sentences_are_padded_with_eos() -> None:
    sentences = Sentences([[5, 6, 7], [8], [9, 4]])
    words, lengths = sentences.padded(torch.tensor([1, 0]))
    assert words.t().tolist() == [[8, 0, 0, 0], [5, 6, 7, 0]]
    assert lengths.tolist() == [2, 4]


def test_a_batch_is_a_function_of_the_step(task: OrderEmbeddings) -> None:
    again = task_of(task.recipe)
    for step in (40, 3, 18, 3):
        for a, b in zip(task.batch(step), again.batch(step), strict=True):
            assert torch.equal(a, b)


def test_an_epoch_takes_every_image_once_with_one_of_its_captions(task: OrderEmbeddings) -> None:
    row_of = {tuple(row.tolist()): i for i, row in enumerate(task.features["train"])}
    data, drawn = task.data["train"], {}
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * task.steps_per_epoch, (epoch + 1) * task.steps_per_epoch):
            words, lengths, features = task.batch(step)
            for b, row in enumerate(features):
                image = row_of[tuple(row.tolist())]
                caption = task.vocabulary.decode(words[: lengths[b] - 1, b].tolist())
                assert caption in data.captions[CAPTIONS * image : CAPTIONS * (image + 1)]
                seen.append(image)
                drawn.setdefault(image, set()).add(" ".join(caption))
        assert len(set(seen)) == len(seen) == task.steps_per_epoch * task.recipe.train.batch_size
    assert np.mean([len(captions) for captions in drawn.values()]) > 1.5  # drawn anew in the second epoch


def test_a_test_captions_new_words_are_unknown(recipe: Make) -> None:
    source = OrderEmbeddings.find("embedded")
    data = source.load()
    data["test"] = replace(data["test"], captions=[[*caption, "zebra"] for caption in data["test"].captions])
    task = task_of(recipe("experiment=order_embeddings", "norm=none"), replace(source, load=lambda: data))
    words, lengths = task.captions["test"].padded(torch.tensor([0]))
    assert words[-2:, 0].tolist() == [1, 0]
    assert int(lengths) == len(data["test"].captions[0]) + 1


# --- evaluation


def test_validation_is_the_first_fold_and_test_the_mean_of_all(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLD", 20)
    monkeypatch.setattr(module, "EVALUATION_BATCH", 17)
    task = task_of(recipe("experiment=order_embeddings", "norm=layer"))
    task.model.eval()
    with torch.no_grad():
        for split, folds in (("valid", 1), ("test", 5)):
            found, sums = task.evaluate(split), []
            words, lengths = task.captions[split].padded(torch.arange(CAPTIONS * 100))
            s, v = task.embedding.sentences(words, lengths), task.embedding.images(task.features[split])
            for fold in range(folds):
                error = errors(s[100 * fold : 100 * (fold + 1)], v[20 * fold : 20 * (fold + 1)], symmetric=False)
                by_sentence, by_image = slow_ranks(error.numpy().astype(np.float64))
                r = [100 * np.mean([rank <= k for rank in by_sentence]) for k in (1, 5, 10)]
                sums.append([r[0], r[2], np.mean(by_image), sum(r)])
            expected = np.mean(sums, 0)
            names = ("image_r1", "image_r10", "caption_mean_rank", "image_recall_sum")
            np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-6)


def test_known_pairs_are_those_of_the_order() -> None:
    data = OrderEmbeddings.find("embedded").load()["test"]
    captions = data.captions[:60]
    general, specific = ordered_pairs(captions)
    found = {(" ".join(captions[i]), " ".join(captions[j])) for i, j in zip(general, specific, strict=True)}
    assert len(found) == len(general)
    for a in captions:
        for b in captions:
            known = more_general(a, b) and not more_general(b, a)
            assert ((" ".join(a), " ".join(b)) in found) == known


# --- runs


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_runs_learns_and_draws(recipe: Make, norm: str) -> None:
    run = carry_out(recipe("experiment=order_embeddings", f"norm={norm}"))
    records = read_metrics(run.folder / "metrics.jsonl")
    assert run.info["status"] == "complete"
    assert run.info["data"]["status"] == "embedded"
    assert run.info["backend"] != "none"
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert losses[-1] < losses[0]
    assert {"test_image_r1", "test_caption_mean_rank", "test_order_accuracy"} <= records[-1].keys()
    assert {"retrievals.png", "order.png", "order.svg"} <= {path.name for path in run.folder.iterdir()}


def test_the_symmetric_baseline_runs(recipe: Make) -> None:
    run = carry_out(recipe("experiment=order_embeddings_sym", "norm=none"))
    final = read_metrics(run.folder / "metrics.jsonl")[-1]
    assert json.loads((run.folder / "run.json").read_text())["identity"]["model"]["margin"] == 0.2
    assert final["final"]
    assert "test_order_accuracy" not in final  # the cosine knows no order
    assert not (run.folder / "order.png").exists()


def test_pictures_of_features_without_pictures_show_names_and_captions(recipe: Make, tmp_path: Path) -> None:
    source = OrderEmbeddings.find("embedded")
    data = {split: Captioned(p.features, p.captions, p.names) for split, p in source.load().items()}
    task = task_of(recipe("experiment=order_embeddings", "norm=layer"), replace(source, load=lambda: data))
    task.model.eval()
    with torch.no_grad():
        assert task.evaluate_once() == {}
        task.draw(tmp_path)
    assert (tmp_path / "retrievals.png").stat().st_size > 10_000
    assert not (tmp_path / "order.png").exists()


def test_gradients_are_cut_by_the_published_codes_tensors(recipe: Make) -> None:
    """Weights, biases and gains of both gates are one tensor each there, the candidate's another."""
    made = recipe("experiment=order_embeddings", "norm=layer", "train.clip_norm=0.001")
    task = OrderEmbeddings(made, OrderEmbeddings.find("embedded"), torch.device("cpu"))
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    Step(task, optimizer, made.train)(task.batch(0))
    H = made.model.hidden
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is not None
        parts = parameter.grad.split([2 * H, H]) if name.startswith("gru.") else [parameter.grad]
        for part in parts:
            if part.any():
                assert float(part.norm()) == pytest.approx(0.001, rel=0.05), name
