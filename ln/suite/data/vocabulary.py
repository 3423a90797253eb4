"""Words as numbers."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

EOS, UNKNOWN = 0, 1  # as in the published code; 0 also fills up a short row


class Vocabulary:
    """Words by their ids, the most frequent first; 0 ends a sentence, 1 is every word that is not listed."""

    def __init__(self, words: Sequence[str]):
        self.words = ["<eos>", "<unk>", *words]
        self.ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], size: int | None = None) -> "Vocabulary":
        """The words of `sentences` by falling count, ties in alphabetical order, at most `size` ids in all."""
        counts: dict[str, int] = {}
        for word in chain.from_iterable(sentences):
            counts[word] = counts.get(word, 0) + 1
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered if size is None else ordered[: size - 2])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [self.ids.get(word, UNKNOWN) for word in sentence]

    def decode(self, ids: Iterable[int]) -> list[str]:
        return [self.words[i] for i in ids]


def padded(rows: Sequence[Sequence[int]], fill: int = EOS) -> tuple[Tensor, Tensor]:
    """(B, T) ids filled up on the right and (B,) lengths, both int64."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), fill)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, lengths
