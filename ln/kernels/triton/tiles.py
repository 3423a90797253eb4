"""What the kernels of the Triton backend are made of: tiles of gates, their statistics, addresses.

Shapes: T time, B batch, H hidden; GATES gates (4 LSTM, 3 GRU), GROUPS of which share a statistic with layer norm.

A program holds a tile (BLOCK_B, BLOCK_H) of each gate. Layer and RMS norm need whole rows, so there a tile spans all
H units of a few rows; batch norm needs whole columns, so there it spans all B rows of a few units. The arithmetic is
the same, and only the axis of the sums differs.

What a step reads from and writes to the tensors of a call (T, ...) is found through `table`, int64 addresses in device
memory. So a CUDA graph that holds launches with fixed arguments works on tensors that are others at each call, in
place.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What normalizes the summed inputs; a global that kernels read has to be a constexpr.
NO_NORM = tl.constexpr(0)
LAYER = tl.constexpr(1)
RMS = tl.constexpr(2)  # layer norm without the mean
BATCH = tl.constexpr(3)  # statistics of the batch at hand; from here on they belong to columns, before it to rows
GIVEN = tl.constexpr(4)  # batch norm with statistics that are given


@triton.jit(do_not_specialize_on_alignment=["pointers"])
def write_table(table, pointers, COUNT: tl.constexpr):
    """Store the addresses of `pointers`, a tuple of COUNT tensors or None, in table. (Triton 3.6 has no len of it.)"""
    for i in tl.static_range(COUNT):
        if pointers[i] is not None:
            tl.store(table + i, pointers[i].to(tl.int64))


@triton.jit
def floats(table, index: tl.constexpr):
    return tl.load(table + index).to(tl.pointer_type(tl.float32))


@triton.jit
def load3(pointer, H, mask):
    """The three tiles at pointer, pointer + H, pointer + 2H."""
    return (
        tl.load(pointer, mask=mask, other=0.0),
        tl.load(pointer + H, mask=mask, other=0.0),
        tl.load(pointer + 2 * H, mask=mask, other=0.0),
    )


@triton.jit
def load4(pointer, H, mask):
    a, b, c = load3(pointer, H, mask)
    return a, b, c, tl.load(pointer + 3 * H, mask=mask, other=0.0)


@triton.jit
def store3(pointer, H, mask, a, b, c):
    tl.store(pointer, a, mask=mask)
    tl.store(pointer + H, b, mask=mask)
    tl.store(pointer + 2 * H, c, mask=mask)


@triton.jit
def store4(pointer, H, mask, a, b, c, d):
    store3(pointer, H, mask, a, b, c)
    tl.store(pointer + 3 * H, d, mask=mask)


@triton.jit
def tanh(x):
    # (1 - e) / (1 + e) cancels near 0, where five terms of the series are exact to float32.
    s = x * x
    series = x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))))
    e = tl.exp(-2.0 * tl.abs(x))
    ratio = (1.0 - e) / (1.0 + e)
    return tl.where(s < 0.0625, series, tl.where(x < 0, -ratio, ratio))


@triton.jit
def tile(B, H, NORM: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rows (BLOCK_B, 1) and columns (1, BLOCK_H) of this program."""
    rows = tl.arange(0, BLOCK_B)[:, None]
    columns = tl.arange(0, BLOCK_H)[None, :]
    if NORM >= BATCH:
        return rows, columns + tl.program_id(0) * BLOCK_H
    else:
        return rows + tl.program_id(0) * BLOCK_B, columns


@triton.jit
def valid(table, rows, k, B, RAGGED: tl.constexpr):
    """The rows (BLOCK_B, 1) that have not ended before step k; entry 0 of the table counts the steps each has left."""
    if RAGGED:
        left = tl.load(table).to(tl.pointer_type(tl.int64))
        return k < tl.load(left + rows, mask=rows < B, other=0)
    else:
        return rows < B


@triton.jit
def count(rows, units, NORM: tl.constexpr):
    """Over how many values a statistic goes: units of a row, or the rows (BLOCK_B, 1) that count."""
    if NORM < BATCH:
        return units * 1.0
    else:
        return tl.maximum(tl.sum(tl.sum(rows.to(tl.float32), 0), 0), 1.0)


@triton.jit
def sum1(a, NORM: tl.constexpr):
    return tl.sum(a, 1 if NORM < BATCH else 0, keep_dims=True)


@triton.jit
def sum2(a, b, NORM: tl.constexpr):
    """Sums of two gates: one over both together with layer norm, one for each otherwise."""
    if NORM < BATCH:
        s = tl.sum(a + b, 1, keep_dims=True)
        return s, s
    else:
        return tl.sum(a, 0, keep_dims=True), tl.sum(b, 0, keep_dims=True)


@triton.jit
def sum4(a, b, c, d, NORM: tl.constexpr):
    """Sums of four gates: one over all together with layer norm, one for each otherwise."""
    if NORM < BATCH:
        s = tl.sum((a + b) + (c + d), 1, keep_dims=True)
        return s, s, s, s
    else:
        ab = sum2(a, b, NORM)
        cd = sum2(c, d, NORM)
        return ab[0], ab[1], cd[0], cd[1]


@triton.jit
def statistic(index, rows, columns, gate, group, B, H, GATES: tl.constexpr, GROUPS: tl.constexpr, NORM: tl.constexpr):
    """Where a statistic of step `index` lies, and which exist: (T, GROUPS, B) with layer norm, else (T, GATES, H)."""
    if NORM < BATCH:
        return (index * GROUPS + group) * B + rows, rows < B
    else:
        return (index * GATES + gate) * H + columns, columns < H


@triton.jit
def standardized(
    z, table, MEAN: tl.constexpr, index, rows, columns, gate, group, B, H, eps,
    GATES: tl.constexpr, GROUPS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """(z - mean) rstd and rstd, by the mean and variance that the table's entries MEAN and MEAN + 1 point to."""
    at, exists = statistic(index, rows, columns, gate, group, B, H, GATES, GROUPS, NORM)
    rstd = tl.rsqrt(tl.load(floats(table, MEAN + 1) + at, mask=exists, other=0.0) + eps)
    return (z - tl.load(floats(table, MEAN) + at, mask=exists, other=0.0)) * rstd, rstd


@triton.jit
def store_statistics(
    mean, var, table, MEAN: tl.constexpr, index, rows, columns, gate, group, B, H,
    GATES: tl.constexpr, GROUPS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    at, exists = statistic(index, rows, columns, gate, group, B, H, GATES, GROUPS, NORM)
    tl.store(floats(table, MEAN) + at, mean, mask=exists)
    tl.store(floats(table, MEAN + 1) + at, var, mask=exists)


@triton.jit
def centred1(a, counted, count, NORM: tl.constexpr):
    """The centred tile, its mean and its biased variance over what is counted. Two passes, so that nothing cancels.

    The mean is divided exactly: what a single row has left of itself is multiplied by 1 / sqrt(eps). RMS norm does not
    centre: its mean is 0, and the variance is the mean square.
    """
    mean = tl.div_rn(sum1(tl.where(counted, a, 0.0), NORM), count)
    if NORM == RMS:
        mean = tl.zeros_like(mean)
    a = a - mean
    return a, mean, sum1(tl.where(counted, a * a, 0.0), NORM) / count


@triton.jit
def centred2(a, b, counted, count, NORM: tl.constexpr):
    ma, mb = sum2(tl.where(counted, a, 0.0), tl.where(counted, b, 0.0), NORM)
    ma, mb = tl.div_rn(ma, count), tl.div_rn(mb, count)
    if NORM == RMS:
        ma, mb = tl.zeros_like(ma), tl.zeros_like(mb)
    a, b = a - ma, b - mb
    va, vb = sum2(tl.where(counted, a * a, 0.0), tl.where(counted, b * b, 0.0), NORM)
    return a, b, ma, mb, va / count, vb / count


@triton.jit
def centred4(a, b, c, d, counted, count, NORM: tl.constexpr):
    ma, mb, mc, md = sum4(
        tl.where(counted, a, 0.0), tl.where(counted, b, 0.0), tl.where(counted, c, 0.0), tl.where(counted, d, 0.0), NORM
    )
    ma, mb, mc, md = tl.div_rn(ma, count), tl.div_rn(mb, count), tl.div_rn(mc, count), tl.div_rn(md, count)
    if NORM == RMS:
        ma, mb, mc, md = tl.zeros_like(ma), tl.zeros_like(mb), tl.zeros_like(mc), tl.zeros_like(md)
    a, b, c, d = a - ma, b - mb, c - mc, d - md
    va, vb, vc, vd = sum4(
        tl.where(counted, a * a, 0.0), tl.where(counted, b * b, 0.0), tl.where(counted, c * c, 0.0),
        tl.where(counted, d * d, 0.0), NORM,
    )  # fmt: skip
    return a, b, c, d, ma, mb, mc, md, va / count, vb / count, vc / count, vd / count


@triton.jit
def unscaled(v, z, mean_v, mean_vz, rstd, NORM: tl.constexpr):
    """The gradient with respect to summed inputs of v, that of the standardized z; given statistics are constants."""
    if NORM == GIVEN:
        return v * rstd
    elif NORM == RMS:
        return (v - z * mean_vz) * rstd
    else:
        return (v - mean_v - z * mean_vz) * rstd
