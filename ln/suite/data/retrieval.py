"""Associative retrieval (Ba et al. 2016, "Using Fast Weights to Attend to the Recent Past", section 4.1): strings such
as `c9k8j3f1??c`, pairs of a letter and a digit, two question marks and one of the letters; asked for is its digit.

The task makes its own data, so the generated strings are the original. Shapes: N examples, T characters.
"""

import string
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ln.suite.data import Source

LETTERS, DIGITS = string.ascii_lowercase, string.digits
ALPHABET = LETTERS + DIGITS + "?"
PAIRS = 4
SIZES = {"train": 100_000, "valid": 10_000, "test": 20_000}
FEW = {"train": 512, "valid": 128, "test": 128}
SEEDS = {"train": 1, "valid": 2, "test": 3}  # one data set for all runs


@dataclass(frozen=True)
class Retrieval:
    strings: dict[str, Tensor]  # of each split (N, T) int64, indices into ALPHABET
    digits: dict[str, Tensor]  # (N,) int64, 0 to 9


def generate(examples: int, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 2 pairs + 3) characters and (N,) digits: letters without repetition, digits with."""
    draw = torch.Generator().manual_seed(seed)
    letters = torch.rand(examples, len(LETTERS), generator=draw).argsort(1)[:, :pairs]
    digits = torch.randint(len(DIGITS), (examples, pairs), generator=draw)
    asked = torch.randint(pairs, (examples, 1), generator=draw)
    said = torch.stack([letters, digits + len(LETTERS)], 2).flatten(1)
    marks = torch.full((examples, 2), ALPHABET.index("?"))
    return torch.cat([said, marks, letters.gather(1, asked)], 1), digits.gather(1, asked).squeeze(1)


def as_text(characters: Tensor) -> str:
    """One example (T,) as the string it is."""
    return "".join(ALPHABET[index] for index in characters.tolist())


def _made(sizes: dict[str, int]) -> Retrieval:
    made = {split: generate(size, PAIRS, SEEDS[split]) for split, size in sizes.items()}
    return Retrieval({k: strings for k, (strings, _) in made.items()}, {k: digits for k, (_, digits) in made.items()})


def original() -> Source:
    """As many strings as in the paper."""
    key = f"{'/'.join(map(str, SIZES.values()))} strings of {PAIRS} pairs, version 1"
    return Source("associative retrieval", "original", key, partial(_made, SIZES))


def embedded() -> Source:
    """A few of them, to see that everything runs."""
    key = f"{'/'.join(map(str, FEW.values()))} strings of {PAIRS} pairs, version 1"
    return Source("associative retrieval", "embedded", key, partial(_made, FEW))
