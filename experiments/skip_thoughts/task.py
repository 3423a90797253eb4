"""Skip-thought vectors (section 6.3, Figure 3, Table 3): an encoder whose vector of a sentence lets two decoders say
the sentences before and after it (uni-skip of Kiros et al. 2015), with norms in all three GRUs.

Shapes: T steps of a padded sentence, B batch, E numbers of a word, H hidden, V words, N real words of a batch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.skip_thoughts import evaluation
from experiments.skip_thoughts.evaluation import Protocol
from ln import GRU, NormConfig
from ln.suite.config import Recipe, recipe_of
from ln.suite.data import Source, books, resolve, sentence_sets
from ln.suite.data.book_batches import SameLength, permuted
from ln.suite.data.vocabulary import EOS, UNKNOWN, padded
from ln.suite.errors import Mistake
from ln.suite.runs.read import finished_run
from ln.suite.showing.figures import new_figure, save
from ln.suite.task import Task, stream_seed

WEIGHT_RANGE = 0.1
ENCODE_BATCH = 256
EVALUATION_TRIPLES = 64  # at a time
QUERIES, NEIGHBOURS = 8, 3  # of the picture
QUERY_WORDS = (6, 14)
WIDEST = 96  # characters of a sentence in the picture


@dataclass
class Settings:
    hidden: int = 2400
    words: int = 620  # numbers of a word's vector
    vocabulary: int = 20000
    evaluate_triples: int = 10000  # of the held-out books
    pool: int = 50000  # sentences of the training books among which nearest ones are sought
    along: Protocol = field(default_factory=Protocol)  # at the checkpoints
    final: Protocol = field(default_factory=Protocol)  # once, at the end


class SkipThoughts(nn.Module):
    """Encoder, decoders of the next and of the previous sentence, and the embedding and softmax that they share."""

    def __init__(self, vocabulary: int, words: int, hidden: int, norm: NormConfig) -> None:
        super().__init__()
        if norm.traits.population:
            norm = dataclasses.replace(norm, max_steps=books.SHORTER_THAN)  # the longest sentence and its end
        self.embedding = nn.Embedding(vocabulary, words)
        self.encoder = GRU(words, hidden, norm=norm)
        self.decoders = nn.ModuleList(GRU(words, hidden, norm=norm) for _ in ("next", "previous"))
        self.output = nn.Linear(hidden, vocabulary)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """As in the published code: uniform in +-0.1, recurrent weights orthogonal gate by gate, all biases 0."""
        reach = WEIGHT_RANGE
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.uniform_(weight, -reach, reach)
        nn.init.zeros_(self.output.bias)
        for gru in (self.encoder, *self.decoders):
            hidden = gru.hidden_size
            gru.set_weight("weight_ih_l0", torch.empty(3 * hidden, gru.input_size).uniform_(-reach, reach))
            gates = [nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(3)]
            gru.set_weight("weight_hh_l0", torch.cat(gates))
            for name in ("bias_ih_l0", "bias_hh_l0"):
                nn.init.zeros_(gru.get_parameter(name))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, H) the sentences' vectors: the encoder's state after each one's end; ids (T, B), lengths (B)."""
        return self.encoder(self.embedding(ids), lengths=lengths)[1][0]

    def states(self, which: int, vector: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """(N, H) decoder `which`'s states before each real word of the sentences ids (T, B), in the order of `real`.

        A decoder begins with the sentence vector (B, H), sees it at no later step, and reads the words before: zeros
        first, then the sentence shifted right.
        """
        before = F.pad(self.embedding(ids[:-1]), (0, 0, 0, 0, 1, 0))
        output, _ = self.decoders[which](before, vector.unsqueeze(0), lengths=lengths)
        return output[real(ids, lengths)]

    def nll(self, batch: Sequence[Tensor]) -> tuple[Tensor, int]:
        """Nats of the sentences after and before, summed over all their words and ends, and the number of those.

        batch: ids (T, B), each row ended by EOS, and lengths (B), the end included, of the middle sentences, of those
        after and of those before.
        """
        vector = self(*batch[:2])
        around = list(zip(batch[2::2], batch[3::2], strict=True))
        states = torch.cat([self.states(which, vector, *sentences) for which, sentences in enumerate(around)])
        words = torch.cat([ids[real(ids, lengths)] for ids, lengths in around])
        with torch.profiler.record_function("softmax"):
            return F.cross_entropy(self.output(states), words, reduction="sum"), len(words)

    @torch.no_grad()
    def vectors(self, sentences: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, H) float32 vectors of length 1 of sentences of word ids; the end of the sentence is read too."""
        rows = [[*sentence, EOS] for sentence in sentences]
        found = np.empty((len(rows), self.encoder.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
        for begin in range(0, len(order), ENCODE_BATCH):
            chosen = order[begin : begin + ENCODE_BATCH]
            ids, lengths = padded([rows[i] for i in chosen])
            vector = self(ids.t().to(self.embedding.weight.device), lengths)
            found[chosen] = F.normalize(vector, dim=1).float().cpu().numpy()
        return found


def real(ids: Tensor, lengths: Tensor) -> Tensor:
    """(T, B) bool: where ids (T, B) are words or ends of sentences, not padding."""
    return torch.arange(len(ids), device=ids.device).unsqueeze(1) < lengths.to(ids.device)


class SkipThoughtsTask(Task):
    Settings = Settings
    model: SkipThoughts

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        self.settings: Settings = recipe.model
        self.books, sets = source.load()
        self.sets: sentence_sets.SentenceSets = sets
        self.vocabulary = self.books.vocabulary(self.settings.vocabulary)
        self.examples = {split: len(part.triples) for split, part in self.books.splits.items()}
        for split, count in self.examples.items():
            if not count:
                raise Mistake(f"{source.name}: the {split} books hold no three short sentences in a row")
        sizes = (len(self.vocabulary), self.settings.words, self.settings.hidden)
        self.model = SkipThoughts(*sizes, recipe.norm)
        self.order = SameLength(
            self.books.splits["train"], recipe.train.batch_size, lambda epoch: stream_seed(recipe.seed, "order", epoch)
        )
        self.steps_per_epoch = self.order.steps_per_epoch
        self.bag_scores: dict[str, dict[str, float]] = {}

    @staticmethod
    def find(request: str) -> Source:
        return resolve(
            request,
            {
                "original": lambda: together(
                    books.original(download=request == "original"), sentence_sets.required(sentence_sets.find())
                ),
                "substitute": lambda: together(books.substitute(), sentence_sets.find()),
                "embedded": lambda: together(books.embedded(), sentence_sets.generated()),
            },
        )

    def batch(self, step: int) -> tuple[Tensor, ...]:
        return self.triples("train", self.order.middles(step))

    def triples(self, split: str, middles: np.ndarray) -> tuple[Tensor, ...]:
        """Ids (T, B) and lengths (B) of the middle sentences, of those after and of those before.

        Lengths stay on the CPU, where the recurrent layers read them without waiting for the device.
        """
        part, parts = self.books.splits[split], []
        for offset in (0, 1, -1):
            rows = [[*part.sentence(middle + offset, len(self.vocabulary)), EOS] for middle in middles]
            ids, lengths = padded(rows)
            parts += [ids.t().contiguous().to(self.device, non_blocking=True), lengths]
        return tuple(parts)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """`loss` is summed over the batch's words, as in the published code, whose clipping at norm 5 depends on it."""
        loss, words = self.model.nll(batch)
        return {"loss": loss, "nll": loss.detach() / words}

    def evaluate(self, split: str) -> dict[str, float]:
        """Nats per word of a split's neighbours of sentences, and the scores of the frozen encoder's vectors: along the
        way (valid) with SICK's trial pairs, at the end (test) with its test pairs."""
        self.model.eval()
        scores = self.scores(split, self.model.vectors)
        if split not in self.bag_scores:
            self.bag_scores[split] = self.scores(split, self.bag())
        return {"nll": self.held_out_nll(split), **scores, **{f"bag_{k}": v for k, v in self.bag_scores[split].items()}}

    def held_out_nll(self, split: str) -> float:
        triples = self.books.splits[split].triples
        count = min(self.settings.evaluate_triples, len(triples))
        # The same triples in every run; in order of length, so that a batch has little padding.
        chosen = triples[np.sort(permuted(np.arange(count), len(triples), 0))]
        total, words = 0.0, 0
        for begin in range(0, count, EVALUATION_TRIPLES):
            batch = self.triples(split, chosen[begin : begin + EVALUATION_TRIPLES])
            loss, here = self.model.nll(batch)
            total, words = total + float(loss), words + here
        return total / words

    def bag(self) -> Callable[[Sequence[Sequence[int]]], np.ndarray]:
        """Vectors to compare with: the mean of a sentence's words, each a fixed random vector, of the model's size."""
        generator = np.random.default_rng(stream_seed(self.recipe.seed, "bag"))
        table = generator.standard_normal((len(self.vocabulary), self.settings.hidden), np.float32)

        def vectors(sentences: Sequence[Sequence[int]]) -> np.ndarray:
            sums = np.stack([table[list(sentence)].sum(0) for sentence in sentences])
            return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

        return vectors

    def scores(self, split: str, vectors: Callable[[Sequence[Sequence[int]]], np.ndarray]) -> dict[str, float]:
        """SICK's r, rho and mse on `split`, and the labelled sets' accuracies with their deviations over the folds."""
        protocol = self.settings.final if split == "test" else self.settings.along
        pairs = {}
        for name in ("train", "valid", split):
            if name not in pairs:
                part = self.sets.pairs[name]
                chosen = protocol.choose(len(part.scores)) if name == "train" else np.arange(len(part.scores))
                sides = [vectors(self.encoded([side[i] for i in chosen])) for side in (part.first, part.second)]
                pairs[name] = (evaluation.pair_features(*sides), part.scores[chosen])
        sick = evaluation.relatedness(pairs["train"], pairs["valid"], pairs[split], protocol)
        found = {f"sick_{name}": value for name, value in sick.items()}
        for name, labelled in self.sets.labelled.items():
            chosen = protocol.choose(len(labelled.labels))
            features = vectors(self.encoded([labelled.sentences[i] for i in chosen]))
            mean, deviation = evaluation.cross_validated(features, labelled.labels[chosen], protocol)
            found |= {name.lower(): mean, f"{name.lower()}_std": deviation}
        return found

    def encoded(self, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        return [self.vocabulary.encode(sentence) for sentence in sentences]

    def pool(self) -> list[list[int]]:
        """Sentences of the training books, evenly spread, of 5 words or more, without repetition."""
        part = self.books.splits["train"]
        spread = np.linspace(0, len(part) - 1, min(self.settings.pool, len(part))).round().astype(int)
        rows = (tuple(part.sentence(number, len(self.vocabulary)).tolist()) for number in spread)
        return [list(row) for row in dict.fromkeys(row for row in rows if 5 <= len(row) < books.SHORTER_THAN)]

    def nearest(self, queries: Sequence[Sequence[int]], count: int) -> Iterator[list[tuple[float, str]]]:
        """For each query of word ids, the `count` sentences of the pool with the highest cosine, and those."""
        pool = self.pool()
        vectors = self.model.vectors(pool)
        for query in self.model.vectors(queries):
            cosines = vectors @ query
            best = np.argsort(-cosines, kind="stable")[:count]
            yield [(float(cosines[i]), " ".join(self.vocabulary.decode(pool[i]))) for i in best]

    def draw(self, folder: Path) -> None:
        """nearest.png: sentences of the test books, and the nearest ones of the training books."""
        if self.recipe.seed != 0:
            return
        part = self.books.splits["test"]
        low, high = QUERY_WORDS
        fitting = []
        for number in range(len(part)):
            ids = part.sentence(number, len(self.vocabulary))
            if low <= len(ids) <= high and UNKNOWN not in ids:
                fitting.append(ids.tolist())
        chosen = [fitting[round(i)] for i in np.linspace(0, len(fitting) - 1, min(QUERIES, len(fitting)))]
        rows = [
            (" ".join(self.vocabulary.decode(query)), found)
            for query, found in zip(chosen, self.nearest(chosen, NEIGHBOURS), strict=True)
        ]
        picture_nearest(folder / "nearest.png", rows, self.recipe.norm.traits.label)


def together(stories: Source, sets: sentence_sets.Found) -> Source:
    """Books to train on and sentence sets to judge with, as one source with the books' status."""
    sha256 = books.key_of(stories.sha256, sets.sha256)
    return Source(
        f"{stories.name}; {sets.name}", stories.status, sha256, lambda: (stories.load(), sets.load()), stories.origin
    )


def finished(folder: Path) -> SkipThoughtsTask:
    """The task of a complete run with its model, from its config.yaml and best.pt, on the CPU, in evaluation mode.

    Raises:
        Mistake: no run, not a complete one, or a best.pt that is missing or damaged; the run's data are not there.
    """
    info, path = finished_run(folder, "python -m ln.train experiment=skip_thoughts")
    composed: Any = OmegaConf.load(folder / "config.yaml")
    recipe = recipe_of(composed)
    source = SkipThoughtsTask.find(info["identity"]["source"]["status"])
    if source.identity != info["identity"]["source"]:
        raise Mistake(f"{folder} was trained on {info['identity']['source']['name']}, which is not what is found here")
    task = SkipThoughtsTask(recipe, source, torch.device("cpu"))
    try:
        task.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file fails in many ways
        raise Mistake(f"{path} cannot be read as the weights of this run ({str(error).splitlines()[0]})") from error
    task.model.eval()
    return task


def picture_nearest(path: Path, rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], title: str) -> None:
    """A page of queries in bold, each above its nearest sentences with their cosines."""
    lines = sum(1 + len(found) for _, found in rows)
    figure, ((axes,),) = new_figure(1, width=7.4, height=0.6 + 0.185 * lines + 0.1 * len(rows))
    axes.axis("off")
    axes.set_ylim(lines + 0.5 * len(rows), -0.5)
    y = 0.0
    for query, found in rows:
        axes.text(0.0, y, _short(query), fontsize=8, fontweight="bold", va="center", parse_math=False)
        for cosine, sentence in found:
            y += 1
            axes.text(0.05, y, f"{cosine:.2f}", fontsize=7, color="#777777", va="center", ha="right")
            axes.text(0.065, y, _short(sentence), fontsize=8, va="center", parse_math=False)
        y += 1.5
    figure.suptitle(f"Sentences of the test books and the nearest of the training books, {title}", fontsize=9)
    save(figure, path, vectors=False)


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= WIDEST else f"{sentence[: WIDEST - 1]}…"
