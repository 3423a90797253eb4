"""The forms in which sequences come in and go out: packed, without a batch, with lengths.

Shapes: T time, B batch, n features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ln.kernels import gate


def packed_like(given: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
    """The output (T, B, n) of rows of `lengths` (B), packed in the order of the sequence that was given."""
    if given.sorted_indices is not None:
        output = output.index_select(1, given.sorted_indices)
        lengths = lengths[given.sorted_indices.cpu()]
    data = pack_padded_sequence(output, lengths).data
    return PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)


def with_batch(state: tuple[Tensor, ...] | None, letters: str) -> tuple[Tensor, ...] | None:
    """States without a batch, (L, H) or (H), as states of a batch of one."""
    if state is None:
        return None
    dims = letters.count(",") + 1
    for value in state:
        if not isinstance(value, Tensor) or value.dim() != dims:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"for an input without a batch hx must be {letters}, but is {found}")
    return tuple(value.unsqueeze(-2) for value in state)


def checked_lengths(lengths: Tensor | Sequence[int], T: int, B: int, beyond: str | None) -> Tensor | None:
    """Lengths (B) as int64, or None where every sequence has all T steps.

    Where something goes on beyond eager code, their values are not asked for: a trace would keep the answer for all
    later calls.
    """
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # of what kind depends on what was given
            raise TypeError(f"lengths must be (B,) = ({B},) integers, but are {lengths!r}") from None
        if not lengths.numel():
            lengths = lengths.to(torch.int64)  # of no numbers torch makes floats
    if lengths.shape != (B,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        found = f"{tuple(lengths.shape)} of {lengths.dtype}"
        raise ValueError(f"lengths must be (B,) = ({B},) integers, but are {found}")
    if beyond is not None:
        return lengths.to(torch.int64)
    lengths = lengths.to("cpu", torch.int64)
    low, _ = gate.length_range(lengths, T) if B else (T, T)
    return None if low == T else lengths
