// The pointwise part of the cells: statistics of summed inputs, and one row at one step, forward and backward.
//
// Shapes: H hidden, n units at hand (all H, or a group of them), vectors in the layout [gate][unit].
//   x, h: the two terms W_ih x and W_hh h of the summed inputs; hat = (term - mean) * rstd; pre = gain * hat + bias.
#pragma once
#include "gemm.h"
#include <cmath>

// ---------------------------------------------------------------------------------------------------------- statistics

// The statistics of one site. Rows: a mean and rstd for each set of gates that is normalized together (LSTM one, GRU
// r+z and n); columns: one for each column. A site that is off has mean 0 and rstd 1.
template <bool COL> struct Site {
    const float *column_mean = nullptr, *column_rstd = nullptr;
    float mean[2] = {0, 0}, rstd[2] = {1, 1};
    template <class L> INLINE vf hat(vf term, int set_, long column, L lane) const {
        if constexpr (COL) return (term - load(column_mean + column, lane)) * load(column_rstd + column, lane);
        else return (term - mean[set_]) * rstd[set_];
    }
};

// The sum of f over n numbers in four chains, since each addition waits for the one before it.
template <class F> static INLINE float summed(long n, F f) {
    vf s[4] = {};
    long j = 0;
    for (; j + 4 * W <= n; j += 4 * W)
        for (int i = 0; i < 4; i++) s[i] += f(j + i * W, Full{});
    lanes(n - j, [&](long k, auto L) HOT { s[0] += f(j + k, L); });
    return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// RMS norm is not centred: its mean is 0, and its scale the root of the mean square.
static INLINE void row_statistics(const float* a, long n, double eps, bool centred, float& mean, float& rstd) {
    float m = 0, squares;
    if (centred) {
        m = summed(n, [&](long j, auto L) HOT { return load(a + j, L); }) / n;
        squares = summed(n, [&](long j, auto L) HOT { vf d = keep(load(a + j, L) - m, L); return d * d; });
    } else {
        squares = summed(n, [&](long j, auto L) HOT { vf v = load(a + j, L); return v * v; });
    }
    mean = m;
    rstd = float(1 / std::sqrt(squares / n + eps));
}

// Mean and biased variance of every column of a (rows, n), whose rows lie ld apart.
static void column_statistics(const float* a, long ld, long rows, long n, float* mean, float* var) {
    const float count = rows ? rows : 1;
    lanes(n, [&](long j, auto L) HOT {
        vf s = {}, q = {}, rest = {};
        for (long b = 0; b < rows; b++) s += load(a + b * ld + j, L);
        const vf m = s / count;
        for (long b = 0; b < rows; b++) { vf d = load(a + b * ld + j, L) - m; q += d * d; rest += d; }
        const vf off = rest / count;  // what rounding left in the mean of up to hundreds of rows
        store(mean + j, m + off, L);
        store(var + j, q / count - off * off, L);
    });
}

// -------------------------------------------------------------------------------------------------- one row, one step

// A gain and a bias for each site, or their gradients.
struct Affine { float *gain_x, *gain_h, *bias_x, *bias_h, *gain_c, *bias_c; };

// What the pointwise code of one group of units needs. LSTM: bias_x holds the sum of both biases.
template <bool COL> struct Cell {
    long n;
    Site<COL> x, h, c;
    Affine p, d;  // parameters, and where their gradients are summed
    template <class L> INLINE vf input(const float* term, int gate, long j, L lane) const {
        const long i = gate * n + j;
        return x.hat(load(term + i, lane), gate == 2, i, lane);
    }
    template <class L> INLINE vf recurrent(const float* term, int gate, long j, L lane) const {
        const long i = gate * n + j;
        return h.hat(load(term + i, lane), gate == 2, i, lane);
    }
};

template <class L> INLINE void add(float* p, vf v, L lane) { store(p, load(p, lane) + v, lane); }

// One gate of the LSTM: of both terms, or with x null of h, their sum.
template <bool COL, class L>
static INLINE vf lstm_gate(const Cell<COL>& s, const float* x, const float* h, int gate, long j, L lane) {
    const long i = gate * s.n + j;
    const vf sum = x ? s.input(x, gate, j, lane) * load(s.p.gain_x + i, lane)
                           + s.recurrent(h, gate, j, lane) * load(s.p.gain_h + i, lane)
                     : load(h + i, lane);
    const vf pre = sum + load(s.p.bias_x + i, lane);
    return gate == 2 ? tanh_(pre) : sigmoid(pre);
}

// Equations 20-21 up to the output gate; c is carried as it is, never normalized. The gates go to kept (4, n), unless
// that is null; it may be h.
template <bool COL>
static INLINE void lstm_gates(const Cell<COL>& s, const float* x, const float* h, const float* c_prev, float* c,
                              float* o, float* kept) {
    lanes(s.n, [&](long j, auto L) HOT {
        vf gate[4];
        for (int k = 0; k < 4; k++) {
            gate[k] = lstm_gate(s, x, h, k, j, L);
            if (kept) store(kept + k * s.n + j, gate[k], L);
        }
        store(c + j, gate[1] * load(c_prev + j, L) + gate[0] * gate[2], L);
        store(o + j, gate[3], L);
    });
}

// Equation 22: the cell is normalized only on its way out.
template <bool COL> static INLINE void lstm_output(const Cell<COL>& s, const float* c, const float* o, float* h) {
    lanes(s.n, [&](long j, auto L) HOT {
        vf pre = s.c.hat(load(c + j, L), 0, j, L) * load(s.p.gain_c + j, L) + load(s.p.bias_c + j, L);
        store(h + j, load(o + j, L) * tanh_(pre), L);
    });
}

// Rebuilds the gates into act (4, n), where they are already if h is null; d(o) into dz; the gradient that reaches the
// normalized cell into dcell. sum_dn and sum_dn_hat: of gain * that gradient, and of that times hat, over the row.
template <bool COL>
static INLINE void lstm_output_back(const Cell<COL>& s, const float* x, const float* h, const float* c,
                                    const float* dout, const float* dh, float* act, float* dcell, float* dz,
                                    float& sum_dn, float& sum_dn_hat) {
    vf s1 = {}, s2 = {};
    lanes(s.n, [&](long j, auto L) HOT {
        for (long k = 4; x && k < 8; k++) {  // the next row, which comes from L3, in pieces too short to be foreseen
            __builtin_prefetch(x + k * s.n + j);
            __builtin_prefetch(h + k * s.n + j);
        }
        for (int k = 0; h && k < 4; k++) store(act + k * s.n + j, lstm_gate(s, x, h, k, j, L), L);
        const vf o = load(act + 3 * s.n + j, L), gain = load(s.p.gain_c + j, L);
        const vf chat = s.c.hat(load(c + j, L), 0, j, L);
        const vf m = tanh_(chat * gain + load(s.p.bias_c + j, L));
        const vf d = dout ? load(dh + j, L) + load(dout + j, L) : load(dh + j, L);
        store(dz + 3 * s.n + j, d * m * o * (1.f - o), L);
        const vf dm = d * o * (1.f - m * m), dn = dm * gain;
        add(s.d.gain_c + j, dm * chat, L);
        add(s.d.bias_c + j, dm, L);
        store(dcell + j, COL ? dm : dn, L);
        s1 += dn;
        s2 += dn * chat;
    });
    sum_dn = sum(s1);
    sum_dn_hat = sum(s2);
}

// Of gain * dz and gain * dz * hat over a row, for each set of gates: the means that a row's normalization subtracts.
struct Sums { float x[2] = {0, 0}, x_hat[2] = {0, 0}, h[2] = {0, 0}, h_hat[2] = {0, 0}; };

// m1, m2: the two means that the cell's normalization subtracts (rows: scalars; columns: vectors v1, v2, v1 null where
// the statistics were given). x null: neither term is normalized, and dx is the gradient of both.
template <bool COL>
static INLINE Sums lstm_gates_back(const Cell<COL>& s, const float* x, const float* h, const float* c_prev,
                                   const float* c, const float* act, const float* dcell, float m1, float m2,
                                   const float* v1, const float* v2, float* dc, float* dx, float* dh) {
    vf x1 = {}, x2 = {}, h1 = {}, h2 = {};
    const long n = s.n;
    lanes(n, [&](long j, auto L) HOT {
        const vf chat = s.c.hat(load(c + j, L), 0, j, L);
        vf dn = load(dcell + j, L), r;
        if constexpr (COL) {
            r = load(s.c.column_rstd + j, L) * load(s.p.gain_c + j, L);
            if (v1) dn = (dn - load(v1 + j, L)) - chat * load(v2 + j, L);
        } else {
            r = set(s.c.rstd[0]);
            dn = (dn - m1) - chat * m2;
        }
        const vf d = load(dc + j, L) + r * dn;
        const vf i = load(act + j, L), f = load(act + n + j, L), g = load(act + 2 * n + j, L);
        store(dc + j, d * f, L);
        const vf grad[4] = {d * g * i * (1.f - i), d * load(c_prev + j, L) * f * (1.f - f), d * i * (1.f - g * g),
                            load(dx + 3 * n + j, L)};
        for (int k = 0; k < 4; k++) {
            const long q = k * n + j;
            add(s.d.bias_x + q, grad[k], L);
            if (!x) { store(dx + q, grad[k], L); continue; }
            const vf xhat = s.input(x, k, j, L), hhat = s.recurrent(h, k, j, L);
            add(s.d.gain_x + q, grad[k] * xhat, L);
            add(s.d.gain_h + q, grad[k] * hhat, L);
            const vf ux = grad[k] * load(s.p.gain_x + q, L), uh = grad[k] * load(s.p.gain_h + q, L);
            store(dx + q, COL ? grad[k] : ux, L);
            store(dh + q, COL ? grad[k] : uh, L);
            x1 += ux; x2 += ux * xhat;
            h1 += uh; h2 += uh * hhat;
        }
    });
    Sums out;
    out.x[0] = sum(x1); out.x_hat[0] = sum(x2); out.h[0] = sum(h1); out.h_hat[0] = sum(h2);
    return out;
}

// The GRU's gates, and the two terms before they meet.
struct Gru { vf xhat[3], hhat[3], x[3], h[3], r, z, n; };

// Equations 26-27 with torch's sign of the update gate; the reset gate multiplies the normalized recurrent term.
template <bool COL, class L>
static INLINE Gru gru_gates(const Cell<COL>& s, const float* x, const float* h, long j, L lane) {
    Gru g;
    for (int k = 0; k < 3; k++) {
        const long i = k * s.n + j;
        g.xhat[k] = s.input(x, k, j, lane);
        g.hhat[k] = s.recurrent(h, k, j, lane);
        g.x[k] = g.xhat[k] * load(s.p.gain_x + i, lane) + load(s.p.bias_x + i, lane);
        g.h[k] = g.hhat[k] * load(s.p.gain_h + i, lane) + load(s.p.bias_h + i, lane);
    }
    g.r = sigmoid(g.x[0] + g.h[0]);
    g.z = sigmoid(g.x[1] + g.h[1]);
    g.n = tanh_(g.x[2] + g.r * g.h[2]);
    return g;
}

// Equation 28.
template <bool COL>
static INLINE void gru_step(const Cell<COL>& s, const float* x, const float* h, const float* h_prev, float* h_new) {
    lanes(s.n, [&](long j, auto L) HOT {
        const Gru g = gru_gates(s, x, h, j, L);
        store(h_new + j, (1.f - g.z) * g.n + g.z * load(h_prev + j, L), L);
    });
}

template <bool COL>
static INLINE Sums gru_step_back(const Cell<COL>& s, const float* x, const float* h, const float* h_prev,
                                 const float* dout, float* dstate, float* dx, float* dh) {
    vf x1[2] = {}, x2[2] = {}, h1[2] = {}, h2[2] = {};
    lanes(s.n, [&](long j, auto L) HOT {
        const Gru g = gru_gates(s, x, h, j, L);
        const vf r = g.r, z = g.z, n = g.n;
        const vf d = dout ? load(dstate + j, L) + load(dout + j, L) : load(dstate + j, L);
        store(dstate + j, d * z, L);
        const vf dn = d * (1.f - z) * (1.f - n * n);
        const vf gx[3] = {dn * g.h[2] * r * (1.f - r), d * (load(h_prev + j, L) - n) * z * (1.f - z), dn};
        const vf gh[3] = {gx[0], gx[1], dn * r};
        for (int k = 0; k < 3; k++) {
            const long q = k * s.n + j;
            add(s.d.bias_x + q, gx[k], L);
            add(s.d.bias_h + q, gh[k], L);
            add(s.d.gain_x + q, gx[k] * g.xhat[k], L);
            add(s.d.gain_h + q, gh[k] * g.hhat[k], L);
            const vf ux = gx[k] * load(s.p.gain_x + q, L), uh = gh[k] * load(s.p.gain_h + q, L);
            store(dx + q, COL ? gx[k] : ux, L);
            store(dh + q, COL ? gh[k] : uh, L);
            x1[k == 2] += ux; x2[k == 2] += ux * g.xhat[k];
            h1[k == 2] += uh; h2[k == 2] += uh * g.hhat[k];
        }
    });
    Sums out;
    for (int i = 0; i < 2; i++) {
        out.x[i] = sum(x1[i]); out.x_hat[i] = sum(x2[i]);
        out.h[i] = sum(h1[i]); out.h_hat[i] = sum(h2[i]);
    }
    return out;
}

// Equation 4. Where both terms are normalized as one, or not at all, h holds their sum and x is null.
template <bool COL>
static INLINE void rnn_step(const Cell<COL>& s, bool relu, const float* x, const float* h, float* h_new) {
    lanes(s.n, [&](long j, auto L) HOT {
        vf pre = s.recurrent(h, 0, j, L) * load(s.p.gain_h + j, L) + load(s.p.bias_x + j, L);
        if (x) pre += s.input(x, 0, j, L) * load(s.p.gain_x + j, L);
        store(h_new + j, relu ? (pre < 0.f ? vf{} : pre) : tanh_(pre), L);
    });
}

// h null: without a norm the gradient needs the new state alone.
template <bool COL>
static INLINE Sums rnn_step_back(const Cell<COL>& s, bool relu, const float* x, const float* h, const float* h_new,
                                 const float* dout, float* dstate, float* dx, float* dh) {
    vf x1 = {}, x2 = {}, h1 = {}, h2 = {};
    lanes(s.n, [&](long j, auto L) HOT {
        const vf d = dout ? load(dstate + j, L) + load(dout + j, L) : load(dstate + j, L), y = load(h_new + j, L);
        const vf grad = relu ? (y > 0.f ? d : vf{}) : d * (1.f - y * y);
        store(dstate + j, vf{}, L);
        add(s.d.bias_x + j, grad, L);
        vf uh = grad, ux = grad;
        if (h) {
            const vf hhat = s.recurrent(h, 0, j, L);
            uh = grad * load(s.p.gain_h + j, L);
            add(s.d.gain_h + j, grad * hhat, L);
            h1 += uh; h2 += uh * hhat;
        }
        if (x) {
            const vf xhat = s.input(x, 0, j, L);
            ux = grad * load(s.p.gain_x + j, L);
            add(s.d.gain_x + j, grad * xhat, L);
            x1 += ux; x2 += ux * xhat;
            store(dx + j, COL ? grad : ux, L);
        }
        store(dh + j, COL ? grad : uh, L);
    });
    Sums out;
    out.x[0] = sum(x1); out.x_hat[0] = sum(x2); out.h[0] = sum(h1); out.h_hat[0] = sum(h2);
    return out;
}

// To the gradient of a raw term, in place, over columns begin .. end. Rows: from gain * gradient of (gain*hat + bias),
// less its means; columns: from that gradient itself, less its means, and the gain comes last. Both ways the means are
// of the very numbers they are subtracted from: a rounding between the two would be multiplied by rstd, up to 300.
template <bool COL>
static INLINE void site_back(const Site<COL>& site, int set_, long begin, long end, const float* term,
                             const float* gain, float m1, float m2, const float* v1, const float* v2, float* d) {
    lanes(end - begin, [&](long j, auto L) HOT {
        const long i = begin + j;
        vf u = load(d + i, L);
        if constexpr (COL) {
            if (v1) u = (u - load(v1 + i, L)) - site.hat(load(term + i, L), set_, i, L) * load(v2 + i, L);
            store(d + i, u * (load(gain + i, L) * load(site.column_rstd + i, L)), L);
        } else {
            u = (u - m1) - site.hat(load(term + i, L), set_, i, L) * m2;
            store(d + i, u * site.rstd[set_], L);
        }
    });
}
