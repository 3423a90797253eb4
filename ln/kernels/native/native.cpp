// LSTM and GRU layers (one direction) with layer norm at any sites, recurrent batch norm, or none: forward and backward, float32.
//
// Shapes: T time, B batch, D input, H hidden, N gates of the cell (LSTM 4: i f g o, GRU 3: r z n), G = N*H summed inputs.
//   ax = W_ih x (+ inner bias), ah = W_hh h: the two terms of summed inputs; hat = (a - mean) * rstd; pre = gain * hat + bias.
//
// How the work is dealt out. Under layer norm a batch row never meets another one, so a thread owns rows for all T and the
// time loop has no barrier ("rows"). Under batch norm a column never meets another one except through h, so a thread owns
// hidden units (all their gates) for all rows: its statistics are its own, and one barrier per step publishes h, or d(ah) in
// the backward ("columns"). A set of owned units is a group p: units u0[p] .. u0[p] + nu, and its arrays are laid out
// [group][row][gate][unit of the group]; in rows there is one group with all units, so this is the plain (row, G).
//
// What is kept. Saved between forward and backward: h and c of every step, the raw terms ax and ah, and statistics; gates are
// rebuilt from those, which costs less than streaming them. Without ax or ah (null) they are recomputed, a chunk of steps at
// a time: one large product each, still in cache when the recurrence reads it. The backward works in the same chunks: the
// recurrence fills d(ax), d(ah) of a chunk, then all threads turn them into weight gradients and dx.
//
// Rows of different lengths come longest first, so the rows that run at step t are the first ones, and only those are computed
// or kept: ax, ah and their gradients hold first[t] .. first[t + 1] for step t, while x, hs, c and rs have all B rows of a step.
#include "gemm.h"
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <omp.h>

enum { INPUT = 1, RECURRENT = 2, CELL = 4 };

struct Args {  // build.py reads this declaration for ctypes
    int64_t T, B, D, H, gru, columns, sites, threads, groups, chunk, given_stats, external, centred;
    double eps;
    const int64_t *lengths, *first, *places;                               // (B) falling, (T+1), (first[T]) t*B+b of each; or all null
    const float *x, *c0, *w_ih, *w_hh;                                     // (T,B,D) (B,H) (G,D) (G,H)
    const float *b_ih, *b_hh, *g_ih, *g_hh, *g_c, *b_c, *inner;            // (G) x 4, (H) x 2, (G); null: 0, gains 1
    float *hs, *c, *ax, *ah, *rs;                                          // (T+1,B,H) with h0 first, (T,B,H), (first[T],G) x 2, (T,B,8)
    float *mean_x, *var_x, *mean_h, *var_h, *mean_c, *var_c;               // (T,G) x 4, (T,H) x 2: batch norm
    float *h_last, *c_last;                                                // (B,H)
    const float *dout, *dh_last, *dc_last;                                 // (T,B,H) (B,H) (B,H); null: 0
    float *dx, *dh0, *dc0, *dw_ih, *dw_hh, *db_ih, *db_hh, *dg_ih, *dg_hh, *dg_c, *db_c, *dinner, *dax, *dah;
    float *work;
};

// ---------------------------------------------------------------------------------------------------------- statistics

// One side's normalization. Rows: a mean and rstd for each set of gates that is normalized together (LSTM one, GRU r+z and n);
// columns: one for each column. A site that is off has mean 0 and rstd 1.
template <bool COL> struct Side {
    const float *mean = nullptr, *rstd = nullptr;
    float m[2] = {0, 0}, r[2] = {1, 1};
    template <class L> INLINE vf hat(vf a, int set_, long col, L lane) const {
        if constexpr (COL) return (a - load(mean + col, lane)) * load(rstd + col, lane);
        else return (a - m[set_]) * r[set_];
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
    if (!centred) {
        mean = 0;
        rstd = float(1 / std::sqrt(summed(n, [&](long j, auto L) HOT { vf v = load(a + j, L); return v * v; }) / n + eps));
        return;
    }
    const float m = summed(n, [&](long j, auto L) HOT { return load(a + j, L); }) / n;
    mean = m;
    rstd = float(1 / std::sqrt(summed(n, [&](long j, auto L) HOT { vf d = keep(load(a + j, L) - m, L); return d * d; }) / n + eps));
}

// Mean and biased variance of every column.
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

// ------------------------------------------------------------------------------------------------------ one row, one step

template <bool COL> struct Cell {  // what the pointwise code of one group needs; vectors in the group's layout
    long nu;
    Side<COL> x, h, c;
    const float *gx, *gh, *bx, *bh, *gc, *bc;      // LSTM: bx holds the sum of both biases
    float *dbx, *dbh, *dgx, *dgh, *dgc, *dbc;      // where their gradients are summed
    template <class L> INLINE vf input(const float* ax, int k, long j, L lane) const {
        const long i = k * nu + j;
        return x.hat(load(ax + i, lane), k == 2, i, lane);
    }
    template <class L> INLINE vf recurrent(const float* ah, int k, long j, L lane) const {
        const long i = k * nu + j;
        return h.hat(load(ah + i, lane), k == 2, i, lane);
    }
};
template <class L> INLINE void add(float* p, vf v, L lane) { store(p, load(p, lane) + v, lane); }

// Equations 20-21 up to the output gate; c is carried as it is, never normalized.
template <bool COL> static INLINE void lstm_gates(const Cell<COL>& s, const float* ax, const float* ah, const float* c_prev, float* c, float* o) {
    lanes(s.nu, [&](long j, auto L) HOT {
        vf pre[4];
        for (int k = 0; k < 4; k++) {
            const long i = k * s.nu + j;
            pre[k] = s.input(ax, k, j, L) * load(s.gx + i, L) + s.recurrent(ah, k, j, L) * load(s.gh + i, L) + load(s.bx + i, L);
        }
        store(c + j, sigmoid(pre[1]) * load(c_prev + j, L) + sigmoid(pre[0]) * tanh_(pre[2]), L);
        store(o + j, sigmoid(pre[3]), L);
    });
}

// Equation 22: the cell is normalized only on its way out.
template <bool COL> static INLINE void lstm_output(const Cell<COL>& s, const float* c, const float* o, float* h) {
    lanes(s.nu, [&](long j, auto L) HOT {
        vf pre = s.c.hat(load(c + j, L), 0, j, L) * load(s.gc + j, L) + load(s.bc + j, L);
        store(h + j, load(o + j, L) * tanh_(pre), L);
    });
}

// Rebuilds the gates into act (4, nu); d(o) into dz; the gradient that reaches the normalized cell into dcell.
template <bool COL> static INLINE void lstm_output_back(const Cell<COL>& s, const float* ax, const float* ah, const float* c, const float* dout,
                                                        const float* dh, float* act, float* dcell, float* dz, float* s1, float* s2) {
    vf t1 = {}, t2 = {};
    lanes(s.nu, [&](long j, auto L) HOT {
        vf gate[4];
        for (int k = 0; k < 4; k++) {
            const long i = k * s.nu + j;
            vf pre = s.input(ax, k, j, L) * load(s.gx + i, L) + s.recurrent(ah, k, j, L) * load(s.gh + i, L) + load(s.bx + i, L);
            gate[k] = k == 2 ? tanh_(pre) : sigmoid(pre);
            store(act + i, gate[k], L);
        }
        const vf o = gate[3], chat = s.c.hat(load(c + j, L), 0, j, L), gain = load(s.gc + j, L);
        const vf m = tanh_(chat * gain + load(s.bc + j, L));
        const vf d = dout ? load(dh + j, L) + load(dout + j, L) : load(dh + j, L);
        store(dz + 3 * s.nu + j, d * m * o * (1.f - o), L);
        const vf dm = d * o * (1.f - m * m), dn = dm * gain;
        add(s.dgc + j, dm * chat, L);
        add(s.dbc + j, dm, L);
        store(dcell + j, COL ? dm : dn, L);
        t1 += dn;
        t2 += dn * chat;
    });
    *s1 = sum(t1);
    *s2 = sum(t2);
}

struct Sums { float x1[2] = {0, 0}, x2[2] = {0, 0}, h1[2] = {0, 0}, h2[2] = {0, 0}; };  // of gain*dz and gain*dz*hat, for each set of gates

// m1, m2: the two means that the cell's normalization subtracts (rows: scalars; columns: vectors, null in evaluation).
template <bool COL> static INLINE Sums lstm_gates_back(const Cell<COL>& s, const float* ax, const float* ah, const float* c_prev, const float* c,
                                                       const float* act, const float* dcell, float m1, float m2, const float* v1, const float* v2,
                                                       float* dc, float* dz, float* dzh) {
    vf x1 = {}, x2 = {}, h1 = {}, h2 = {};
    lanes(s.nu, [&](long j, auto L) HOT {
        const vf chat = s.c.hat(load(c + j, L), 0, j, L);
        vf dn = load(dcell + j, L), r;
        if constexpr (COL) {
            r = load(s.c.rstd + j, L) * load(s.gc + j, L);
            if (v1) dn = (dn - load(v1 + j, L)) - chat * load(v2 + j, L);
        } else {
            r = set(s.c.r[0]);
            dn = (dn - m1) - chat * m2;
        }
        const vf d = load(dc + j, L) + r * dn;
        const vf i = load(act + j, L), f = load(act + s.nu + j, L), g = load(act + 2 * s.nu + j, L);
        store(dc + j, d * f, L);
        const vf grad[4] = {d * g * i * (1.f - i), d * load(c_prev + j, L) * f * (1.f - f), d * i * (1.f - g * g), load(dz + 3 * s.nu + j, L)};
        for (int k = 0; k < 4; k++) {
            const long q = k * s.nu + j;
            const vf xhat = s.input(ax, k, j, L), hhat = s.recurrent(ah, k, j, L);
            add(s.dbx + q, grad[k], L);
            add(s.dgx + q, grad[k] * xhat, L);
            add(s.dgh + q, grad[k] * hhat, L);
            const vf ux = grad[k] * load(s.gx + q, L), uh = grad[k] * load(s.gh + q, L);
            store(dz + q, COL ? grad[k] : ux, L);
            if (dzh != dz) store(dzh + q, COL ? grad[k] : uh, L);
            x1 += ux; x2 += ux * xhat;
            h1 += uh; h2 += uh * hhat;
        }
    });
    Sums out;
    out.x1[0] = sum(x1); out.x2[0] = sum(x2); out.h1[0] = sum(h1); out.h2[0] = sum(h2);
    return out;
}

// Equations 25-28 with torch's sign of the update gate; the reset gate multiplies the normalized recurrent term.
template <bool COL> static INLINE void gru_step(const Cell<COL>& s, const float* ax, const float* ah, const float* h_prev, float* h) {
    lanes(s.nu, [&](long j, auto L) HOT {
        vf px[3], ph[3];
        for (int k = 0; k < 3; k++) {
            const long i = k * s.nu + j;
            px[k] = s.input(ax, k, j, L) * load(s.gx + i, L) + load(s.bx + i, L);
            ph[k] = s.recurrent(ah, k, j, L) * load(s.gh + i, L) + load(s.bh + i, L);
        }
        const vf r = sigmoid(px[0] + ph[0]), z = sigmoid(px[1] + ph[1]), n = tanh_(px[2] + r * ph[2]);
        store(h + j, (1.f - z) * n + z * load(h_prev + j, L), L);
    });
}

template <bool COL> static INLINE Sums gru_step_back(const Cell<COL>& s, const float* ax, const float* ah, const float* h_prev, const float* dout,
                                                     float* dh, float* dzx, float* dzh) {
    vf x1[2] = {}, x2[2] = {}, h1[2] = {}, h2[2] = {};
    lanes(s.nu, [&](long j, auto L) HOT {
        vf px[3], ph[3], xhat[3], hhat[3];
        for (int k = 0; k < 3; k++) {
            const long i = k * s.nu + j;
            xhat[k] = s.input(ax, k, j, L);
            hhat[k] = s.recurrent(ah, k, j, L);
            px[k] = xhat[k] * load(s.gx + i, L) + load(s.bx + i, L);
            ph[k] = hhat[k] * load(s.gh + i, L) + load(s.bh + i, L);
        }
        const vf r = sigmoid(px[0] + ph[0]), z = sigmoid(px[1] + ph[1]), n = tanh_(px[2] + r * ph[2]);
        const vf d = dout ? load(dh + j, L) + load(dout + j, L) : load(dh + j, L);
        store(dh + j, d * z, L);
        const vf dn = d * (1.f - z) * (1.f - n * n);
        const vf gx[3] = {dn * ph[2] * r * (1.f - r), d * (load(h_prev + j, L) - n) * z * (1.f - z), dn};
        const vf gh[3] = {gx[0], gx[1], dn * r};
        for (int k = 0; k < 3; k++) {
            const long q = k * s.nu + j;
            add(s.dbx + q, gx[k], L);
            add(s.dbh + q, gh[k], L);
            add(s.dgx + q, gx[k] * xhat[k], L);
            add(s.dgh + q, gh[k] * hhat[k], L);
            const vf ux = gx[k] * load(s.gx + q, L), uh = gh[k] * load(s.gh + q, L);
            store(dzx + q, COL ? gx[k] : ux, L);
            store(dzh + q, COL ? gh[k] : uh, L);
            x1[k == 2] += ux; x2[k == 2] += ux * xhat[k];
            h1[k == 2] += uh; h2[k == 2] += uh * hhat[k];
        }
    });
    Sums out;
    for (int i = 0; i < 2; i++) { out.x1[i] = sum(x1[i]); out.x2[i] = sum(x2[i]); out.h1[i] = sum(h1[i]); out.h2[i] = sum(h2[i]); }
    return out;
}

// To the gradient of a raw term, in place, over columns begin .. end. Rows: from gain * gradient of (gain*hat + bias), less
// its means; columns: from that gradient itself, less its means, and the gain comes last. Both ways the means are of the very
// numbers they are subtracted from: a rounding between the two would be multiplied by rstd, up to 300.
template <bool COL> static INLINE void side_back(const Side<COL>& side, int set_, long begin, long end, const float* a, const float* gain,
                                                 float m1, float m2, const float* v1, const float* v2, float* d) {
    lanes(end - begin, [&](long j, auto L) HOT {
        const long i = begin + j;
        vf u = load(d + i, L);
        if constexpr (COL) {
            if (v1) u = (u - load(v1 + i, L)) - side.hat(load(a + i, L), set_, i, L) * load(v2 + i, L);
            store(d + i, u * (load(gain + i, L) * load(side.rstd + i, L)), L);
        } else {
            u = (u - m1) - side.hat(load(a + i, L), set_, i, L) * m2;
            store(d + i, u * side.r[set_], L);
        }
    });
}

// ---------------------------------------------------------------------------------------------------------- the plan

constexpr long BLOCKS = 16;  // gradients of gains and biases are summed in that many fixed blocks of rows, whatever the threads
constexpr long THIN = 4;     // inputs this narrow get loops over columns instead of a tile that would be mostly padding

struct Plan {
    const Args& a;
    const long N, G, P, R, blocks;  // gates, G, groups, rows of a chunk, row blocks
    const bool train;
    float *w_x, *w_h, *w_x_back, *w_h_back;  // packed weights
    float *ax, *ah, *dax, *dah, *x_panels, *h_panels;  // of a chunk
    float *gx, *gh, *bx, *bh, *gc, *bc, *inner, *column_stats, *means, *sums, *step_sums, *tmp, *scratch, *dh, *dc;

    Plan(const Args& a, bool backward, float* base, long& size)
        : a(a), N(a.gru ? 3 : 4), G(N * a.H), P(a.columns ? a.groups : 1), R(a.chunk * a.B), blocks(a.columns || a.B < BLOCKS ? (a.columns ? 1 : a.B) : BLOCKS),
          train(a.columns && !a.given_stats) {
        long used = 0;
        auto take = [&](long n, bool needed = true) -> float* {
            float* p = base ? base + used : nullptr;
            if (needed) used += up(n, 16) + 16;
            return needed ? p : nullptr;
        };
        const long pad = up(a.D, W), H = a.H, columns_padded = G + P * N * W;
        const bool product = !a.external;
        w_x = take(columns_padded * a.D, product && (!backward || !a.ax));
        w_h = take(columns_padded * H, product && (!backward || !a.ah));
        w_x_back = take(G * pad, backward && product && a.dx);
        w_h_back = take((H + P * W) * G, backward && product);
        ax = a.ax ? a.ax : take(R * G);
        ah = a.ah ? a.ah : take((backward ? R : a.B) * G);
        const bool one = !a.gru && !(a.sites & (INPUT | RECURRENT));  // both terms have the same gradient
        dah = a.dah ? a.dah : take(R * G, backward);
        dax = a.dax ? a.dax : one ? dah : take(R * G, backward);
        x_panels = take(R * pad, backward && product && a.dw_ih && a.D > THIN);
        h_panels = take(R * up(H, W), backward && product && a.dw_hh);
        gx = take(G); gh = take(G); bx = take(G); bh = take(G); gc = take(H); bc = take(H);
        inner = take(G, a.inner);
        column_stats = take(4 * G + 2 * H, a.columns);
        means = take(4 * G + 2 * H, a.columns && backward);
        sums = take(blocks * sums_stride(), backward);
        step_sums = take(sums_stride(), a.columns && backward);
        tmp = take((a.columns ? a.B : a.threads) * (backward ? 5 : 1) * (H + 16));
        scratch = take(a.threads * A_BLOCK);
        dh = take(a.B * H, backward);
        dc = take(a.B * H, backward && !a.gru);
        size = used;
    }
    long u0(long p) const { return p == P ? a.H : up(a.H * p / P, P == 1 ? 1 : 4) < a.H ? up(a.H * p / P, P == 1 ? 1 : 4) : a.H; }
    long nu(long p) const { return u0(p + 1) - u0(p); }
    long sums_stride() const { return up(4 * G + 2 * a.H, 16); }
    long row_begin(long block) const { return block * a.B / blocks; }
    long column(long p, long i) const { return i / nu(p) * a.H + u0(p) + i % nu(p); }  // group layout -> row of the weight matrix
    bool on(int site) const { return a.sites & site; }
    long first(long t) const { return a.first ? a.first[t] : t * a.B; }
    long rows(long t) const { return first(t + 1) - first(t); }
    long place(long i) const { return a.places ? a.places[i] : i; }
    long width_before(long p) const { long w = 0; for (long q = 0; q < p; q++) w += up(N * nu(q), W); return w; }
    long units_before(long p) const { long w = 0; for (long q = 0; q < p; q++) w += up(nu(q), W); return w; }

    // A term of the whole saved sequence or of the chunk t0 .. t1, group p, row (t, b).
    float* at(float* base, bool saved, long t, long t0, long t1, long p, long b) const {
        const long begin = saved ? 0 : first(t0), rows = first(saved ? a.T : t1) - begin;
        return base + rows * N * u0(p) + (first(t) - begin + b) * N * nu(p);
    }
    // Calls run(row among all (T, B), row of the chunk, rows) for stretches of steps t0 .. t1 whose rows lie side by side in both.
    template <class Run> void stretches(long t0, long t1, Run run) const {
        for (long t = t0, end; t < t1; t = end) {
            for (end = t + 1; end < t1 && rows(end - 1) == a.B;) end++;
            run(t * a.B, first(t) - first(t0), first(end) - first(t));
        }
    }
    // The first block of rows of thread tid of n in steps t0 .. t1; each thread gets as many rows to run.
    long block_begin(long t0, long t1, long tid, long n) const {
        if (!a.first) return blocks * tid / n;
        const long share = (first(t1) - first(t0)) * tid / n;
        for (long block = 0; block < blocks; block++) {
            long before = 0;
            for (long t = t0; t < t1; t++) before += rows(t) < row_begin(block) ? rows(t) : row_begin(block);
            if (before >= share) return block;
        }
        return blocks;
    }

    void vectors() const {  // gains and biases in the groups' layout
        for (long p = 0; p < P; p++)
            for (long i = 0; i < N * nu(p); i++) {
                const long o = N * u0(p) + i, g = column(p, i);
                gx[o] = a.g_ih ? a.g_ih[g] : 1;
                gh[o] = a.g_hh ? a.g_hh[g] : 1;
                bx[o] = a.b_ih ? a.b_ih[g] : 0;
                bh[o] = a.b_hh ? a.b_hh[g] : 0;
                if (!a.gru) bx[o] += bh[o];
                if (inner) inner[o] = a.inner[g];
            }
        for (long j = 0; j < a.H; j++) { gc[j] = a.g_c ? a.g_c[j] : 1; bc[j] = a.b_c ? a.b_c[j] : 0; }
    }
    void pack_forward(const float* w, long K, float* out, long tid, long n) const {
        for (long p = 0; p < P; p++)
            pack<true>(K, N * nu(p), [&](long i) { return w + column(p, i) * K; }, out + width_before(p) * K, tid, n);
    }

    // ax = start + x W_ih^T for the rows of steps t0 .. t1, dealt evenly (start (G) in the groups' layout, or null: 0); ah likewise from the states before those steps.
    void term(const float* in, long K, const float* packed, float* out, bool saved, const float* start, long t0, long t1, long tid, long n) const {
        stretches(t0, t1, [&](long row, long own, long rows) {
            const long r0 = rows * tid / n, r1 = rows * (tid + 1) / n;
            for (long p = 0; p < P; p++) {
                const long cols = N * nu(p);
                float* o = at(out, saved, t0, t0, t1, p, own + r0);
                if (start)
                    for (long r = 0; r < r1 - r0; r++) memcpy(o + r * cols, start + N * u0(p), sizeof(float) * cols);
                gemm<false>(r1 - r0, cols, K, in + (row + r0) * K, K, packed + width_before(p) * K, o, cols, start != nullptr, scratch + tid * A_BLOCK);
            }
        });
    }

    template <bool COL> Cell<COL> cell(long p) const {
        const long o = N * u0(p), u = u0(p);
        Cell<COL> s;
        s.nu = nu(p);
        s.gx = gx + o; s.gh = gh + o; s.bx = bx + o; s.bh = bh + o; s.gc = gc + u; s.bc = bc + u;
        if constexpr (COL) {
            float* v = column_stats;
            s.x.mean = v + o; s.x.rstd = v + G + o; s.h.mean = v + 2 * G + o; s.h.rstd = v + 3 * G + o;
            s.c.mean = v + 4 * G + u; s.c.rstd = v + 4 * G + a.H + u;
        }
        return s;
    }
    template <bool COL> void gradients_into(Cell<COL>& s, float* v, long p) const {
        const long o = N * u0(p), u = u0(p);
        s.dbx = v + o; s.dbh = a.gru ? v + G + o : s.dbx; s.dgx = v + 2 * G + o; s.dgh = v + 3 * G + o;
        s.dgc = v + 4 * G + u; s.dbc = v + 4 * G + a.H + u;
    }

    // Batch norm, one site of one group at step t: measure (training) or read the statistics, and spread them as mean and rstd.
    void columns_of(bool measure, const float* term, long ld, long p, long t, long gates, const float* mean_all, const float* var_all,
                    float* mean, float* rstd) const {
        const long w = nu(p);
        float *m = (float*)mean_all, *v = (float*)var_all;
        if (measure) {
            column_statistics(term, ld, rows(t), gates * w, mean, rstd);
            for (long k = 0; k < gates; k++) {
                memcpy(m + (t * gates + k) * a.H + u0(p), mean + k * w, sizeof(float) * w);
                memcpy(v + (t * gates + k) * a.H + u0(p), rstd + k * w, sizeof(float) * w);
            }
        }
        for (long k = 0; k < gates; k++)
            for (long j = 0; j < w; j++) {
                mean[k * w + j] = m ? m[(t * gates + k) * a.H + u0(p) + j] : 0;
                rstd[k * w + j] = v ? float(1 / std::sqrt(v[(t * gates + k) * a.H + u0(p) + j] + a.eps)) : 1;
            }
    }
    void spread(long p, long t, bool measure, int site, const float* term, long ld) const {
        const long o = N * u0(p), u = u0(p);
        float* v = column_stats;
        const bool m = measure && on(site);
        if (site == INPUT) columns_of(m, term, ld, p, t, N, on(site) ? a.mean_x : nullptr, on(site) ? a.var_x : nullptr, v + o, v + G + o);
        if (site == RECURRENT) columns_of(m, term, ld, p, t, N, on(site) ? a.mean_h : nullptr, on(site) ? a.var_h : nullptr, v + 2 * G + o, v + 3 * G + o);
        if (site == CELL) columns_of(m, term, ld, p, t, 1, on(site) ? a.mean_c : nullptr, on(site) ? a.var_c : nullptr, v + 4 * G + u, v + 4 * G + a.H + u);
    }
};

// ------------------------------------------------------------------------------------------------------------ forward

static void rows_forward(const Plan& q, long t, long t0, long t1, long b0, long b1, float* scratch, float* o) {
    const Args& a = q.a;
    const long H = a.H, G = q.G;
    float* ah = q.at(q.ah, a.ah, t, t, t + 1, 0, 0);
    if (!a.external) gemm<false>(b1 - b0, G, H, a.hs + (t * a.B + b0) * H, H, q.w_h, ah + b0 * G, G, false, scratch);
    Cell<false> s = q.cell<false>(0);
    for (long b = b0; b < b1; b++) {
        const long row = t * a.B + b;
        const float *x = q.at(q.ax, a.ax, t, t0, t1, 0, b), *h_prev = a.hs + row * H;
        float *h = a.hs + (row + a.B) * H, *st = a.rs + row * 8;
        if (q.on(INPUT)) {
            row_statistics(x, a.gru ? 2 * H : G, a.eps, a.centred, s.x.m[0], s.x.r[0]);
            if (a.gru) row_statistics(x + 2 * H, H, a.eps, a.centred, s.x.m[1], s.x.r[1]);
            else s.x.m[1] = s.x.m[0], s.x.r[1] = s.x.r[0];
        }
        if (q.on(RECURRENT)) {
            row_statistics(ah + b * G, a.gru ? 2 * H : G, a.eps, a.centred, s.h.m[0], s.h.r[0]);
            if (a.gru) row_statistics(ah + b * G + 2 * H, H, a.eps, a.centred, s.h.m[1], s.h.r[1]);
            else s.h.m[1] = s.h.m[0], s.h.r[1] = s.h.r[0];
        }
        st[0] = s.x.m[0]; st[1] = s.x.r[0]; st[4] = s.h.m[0]; st[5] = s.h.r[0];
        if (a.gru) {
            st[2] = s.x.m[1]; st[3] = s.x.r[1]; st[6] = s.h.m[1]; st[7] = s.h.r[1];
            gru_step(s, x, ah + b * G, h_prev, h);
        } else {
            float* c = a.c + row * H;
            lstm_gates(s, x, ah + b * G, t ? c - a.B * H : a.c0 + b * H, c, o);
            if (q.on(CELL)) row_statistics(c, H, a.eps, a.centred, s.c.m[0], s.c.r[0]);
            st[2] = s.c.m[0]; st[3] = s.c.r[0];
            lstm_output(s, c, o, h);
        }
    }
}

static void columns_forward(const Plan& q, long t, long t0, long t1, long p, float* scratch) {
    const Args& a = q.a;
    const long H = a.H, nu = q.nu(p), u = q.u0(p), cols = q.N * nu, rows = q.rows(t);
    float* ah = q.at(q.ah, a.ah, t, t, t + 1, p, 0);
    const float* ax = q.at(q.ax, a.ax, t, t0, t1, p, 0);
    if (!a.external) gemm<false>(rows, cols, H, a.hs + t * a.B * H, H, q.w_h + q.width_before(p) * H, ah, cols, false, scratch);
    q.spread(p, t, q.train, INPUT, ax, cols);
    q.spread(p, t, q.train, RECURRENT, ah, cols);
    Cell<true> s = q.cell<true>(p);
    float* o = q.tmp + a.B * u;
    for (long b = 0; b < rows; b++) {
        const long row = t * a.B + b;
        float *h = a.hs + (row + a.B) * H + u, *c = a.c + row * H + u;
        if (a.gru) gru_step(s, ax + b * cols, ah + b * cols, a.hs + row * H + u, h);
        else lstm_gates(s, ax + b * cols, ah + b * cols, t ? c - a.B * H : a.c0 + b * H + u, c, o + b * nu);
    }
    if (a.gru) return;
    q.spread(p, t, q.train, CELL, a.c + t * a.B * H + u, H);
    for (long b = 0; b < rows; b++)
        lstm_output(s, a.c + (t * a.B + b) * H + u, o + b * nu, a.hs + ((t + 1) * a.B + b) * H + u);
}

extern "C" void ln_forward(const Args* args) {
    const Args& a = *args;
    long size;
    const Plan q(a, false, a.work, size);
    const long H = a.H;
#pragma omp parallel num_threads(a.threads)
    {
        const long tid = omp_get_thread_num(), n = omp_get_num_threads();
        float* scratch = q.scratch + tid * A_BLOCK;
        if (tid == 0) q.vectors();
        for (long t = tid; t < a.T; t += n) memset(a.hs + ((t + 1) * a.B + q.rows(t)) * H, 0, sizeof(float) * (a.B - q.rows(t)) * H);
        if (!a.external) {
            q.pack_forward(a.w_ih, a.D, q.w_x, tid, n);
            q.pack_forward(a.w_hh, H, q.w_h, tid, n);
        }
#pragma omp barrier
        for (long t0 = 0; t0 < a.T; t0 += a.chunk) {
            const long t1 = t0 + a.chunk < a.T ? t0 + a.chunk : a.T;
            const long b0 = q.row_begin(q.block_begin(t0, t1, tid, n)), end = q.row_begin(q.block_begin(t0, t1, tid + 1, n));
            if (!a.external) q.term(a.x, a.D, q.w_x, q.ax, a.ax, q.inner, t0, t1, tid, n);
#pragma omp barrier
            for (long t = t0; t < t1; t++) {
                if (a.columns) {
                    for (long p = tid; p < q.P; p += n) columns_forward(q, t, t0, t1, p, scratch);
#pragma omp barrier
                } else if (const long b1 = std::min(end, q.rows(t)); b0 < b1) {
                    rows_forward(q, t, t0, t1, b0, b1, scratch, q.tmp + tid * (H + 16));
                }
            }
            if (!a.ax && !a.columns) {
#pragma omp barrier
            }
        }
    }
    for (long b = 0; b < a.B; b++) {
        const long last = a.lengths ? a.lengths[b] : a.T;
        memcpy(a.h_last + b * H, a.hs + (last * a.B + b) * H, sizeof(float) * H);
        if (!a.gru) memcpy(a.c_last + b * H, last ? a.c + ((last - 1) * a.B + b) * H : a.c0 + b * H, sizeof(float) * H);
    }
}

// ----------------------------------------------------------------------------------------------------------- backward

static void rows_backward(const Plan& q, long t, long t0, long t1, long block, float* tmp) {
    const Args& a = q.a;
    const long H = a.H, G = q.G, first = a.gru ? 2 * H : G;
    Cell<false> s = q.cell<false>(0);
    q.gradients_into(s, q.sums + block * q.sums_stride(), 0);
    for (long b = q.row_begin(block), end = std::min(q.row_begin(block + 1), q.rows(t)); b < end; b++) {
        const long row = t * a.B + b;
        float *dx = q.at(q.dax, false, t, t0, t1, 0, b), *dah = q.at(q.dah, false, t, t0, t1, 0, b), *dh = q.dh + b * H;
        const float *x = q.at(q.ax, a.ax, t, t0, t1, 0, b), *h = q.at(q.ah, a.ah, t, t0, t1, 0, b), *st = a.rs + row * 8;
        const float* dout = a.dout ? a.dout + row * H : nullptr;
        s.x.m[0] = s.x.m[1] = st[0]; s.x.r[0] = s.x.r[1] = st[1];
        s.h.m[0] = s.h.m[1] = st[4]; s.h.r[0] = s.h.r[1] = st[5];
        Sums g;
        if (a.gru) {
            s.x.m[1] = st[2]; s.x.r[1] = st[3]; s.h.m[1] = st[6]; s.h.r[1] = st[7];
            g = gru_step_back(s, x, h, a.hs + row * H, dout, dh, dx, dah);
        } else {
            s.c.m[0] = st[2]; s.c.r[0] = st[3];
            float *c = a.c + row * H, *act = tmp, *dcell = tmp + 4 * H, s1, s2;
            lstm_output_back(s, x, h, c, dout, dh, act, dcell, dx, &s1, &s2);
            if (!q.on(CELL)) s1 = s2 = 0;
            if (!a.centred) s1 = 0;  // a mean that was not taken away has no gradient
            g = lstm_gates_back(s, x, h, t ? c - a.B * H : a.c0 + b * H, c, act, dcell, s1 / H, s2 / H, nullptr, nullptr, q.dc + b * H, dx, dah);
            memset(dh, 0, sizeof(float) * H);
        }
        for (int set_ = 0; set_ < (a.gru ? 2 : 1); set_++) {
            const long begin = set_ * first, end = set_ ? G : first, m = end - begin;
            if (!a.centred) g.x1[set_] = g.h1[set_] = 0;
            if (q.on(INPUT)) side_back(s.x, set_, begin, end, x, s.gx, g.x1[set_] / m, g.x2[set_] / m, nullptr, nullptr, dx);
            if (q.on(RECURRENT)) side_back(s.h, set_, begin, end, h, s.gh, g.h1[set_] / m, g.h2[set_] / m, nullptr, nullptr, dah);
        }
    }
}

static void columns_backward(const Plan& q, long t, long t0, long t1, long p) {
    const Args& a = q.a;
    const long H = a.H, nu = q.nu(p), u = q.u0(p), cols = q.N * nu, o = q.N * u, rows = q.rows(t);
    const float count = rows ? rows : 1;
    for (int site : {INPUT, RECURRENT, CELL}) q.spread(p, t, false, site, nullptr, 0);
    Cell<true> s = q.cell<true>(p), total = s;
    q.gradients_into(s, q.step_sums, p);
    q.gradients_into(total, q.sums, p);
    for (float* v : {s.dbx, s.dbh, s.dgx, s.dgh}) memset(v, 0, sizeof(float) * cols);
    for (float* v : {s.dgc, s.dbc}) memset(v, 0, sizeof(float) * nu);
    auto ax = [&](long b) { return q.at(q.ax, a.ax, t, t0, t1, p, b); };
    auto ah = [&](long b) { return q.at(q.ah, a.ah, t, t0, t1, p, b); };
    auto dx = [&](long b) { return q.at(q.dax, false, t, t0, t1, p, b); };
    auto dah = [&](long b) { return q.at(q.dah, false, t, t0, t1, p, b); };
    auto dout = [&](long b) { return a.dout ? a.dout + (t * a.B + b) * H + u : nullptr; };
    // The means over the batch that a normalization's gradient subtracts are those of the step's own gradients of bias and
    // gain, so no further pass is needed.
    auto batch_means = [&](const float* db, const float* dg, long n, float* v1, float* v2) {
        for (long i = 0; i < n; i++) { v1[i] = db[i] / count; v2[i] = dg[i] / count; }
    };
    float *act = q.tmp + 5 * a.B * u, *mean = q.means;
    if (!a.gru) {
        float s1, s2, *v1 = mean + 4 * q.G + u, *v2 = v1 + H;
        for (long b = 0; b < rows; b++)
            lstm_output_back(s, ax(b), ah(b), a.c + (t * a.B + b) * H + u, dout(b), q.dh + b * H + u, act + b * 5 * nu, act + b * 5 * nu + 4 * nu, dx(b), &s1, &s2);
        const bool subtract = q.train && q.on(CELL);
        if (subtract) batch_means(s.dbc, s.dgc, nu, v1, v2);
        for (long b = 0; b < rows; b++) {
            const float* c = a.c + (t * a.B + b) * H + u;
            lstm_gates_back(s, ax(b), ah(b), t ? c - a.B * H : a.c0 + b * H + u, c, act + b * 5 * nu, act + b * 5 * nu + 4 * nu, 0, 0, subtract ? v1 : nullptr, v2,
                            q.dc + b * H + u, dx(b), dah(b));
            memset(q.dh + b * H + u, 0, sizeof(float) * nu);
        }
    } else {
        for (long b = 0; b < rows; b++)
            gru_step_back(s, ax(b), ah(b), a.hs + (t * a.B + b) * H + u, dout(b), q.dh + b * H + u, dx(b), dah(b));
    }
    float *x1 = mean + o, *x2 = mean + q.G + o, *h1 = mean + 2 * q.G + o, *h2 = mean + 3 * q.G + o;
    batch_means(s.dbx, s.dgx, cols, x1, x2);
    batch_means(s.dbh, s.dgh, cols, h1, h2);
    for (long b = 0; b < rows; b++) {
        if (q.on(INPUT)) side_back(s.x, 0, 0, cols, ax(b), s.gx, 0, 0, q.train ? x1 : nullptr, x2, dx(b));
        if (q.on(RECURRENT)) side_back(s.h, 0, 0, cols, ah(b), s.gh, 0, 0, q.train ? h1 : nullptr, h2, dah(b));
    }
    for (long i = 0; i < cols; i++) {
        total.dbx[i] += s.dbx[i];
        if (a.gru) total.dbh[i] += s.dbh[i];
        total.dgx[i] += s.dgx[i];
        total.dgh[i] += s.dgh[i];
    }
    for (long j = 0; j < nu; j++) { total.dgc[j] += s.dgc[j]; total.dbc[j] += s.dbc[j]; }
}

// out (cols of group p, width) += d^T x for a narrow x (rows, width), or for x = 1 with x null.
static void thin_outer(const Plan& q, long p, const float* d, long ld, long rows, const float* x, long width, float* out, long tid, long n) {
    const long vectors = (ld + W - 1) / W;
    for (long v = vectors * tid / n; v < vectors * (tid + 1) / n; v++) {
        const long j = v * W;
        auto column_block = [&](auto L) HOT {
            vf s[THIN] = {};
            for (long r = 0; r < rows; r++) {
                const vf g = load(d + r * ld + j, L);
                for (long k = 0; k < width; k++) s[k] += g * (x ? x[r * width + k] : 1.f);
            }
            for (long k = 0; k < width; k++) {
                float lane[W];
                store(lane, s[k]);
                for (long i = 0; i < W && j + i < ld; i++) out[q.column(p, j + i) * width + k] += lane[i];
            }
        };
        if (j + W <= ld) column_block(Full{});
        else column_block(Tail{int(ld - j)});
    }
}

// What a finished chunk of d(ax), d(ah) is for: dx, the weights' gradients and the inner bias'. hp: states before those steps.
static void chunk_products(const Plan& q, long t0, long t1, long tid, long n, float* scratch) {
    const Args& a = q.a;
    const long rows = q.first(t1) - q.first(t0), D = a.D, H = a.H;
    for (long p = 0; p < q.P; p++) {
        const long nu = q.nu(p), cols = q.N * nu;
        const float *dx = q.at(q.dax, false, t0, t0, t1, p, 0), *dah = q.at(q.dah, false, t0, t0, t1, p, 0);
        q.stretches(t0, t1, [&](long row, long own, long count) {
            const long r0 = count * tid / n, r1 = count * (tid + 1) / n;
            const float* d = dx + own * cols;
            if (a.dx && D <= THIN) {
                for (long r = r0; r < r1; r++)
                    for (long k = 0; k < D; k++) {
                        vf s = {};
                        const float* w = q.w_x_back + q.N * q.u0(p) * D + k * cols;
                        lanes(cols, [&](long j, auto L) HOT { s += load(d + r * cols + j, L) * load(w + j, L); });
                        a.dx[(row + r) * D + k] = sum(s) + (p ? a.dx[(row + r) * D + k] : 0);
                    }
            } else if (a.dx) {
                gemm<false>(r1 - r0, D, cols, d + r0 * cols, cols, q.w_x_back + up(D, W) * q.N * q.u0(p), a.dx + (row + r0) * D, D, p > 0, scratch);
            }
            if (a.dw_ih && D <= THIN) thin_outer(q, p, d, cols, count, a.x + row * D, D, a.dw_ih, tid, n);
        });
        if (a.dinner) thin_outer(q, p, dx, cols, rows, nullptr, 1, a.dinner, tid, n);
        for (long k = 0; k < (q.P == 1 ? 1 : q.N); k++) {  // one group: all rows of W at once, shared; else a gate of a group to each thread
            const long m = q.P == 1 ? cols : nu, i0 = q.P == 1 ? m * tid / n : 0, i1 = q.P == 1 ? m * (tid + 1) / n : m;
            if (q.P > 1 && (p * q.N + k) % n != tid) continue;
            const long w = k * H + q.u0(p) + i0;
            if (a.dw_ih && D > THIN) gemm<true>(i1 - i0, D, rows, dx + k * nu + i0, cols, q.x_panels, a.dw_ih + w * D, D, true, scratch);
            if (a.dw_hh) gemm<true>(i1 - i0, H, rows, dah + k * nu + i0, cols, q.h_panels, a.dw_hh + w * H, H, true, scratch);
        }
    }
}

static void pack_backward(const Plan& q, long tid, long n) {
    const Args& a = q.a;
    for (long p = 0; p < q.P; p++) {
        const long cols = q.N * q.nu(p), o = q.N * q.u0(p);
        if (a.dx && a.D > THIN)
            pack<false>(cols, a.D, [&](long i) { return a.w_ih + q.column(p, i) * a.D; }, q.w_x_back + up(a.D, W) * o, tid, n);
        else if (a.dx && tid == 0)
            for (long k = 0; k < a.D; k++)
                for (long i = 0; i < cols; i++) q.w_x_back[o * a.D + k * cols + i] = a.w_ih[q.column(p, i) * a.D + k];
        for (long own = 0; own < q.P; own++)
            pack<false>(cols, q.nu(own), [&](long i) { return a.w_hh + q.column(p, i) * a.H + q.u0(own); },
                        q.w_h_back + q.units_before(own) * q.G + up(q.nu(own), W) * o, tid, n);
    }
    if (!a.ax) q.pack_forward(a.w_ih, a.D, q.w_x, tid, n);
    if (!a.ah) q.pack_forward(a.w_hh, a.H, q.w_h, tid, n);
}

extern "C" void ln_backward(const Args* args) {
    const Args& a = *args;
    long size;
    const Plan q(a, true, a.work, size);
    const long H = a.H, B = a.B, state = sizeof(float) * B * H;
#pragma omp parallel num_threads(a.threads)
    {
        const long tid = omp_get_thread_num(), n = omp_get_num_threads();
        float* scratch = q.scratch + tid * A_BLOCK;
        if (tid == 0) {
            q.vectors();
            memset(q.sums, 0, sizeof(float) * q.blocks * q.sums_stride());
            if (a.dh_last) memcpy(q.dh, a.dh_last, state);
            else memset(q.dh, 0, state);
            if (!a.gru && a.dc_last) memcpy(q.dc, a.dc_last, state);
            else if (!a.gru) memset(q.dc, 0, state);
            if (a.dw_ih) memset(a.dw_ih, 0, sizeof(float) * q.G * a.D);
            if (a.dw_hh) memset(a.dw_hh, 0, sizeof(float) * q.G * H);
            if (a.dinner) memset(a.dinner, 0, sizeof(float) * q.G);
        }
        if (a.dx)
            for (long t = tid; t < a.T; t += n) memset(a.dx + (t * B + q.rows(t)) * a.D, 0, sizeof(float) * (B - q.rows(t)) * a.D);
        if (!a.external) pack_backward(q, tid, n);
#pragma omp barrier
        for (long t1 = a.T; t1 > 0;) {
            const long t0 = t1 > a.chunk ? t1 - a.chunk : 0, begin = q.first(t0), rows = q.first(t1) - begin;
            const long block0 = q.block_begin(t0, t1, tid, n), block1 = q.block_begin(t0, t1, tid + 1, n), b0 = q.row_begin(block0);
            if (!a.external) {
                if (!a.ax) q.term(a.x, a.D, q.w_x, q.ax, false, q.inner, t0, t1, tid, n);
                if (!a.ah) q.term(a.hs, H, q.w_h, q.ah, false, nullptr, t0, t1, tid, n);
                if (q.x_panels) pack<false>(rows, a.D, [&](long r) { return a.x + q.place(begin + r) * a.D; }, q.x_panels, tid, n);
                if (q.h_panels) pack<false>(rows, H, [&](long r) { return a.hs + q.place(begin + r) * H; }, q.h_panels, tid, n);
#pragma omp barrier
            }
            for (long t = t1 - 1; t >= t0; t--) {
                if (a.columns) {
                    for (long p = tid; p < q.P; p += n) columns_backward(q, t, t0, t1, p);
#pragma omp barrier
                    for (long own = tid; own < q.P && !a.external; own += n)
                        for (long p = 0; p < q.P; p++)
                            gemm<false>(q.rows(t), q.nu(own), q.N * q.nu(p), q.at(q.dah, false, t, t0, t1, p, 0), q.N * q.nu(p),
                                        q.w_h_back + q.units_before(own) * q.G + up(q.nu(own), W) * q.N * q.u0(p), q.dh + q.u0(own), H, true, scratch);
                } else if (const long b1 = std::min(q.row_begin(block1), q.rows(t)); b0 < b1) {
                    for (long block = block0; block < block1; block++) rows_backward(q, t, t0, t1, block, q.tmp + tid * 5 * (H + 16));
                    if (!a.external)
                        gemm<false>(b1 - b0, H, q.G, q.at(q.dah, false, t, t0, t1, 0, b0), q.G, q.w_h_back, q.dh + b0 * H, H, true, scratch);
                }
            }
#pragma omp barrier
            if (!a.external) {
                chunk_products(q, t0, t1, tid, n, scratch);
#pragma omp barrier
            }
            t1 = t0;
        }
    }
    for (long k = 1; k < q.blocks; k++)
        for (long i = 0; i < 4 * q.G + 2 * H; i++) q.sums[i] += q.sums[k * q.sums_stride() + i];
    for (long p = 0; p < q.P; p++)
        for (long i = 0; i < q.N * q.nu(p); i++) {
            const long o = q.N * q.u0(p) + i, g = q.column(p, i);
            if (a.db_ih) a.db_ih[g] = q.sums[o];
            if (a.db_hh) a.db_hh[g] = q.sums[(a.gru ? q.G : 0) + o];
            if (a.dg_ih) a.dg_ih[g] = q.sums[2 * q.G + o];
            if (a.dg_hh) a.dg_hh[g] = q.sums[3 * q.G + o];
        }
    if (a.dg_c) memcpy(a.dg_c, q.sums + 4 * q.G, sizeof(float) * H);
    if (a.db_c) memcpy(a.db_c, q.sums + 4 * q.G + H, sizeof(float) * H);
    if (a.dh0) memcpy(a.dh0, q.dh, state);
    if (a.dc0) memcpy(a.dc0, q.dc, state);
}

// For the test that ctypes lays the arguments out as the compiler does.
extern "C" int64_t ln_args_size() { return sizeof(Args); }

// Floats of workspace that a call with these arguments needs.
extern "C" int64_t ln_work_size(const Args* args, int64_t backward) {
    long size;
    Plan(*args, backward, nullptr, size);
    return size;
}

// C (M, N) = A (M, K) B^T with B (N, K): the product alone, for measuring its rate; work holds packed_size(K, N) + A_BLOCK floats.
extern "C" int64_t ln_gemm(int64_t M, int64_t N, int64_t K, const float* A, const float* B, float* C, float* work) {
    if (!C) return packed_size(K, N) + A_BLOCK;
    pack<true>(K, N, [&](long n) { return B + n * K; }, work);
    gemm<false>(M, N, K, A, K, work, C, N, false, work + packed_size(K, N));
    return 0;
}
