"""Batches of triples of sentences without an iterator's state, whatever the corpus' size.

Shapes: B batch.
"""

from collections.abc import Callable

import numpy as np

from ln.suite.data.books import Split


def permuted(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """(B,) int64 where a pseudorandom permutation of 0 ... size - 1 sends `places`, with no table of it in memory.

    Four Feistel rounds on the smallest even number of bits that holds `size`, repeated while the result is outside.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = np.asarray(places, np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right, key + turn) & mask)
        values = values.copy()
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


def _mixed(values: np.ndarray, key: int) -> np.ndarray:
    """(B,) uint64 hashes (the finalizer of splitmix64)."""
    z = values + np.uint64(key * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class SameLength:
    """Batches of triples whose middle sentences are of one length, in an order of its own every epoch, as a pure
    function of seed and step.

    Each length's triples are permuted and cut into batches, the last one smaller, and all batches are permuted. Nothing
    is kept but the counts, so a run goes on from its step alone, whatever the corpus' size.
    """

    def __init__(self, split: Split, batch_size: int, seed: Callable[[int], int]):
        """seed: epoch -> the key of its order."""
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.counts = np.diff(split.by_length)
        self.batches = np.cumsum(-(-self.counts // batch_size))
        self.steps_per_epoch = int(self.batches[-1])

    def middles(self, step: int) -> np.ndarray:
        """(B,) int64 the middle sentences of training step `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        key = self.seed(epoch)
        batch = int(permuted(np.array([position]), self.steps_per_epoch, key)[0])
        length = int(np.searchsorted(self.batches, batch, side="right"))
        first = (batch - (int(self.batches[length - 1]) if length else 0)) * self.batch_size
        count = int(self.counts[length])
        places = permuted(np.arange(first, min(first + self.batch_size, count)), count, key + 8 * (length + 1))
        return np.asarray(self.split.triples[self.split.by_length[length] + places])
