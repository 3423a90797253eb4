"""Skip-thoughts: the loss against a slow transcription, decoders that see the past alone, the evaluation protocol, runs
of every norm, a run that goes on in the middle of an epoch, and `scripts.nearest`."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression

import ln.suite.runs.train
from experiments.skip_thoughts import StepCost
from experiments.skip_thoughts import task as skip_thoughts
from experiments.skip_thoughts.evaluation import (
    Protocol,
    cross_validated,
    pair_features,
    relatedness,
    soft_labels,
)
from experiments.skip_thoughts.task import SkipThoughts, SkipThoughtsTask, finished, real
from ln import NormConfig
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.data.vocabulary import EOS, padded
from ln.suite.errors import Mistake
from ln.suite.runs.device import device_of
from ln.suite.runs.read import read_metrics
from ln.suite.runs.step import Step
from ln.suite.runs.train import carry_out
from scripts import nearest

Make = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_CACHE", str(tmp_path_factory.getbasetemp() / "books"))


def small(norm: str) -> SkipThoughts:
    torch.manual_seed(0)
    model = SkipThoughts(vocabulary=11, words=5, hidden=6, norm=NormConfig(norm))
    for name, parameter in model.named_parameters():
        if "bias" in name or "gain" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "gain" in name else 0.0, std=0.3)
        elif "weight_hh" not in name:
            parameter.data.mul_(7)  # where the tanh bends
    return model.double()


def batch_of(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, lengths = padded([[*row, EOS] for row in rows])
    return ids.t().contiguous(), lengths


TRIPLES = ([[2, 3, 4], [5, 6, 7]], [[8, 2], [9, 10, 3, 4, 5]], [[7], [6, 6, 2, 3]])  # middle, next, previous


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_loss_is_a_slow_transcription(norm: str) -> None:
    """Word by word: layer norm of eq. 23 to 28, over r and z together and over the candidate by itself."""
    model = small(norm)

    def norm_of(x: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
        if gain is None:
            return x
        H = len(x) // 3
        parts = [(part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt() for part in (x[: 2 * H], x[2 * H :])]
        return torch.cat(parts) * gain

    def step(gru: torch.nn.Module, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        p = gru.params("_l0", torch.float64)  # type: ignore[operator]
        a, b = norm_of(p.weight_ih @ x, p.gain_ih) + p.bias_ih, norm_of(p.weight_hh @ h, p.gain_hh) + p.bias_hh
        (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + r * bn) + z * h

    total, words = 0.0, 0
    for middle, *around in zip(*TRIPLES, strict=True):
        vector = torch.zeros(6, dtype=torch.float64)
        for word in [*middle, EOS]:
            vector = step(model.encoder, model.embedding.weight[word], vector)
        for decoder, sentence in zip(model.decoders, around, strict=True):
            h, before = vector, torch.zeros(5, dtype=torch.float64)
            for word in [*sentence, EOS]:
                h = step(decoder, before, h)
                logits = model.output.weight @ h + model.output.bias
                total -= float((logits[word] - logits.exp().sum().log()).detach())
                before, words = model.embedding.weight[word], words + 1
    loss, counted = model.nll([part for rows in TRIPLES for part in batch_of(rows)])
    assert counted == words
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_decoder_sees_the_vector_and_the_words_before_and_nothing_else(norm: str) -> None:
    model = small(norm).eval()
    vector = torch.randn(1, 6, dtype=torch.float64)
    ids, lengths = batch_of([[2, 3, 4, 5]])
    states = model.states(0, vector, ids, lengths)
    for t in range(5):
        changed = ids.clone()
        changed[t] = 9
        differs = (model.states(0, vector, changed, lengths) != states).any(1)
        assert differs.tolist() == [step > t for step in range(5)]  # shifted right: a word is seen one step later
    assert (model.states(0, vector + 1, ids, lengths)[0] != states[0]).any()
    model.embedding.weight.data[EOS] += 1  # zeros come first, not the vector of a word
    assert torch.equal(model.states(0, vector, ids, lengths)[0], states[0])


@pytest.mark.parametrize("norm", NORMS)
def test_padding_changes_nothing(norm: str) -> None:
    """In training, where batch norm's statistics must leave the padding out."""
    model = small(norm)
    middle, *around = [batch_of(rows) for rows in TRIPLES]
    loss, words = model.nll([*middle, *around[0], *around[1]])
    wider = [(torch.cat([ids, torch.full((4, 2), 9)]), lengths) for ids, lengths in around]
    again, counted = model.nll([*middle, *wider[0], *wider[1]])
    assert counted == words
    assert float(again.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert real(*around[0]).sum(0).tolist() == [3, 6]


def test_vectors_are_of_length_1_and_do_not_depend_on_company() -> None:
    model = small("layer").eval()
    together = model.vectors([[2, 3, 4, 5, 6], [7], []])
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    for row, alone in zip(together, ([2, 3, 4, 5, 6], [7], []), strict=True):
        assert np.allclose(model.vectors([alone])[0], row, atol=1e-6)


# --- evaluation


def test_soft_labels_have_the_score_as_their_mean() -> None:
    scores = np.array([1.0, 1.3, 2.0, 4.75, 5.0])
    labels = soft_labels(scores)
    assert np.allclose(labels.sum(1), 1)
    assert np.allclose(labels @ np.arange(1, 6), scores)
    assert (np.count_nonzero(labels, axis=1) <= 2).all()
    assert labels[0].tolist() == [1, 0, 0, 0, 0]


def test_relatedness_learns_what_features_tell_and_scores_as_scipy_does() -> None:
    draw = np.random.default_rng(0)

    def pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = draw.normal(size=(2, count, 4))
        return pair_features(a, b), 1 + 4 / (1 + np.exp(np.abs(a - b).sum(1) - 4.5))

    train, develop, test = pairs(400), pairs(100), pairs(100)
    found = relatedness(train, develop, test, Protocol(epochs=20, rounds=6))
    assert found["r"] > 0.8
    again = relatedness(train, develop, (test[0], -test[1]), Protocol(epochs=20, rounds=6))
    assert again["r"] == pytest.approx(-found["r"])  # the judged scores are for judging alone
    assert again["rho"] == pytest.approx(-found["rho"])


def test_relatedness_metrics_of_a_constant_prediction() -> None:
    features, scores = np.zeros((20, 4)), np.linspace(1, 5, 20)
    found = relatedness((features, scores), (features, scores), (features, scores), Protocol(epochs=1, rounds=1))
    assert (found["r"], found["rho"]) == (0, 0)
    assert found["mse"] == pytest.approx(np.var(scores), rel=0.02)
    assert math.isfinite(found["mse"])
    assert pearsonr([1, 2, 3], [1, 2, 4]).statistic != spearmanr([1, 2, 3], [1, 2, 4]).statistic


def test_folds_never_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sentence is judged once, by a classifier that was fitted without it and whose C was chosen without it."""
    features = np.random.default_rng(0).normal(size=(60, 3))
    features[:, 0] = np.arange(60)  # each row tells which it is
    labels = np.arange(60) % 2
    fits: list[set[int]] = []
    judged: list[int] = []

    class Noting(skip_thoughts.evaluation.LogisticRegressionCV):
        def fit(self, X: np.ndarray, y: np.ndarray) -> "Noting":
            rows = set(X[:, 0].astype(int).tolist())
            for inner, held_out in self.cv.split(X):
                assert not set(inner) & set(held_out)
                assert set(X[inner, 0].astype(int)) < rows
            fits.append(rows)
            return super().fit(X, y)

        def predict(self, X: np.ndarray) -> np.ndarray:
            rows = X[:, 0].astype(int).tolist()
            assert not fits[-1] & set(rows)
            judged.extend(rows)
            return super().predict(X)

    monkeypatch.setattr(skip_thoughts.evaluation, "LogisticRegressionCV", Noting)
    cross_validated(features, labels, Protocol(folds=5, inner_folds=3, costs=3))
    assert sorted(judged) == list(range(60))
    assert [len(rows) for rows in fits] == [48] * 5


def test_accuracy_is_that_of_the_classifier_by_hand() -> None:
    draw = np.random.default_rng(1)
    features = draw.normal(size=(120, 4))
    labels = (features @ np.array([1, -1, 0.5, 0]) + draw.normal(size=120) > 0).astype(int)
    mean, deviation = cross_validated(features, labels, Protocol(folds=4, inner_folds=2, costs=1))
    order = skip_thoughts.evaluation.KFold(4, shuffle=True, random_state=1234).split(features)
    by_hand = [
        100 * LogisticRegression(C=1.0, max_iter=1000).fit(features[a], labels[a]).score(features[b], labels[b])
        for a, b in order
    ]
    assert mean == pytest.approx(np.mean(by_hand))
    assert deviation == pytest.approx(np.std(by_hand))
    noise = cross_validated(draw.normal(size=(200, 4)), np.arange(200) % 2, Protocol(folds=4, inner_folds=2, costs=2))
    assert 30 < noise[0] < 70


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"costs": 10}, {"sentences": -1}, {"rounds": 0}])
def test_a_protocol_that_cannot_be_is_refused(wrong: dict[str, int], recipe: Make) -> None:
    ((key, value),) = wrong.items()
    with pytest.raises(Mistake, match=f"{key}={value}"):
        recipe("experiment=skip_thoughts", f"model.final.{key}={value}")


# --- runs


def test_every_triple_of_a_batch_is_next_to_its_middle(recipe: Make) -> None:
    made = recipe("experiment=skip_thoughts")
    task = SkipThoughtsTask(made, SkipThoughtsTask.find("embedded"), device_of("cpu"))
    part = task.books.splits["train"]
    middles = task.order.middles(3)
    batch = task.batch(3)
    for ids, lengths, offset in zip(batch[::2], batch[1::2], (0, 1, -1), strict=True):
        for row, length, middle in zip(ids.t(), lengths, middles, strict=True):
            expected = part.sentence(middle + offset, len(task.vocabulary)).tolist()
            assert row[:length].tolist() == [*expected, EOS]
    assert len(set(batch[1].tolist())) == 1  # batches of one length


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_runs_and_learns(norm: str, recipe: Make) -> None:
    run = carry_out(recipe("experiment=skip_thoughts", f"norm={norm}"))
    records = read_metrics(run.folder / "metrics.jsonl")
    assert run.info["status"] == "complete"
    curve = [record["valid_nll"] for record in records if "valid_nll" in record and not record.get("final")]
    assert curve[-1] < curve[0]
    assert {"test_sick_r", "test_mr", "test_mr_std", "test_bag_mr"} <= records[-1].keys()
    assert (run.folder / "nearest.png").exists()


def test_resuming_in_the_middle_of_an_epoch_is_identical(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = ("experiment=skip_thoughts", "norm=batch", "model.evaluate_triples=16")

    def records(folder: Path) -> list[dict[str, object]]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    whole = carry_out(recipe(*overrides, f"results={tmp_path}/whole"))
    original = SkipThoughtsTask.batch

    class Stop(Exception):
        pass

    def batch(self: SkipThoughtsTask, step: int) -> tuple[torch.Tensor, ...]:
        if step == 6:
            raise Stop
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(SkipThoughtsTask, "batch", batch)
        patch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Stop):
            carry_out(recipe(*overrides))
    again = carry_out(recipe(*overrides))
    assert records(again.folder) == records(whole.folder)


def test_nearest_finds_a_sentence_itself_and_says_what_is_missing(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe("experiment=skip_thoughts", "norm=layer")
    command = ["nearest", "--profile", "smoke", "--results", made.results, "--count", "2"]

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*command, *more])
        nearest.main()
        return capsys.readouterr().out

    def refused(said: str, *more: str) -> None:
        with pytest.raises(SystemExit):
            run(*more)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    refused("holds no run", "some words")
    folder = carry_out(made).folder
    sentence = finished(folder).pool()[0]
    text = " ".join(finished(folder).vocabulary.decode(sentence))
    found = run(f"{text} zzyzx").splitlines()
    assert any(line.startswith("not in the vocabulary, read as unknown: zzyzx") for line in found)
    assert any(line == f"1.000  {text}" for line in run(text).splitlines())
    refused("the sentence is empty", " ")
    (folder / "best.pt").write_bytes(b"cut short")
    refused("cannot be read as the weights", text)
    (folder / "best.pt").unlink()
    refused("is not there", text)


# --- the cost of a step


def test_both_networks_of_a_steps_cost_are_trained_and_timed_in_turns(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe("experiment=skip_thoughts_cost", "model.rounds=3")
    timed: list[tuple[str, float, float]] = []

    def seconds(self: StepCost, step: Step, batch: tuple[torch.Tensor, ...]) -> float:
        before = step.task.model.encoder.weight_hh_l0.clone()
        step(batch)
        assert not torch.equal(before, step.task.model.encoder.weight_hh_l0)
        timed.append((step.task.model.encoder.norm.name, float(batch[0].sum()), float(step.task.model.training)))
        return {"layer": 3.0, "none": 2.0}[timed[-1][0]] + 100 * (len(timed) <= 2)  # the first pair warms up

    monkeypatch.setattr(StepCost, "_seconds", seconds)
    info = json.loads((carry_out(made).folder / "run.json").read_text())
    assert info["final"]["test_step_ratio"] == 1.5
    assert (info["final"]["test_step_seconds"], info["final"]["test_step_seconds_none"]) == (3.0, 2.0)
    assert [name for name, *_ in timed] == ["layer", "none"] * 4
    assert [words for _, words, _ in timed[::2]] == [words for _, words, _ in timed[1::2]]  # the same minibatches
    assert all(training for *_, training in timed)
