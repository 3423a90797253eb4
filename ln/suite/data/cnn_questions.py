"""The CNN question corpus (Hermann et al. 2015): `.question` files, whole or cut to four sentences ("top4").

A file holds, with an empty line between: where the article was, the passage, the question, the answer, and a line
`@entity3:name` for each entity; all tokens are separated by spaces and the entities numbered anew in each file.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from ln.suite.data import Missing, Origin, Source, data_folders, text_lines
from ln.suite.data.cloze import ENTITY, PLACEHOLDER, Cloze, Question, key_of, numbered, prepared
from ln.suite.errors import Mistake

FOLDER = Path("cnn")
VARIANTS = ("top4", "questions")  # what Cooijmans et al. trained on comes first
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
HOME = "cs.nyu.edu/~kcho/DMQA"
ORIGIN = Origin(
    "CNN questions",
    f"{HOME} (questions), cut to four sentences by the code published with recurrent batch norm (top4)",
    "the articles are CNN's",
    "about 200 MB packed",
)
PASSAGE, QUESTION, ANSWER, NAMES = 2, 4, 6, 8  # lines, from 0
WHAT = {PASSAGE: "passage", QUESTION: "question", ANSWER: "answer"}
SENTENCE_ENDS = frozenset(".?!")


def read_question(path: Path, whole: bool) -> Question:
    """One file; a passage that is not `whole` but already chosen counts as one sentence, so that none of it is cut.

    Raises:
        Mistake: naming the file and the line that is not as it must be.
    """
    lines = text_lines(path)
    for line, what in WHAT.items():
        if len(lines) <= line or not lines[line].strip():
            raise Mistake(f"{path}, line {line + 1}: the {what} is not there; the file is cut short, get it again")
        if lines[line - 1].strip():
            raise Mistake(f"{path}, line {line}: an empty line is expected before the {what}; get the file again")
    passage, question, answer = (lines[line].split() for line in WHAT)
    if PLACEHOLDER not in question:
        raise Mistake(f"{path}, line {QUESTION + 1}: the question has no {PLACEHOLDER}; get the file again")
    if len(answer) != 1 or not ENTITY.fullmatch(answer[0]):
        raise Mistake(
            f"{path}, line {ANSWER + 1}: the answer is {' '.join(answer)!r} and no @entity; get the file again"
        )
    for number, name in enumerate(lines[NAMES:], NAMES + 1):
        marker, colon, _ = name.partition(":")
        if name.strip() and not (colon and ENTITY.fullmatch(marker)):
            raise Mistake(f"{path}, line {number}: {name[:40]!r} is not @entity<number>:<name>; get the file again")
    return Question(_sentences(passage) if whole else [passage], question, answer[0])


def _sentences(words: list[str]) -> list[list[str]]:
    ends = [i + 1 for i, word in enumerate(words) if word in SENTENCE_ENDS]
    bounds = [0, *ends, len(words)]
    return [words[a:b] for a, b in pairwise(bounds) if a < b]


def listing(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Names and sizes of each split's files.

    Raises:
        Mistake: a split is not there or empty.
    """
    found = {}
    for split, name in SPLITS.items():
        if not (folder / name).is_dir():
            raise Mistake(f"{folder} has no folder {name}; unpack all of the corpus from {HOME} there")
        with os.scandir(folder / name) as entries:
            found[split] = sorted((e.name, e.stat().st_size) for e in entries if e.name.endswith(".question"))
        if not found[split]:
            raise Mistake(f"{folder / name} holds no .question file; unpack the corpus from {HOME} there")
    return found


def read(folder: Path, files: dict[str, list[tuple[str, int]]], whole: bool) -> Cloze:
    def questions(split: str) -> Iterator[Question]:
        return (read_question(folder / SPLITS[split] / name, whole) for name, _ in files[split])

    return numbered({split: questions(split) for split in SPLITS})


def original() -> Source:
    """The published selection of four sentences from the data folders; key and errors as in `_find`."""
    return _find(VARIANTS[0], "original")


def whole() -> Source:
    """The whole corpus, of which our own heuristic chooses sentences: a substitute for the published selection."""
    return _find(VARIANTS[1], "substitute")


def _find(variant: str, status: str) -> Source:
    """A variant of the corpus from the data folders.

    It is recognized by its files' names and sizes: to hash 380,000 of them at each start would take minutes.

    Raises:
        Missing: it is nowhere.
        Mistake: a split is not there; on loading, a file is damaged.
    """
    folders = [folder / FOLDER / variant for folder in data_folders()]
    for folder in folders:
        if folder.is_dir():
            files = listing(folder)
            names = "\n".join(f"{split} {name} {size}" for split in SPLITS for name, size in files[split])
            key = key_of(folder.name, hashlib.sha256(names.encode()).hexdigest())
            prepare = partial(read, folder, files, whole=folder.name == "questions")
            return Source(f"CNN {folder.name}", status, key, partial(prepared, key, prepare), ORIGIN)
    raise Missing(
        f"the CNN questions (training/, validation/, test/) are not in {' or '.join(map(str, folders))}; "
        f"get them from {HOME} and unpack them there",
        ORIGIN,
    )
