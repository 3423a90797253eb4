"""Running text as words, and windows of it as batches.

Shapes: N words of a text, T steps, B rows.
"""

import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

UNKNOWN = 0


def words_of(path: str | None = None) -> list[str]:
    """The words and marks of a text file in small letters; without one, of the English that Python's own documentation
    of its language is written in."""
    return words_in(Path(path).read_text() if path else "\n".join(topics.values()))


def words_in(text: str) -> list[str]:
    return re.findall(r"\w+|[.,;:?!]", text.lower())


def encoded(words: list[str], size: int) -> Tensor:
    """(N,) ids of the words: the `size` - 1 most frequent ones of the first 80 %, where training is, from 1; every
    other is 0."""
    training = Counter(words[: len(words) * 8 // 10])
    ids = {word: i for i, (word, _) in enumerate(training.most_common(size - 1), start=1)}
    return torch.tensor([ids.get(word, UNKNOWN) for word in words])


def split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first 80 % for training, a tenth each to choose by and to report."""
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    return rows[:first], rows[first:second], rows[second:]


def windows(rows: Tensor, T: int, B: int, random: torch.Generator | None = None) -> Tensor:
    """(T, B, ...) runs of T rows from random places, or, without `random`, from places evenly spread."""
    last = len(rows) - T
    starts = torch.randint(last, (B,), generator=random) if random else torch.linspace(0, last, B).long()
    return rows[starts + torch.arange(T).unsqueeze(1)]
