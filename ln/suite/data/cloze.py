"""Cloze questions: a passage whose named entities are numbered anew, and its next sentence with one of them removed.

`original` is the CNN corpus (ln/data/cnn_questions.py); `substitute` builds the same kind of question from novels;
`embedded` generates small passages whose answer can be derived. Shapes: N questions of a split, E entity markers.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ln.suite.data import Source, cache_folder, made_once, novels
from ln.suite.data.vocabulary import Vocabulary
from ln.suite.errors import Mistake

SPLITS = ("train", "valid", "test")
PLACEHOLDER = "@placeholder"
ENTITY = re.compile(r"@entity\d+")
FIRST_ENTITY = 3  # <eos>, <unk>, @placeholder, then the markers

PREPARATION = "2"  # raise when prepared questions change, so that old caches and old runs are told apart
SEED = 0
BOOK_SHARES = {"valid": 0.1, "test": 0.1}  # of the books; the rest is for training
SENTENCES = 20  # of context
QUESTIONS_PER_BOOK = 400
QUESTION_WORDS = (6, 40)
SENTENCE_WORDS = 60  # a longer one is mostly a list or a failure to split
ENTITIES = (3, 10)  # of a passage, its question included
MARKERS = ENTITIES[1]
EMBEDDED_QUESTIONS = {"train": 20_000, "valid": 2000, "test": 2000}

# Capitals that stand for no name.
TITLE = re.compile(
    "mr|mrs|miss|ms|dr|sir|lady|lord|master|mistress|madam|madame|monsieur|mademoiselle|st|saint|captain|colonel|major|"
    "general|lieutenant|doctor|professor|reverend|rev|king|queen|prince|princess|duke|duchess|count|countess|earl|"
    "baron|uncle|aunt|cousin|father|mother|sister|brother|chapter|book|part|volume|i|i'm|i'll|i've|i'd|o|oh|god|heaven"
)
NAME_COUNT = 4  # capitals inside sentences that make a word a name of its book
LOWER_SHARE = 0.1  # as often without a capital, it is none
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+|[.,;:!?\"()]")


class Question(NamedTuple):
    """Words of the passage by sentence, of the question, and the answer; entities are markers such as @entity3."""

    sentences: list[list[str]]
    question: list[str]
    answer: str


@dataclass(frozen=True)
class Split:
    """Questions of a split as flat int32 ids with the ends (exclusive) of their parts.

    words: all passages'; sentence_ends: of every sentence in `words`; passage_ends: (N,) of every passage in
    `sentence_ends`; questions, question_ends: (N,); answers: (N,).
    """

    words: np.ndarray
    sentence_ends: np.ndarray
    passage_ends: np.ndarray
    questions: np.ndarray
    question_ends: np.ndarray
    answers: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)

    def sentences(self, index: int) -> list[np.ndarray]:
        """The ids of each sentence of a passage."""
        first, last = (int(self.passage_ends[index - 1]) if index else 0), int(self.passage_ends[index])
        start = int(self.sentence_ends[first - 1]) if first else 0
        ends = self.sentence_ends[first:last]
        return np.split(self.words[start : ends[-1]], ends[:-1] - start)

    def question(self, index: int) -> np.ndarray:
        start = int(self.question_ends[index - 1]) if index else 0
        return self.questions[start : self.question_ends[index]]


@dataclass(frozen=True)
class Cloze:
    """Questions of each split. Ids 3 ... 3 + entities - 1 of the vocabulary are the markers, the rest by count."""

    vocabulary: Vocabulary
    entities: int
    splits: dict[str, Split]


def numbered(questions: dict[str, Iterable[Question]]) -> Cloze:
    """Words as ids; the vocabulary is the training split's, the markers are all splits'. Each split is gone through
    once, since a corpus may be larger than memory as text."""
    seen: dict[str, int] = {}  # every word by the order in which it was met
    splits: dict[str, Split] = {}
    counts = np.empty(0, np.int64)
    for name in SPLITS:
        splits[name] = _flat(questions[name], seen)
        if name == "train":
            words = np.concatenate([splits[name].words, splits[name].questions])
            counts = np.bincount(words, minlength=len(seen))
    known = [word for word, i in seen.items() if i < len(counts) and word != PLACEHOLDER and not ENTITY.fullmatch(word)]
    markers = sorted(filter(ENTITY.fullmatch, seen), key=lambda marker: int(marker.removeprefix("@entity")))
    vocabulary = Vocabulary([PLACEHOLDER, *markers, *sorted(known, key=lambda word: (-counts[seen[word]], word))])
    ids = np.array(vocabulary.encode(list(seen)), np.int32)
    renumbered = {
        name: replace(split, **{part: ids[getattr(split, part)] for part in ("words", "questions", "answers")})
        for name, split in splits.items()
    }
    return Cloze(vocabulary, len(markers), renumbered)


def _flat(questions: Iterable[Question], seen: dict[str, int]) -> Split:
    words, asked, answers = array("i"), array("i"), array("i")
    sentence_ends, passage_ends, question_ends = array("q"), array("q"), array("q")
    for sentences, question, answer in questions:
        for sentence in sentences:
            words.extend(seen.setdefault(word, len(seen)) for word in sentence)
            sentence_ends.append(len(words))
        passage_ends.append(len(sentence_ends))
        asked.extend(seen.setdefault(word, len(seen)) for word in question)
        question_ends.append(len(asked))
        answers.append(seen.setdefault(answer, len(seen)))
    return Split(*map(np.array, (words, sentence_ends, passage_ends, asked, question_ends, answers)))


def most_similar(
    sentences: Sequence[np.ndarray], question: np.ndarray, weights: np.ndarray, entities: int, count: int
) -> np.ndarray:
    """The words of the `count` sentences that share most with the question, in the passage's order.

    A shared word counts `weights[id]` once, in a sentence as in the question. A sentence that names nobody but the
    question's own entities holds no answer and comes last; of two equal ones the later is taken, which is nearer to
    the question.
    """
    asked = set(question.tolist())
    ranked = []
    for place, sentence in enumerate(sentences):
        inside = set(sentence.tolist())
        candidates = any(FIRST_ENTITY <= word < FIRST_ENTITY + entities for word in inside - asked)
        ranked.append((candidates, sum(weights[word] for word in asked & inside), place))
    best = sorted(place for _, _, place in sorted(ranked)[-count:])
    return np.concatenate([sentences[place] for place in best])


def rarity(cloze: Cloze) -> np.ndarray:
    """(V,) the weight of a shared word: minus the log of its share of the training split's words."""
    counts = np.bincount(cloze.splits["train"].words, minlength=len(cloze.vocabulary)) + 1.0
    weights = np.log(counts.sum() / counts)
    weights[:FIRST_ENTITY] = 0  # an unknown word and the placeholder match nothing
    return weights


def most_frequent_entity(words: np.ndarray, entities: int, other_than: Iterable[int] = ()) -> int:
    """The marker that occurs most, the last of equals to occur; -1 without any. Markers of the question are no answer
    and can be left out."""
    inside = [int(w) for w in words if FIRST_ENTITY <= w < FIRST_ENTITY + entities and w not in other_than]
    counts = Counter(inside)
    last = {marker: place for place, marker in enumerate(inside)}
    return max(counts, key=lambda marker: (counts[marker], last[marker]), default=-1)


# --- the novels


def sentences_of(text: str) -> list[list[str]]:
    """The sentences of a book as words with their capitals."""
    return [words for sentence in novels.sentences(text) if (words := _words(sentence))]


def _words(sentence: str) -> list[str]:
    words = []
    for word in WORD.findall(sentence):
        # "Emma's" is the name and a word of its own.
        stem, apostrophe, rest = word.rpartition("'")
        words += [stem, "'s"] if apostrophe and rest == "s" else [word]
    return words


def names_of(sentences: Iterable[Sequence[str]]) -> set[str]:
    """The words of a book that are names: capitals recur inside sentences, and the word hardly occurs without one."""
    capitals: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for sentence in sentences:
        inside = False  # past a word with no mark of a beginning in between
        for word in sentence:
            if word[0].isalpha() or word[0] == "'":
                if word[0].isupper() and inside and not word.isupper():
                    capitals[word] += 1
                elif word[0].islower():
                    lower[word] += 1
                inside = True
            else:
                inside = word in ",;"
    return {
        word
        for word, count in capitals.items()
        if count >= NAME_COUNT and lower[word.lower()] <= LOWER_SHARE * count and not TITLE.fullmatch(word.lower())
    }


def with_entities(sentence: Sequence[str], names: set[str]) -> list[str]:
    """Lower-case words, but a run of names as its last name in capitals: `Theodore Racksole` and `Racksole` are one."""
    found: list[str] = []
    for word in sentence:
        if word in names:
            if found and found[-1][0].isupper():
                found.pop()
            found.append(word)
        else:
            found.append(word.lower())
    return found


def questions_of(text: str, generator: np.random.Generator) -> list[Question]:
    """The cloze questions of a book, at most QUESTIONS_PER_BOOK, drawn from all that can be asked."""
    raw = sentences_of(text)
    names = names_of(raw)
    sentences = [with_entities(sentence, names) for sentence in raw]
    entities = [[word for word in sentence if word in names] for sentence in sentences]
    asked = []
    for i in generator.permutation(np.arange(SENTENCES, len(sentences))):
        passage = slice(i - SENTENCES, i)
        if not QUESTION_WORDS[0] <= len(sentences[i]) <= QUESTION_WORDS[1]:
            continue
        if max(map(len, sentences[passage])) > SENTENCE_WORDS:
            continue
        before = {word for some in entities[passage] for word in some}
        answers = sorted(before.intersection(entities[i]))
        if answers and ENTITIES[0] <= len(before.union(entities[i])) <= ENTITIES[1]:
            asked.append(anonymized(sentences[passage], sentences[i], str(generator.choice(answers)), generator))
        if len(asked) == QUESTIONS_PER_BOOK:
            break
    return asked


def anonymized(
    passage: Sequence[Sequence[str]], question: Sequence[str], answer: str, generator: np.random.Generator
) -> Question:
    """Every name as a marker; the numbers are drawn anew for each passage, so that they say nothing."""
    names = sorted({word for sentence in (*passage, question) for word in sentence if word[0].isupper()})
    numbers = generator.permutation(MARKERS)[: len(names)]
    markers = {name: f"@entity{number}" for name, number in zip(names, numbers, strict=True)}
    hidden = markers | {answer: PLACEHOLDER}
    return Question(
        [[markers.get(word, word) for word in sentence] for sentence in passage],
        [hidden.get(word, word) for word in question],
        markers[answer],
    )


def split_of_books(names: Sequence[str]) -> dict[str, str]:
    """Each book's split: whole books are held out, in an order drawn once."""
    order = np.random.default_rng(SEED).permutation(sorted(names)).tolist()
    sizes = {split: max(1, round(share * len(order))) for split, share in BOOK_SHARES.items()}
    splits = [split for split, size in sizes.items() for _ in range(size)]
    return dict(zip(order, splits + ["train"] * (len(order) - len(splits)), strict=True))


def from_novels(archive: Path) -> Cloze:
    """The questions of all books of the archive.

    Raises:
        Mistake: a book that is not UTF-8, or too few of them to hold whole ones out.
    """
    books = dict(novels.texts(archive))
    if len(books) < len(SPLITS):
        raise Mistake(f"{archive} holds {len(books)} books, but at least 3 are needed, one for each split")
    splits = split_of_books(list(books))

    def questions(split: str) -> Iterator[Question]:
        for index, name in enumerate(splits):
            if splits[name] == split:
                yield from questions_of(books[name], np.random.default_rng([SEED, index]))

    return numbered({split: questions(split) for split in SPLITS})


# --- the cache


def prepared(key: str, prepare: Callable[[], Cloze]) -> Cloze:
    """What `prepare` makes, made once and kept in the cache under `key`; a file there is always whole."""
    path = cache_folder(f"cloze-{key[:16]}") / "questions.npz"
    with np.load(made_once(path, lambda path: _write(path, prepare()))) as file:
        fields = Split.__dataclass_fields__
        splits = {split: Split(**{name: file[f"{split}_{name}"] for name in fields}) for split in SPLITS}
        return Cloze(Vocabulary(str(file["vocabulary"]).split("\n")), int(file["entities"]), splits)


def _write(path: Path, cloze: Cloze) -> None:
    words = np.array("\n".join(cloze.vocabulary.words[2:]))
    arrays: dict[str, np.ndarray] = {"vocabulary": words, "entities": np.array(cloze.entities)}
    for name, split in cloze.splits.items():
        arrays |= {f"{name}_{part}": values for part, values in vars(split).items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def key_of(*parts: str) -> str:
    return hashlib.sha256("\n".join([PREPARATION, *parts]).encode()).hexdigest()


def substitute() -> Source:
    """Questions built from English novels, split by book.

    Raises:
        Missing, Mistake: as `novels.archive`.
    """
    path, sha256 = novels.archive()
    key = key_of(sha256)
    load = partial(prepared, key, partial(from_novels, path))
    return Source("cloze questions of novels", "substitute", key, load, novels.ORIGIN)


# --- generated passages

PLACES = ["kitchen", "garden", "harbour", "library", "attic", "market", "chapel", "stable", "tower", "cellar"]
THINGS = ["lamp", "letter", "ring", "basket", "candle", "ladder", "mirror", "kettle", "saddle", "violin"]
FILLERS = ["it was late and cold .", "nobody spoke for a while .", "the wind rose again .", "a dog barked outside ."]


def generated(count: int, generator: np.random.Generator) -> list[Question]:
    """Passages in which each entity is somewhere or has something, no two the same; the question asks who."""
    questions = []
    for _ in range(count):
        people = [f"@entity{number}" for number in generator.permutation(6)[: generator.integers(3, 5)]]
        facts = []
        places, things = generator.permutation(PLACES), generator.permutation(THINGS)
        for person, place, thing in zip(people, places, things, strict=False):
            facts.append((person, f"is in the {place}" if generator.integers(2) else f"has the {thing}"))
        sentences = [[person, *fact.split(), "."] for person, fact in facts]
        for filler in generator.choice(FILLERS, generator.integers(0, 3)):
            sentences.insert(int(generator.integers(len(sentences) + 1)), str(filler).split())
        person, fact = facts[generator.integers(len(facts))]
        questions.append(Question(sentences, [PLACEHOLDER, *fact.split()], person))
    return questions


def embedded() -> Source:
    """Generated passages of three or four entities, their answers derivable."""

    def load() -> Cloze:
        generator = np.random.default_rng(SEED)
        return numbered({split: generated(count, generator) for split, count in EMBEDDED_QUESTIONS.items()})

    key = key_of("generated", *(f"{split} {count}" for split, count in EMBEDDED_QUESTIONS.items()))
    return Source("generated cloze passages", "embedded", key, load)
