"""Triton kernels of the first LSTM and its window: all of one pen step but the product with W_hh, in one launch.

Shapes: T pen steps, B batch, H hidden, G = 4H gates, U characters of a text, K Gaussians of the window. Equation
numbers G46 and so on are Graves', as in `network`.

A program holds one row of the batch. Entries 0 to 15 of `table` are those of `ln.kernels.triton.kernels`, and on top:
16, 17 mean and variance of the summed inputs (T, 1, B); 18 summed inputs (T, B, G): those of the pen's points, to which
a step adds those of the window; 19 the columns of W_ih that belong to the characters, as rows (A + 1, G), the last one
of zeros; 20 texts (B, U) int64; 21 gain_ih; 22 the bias of the summed inputs; 23 the window's weights (T + 1, B, U) and
24 its places (T + 1, B, K), both from before the first step on; 25 heights, widths and moves (T, B, 3K); 26, 27 weight
(3K, H) and bias (3K) of the layer that aims the window. In backward: 28 the gradient of the weights (T, B, U) from
outside, 29 from the step after them (T + 1, B, U), 30 that of the places (T + 1, B, K), 31 of what aims the window
(T, B, 3K).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ln.kernels.triton.kernels import lstm_backward, lstm_forward
from ln.kernels.triton.tiles import (
    centred4,
    floats,
    load4,
    standardized,
    store4,
    store_statistics,
    sum4,
    unscaled,
)


@triton.jit
def integers(table, index: tl.constexpr):
    return tl.load(table + index).to(tl.pointer_type(tl.int64))


@triton.jit
def columns_of(table, row, u, units, U, H):
    """What a step sums for each character (CHUNK) of a row's text: four tiles (CHUNK, BLOCK_H), one to a gate."""
    character = tl.load(integers(table, 20) + row * U + u, mask=u < U, other=0)
    return load4(floats(table, 19) + character * 4 * H + units, H, (u < U) & (units < H))


@triton.jit(do_not_specialize=["k"])
def pen_forward(
    table, h, zh, B, H, U, K, k, eps,
    NORM: tl.constexpr, INPUT: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr,
    SAVE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Step k: the LSTM, from zh = W_hh h (B, G) and what the window showed before, and where the window goes."""
    row = tl.program_id(0)
    at = (k * B + row).to(tl.int64)  # rows of all steps lie below one another
    units = tl.arange(0, BLOCK_H)[None, :]
    exists = units < H
    i = tl.zeros((CHUNK, BLOCK_H), tl.float32)
    f, g, o = i, i, i
    for first in range(0, U, CHUNK):
        u = first + tl.arange(0, CHUNK)[:, None]
        weight = tl.load(floats(table, 23) + at * U + u, mask=u < U, other=0.0)
        ci, cf, cg, co = columns_of(table, row, u, units, U, H)
        i, f, g, o = i + weight * ci, f + weight * cf, g + weight * cg, o + weight * co
    summed = floats(table, 18) + at * 4 * H + units
    pi, pf, pg, po = load4(summed, H, exists)
    i, f = pi + tl.sum(i, 0, keep_dims=True), pf + tl.sum(f, 0, keep_dims=True)
    g, o = pg + tl.sum(g, 0, keep_dims=True), po + tl.sum(o, 0, keep_dims=True)
    if INPUT:
        if SAVE:
            store4(summed, H, exists, i, f, g, o)
        i, f, g, o, mean, _f, _g, _o, var, _vf, _vg, _vo = centred4(i, f, g, o, exists, 4.0 * H, NORM)
        if SAVE:
            store_statistics(mean, var, table, 16, k, tl.full((1, 1), row, tl.int32), units, 0, 0, B, H, 4, 1, NORM)
        rstd = tl.rsqrt(var + eps)
        gi, gf, gg, go = load4(floats(table, 21) + units, H, exists)
        i, f, g, o = i * rstd * gi, f * rstd * gf, g * rstd * gg, o * rstd * go
    bi, bf, bg, bo = load4(floats(table, 22) + units, H, exists)
    store4(floats(table, 1) + at * 4 * H + units, H, exists, i + bi, f + bf, g + bg, o + bo)
    tl.debug_barrier()
    lstm_forward(table, h, zh, B, H, k, eps, NORM, RECURRENT, CELL, BIAS, False, SAVE, True, 1, BLOCK_H)
    tl.debug_barrier()
    # G48 to G51
    gaussians = tl.arange(0, BLOCK_K)[:, None]
    some = gaussians < K
    state = tl.load(h + row * H + units, mask=exists, other=0.0)
    aim, bias = floats(table, 26) + gaussians * H + units, floats(table, 27) + gaussians
    height = tl.sum(tl.load(aim, mask=some & exists, other=0.0) * state, 1, keep_dims=True)
    width = tl.sum(tl.load(aim + K * H, mask=some & exists, other=0.0) * state, 1, keep_dims=True)
    move = tl.sum(tl.load(aim + 2 * K * H, mask=some & exists, other=0.0) * state, 1, keep_dims=True)
    height = tl.exp(height + tl.load(bias, mask=some, other=0.0))
    width = tl.exp(width + tl.load(bias + K, mask=some, other=0.0))
    move = tl.exp(move + tl.load(bias + 2 * K, mask=some, other=0.0))
    places = floats(table, 24) + at * K + gaussians
    place = tl.load(places, mask=some, other=0.0) + move
    tl.store(places + B * K, place, mask=some)
    if SAVE:
        looks = floats(table, 25) + at * 3 * K + gaussians
        tl.store(looks, height, mask=some)
        tl.store(looks + K, width, mask=some)
        tl.store(looks + 2 * K, move, mask=some)
    # G46
    u = tl.arange(0, BLOCK_U)[None, :]
    off = place - u.to(tl.float32)
    seen = tl.sum(tl.where(some, height * tl.exp(-width * (off * off)), 0.0), 0, keep_dims=True)
    tl.store(floats(table, 23) + (at + B) * U + u, seen, mask=u < U)


@triton.jit(do_not_specialize=["k"])
def pen_backward(
    table, dh, dc, dz, B, H, U, K, k, eps,
    NORM: tl.constexpr, INPUT: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of step k; dh, dc and dz as in `lstm_backward`. From the entries 29 and 30 it reads what the step
    after it wrote, and writes what the step before it will read."""
    row = tl.program_id(0)
    at = (k * B + row).to(tl.int64)
    units = tl.arange(0, BLOCK_H)[None, :]
    exists = units < H
    gaussians, u = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_U)[None, :]
    some = gaussians < K
    looks = floats(table, 25) + at * 3 * K + gaussians
    height = tl.load(looks, mask=some, other=0.0)
    width = tl.load(looks + K, mask=some, other=0.0)
    move = tl.load(looks + 2 * K, mask=some, other=0.0)
    off = tl.load(floats(table, 24) + (at + B) * K + gaussians, mask=some, other=0.0) - u.to(tl.float32)
    recurrent = floats(table, 29) + at * U
    d_seen = tl.load(recurrent + B * U + u, mask=u < U, other=0.0)
    d_seen += tl.load(floats(table, 28) + at * U + u, mask=u < U, other=0.0)
    d_seen *= tl.exp(-width * (off * off))
    d_height = height * tl.sum(d_seen, 1, keep_dims=True)
    d_width = -height * width * tl.sum(d_seen * (off * off), 1, keep_dims=True)
    d_places = floats(table, 30) + at * K + gaussians
    d_place = -2.0 * height * width * tl.sum(d_seen * off, 1, keep_dims=True)
    d_place += tl.load(d_places + B * K, mask=some, other=0.0)
    tl.store(d_places, d_place, mask=some)
    d_move = d_place * move
    d_looks = floats(table, 31) + at * 3 * K + gaussians
    tl.store(d_looks, d_height, mask=some)
    tl.store(d_looks + K, d_width, mask=some)
    tl.store(d_looks + 2 * K, d_move, mask=some)
    aim = floats(table, 26) + gaussians * H + units
    d_h = d_height * tl.load(aim, mask=some & exists, other=0.0)
    d_h += d_width * tl.load(aim + K * H, mask=some & exists, other=0.0)
    d_h += d_move * tl.load(aim + 2 * K * H, mask=some & exists, other=0.0)
    d_state = dh + row * H + units
    d_h = tl.load(d_state, mask=exists, other=0.0) + tl.sum(d_h, 0, keep_dims=True)
    tl.debug_barrier()
    tl.store(d_state, d_h, mask=exists)
    tl.debug_barrier()
    lstm_backward(table, dh, dc, dz, B, H, k, eps, NORM, RECURRENT, CELL, BIAS, False, 1, BLOCK_H)
    tl.debug_barrier()
    d_i, d_f, d_g, d_o = load4(floats(table, 12) + at * 4 * H + units, H, exists)
    if INPUT:
        rows = tl.full((1, 1), row, tl.int32)
        i, f, g, o = load4(floats(table, 18) + at * 4 * H + units, H, exists)
        i, rstd = standardized(i, table, 16, k, rows, units, 0, 0, B, H, eps, 4, 1, NORM)
        f, _rf = standardized(f, table, 16, k, rows, units, 1, 0, B, H, eps, 4, 1, NORM)
        g, _rg = standardized(g, table, 16, k, rows, units, 2, 0, B, H, eps, 4, 1, NORM)
        o, _ro = standardized(o, table, 16, k, rows, units, 3, 0, B, H, eps, 4, 1, NORM)
        gi, gf, gg, go = load4(floats(table, 21) + units, H, exists)
        d_i, d_f, d_g, d_o = d_i * gi, d_f * gf, d_g * gg, d_o * go
        mean, _mf, _mg, _mo = sum4(d_i, d_f, d_g, d_o, NORM)
        product, _vf, _vg, _vo = sum4(d_i * i, d_f * f, d_g * g, d_o * o, NORM)
        mean, product = mean / (4.0 * H), product / (4.0 * H)
        d_i = unscaled(d_i, i, mean, product, rstd, NORM)
        d_f = unscaled(d_f, f, mean, product, rstd, NORM)
        d_g = unscaled(d_g, g, mean, product, rstd, NORM)
        d_o = unscaled(d_o, o, mean, product, rstd, NORM)
    for first in range(0, U, CHUNK):
        some_u = first + tl.arange(0, CHUNK)[:, None]
        ci, cf, cg, co = columns_of(table, row, some_u, units, U, H)
        d_weight = tl.sum((d_i * ci + d_f * cf) + (d_g * cg + d_o * co), 1, keep_dims=True)
        tl.store(recurrent + some_u, d_weight, mask=some_u < U)
