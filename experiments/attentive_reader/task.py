"""The attentive reader (section 6.2, Figure 2): cloze questions on news, norms in the LSTMs of passage and question.

Shapes: B batch, T words of a passage, U of a question, E entity markers, V vocabulary, N questions of a split.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.attentive_reader import pictures
from experiments.attentive_reader.network import AttentiveReader, publish_init
from ln import NormConfig
from ln.suite.config import Recipe, zero_allowed
from ln.suite.data import Missing, Source, cloze, cnn_questions, resolve
from ln.suite.data.cloze import FIRST_ENTITY, Cloze, most_frequent_entity, most_similar, rarity
from ln.suite.data.vocabulary import UNKNOWN, padded
from ln.suite.errors import Mistake
from ln.suite.task import Shuffled, Task, stream_seed, wrong

EVALUATION_BATCH = 250
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # passage (T, B), lengths (B,), question (U, B), lengths, answers


@dataclass
class Settings:
    hidden: int = 240  # units of the LSTMs, of word vectors and of the attention
    dropout: float = zero_allowed(0.5)  # on word vectors and before the softmax
    sentences: int = 4  # of a passage: those most similar to the question
    words: int = zero_allowed(0)  # of a passage: what is longer is cut; 0: none
    vocabulary: int = zero_allowed(0)  # words that are known, the markers included; 0: all of the training split
    entities_only: bool = False  # the softmax runs over the entity markers instead of the vocabulary
    bidirectional: bool = False
    everywhere: bool = False  # batch norm also on the terms of the attention and of the output
    pooled_input: bool = False  # batch norm's input statistics over all steps together
    layer_gain: float = 1.0  # initial gains where statistics go over the features
    torch_init: bool = False  # torch's initial weights and word vectors from N(0, 1), not the published code's
    train_questions: int = zero_allowed(0)  # spread over the split; 0: all
    evaluate_questions: int = zero_allowed(0)  # spread over the split; 0: all


@dataclass(frozen=True)
class Questions:
    """A split as the network reads it: ids of the passages and questions, (N,) answers, all on the CPU."""

    passages: list[np.ndarray]
    questions: list[np.ndarray]
    answers: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)


def shown(corpus: Cloze, split: str, chosen: np.ndarray, weights: np.ndarray, settings: Settings) -> Questions:
    """The chosen questions, their passages shortened to the sentences most similar by the words' weights (V,) and to
    the words that are known."""
    part = corpus.splits[split]
    most = settings.vocabulary or len(corpus.vocabulary)
    if most < FIRST_ENTITY + corpus.entities:
        raise Mistake(f"model.vocabulary={most} leaves no room for the {corpus.entities} entity markers")
    passages, questions = [], []
    for index in chosen.tolist():
        question = part.question(index)
        words = most_similar(part.sentences(index), question, weights, corpus.entities, settings.sentences)
        passages.append(known(words[: settings.words or None], most))
        questions.append(known(question, most))
    return Questions(passages, questions, part.answers[chosen].astype(np.int64))


def known(words: np.ndarray, vocabulary: int) -> np.ndarray:
    return np.where(words < vocabulary, words, UNKNOWN)


def permuted(words: Tensor, permutations: Tensor) -> Tensor:
    """(B, L) ids with the entity markers of row b renamed by permutations (B, E); other words stay."""
    markers = words - FIRST_ENTITY
    inside = (markers >= 0) & (markers < permutations.shape[1])
    return torch.where(inside, permutations.gather(1, markers.where(inside, 0)) + FIRST_ENTITY, words)


def norm_for_reader(norm: NormConfig, settings: Settings) -> NormConfig:
    return dataclasses.replace(norm, gain_init=settings.layer_gain) if norm.traits.axis == "features" else norm


def substitute() -> Source:
    """The whole CNN corpus where it is, else questions about novels."""
    try:
        return cnn_questions.whole()
    except Missing:
        return cloze.substitute()


class AttentiveReaderTask(Task):
    Settings = Settings

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        self.corpus: Cloze = source.load()
        settings: Settings = recipe.model
        self.splits: dict[str, Questions] = {}
        weights = rarity(self.corpus)
        for split, part in self.corpus.splits.items():
            most = settings.train_questions if split == "train" else settings.evaluate_questions
            # The questions of a book or a day lie together.
            chosen = np.linspace(0, len(part) - 1, min(most or len(part), len(part))).round().astype(int)
            self.splits[split] = shown(self.corpus, split, chosen, weights, settings)
        self.examples = {split: len(questions) for split, questions in self.splits.items()}
        train = self.splits["train"]
        self.model = AttentiveReader(
            settings.vocabulary or len(self.corpus.vocabulary),
            settings.hidden,
            norm_for_reader(recipe.norm, settings),
            dropout=settings.dropout,
            bidirectional=settings.bidirectional,
            everywhere=settings.everywhere,
            pooled_input=settings.pooled_input,
            steps=(max(map(len, train.passages)), max(map(len, train.questions))),
        )
        if not settings.torch_init:
            publish_init(self.model)
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed)
        self.steps_per_epoch = self.order.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        return resolve(
            request,
            {"original": cnn_questions.original, "substitute": substitute, "embedded": cloze.embedded},
        )

    def _batch(self, split: str, chosen: list[int], permutations: Tensor | None = None) -> Batch:
        part = self.splits[split]
        passage, lengths = padded([part.passages[i].tolist() for i in chosen])
        question, question_lengths = padded([part.questions[i].tolist() for i in chosen])
        answers = torch.from_numpy(part.answers[chosen])
        if permutations is not None:
            passage, question = permuted(passage, permutations), permuted(question, permutations)
            answers = permuted(answers.unsqueeze(1), permutations).squeeze(1)
        # Lengths stay on the CPU, where the recurrent layers check them.
        return (
            passage.T.contiguous().to(self.device),
            lengths,
            question.T.contiguous().to(self.device),
            question_lengths,
            answers.to(self.device),
        )

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Entities are renamed at every step, so that a marker means nothing beyond its passage."""
        chosen = self.order.indices(step).tolist()
        generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, "entities", step))
        permutations = torch.rand(len(chosen), self.corpus.entities, generator=generator).argsort(1)
        return self._batch("train", chosen, permutations)

    def scores(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(B, V) scores, minus infinity for what is no candidate, and (T, B) attention."""
        scores, attention = self.model.read(*batch[:4])  # type: ignore[operator]
        if self.recipe.model.entities_only:
            words = torch.arange(scores.shape[1], device=scores.device)
            markers = (words >= FIRST_ENTITY) & (words < FIRST_ENTITY + self.corpus.entities)
            scores = scores.masked_fill(~markers, -torch.inf)
        return scores, attention

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        scores, _ = self.scores(batch)
        error = 100 * (scores.argmax(1) != batch[4]).to(scores.dtype).mean()
        return {"loss": F.cross_entropy(scores, batch[4]), "error": error.detach()}

    def evaluate(self, split: str) -> dict[str, float]:
        part, nll, errors = self.splits[split], 0.0, 0.0
        by_length = np.argsort([len(words) for words in part.passages], kind="stable")
        for chosen in np.array_split(by_length, -(-len(part) // EVALUATION_BATCH)):
            batch = self._batch(split, chosen.tolist())
            scores, _ = self.scores(batch)
            nll += float(F.cross_entropy(scores.double(), batch[4], reduction="sum"))
            errors += wrong(scores, batch[4])
        return {"nll": nll / len(part), "error": 100 * errors / len(part)}

    def evaluate_once(self) -> dict[str, float]:
        """What can be had without reading: the error of the passage's most frequent entity that is not in the question,
        and the share of questions whose answer the shortened passage lacks, in percent."""
        part = self.splits["test"]
        guesses = [
            most_frequent_entity(passage, self.corpus.entities, set(question.tolist()))
            for passage, question in zip(part.passages, part.questions, strict=True)
        ]
        missing = [answer not in passage for passage, answer in zip(part.passages, part.answers, strict=True)]
        floor = 100 * float(np.mean(np.array(guesses) != part.answers))
        return {"floor_error": floor, "unanswerable": 100 * float(np.mean(missing))}

    def draw(self, folder: Path) -> None:
        """attention.png: test questions answered rightly and wrongly, each word shaded by its attention."""
        if self.recipe.seed != 0:
            return
        count = min(EVALUATION_BATCH, self.examples["test"])
        chosen = np.linspace(0, self.examples["test"] - 1, count).round().astype(int).tolist()
        batch = self._batch("test", chosen)
        scores, attention = self.scores(batch)
        answered = []
        for b, index in enumerate(chosen):
            passage, question = self.splits["test"].passages[index], self.splits["test"].questions[index]
            answered.append(
                pictures.Answered(
                    self.corpus.vocabulary.decode(passage),
                    self.corpus.vocabulary.decode(question),
                    attention[: len(passage), b].cpu().numpy(),
                    *self.corpus.vocabulary.decode([int(batch[4][b]), int(scores[b].argmax())]),
                )
            )
        pictures.draw(folder / "attention.png", answered, self.recipe.norm.traits.label)
