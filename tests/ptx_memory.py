"""Memories of the PTX machine, and what threads must not do to them: leave their bounds, misalign, race."""

from __future__ import annotations

import ctypes

import numpy as np

WARP = 32


class Fault(Exception):
    """What a GPU would do something undefined at."""


class Memory:
    """Words of 32 bits, and a log of who touched which of them since which barrier."""

    def __init__(self, block: np.ndarray) -> None:
        self.block, self.thread = block, np.arange(len(block))
        self.now = 0  # the instruction
        self.epoch = 0  # barriers of the whole block so far
        self.log: list[tuple[np.ndarray, ...]] = []

    def barrier(self, block: bool) -> None:
        self.epoch += block

    def aligned(self, at: np.ndarray, size: int, mask: np.ndarray) -> None:
        if (at[mask] % size).any():
            raise Fault(f"instruction {self.now}: an access of {size} bytes is not aligned")

    def note(self, word: np.ndarray, mask: np.ndarray, value: np.ndarray | None) -> None:
        threads = self.thread[mask]
        written = np.full(len(threads), -1) if value is None else value[mask].astype(np.int64)
        facts = np.full(len(threads), self.epoch), np.full(len(threads), self.now)
        self.log.append((word[mask], threads, *facts, written))

    def check_races(self) -> None:
        """Two warps, one of them writing, touch a word within one epoch of a block, or of two blocks at any time.

        Several threads that write one and the same value in one instruction hold replicas of it, and may.
        """
        if not self.log:
            return
        word, thread, epoch, instruction, written = (np.concatenate(column) for column in zip(*self.log, strict=True))
        words, group = np.unique(word, return_inverse=True)
        writes = written >= 0

        def spread(values: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
            low, high = np.full(n, np.iinfo(np.int64).max), np.full(n, -1)
            np.minimum.at(low, group, values)
            np.maximum.at(high, group, values)
            return low != high

        def conflicts(group: np.ndarray, n: int, who: np.ndarray) -> np.ndarray:
            any_write, only_writes = np.zeros(n, bool), np.ones(n, bool)
            np.logical_or.at(any_write, group, writes)
            np.logical_and.at(only_writes, group, writes)
            replicas = only_writes & ~spread(instruction, group, n) & ~spread(written, group, n)
            return any_write & spread(who, group, n) & ~replicas

        between = conflicts(group, len(words), self.block[thread])
        both = group * (int(epoch.max()) + 1) + epoch
        moments, moment = np.unique(both, return_inverse=True)
        within = conflicts(moment, len(moments), thread // WARP)
        for name, found, index in (("blocks", between, group), ("warps", within, moment)):
            if found.any():
                chosen = index == np.flatnonzero(found)[0]
                raise Fault(
                    f"{int(found.sum())} races between {name}, one at word {int(word[chosen][0]):#x}, instructions "
                    f"{sorted(set(instruction[chosen].tolist()))}"
                )


class SharedMemory(Memory):
    """That of every block."""

    def __init__(self, size: int, blocks: int, block: np.ndarray) -> None:
        super().__init__(block)
        self.size, self.words = size, np.zeros((blocks, max(1, -(-size // 4))), np.uint32)

    def _index(self, at: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inside = at[mask]
        if len(inside) and (inside.min() < 0 or inside.max() + 4 > 4 * -(-self.size // 4)):
            raise Fault(f"instruction {self.now}: shared memory has {self.size} bytes, not {int(inside.max()) + 4}")
        return at // 4

    def load(self, at: np.ndarray, mask: np.ndarray) -> np.ndarray:
        word = self._index(at, mask)
        self.note(self.block * self.words.shape[1] + word, mask, None)
        found = np.zeros(len(at), np.uint32)
        found[mask] = self.words[self.block[mask], word[mask]]
        return found

    def store(self, at: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        word = self._index(at, mask)
        self.note(self.block * self.words.shape[1] + word, mask, value)
        self.words[self.block[mask], word[mask]] = value[mask]

    # Bytes, such as a row's being alive, have a log of their own: nobody looks at one as part of a word.

    def load_byte(self, at: np.ndarray, mask: np.ndarray) -> np.ndarray:
        place = self._byte(at, mask)
        self.note(-1 - (self.block * 4 * self.words.shape[1] + place), mask, None)
        found = np.zeros(len(at), np.uint8)
        found[mask] = self.words.view(np.uint8)[self.block[mask], place[mask]]
        return found

    def store_byte(self, at: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        place = self._byte(at, mask)
        self.note(-1 - (self.block * 4 * self.words.shape[1] + place), mask, value)
        self.words.view(np.uint8)[self.block[mask], place[mask]] = value[mask]

    def _byte(self, at: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self._index(at // 4 * 4, mask)
        return at


class GlobalMemory(Memory):
    """The memory of this process that lies in the launch's tensors, given by where each begins and ends."""

    def __init__(self, tensors: list[tuple[int, int]], block: np.ndarray) -> None:
        super().__init__(block)
        merged: list[list[int]] = []
        for low, high in sorted(tensors):
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        self.bounds = np.array(merged, np.int64).reshape(-1, 2)
        self.parts = [
            np.ctypeslib.as_array((ctypes.c_uint32 * ((high - low) // 4)).from_address(low)) for low, high in merged
        ]

    def _where(self, at: np.ndarray) -> np.ndarray:
        part = np.searchsorted(self.bounds[:, 0], at, side="right") - 1
        outside = (part < 0) | (at + 4 > self.bounds[np.maximum(part, 0), 1])
        if outside.any():
            raise Fault(f"instruction {self.now}: {int(outside.sum())} threads leave every tensor of the launch")
        return part

    def load(self, at: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.note(at // 4, mask, None)
        found, chosen = np.zeros(len(at), np.uint32), np.flatnonzero(mask)
        where = self._where(at[chosen])
        for part in np.unique(where):
            here = chosen[where == part]
            found[here] = self.parts[part][(at[here] - self.bounds[part, 0]) // 4]
        return found

    def store(self, at: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        self.note(at // 4, mask, value)
        chosen = np.flatnonzero(mask)
        where = self._where(at[chosen])
        for part in np.unique(where):
            here = chosen[where == part]
            self.parts[part][(at[here] - self.bounds[part, 0]) // 4] = value[here]


class Copies:
    """Copies from global to shared memory beside the threads: begun, committed as groups, and there once waited for.

    Until then nobody may look at where they go, so it holds NaN, and they count as written to in every epoch.
    """

    def __init__(self, memory: GlobalMemory, shared: SharedMemory) -> None:
        self.memory, self.shared = memory, shared
        self.begun: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # where to, what, by which threads
        self.groups: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []

    def begin(self, to: np.ndarray, source: np.ndarray, size: int, given: np.ndarray, mask: np.ndarray) -> None:
        """`size` bytes, of which `given` are read and the others zero."""
        self.memory.aligned(source, size, mask)
        self.shared.aligned(to, size, mask)
        for first in range(0, size, 4):
            value = self.memory.load(source + first, mask & (first < given))
            self.shared.store(to + first, np.full(len(to), 0x7FC00000, np.uint32), mask)
            self.begun.append((to + first, value, mask))

    def commit(self) -> None:
        self.groups.append(self.begun)
        self.begun = []

    def wait(self, most: int) -> None:
        """Until at most so many groups are left."""
        while len(self.groups) > most:
            for copy in self.groups.pop(0):
                self.shared.store(*copy)

    def barrier(self) -> None:
        """What goes on past a barrier may still write behind it."""
        for to, _, mask in (copy for group in [*self.groups, self.begun] for copy in group):
            self.shared.store(to, np.full(len(to), 0x7FC00000, np.uint32), mask)
