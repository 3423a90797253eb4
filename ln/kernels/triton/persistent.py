"""The whole time loop of a narrow layer in one launch: a program owns a few rows of the batch for all steps.

Shapes and entries of `table` as in `kernels`, whose step kernels do all but the products. What the rows of a program
hand from one part of a step to the next, h, W_hh h and their gradients, goes through global memory, which no other
program shares; W_hh streams from the L2 cache at each step, since all of it is as large as an SM's registers.

weight (GATES, BLOCK_H, BLOCK_H), zero beyond H: one matrix to a gate, by the unit that a product sums over, then the
unit that it gives. Products sum in float32 proper, never in TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ln.kernels.triton.kernels import gru_backward, gru_forward, lstm_backward, lstm_forward
from ln.kernels.triton.tiles import store3, store4, tile

SLICE = tl.constexpr(16)  # units that a product takes at a time


@triton.jit
def products(
    x, weight, rows, B, H, LENGTH: tl.constexpr, GATES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr
):
    """The product of each gate's matrix with its part of x (B, LENGTH H), or with all of x where LENGTH is 1: a tile
    (BLOCK_B, BLOCK_H) to a gate, the fourth zero where there are three."""
    i = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    f, g, o = i, i, i
    offset = 0 if LENGTH == 1 else H
    for first in tl.range(0, BLOCK_H, SLICE, num_stages=2):
        k = first + tl.arange(0, SLICE)
        inside = (rows < B) & (k < H)[None, :]
        part = x + rows * (LENGTH * H) + k[None, :]
        matrix = weight + k[:, None] * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
        i = _added(i, part, inside, matrix)
        f = _added(f, part + offset, inside, matrix + BLOCK_H * BLOCK_H)
        g = _added(g, part + 2 * offset, inside, matrix + 2 * BLOCK_H * BLOCK_H)
        if GATES == 4:
            o = _added(o, part + 3 * offset, inside, matrix + 3 * BLOCK_H * BLOCK_H)
    return i, f, g, o


@triton.jit
def _added(total, part, inside, matrix):
    return tl.dot(tl.load(part, mask=inside, other=0.0), tl.load(matrix), total, input_precision="ieee")


@triton.jit(do_not_specialize=["steps"])
def forward(
    table, h, zh, weight, B, H, steps, eps,
    GATES: tl.constexpr, NORM: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr,
    RAGGED: tl.constexpr, SAVE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """All steps from the first on. h (B, H): the state before, then after them; zh (B, G) is scratch; the rest as in
    `lstm_forward` and, with three GATES, `gru_forward`."""
    rows, units = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, at = (rows < B) & (units < H), rows * (GATES * H) + units
    for k in range(steps):
        i, f, g, o = products(h, weight, rows, B, H, 1, GATES, BLOCK_B, BLOCK_H)
        if GATES == 4:
            store4(zh + at, H, inside, i, f, g, o)
            tl.debug_barrier()
            lstm_forward(table, h, zh, B, H, k, eps, NORM, RECURRENT, CELL, BIAS, RAGGED, SAVE, True, BLOCK_B, BLOCK_H)
        else:
            store3(zh + at, H, inside, i, f, g)
            tl.debug_barrier()
            gru_forward(table, h, zh, B, H, k, eps, NORM, RECURRENT, BIAS, RAGGED, SAVE, True, BLOCK_B, BLOCK_H)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["steps"])
def backward(
    table, dh, dc, dz, weight, B, H, steps, eps,
    GATES: tl.constexpr, NORM: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr,
    RAGGED: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The gradients of all steps, from the last one to the first. dh, dc (B, H): those of the states after them, then
    before them, dc in the LSTM only; dz (B, G) is scratch; the rest as in `lstm_backward` and `gru_backward`."""
    rows, units = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, at = (rows < B) & (units < H), rows * H + units
    for past in range(steps):
        k = steps - 1 - past
        if GATES == 4:
            lstm_backward(table, dh, dc, dz, B, H, k, eps, NORM, RECURRENT, CELL, BIAS, RAGGED, BLOCK_B, BLOCK_H)
        else:
            gru_backward(table, dh, dz, B, H, k, eps, NORM, RECURRENT, BIAS, RAGGED, BLOCK_B, BLOCK_H)
        tl.debug_barrier()
        i, f, g, o = products(dz, weight, rows, B, H, GATES, GATES, BLOCK_B, BLOCK_H)
        d_h = (i + f) + (g + o)
        if RAGGED or GATES == 3:
            d_h += tl.load(dh + at, mask=inside, other=0.0)  # what passes the step without a product
        tl.store(dh + at, d_h, mask=inside)
        tl.debug_barrier()
