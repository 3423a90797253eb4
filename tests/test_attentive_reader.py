"""The attentive reader: its attention against a transcription, masks, batch norm everywhere, initial weights, runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.attentive_reader.network import AttentiveReader, PooledInputLSTM, publish_init
from experiments.attentive_reader.pictures import Answered, chosen, places
from experiments.attentive_reader.task import AttentiveReaderTask, permuted
from ln import LSTM, NormConfig
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.data import cloze
from ln.suite.data.cloze import FIRST_ENTITY
from ln.suite.errors import Mistake
from ln.suite.runs.train import carry_out
from ln.suite.task import stream_seed

Make = Callable[..., Recipe]
VARIANTS: list[dict[str, Any]] = [
    *({"norm": NormConfig(norm)} for norm in NORMS),
    {"norm": NormConfig("layer"), "bidirectional": True},
    {"norm": NormConfig("batch"), "everywhere": True},
    {"norm": NormConfig("batch"), "everywhere": True, "pooled_input": True, "bidirectional": True},
]
LENGTHS, QUESTION_LENGTHS = torch.tensor([7, 3, 5]), torch.tensor([2, 4, 1])


def small(norm: NormConfig, hidden: int = 6, **options: Any) -> AttentiveReader:
    """A network in float64 whose every parameter is random, so that none hides at zero."""
    torch.manual_seed(0)
    model = AttentiveReader(20, hidden, norm, steps=(12, 6), dropout=0.0, **options).double()
    for name, parameter in model.named_parameters():
        if not name.endswith("_g"):  # weight norm's gains stay positive
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    passage, question = (torch.randint(1, 20, (steps, 3), generator=generator) for steps in (7, 4))
    return passage, LENGTHS, question, QUESTION_LENGTHS


def task_of(recipe: Make, *overrides: str) -> AttentiveReaderTask:
    asked = recipe("experiment=attentive_reader", *overrides)
    torch.manual_seed(stream_seed(asked.seed, "init"))
    return AttentiveReaderTask(asked, AttentiveReaderTask.find(asked.data), torch.device("cpu"))


# --- the network


def test_attention_and_output_are_the_published_equations() -> None:
    """Word by word and case by case: v' tanh(W_d d + W_q u + (A d)'(A u)), and the context, question and mean."""
    model = small(NormConfig("layer"))
    passage, lengths, question, question_lengths = inputs()
    scores, attention = model.read(passage, lengths, question, question_lengths)
    A, v = model.similar.weight, model.attend
    for b in range(3):
        T, U = int(lengths[b]), int(question_lengths[b])
        d = model.reader(model.embedding(passage[:T, b : b + 1]))[0][:, 0]
        u = model.asker(model.embedding(question[:U, b : b + 1]))[0][-1, 0]
        logits = []
        for word in d:
            similarity = (A @ word) @ (A @ u)
            summed = model.attend_word.weight @ word + model.attend_word.bias + model.attend_question.weight @ u
            logits.append(v @ torch.tanh(summed + similarity))
        weights = torch.stack(logits).softmax(0)
        torch.testing.assert_close(attention[:T, b], weights)
        context = sum(weight * word for weight, word in zip(weights, d, strict=True))
        out = torch.tanh(
            model.from_context.weight @ context
            + model.from_question.weight @ u
            + model.from_question.bias
            + model.from_mean.weight @ d.mean(0)
        )
        torch.testing.assert_close(scores[b], model.output.weight @ out + model.output.bias)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_past_the_end_counts(options: dict[str, Any], training: bool) -> None:
    """Neither what the padding holds nor how long it is changes scores or gradients; attention there is zero."""
    passage, lengths, question, question_lengths = inputs()
    spoilt, longer = passage.clone(), question.clone()
    for b in range(3):
        spoilt[lengths[b] :, b] = 19
        longer[question_lengths[b] :, b] = 18
    spoilt, longer = torch.cat([spoilt, spoilt[:4]]), torch.cat([longer, longer[:2]])
    found = []
    for words, asked in ((passage, question), (spoilt, longer)):
        model = small(**options).train(training)
        scores, attention = model.read(words, lengths, asked, question_lengths)
        past = torch.arange(len(words)).unsqueeze(1) >= lengths
        assert (attention[past] == 0).all()
        torch.testing.assert_close(attention.sum(0), torch.ones(3, dtype=torch.float64))
        scores.square().sum().backward()
        found.append([scores, *(p.grad for p in model.parameters() if p.grad is not None)])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_batch_norm_everywhere_takes_the_words_of_all_steps_together() -> None:
    model = small(NormConfig("batch"), everywhere=True)
    d, inside = torch.randn(7, 3, 6).double(), torch.arange(7).unsqueeze(1) < LENGTHS
    norm = model.norms["attend_word"]
    y = model._words(d, inside)
    rows = model.attend_word(d)[inside]
    expected = (rows - rows.mean(0)) / (rows.var(0, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(y[inside], expected)
    assert set(model.norms) == {"attend_word", "attend_question", "from_context", "from_question", "from_mean"}
    assert not small(NormConfig("layer"), everywhere=True).norms


def test_added_gains_start_where_the_lstms_do() -> None:
    model = AttentiveReader(20, 6, NormConfig("batch"), everywhere=True, pooled_input=True)
    for norm in model.norms.values():
        assert torch.equal(norm.weight, torch.full((6,), 0.1))
    assert torch.equal(model.reader.gain_ih_l0, torch.full((24,), 0.1))


# --- sequence-wise statistics


def test_pooled_input_is_batch_norm_over_all_steps() -> None:
    """Against the same LSTM that is fed BN(W x) ready-made, its input weights the identity."""
    torch.manual_seed(0)
    D, H = 5, 4
    norm = NormConfig("batch", max_steps=9)
    pooled = PooledInputLSTM(D, H, norm=norm).double()
    for parameter in pooled.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    fed = LSTM(4 * H, H, norm=NormConfig("batch", max_steps=9, sites=("recurrent", "cell"))).double()
    own = dict(pooled.named_parameters())
    with torch.no_grad():
        for name, parameter in fed.named_parameters():
            parameter.copy_(torch.eye(4 * H) if name == "weight_ih_l0" else own[name])
    x = torch.randn(9, 3, D).double()
    lengths = torch.tensor([9, 2, 6])
    inside = torch.arange(9).unsqueeze(1) < lengths
    rows = x[inside] @ own["weight_ih_l0"].T
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    summed = own["gain_ih_l0"] * (x @ own["weight_ih_l0"].T - mean) / (variance + norm.eps).sqrt()
    torch.testing.assert_close(pooled(x, lengths=lengths)[0], fed(summed, lengths=lengths)[0])


def test_pooled_input_evaluates_with_the_averages_of_training() -> None:
    torch.manual_seed(0)
    lstm = PooledInputLSTM(3, 4, norm=NormConfig("batch", max_steps=6)).double()
    x = torch.randn(6, 50, 3).double()
    for _ in range(3):
        trained = lstm(x)[0]
    lstm.eval()
    torch.testing.assert_close(lstm(x)[0], trained)
    torch.testing.assert_close(lstm(x[:, :1])[0], trained[:, :1])


# --- initial weights


def test_published_initial_weights_are_equal_for_all_gates_and_orthogonal() -> None:
    torch.manual_seed(3)
    model = AttentiveReader(20, 8, NormConfig("layer"))
    publish_init(model)
    gates = [*model.reader.weight_ih_l0.chunk(4), *model.asker.weight_hh_l0.chunk(4), model.similar.weight]
    for gate in gates:
        assert torch.equal(gate, gates[0])
    torch.testing.assert_close(gates[0] @ gates[0].T, 0.05**2 * torch.eye(8))
    assert torch.equal(model.from_context.weight, model.from_mean.weight)
    assert not model.from_context.weight.equal(gates[0])
    assert model.embedding.weight.abs().max() <= (6 / 29) ** 0.5
    assert all((p == 0).all() for name, p in model.named_parameters() if "bias" in name)
    torch.manual_seed(4)
    other = AttentiveReader(20, 8, NormConfig("layer"))
    assert not other.reader.weight_ih_l0[:8].equal(other.reader.weight_ih_l0[8:16])
    publish_init(other)
    assert not other.similar.weight.equal(model.similar.weight)


def test_gains_of_the_recipes(recipe: Make) -> None:
    model = task_of(recipe, "norm=layer").model
    assert set(model.reader.gain_ih_l0.tolist()) == {1.0}
    smaller = task_of(recipe, "experiment=attentive_reader_gain01", "norm=layer").model
    for lstm in (smaller.reader, smaller.asker):
        assert lstm.gain_c_l0.tolist() == pytest.approx([0.1] * lstm.hidden_size)


# --- the task


def test_markers_are_renamed_together_and_words_stay() -> None:
    words = torch.tensor([[2, 3, 5, 9, 3], [4, 4, 1, 0, 6]])
    permutations = torch.tensor([[2, 0, 1], [1, 0, 2]])
    assert permuted(words, permutations).tolist() == [[2, 5, 4, 9, 5], [3, 3, 1, 0, 6]]


def test_batches_are_a_function_of_the_step_and_rename_entities_anew(recipe: Make) -> None:
    task, again = task_of(recipe), task_of(recipe)
    for step in (5, 0, 1):
        for first, second in zip(task.batch(step), again.batch(step), strict=True):
            assert torch.equal(first, second)
    chosen_ones = task.order.indices(0).tolist()
    plain, renamed = task._batch("train", chosen_ones), task.batch(0)
    assert not torch.equal(plain[4], renamed[4])
    markers = (plain[0] >= FIRST_ENTITY) & (plain[0] < FIRST_ENTITY + task.corpus.entities)
    assert torch.equal(plain[0][~markers], renamed[0][~markers])
    for b in range(len(chosen_ones)):
        # The answer's places are the same under its new name, as are all others': a renaming, one to one.
        assert torch.equal(plain[0][:, b] == plain[4][b], renamed[0][:, b] == renamed[4][b])
        pairs = {(int(p), int(r)) for p, r in zip(plain[0][:, b], renamed[0][:, b], strict=True)}
        assert len(pairs) == len({p for p, _ in pairs}) == len({r for _, r in pairs})


def test_only_entities_can_be_answers_where_the_recipe_says_so(recipe: Make) -> None:
    task = task_of(recipe, "model.entities_only=true")
    scores, _ = task.scores(task.batch(0))
    markers = slice(FIRST_ENTITY, FIRST_ENTITY + task.corpus.entities)
    assert scores[:, markers].isfinite().all()
    assert scores.isfinite().sum() == scores[:, markers].numel()
    whole, _ = task_of(recipe, "model.entities_only=false").scores(task.batch(0))
    assert whole.isfinite().all()


def test_evaluation_counts_each_question_once_whatever_the_batches(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(recipe)
    task.model.eval()
    with torch.no_grad():
        one_by_one = [task.scores(task._batch("valid", [i])) for i in range(task.examples["valid"])]
        wrong = [int(s[0].argmax()) != a for (s, _), a in zip(one_by_one, task.splits["valid"].answers, strict=True)]
        monkeypatch.setattr("experiments.attentive_reader.task.EVALUATION_BATCH", 7)
        assert task.evaluate("valid")["error"] == pytest.approx(100 * np.mean(wrong))


def test_a_vocabulary_without_room_for_the_markers_is_refused(recipe: Make) -> None:
    with pytest.raises(Mistake, match=r"model\.vocabulary=5 leaves no room for the 6 entity markers"):
        task_of(recipe, "model.vocabulary=5")
    task = task_of(recipe, "model.vocabulary=12")
    assert max(int(words.max()) for words in task.splits["train"].passages) < 12


def test_the_floor_is_measured_on_the_shortened_passages(recipe: Make) -> None:
    task = task_of(recipe)
    found = task.evaluate_once()
    test = task.splits["test"]
    hits = [
        cloze.most_frequent_entity(passage, task.corpus.entities, set(question.tolist())) == answer
        for passage, question, answer in zip(test.passages, test.questions, test.answers, strict=True)
    ]
    assert found["floor_error"] == pytest.approx(100 * (1 - np.mean(hits)))
    assert found["unanswerable"] == 0  # four sentences of a generated passage hold all its people


def test_a_short_training_beats_guessing(recipe: Make) -> None:
    """Generated passages of three or four people: a guess among the six markers errs in 83 % of cases."""
    overrides = ["model.hidden=32", "model.train_questions=0", "train.batch_size=32", "train.evaluate_every=100"]
    run = carry_out(recipe("experiment=attentive_reader", "norm=none", "train.steps=200", *overrides))
    assert run.info["final"]["test_error"] < 65


# --- pictures


def test_the_page_shows_right_ones_and_wrong_ones_whose_answer_is_there(recipe: Make) -> None:
    attention = np.ones(2)
    right = Answered(["@entity1", "."], ["@placeholder"], attention, "@entity1", "@entity1")
    wrong = Answered(["@entity1", "."], ["@placeholder"], attention, "@entity1", "@entity2")
    hopeless = Answered(["@entity1", "."], ["@placeholder"], attention, "@entity3", "@entity1")
    assert chosen([wrong, hopeless, right]) == [right, wrong]
    run = carry_out(recipe("experiment=attentive_reader", "norm=layer"))
    assert (Path(run.folder) / "attention.png").stat().st_size > 0


def test_words_are_placed_in_lines_of_a_width() -> None:
    assert places(["four", "then", "six", "more"], 9) == [(0, 0), (0, 5), (1, 0), (1, 4)]
