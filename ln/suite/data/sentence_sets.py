"""What sentence vectors are judged on: SICK's related pairs, and four sets of sentences with one of two labels.

Files are latin-1, as published. A set that is not there has generated sentences in its place, which its name declares.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ln.suite.data import Missing, Origin, check_sha256, data_folders, text_lines
from ln.suite.data.books import words_of
from ln.suite.data.stories import FINE, GLAD, PEOPLE, PLACES, POOR, SORRY, THINGS
from ln.suite.errors import Mistake

SICK = {  # split -> file, sha256, pairs
    "train": ("SICK_train.txt", "266cf8047149bd1d68138dd30439f3122bff30069740ac6705bb6197d9f1b48e", 4500),
    "valid": ("SICK_trial.txt", "5a88cfb62f8c6bd2a3cce0f2421ba2cb8c2be5ab4a800f6f01e2c64aafb7db56", 500),
    "test": ("SICK_test_annotated.txt", "2b8aa806658d6fc23c6824c83776c2d4fee7556000817b5ec0f982861413b7d0", 4927),
}
LABELLED = {  # name -> file, sha256, sentences
    "MR": ("rt-polarity.all", "b8846c3bbd59241f901efdc58f7c515e4b280ab3561fd1858caa5aa48da95a8a", 10662),
    "CR": ("custrev.all", "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325", 3775),
    "SUBJ": ("subj.all", "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c", 10000),
    "MPQA": ("mpqa.all", "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7", 10606),
}
GENERATED_PAIRS = {"train": 160, "valid": 60, "test": 60}
GENERATED_SENTENCES = 120
WHERE = "their sources are listed with the sentence sets of the skip-thoughts evaluation code"
ORIGIN = Origin("SICK, MR, CR, SUBJ, MPQA", WHERE, "SICK CC BY-NC-SA 3.0; the others for research", "4 MB")


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences as words, and how related people find them, 1 to 5."""

    first: list[list[str]]
    second: list[list[str]]
    scores: np.ndarray  # (N,) float64


@dataclass(frozen=True)
class Labelled:
    """Sentences as words, and their labels 0 or 1."""

    sentences: list[list[str]]
    labels: np.ndarray  # (N,) int64


@dataclass(frozen=True)
class SentenceSets:
    """SICK's splits, and the labelled sets by name."""

    pairs: dict[str, Pairs]
    labelled: dict[str, Labelled]


@dataclass(frozen=True)
class Found:
    """Sets that were found and checked, not yet read."""

    name: str
    sha256: str
    missing: list[str]  # one sentence part for each set that is not there
    load: Callable[[], SentenceSets]


def find() -> Found:
    """The sets that are in the data folders, and generated ones for those that are not.

    Raises:
        Mistake: a file is there but wrong, with its line where one can be named.
    """
    paths: dict[str, dict[str, Path]] = {}
    missing: list[str] = []
    sick = _files("SICK", "sick", {split: name for split, (name, _, _) in SICK.items()}, missing)
    if sick:
        for split, path in sick.items():
            _checked(path, SICK[split][1], partial(read_pairs, path, SICK[split][2]))
        paths["SICK"] = sick
    for name, (file, sha256, count) in LABELLED.items():
        if found := _files(name, "sentences", {name: file}, missing):
            _checked(found[name], sha256, partial(read_labelled, found[name], count))
            paths[name] = found
    published = {"SICK": [sha256 for _, sha256, _ in SICK.values()]} | {n: [s] for n, (_, s, _) in LABELLED.items()}
    sums = [sha256 for name in paths for sha256 in published[name]]
    real = ", ".join(paths)
    made = ", ".join(name for name in ("SICK", *LABELLED) if name not in paths)
    reduced = f"reduced evaluation, generated sentences for {made}" if made else ""
    name = "; ".join(part for part in (real, reduced) if part)
    return Found(name, hashlib.sha256("".join([made, *sums]).encode()).hexdigest(), missing, partial(_load, paths))


def generated() -> Found:
    """Generated sentences for every set."""
    return Found("generated sentence sets", "pairs and labels of the stories' world", [], partial(_load, {}))


def _files(what: str, folder: str, names: dict[str, str], missing: list[str]) -> dict[str, Path]:
    looked = []
    for place in (place / folder for place in data_folders()):
        paths = {key: place / name for key, name in names.items()}
        if all(path.exists() for path in paths.values()):
            return paths
        looked.append(str(place))
    missing.append(f"{what} ({', '.join(names.values())}) is not in {' or '.join(looked)}")
    return {}


def _checked(path: Path, sha256: str, read: Callable[[], object]) -> None:
    """Raise Mistake for an altered file; what reading it finds wrong says more than its checksum."""
    try:
        check_sha256(path, sha256, text=True)
    except Mistake:
        read()
        raise


def _load(paths: dict[str, dict[str, Path]]) -> SentenceSets:
    if "SICK" in paths:
        pairs = {split: read_pairs(path, SICK[split][2]) for split, path in paths["SICK"].items()}
    else:
        pairs = {split: generated_pairs(split, count) for split, count in GENERATED_PAIRS.items()}
    labelled = {
        name: read_labelled(paths[name][name], count) if name in paths else generated_labelled(name)
        for name, (_, _, count) in LABELLED.items()
    }
    return SentenceSets(pairs, labelled)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line's text, and `file, line n` to name it by."""
    for number, line in enumerate(text_lines(path, "latin-1"), 1):
        yield line, f"{path}, line {number}"


def read_pairs(path: Path, count: int) -> Pairs:
    """SICK's format: a header, then number, two sentences, relatedness 1 to 5 and a judgment, between tabs.

    Raises:
        Mistake: another format, with the line.
    """
    first, second, scores = [], [], []
    for index, (line, where) in enumerate(_lines(path)):
        fields = line.split("\t")
        if index == 0:
            if fields[:4] != ["pair_ID", "sentence_A", "sentence_B", "relatedness_score"]:
                raise Mistake(f"{where}, is not SICK's header (pair_ID, sentence_A, sentence_B, relatedness_score)")
            continue
        if len(fields) != 5:
            raise Mistake(f"{where}, has {len(fields)} fields between tabs where SICK has 5")
        a, b = words_of(fields[1]), words_of(fields[2])
        if not a or not b:
            raise Mistake(f"{where}, has an empty sentence")
        try:
            score = float(fields[3])
        except ValueError:
            raise Mistake(f"{where}, has the relatedness {fields[3]!r}, which is no number") from None
        if not 1 <= score <= 5:
            raise Mistake(f"{where}, has the relatedness {score:g}, which is not in 1 ... 5")
        first.append(a)
        second.append(b)
        scores.append(score)
    _expect(path, len(scores), count, "pairs")
    return Pairs(first, second, np.array(scores))


def read_labelled(path: Path, count: int) -> Labelled:
    """A label 0 or 1, a space and a sentence on each line.

    Quotes stay as published: the doubled backquotes of 7 of MPQA's 10,606 phrases are two marks that no corpus has,
    where the other sets, and every corpus, have `"`.

    Raises:
        Mistake: another format, with the line.
    """
    sentences, labels = [], []
    for line, where in _lines(path):
        label, _, text = line.partition(" ")
        if label not in ("0", "1"):
            raise Mistake(f"{where}, begins with {label[:20]!r} where a label 0 or 1 is expected")
        sentences.append(words_of(text))  # CR has a line without words: a sentence that is only its end
        labels.append(int(label))
    _expect(path, len(labels), count, "sentences")
    return Labelled(sentences, np.array(labels))


def _expect(path: Path, found: int, count: int, what: str) -> None:
    if found != count:
        raise Mistake(f"{path} holds {found} {what} where {count} were published; get the whole file again")


# --- generated sentences, of the stories' world


def generated_pairs(split: str, count: int) -> Pairs:
    """Pairs of statements that agree in none to all of who, where and what: 1 + 4 x the share that agrees."""
    draw = random.Random(f"pairs {split}")
    first, second, scores = [], [], []
    for _ in range(count):
        one, other = ([draw.choice(kind) for kind in (PEOPLE, PLACES, THINGS)] for _ in range(2))
        other = [a if draw.random() < 0.5 else b for a, b in zip(one, other, strict=True)]
        agreeing = sum(a == b for a, b in zip(one, other, strict=True))
        first.append(words_of("{} went to the {} with the {}.".format(*one)))
        second.append(words_of("At the {1} {0} had the {2}.".format(*other)))
        scores.append(1 + 4 * agreeing / 3)
    return Pairs(first, second, np.array(scores))


def generated_labelled(name: str) -> Labelled:
    """Sentences with a label: mood (MR), a thing's worth (CR), opinion or fact (SUBJ), mood in a phrase (MPQA)."""
    draw = random.Random(f"labelled {name}")
    sentences, labels = [], []
    for _ in range(GENERATED_SENTENCES):
        label = draw.randrange(2)
        who, place, thing = draw.choice(PEOPLE), draw.choice(PLACES), draw.choice(THINGS)
        mood, worth = draw.choice((SORRY, GLAD)[label]), draw.choice((POOR, FINE)[label])
        text = {
            "MR": f"At the {place} {who} was {mood}.",
            "CR": f"The {thing} is {worth}.",
            "SUBJ": (f"{who} went to the {place}.", f"The {place} is {draw.choice(FINE + POOR)}.")[label],
            "MPQA": f"was {mood}",
        }[name]
        sentences.append(words_of(text))
        labels.append(label)
    return Labelled(sentences, np.array(labels))


def required(found: Found) -> Found:
    """The sets, all of them.

    Raises:
        Missing: one of them is not there.
    """
    if found.missing:
        raise Missing(f"{'; '.join(found.missing)}; {WHERE}", ORIGIN)
    return found
