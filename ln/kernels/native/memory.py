"""Reused memory for large tensors.

A fresh buffer of several MB is mapped and zeroed by the kernel page by page, which can cost more than the arithmetic
done in it. Tensors from here lie in memory that goes back to the pool when the last reference to their storage dies, so
nothing is released by hand: kept graphs, several modules and several threads each hold what they still refer to.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEMORY: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are
_SMALL = 1 << 18  # bytes; below this the C allocator reuses memory itself


class Pool:
    """Free memory by size. With what is in use it never holds more than twice what was in use at one time; of a size
    that came back longest ago some is let go first."""

    def __init__(self) -> None:
        # Re-entrant: the garbage collector may give a buffer back while this very thread is taking one.
        self._lock = threading.RLock()
        self._free: dict[int, list[mmap.mmap]] = {}
        self._used = self._most_used = self._kept = 0

    def empty(self, *shape: int) -> Tensor:
        """Uninitialized float32 tensor of that shape."""
        n = math.prod(shape)
        if 4 * n < _SMALL:
            return torch.empty(shape, **MEMORY)
        size = 4 * n
        size = -(-size // (step := 1 << (size.bit_length() - 4))) * step  # at most an eighth more than asked for
        with self._lock:
            buffers = self._free.get(size)
            memory = buffers.pop() if buffers else None
            if memory is not None:
                self._kept -= size
            self._used += size
            self._most_used = max(self._most_used, self._used)
        if memory is None:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        array = np.frombuffer(memory, np.float32, n)
        weakref.finalize(array, self._give_back, memory, size).atexit = False
        return torch.from_numpy(array.reshape(shape))

    def _give_back(self, memory: mmap.mmap, size: int) -> None:
        with self._lock:
            self._used -= size
            self._free[size] = [*self._free.pop(size, ()), memory]  # now the last of the sizes
            self._kept += size
            while self._kept + self._used > 2 * self._most_used:
                oldest = next(s for s, buffers in self._free.items() if buffers)
                self._free[oldest].pop()
                self._kept -= oldest

    def clear(self) -> None:
        """Return the free memory to the system."""
        with self._lock:
            self._free.clear()
            self._kept, self._most_used = 0, self._used


POOL = Pool()
