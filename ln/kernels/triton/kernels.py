"""The step kernels of the Triton backend: all of one time step but its matrix product, in one launch.

Shapes: T time, B batch, H hidden, G gates (4H LSTM: i, f, g, o; 3H GRU: r, z, n). float32 throughout. Equation numbers
are those of "Layer Normalization" (Ba, Kiros, Hinton 2016).

Entries of `table`, the same in all kernels; t counts steps from the first one of a stretch of time on:
0 steps left to each row (B) int64, with RAGGED; 1 input term (t, B, G), overwritten by the gates if SAVE; 2 output, or
in backward its gradient (t, B, H); 3 LSTM: c (t + 1, B, H) from the one before the first step on; GRU, backward: the
state before the first step (B, H); 4 zh = W_hh h (t, B, G); 5 gain_hh; 6 gain_c; 7 bias_c, in the GRU bias_hh; 8, 9
mean and variance of zh; 10, 11 of c; 12 gradient of the gates' summed inputs (t, B, G); 13 of zh (t, B, G); 14 of the
normalized c (t, B, H); 15 GRU, backward: the states (t, B, H).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ln.kernels.triton.tiles import (
    BATCH,
    GIVEN,
    centred1,
    centred2,
    centred4,
    count,
    floats,
    load3,
    load4,
    standardized,
    store3,
    store4,
    store_statistics,
    sum1,
    sum2,
    sum4,
    tanh,
    tile,
    unscaled,
    valid,
)


@triton.jit(do_not_specialize=["k"])
def lstm_forward(
    table, h, zh, B, H, k, eps,
    NORM: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr,
    SAVE: tl.constexpr, STATE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Equations 20 to 22 for step k + program_id(1), from zh = W_hh h (programs of axis 1, B, 4H); BIAS: there is a
    bias_c.

    h (B, H) is overwritten by the new state. SAVE leaves what the backward pass needs; without STATE only that is
    written.
    """
    rows, columns = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, exists = (rows < B) & (columns < H), columns < H
    step = (k + tl.program_id(1)).to(tl.int64)
    alive = valid(table, rows, step, B, RAGGED)
    counted = inside & alive if NORM == BATCH else inside
    at_z, at_h = rows * (4 * H) + columns, rows * H + columns
    i, f, g, o = load4(zh + tl.program_id(1).to(tl.int64) * B * 4 * H + at_z, H, inside)
    if RECURRENT:
        if SAVE and STATE:
            store4(floats(table, 4) + step * B * 4 * H + at_z, H, inside, i, f, g, o)
        if NORM == GIVEN:
            i, _ri = standardized(i, table, 8, step, rows, columns, 0, 0, B, H, eps, 4, 1, NORM)
            f, _rf = standardized(f, table, 8, step, rows, columns, 1, 0, B, H, eps, 4, 1, NORM)
            g, _rg = standardized(g, table, 8, step, rows, columns, 2, 0, B, H, eps, 4, 1, NORM)
            o, _ro = standardized(o, table, 8, step, rows, columns, 3, 0, B, H, eps, 4, 1, NORM)
        else:
            # eq 20: with layer norm one statistic over all gates
            i, f, g, o, mi, mf, mg, mo, vi, vf, vg, vo = centred4(i, f, g, o, counted, count(alive, 4 * H, NORM), NORM)
            if SAVE or NORM == BATCH:
                store_statistics(mi, vi, table, 8, step, rows, columns, 0, 0, B, H, 4, 1, NORM)
            if NORM == BATCH:
                store_statistics(mf, vf, table, 8, step, rows, columns, 1, 0, B, H, 4, 1, NORM)
                store_statistics(mg, vg, table, 8, step, rows, columns, 2, 0, B, H, 4, 1, NORM)
                store_statistics(mo, vo, table, 8, step, rows, columns, 3, 0, B, H, 4, 1, NORM)
            i, f, g, o = i * tl.rsqrt(vi + eps), f * tl.rsqrt(vf + eps), g * tl.rsqrt(vg + eps), o * tl.rsqrt(vo + eps)
        gi, gf, gg, go = load4(floats(table, 5) + columns, H, exists)
        i, f, g, o = i * gi, f * gf, g * gg, o * go
    input = floats(table, 1) + step * B * 4 * H + at_z
    xi, xf, xg, xo = load4(input, H, inside)
    i, f, g, o = tl.sigmoid(i + xi), tl.sigmoid(f + xf), tanh(g + xg), tl.sigmoid(o + xo)
    if SAVE:
        store4(input, H, inside, i, f, g, o)
    cell = floats(table, 3) + step * B * H + at_h
    c_before = tl.load(cell, mask=inside, other=0.0)
    c = f * c_before + i * g  # eq 21
    y = c
    if CELL:
        if NORM == GIVEN:
            y, _rc = standardized(y, table, 10, step, rows, columns, 0, 0, B, H, eps, 1, 1, NORM)
        else:
            y, mean, var = centred1(y, counted, count(alive, H, NORM), NORM)
            if SAVE or NORM == BATCH:
                store_statistics(mean, var, table, 10, step, rows, columns, 0, 0, B, H, 1, 1, NORM)
            y *= tl.rsqrt(var + eps)
        y *= tl.load(floats(table, 6) + columns, mask=exists, other=0.0)
    if STATE:
        if BIAS:
            y += tl.load(floats(table, 7) + columns, mask=exists, other=0.0)
        new = o * tanh(y)  # eq 22: the cell is normalized only on its way out, and carried on as it is
        output = floats(table, 2) + step * B * H + at_h
        if RAGGED:
            tl.store(output, tl.where(alive, new, 0.0), mask=inside)
            new = tl.where(alive, new, tl.load(h + at_h, mask=inside, other=0.0))
            c = tl.where(alive, c, c_before)
        else:
            tl.store(output, new, mask=inside)
        tl.store(h + at_h, new, mask=inside)
        tl.store(cell + B * H, c, mask=inside)


@triton.jit(do_not_specialize=["k"])
def lstm_backward(
    table, dh, dc, dz, B, H, k, eps,
    NORM: tl.constexpr, RECURRENT: tl.constexpr, CELL: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The gradients of step k. dh, dc (B, H): gradients of the states after it, from later steps; dc becomes that of
    the state before. dz (B, 4H) receives that of W_hh h. Under RAGGED, dh keeps the part that passes rows that have
    ended.
    """
    rows, columns = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, exists = (rows < B) & (columns < H), columns < H
    step = k.to(tl.int64)
    alive = valid(table, rows, step, B, RAGGED)
    live = inside & alive
    at_z, at_h = rows * (4 * H) + columns, rows * H + columns
    i, f, g, o = load4(floats(table, 1) + step * B * 4 * H + at_z, H, inside)
    cell = floats(table, 3) + step * B * H + at_h
    c_before = tl.load(cell, mask=inside, other=0.0)
    y = tl.load(cell + B * H, mask=inside, other=0.0)
    d_h = tl.load(dh + at_h, mask=inside, other=0.0)
    d_c = tl.load(dc + at_h, mask=inside, other=0.0)
    if RAGGED:
        tl.store(dh + at_h, tl.where(alive, 0.0, d_h), mask=inside)
    d_h = tl.where(live, d_h + tl.load(floats(table, 2) + step * B * H + at_h, mask=inside, other=0.0), 0.0)
    if CELL:
        c_hat, rstd = standardized(y, table, 10, step, rows, columns, 0, 0, B, H, eps, 1, 1, NORM)
        gain_c = tl.load(floats(table, 6) + columns, mask=exists, other=0.0)
        y = c_hat * gain_c
    if BIAS:
        y += tl.load(floats(table, 7) + columns, mask=exists, other=0.0)
    y = tanh(y)
    d_o = d_h * y * o * (1.0 - o)
    d_y = d_h * o * (1.0 - y * y)
    if CELL or BIAS:
        tl.store(floats(table, 14) + step * B * H + at_h, d_y, mask=inside)
    if CELL:
        d_y *= gain_c
        n = count(alive, H, NORM)
        d_y = unscaled(d_y, c_hat, sum1(d_y, NORM) / n, sum1(d_y * c_hat, NORM) / n, rstd, NORM)
    d_cell = tl.where(live, d_c + d_y, 0.0)
    tl.store(dc + at_h, tl.where(alive, d_cell * f, d_c), mask=inside)
    d_i = d_cell * g * i * (1.0 - i)
    d_f = d_cell * c_before * f * (1.0 - f)
    d_g = d_cell * i * (1.0 - g * g)
    store4(floats(table, 12) + step * B * 4 * H + at_z, H, inside, d_i, d_f, d_g, d_o)
    if RECURRENT:
        gi, gf, gg, go = load4(floats(table, 5) + columns, H, exists)
        d_i, d_f, d_g, d_o = d_i * gi, d_f * gf, d_g * gg, d_o * go
        i, f, g, o = load4(floats(table, 4) + step * B * 4 * H + at_z, H, inside)
        i, ri = standardized(i, table, 8, step, rows, columns, 0, 0, B, H, eps, 4, 1, NORM)
        f, rf = standardized(f, table, 8, step, rows, columns, 1, 0, B, H, eps, 4, 1, NORM)
        g, rg = standardized(g, table, 8, step, rows, columns, 2, 0, B, H, eps, 4, 1, NORM)
        o, ro = standardized(o, table, 8, step, rows, columns, 3, 0, B, H, eps, 4, 1, NORM)
        n = count(alive, 4 * H, NORM)
        mi, mf, mg, mo = sum4(d_i, d_f, d_g, d_o, NORM)
        vi, vf, vg, vo = sum4(d_i * i, d_f * f, d_g * g, d_o * o, NORM)
        d_i = tl.where(live, unscaled(d_i, i, mi / n, vi / n, ri, NORM), 0.0)
        d_f = tl.where(live, unscaled(d_f, f, mf / n, vf / n, rf, NORM), 0.0)
        d_g = tl.where(live, unscaled(d_g, g, mg / n, vg / n, rg, NORM), 0.0)
        d_o = tl.where(live, unscaled(d_o, o, mo / n, vo / n, ro, NORM), 0.0)
        store4(floats(table, 13) + step * B * 4 * H + at_z, H, inside, d_i, d_f, d_g, d_o)
    store4(dz + at_z, H, inside, d_i, d_f, d_g, d_o)


@triton.jit(do_not_specialize=["k"])
def gru_forward(
    table, h, zh, B, H, k, eps,
    NORM: tl.constexpr, RECURRENT: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr,
    SAVE: tl.constexpr, STATE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Equations 26 to 28 for step k + program_id(1), from zh = W_hh h (programs of axis 1, B, 3H); h and flags as in
    lstm_forward. BIAS: there is a bias_hh, of which only n's part is read here.
    """
    rows, columns = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, exists = (rows < B) & (columns < H), columns < H
    step = (k + tl.program_id(1)).to(tl.int64)
    alive = valid(table, rows, step, B, RAGGED)
    counted = inside & alive if NORM == BATCH else inside
    at_z, at_h = rows * (3 * H) + columns, rows * H + columns
    r, z, n = load3(zh + tl.program_id(1).to(tl.int64) * B * 3 * H + at_z, H, inside)
    if SAVE and STATE:
        store3(floats(table, 4) + step * B * 3 * H + at_z, H, inside, r, z, n)
    if RECURRENT:
        if NORM == GIVEN:
            r, _rr = standardized(r, table, 8, step, rows, columns, 0, 0, B, H, eps, 3, 2, NORM)
            z, _rz = standardized(z, table, 8, step, rows, columns, 1, 0, B, H, eps, 3, 2, NORM)
            n, _rn = standardized(n, table, 8, step, rows, columns, 2, 1, B, H, eps, 3, 2, NORM)
        else:
            # With layer norm one statistic over r and z (eq 26) and one over n (eq 27).
            r, z, mr, mz, vr, vz = centred2(r, z, counted, count(alive, 2 * H, NORM), NORM)
            n, mn, vn = centred1(n, counted, count(alive, H, NORM), NORM)
            if SAVE or NORM == BATCH:
                store_statistics(mr, vr, table, 8, step, rows, columns, 0, 0, B, H, 3, 2, NORM)
                store_statistics(mn, vn, table, 8, step, rows, columns, 2, 1, B, H, 3, 2, NORM)
            if NORM == BATCH:
                store_statistics(mz, vz, table, 8, step, rows, columns, 1, 0, B, H, 3, 2, NORM)
            r, z, n = r * tl.rsqrt(vr + eps), z * tl.rsqrt(vz + eps), n * tl.rsqrt(vn + eps)
        gr, gz, gn = load3(floats(table, 5) + columns, H, exists)
        r, z, n = r * gr, z * gz, n * gn
    if BIAS:
        n += tl.load(floats(table, 7) + 2 * H + columns, mask=exists, other=0.0)
    input = floats(table, 1) + step * B * 3 * H + at_z
    xr, xz, xn = load3(input, H, inside)
    r, z = tl.sigmoid(r + xr), tl.sigmoid(z + xz)
    n = tanh(xn + r * n)
    if SAVE:
        store3(input, H, inside, r, z, n)
    if STATE:
        before = tl.load(h + at_h, mask=inside, other=0.0)
        new = (1.0 - z) * n + z * before  # eq 28, with torch's sign of z
        output = floats(table, 2) + step * B * H + at_h
        if RAGGED:
            tl.store(output, tl.where(alive, new, 0.0), mask=inside)
            new = tl.where(alive, new, before)
        else:
            tl.store(output, new, mask=inside)
        tl.store(h + at_h, new, mask=inside)


@triton.jit(do_not_specialize=["k"])
def gru_backward(
    table, dh, dz, B, H, k, eps,
    NORM: tl.constexpr, RECURRENT: tl.constexpr, BIAS: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The gradients of step k. dh (B, H): gradient of the state after it, from later steps; left in it is the part that
    reaches the state before directly. dz (B, 3H) receives the gradient of W_hh h.
    """
    rows, columns = tile(B, H, NORM, BLOCK_B, BLOCK_H)
    inside, exists = (rows < B) & (columns < H), columns < H
    step = k.to(tl.int64)
    alive = valid(table, rows, step, B, RAGGED)
    live = inside & alive
    at_z, at_h = rows * (3 * H) + columns, rows * H + columns
    r, z, n = load3(floats(table, 1) + step * B * 3 * H + at_z, H, inside)
    address = tl.where(k == 0, tl.load(table + 3), tl.load(table + 15) + (step - 1) * B * H * 4)
    before = tl.load(address.to(tl.pointer_type(tl.float32)) + at_h, mask=inside, other=0.0)
    d_h = tl.load(dh + at_h, mask=inside, other=0.0)
    d_new = d_h + tl.load(floats(table, 2) + step * B * H + at_h, mask=inside, other=0.0)
    tl.store(dh + at_h, tl.where(alive, d_new * z, d_h), mask=inside)
    d_new = tl.where(live, d_new, 0.0)
    zr, zz, n_hat = load3(floats(table, 4) + step * B * 3 * H + at_z, H, inside)
    recurrent = n_hat
    if RECURRENT:
        gr, gz, gn = load3(floats(table, 5) + columns, H, exists)
        n_hat, rn = standardized(n_hat, table, 8, step, rows, columns, 2, 1, B, H, eps, 3, 2, NORM)
        recurrent = n_hat * gn
    if BIAS:
        recurrent += tl.load(floats(table, 7) + 2 * H + columns, mask=exists, other=0.0)
    d_n = d_new * (1.0 - z) * (1.0 - n * n)
    d_r = d_n * recurrent * r * (1.0 - r)
    d_z = d_new * (before - n) * z * (1.0 - z)
    store3(floats(table, 12) + step * B * 3 * H + at_z, H, inside, d_r, d_z, d_n)
    d_n *= r  # r multiplies the recurrent term only
    if RECURRENT:
        r, rr = standardized(zr, table, 8, step, rows, columns, 0, 0, B, H, eps, 3, 2, NORM)
        z, rz = standardized(zz, table, 8, step, rows, columns, 1, 0, B, H, eps, 3, 2, NORM)
        d_r, d_z, d_n = d_r * gr, d_z * gz, d_n * gn
        units = count(alive, 2 * H, NORM)
        mr, mz = sum2(d_r, d_z, NORM)
        vr, vz = sum2(d_r * r, d_z * z, NORM)
        d_r = tl.where(live, unscaled(d_r, r, mr / units, vr / units, rr, NORM), 0.0)
        d_z = tl.where(live, unscaled(d_z, z, mz / units, vz / units, rz, NORM), 0.0)
        units = count(alive, H, NORM)
        mn, vn = sum1(d_n, NORM) / units, sum1(d_n * n_hat, NORM) / units
        d_n = tl.where(live, unscaled(d_n, n_hat, mn, vn, rn, NORM), 0.0)
    store3(floats(table, 13) + step * B * 3 * H + at_z, H, inside, d_r, d_z, d_n)
    store3(dz + at_z, H, inside, d_r, d_z, d_n)
