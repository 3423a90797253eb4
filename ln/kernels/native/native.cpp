// LSTM, GRU and simple RNN layers (one direction) with layer norm at any sites, recurrent batch norm, or none: forward
// and backward, float32.
//
// Shapes: T time, B batch, D input, H hidden, G summed inputs: one of each unit for every gate (LSTM 4H: i f g o, GRU
//   3H: r z n, RNN H).
//   ax = W_ih x (+ inner bias), ah = W_hh h: the two terms of summed inputs. In a joint layer (RNN, LSTM), whose terms
//   are normalized as one or not at all, both are one array: ah = ax + W_hh h, and the site of the sum is the recurrent
//   one.
//
// How the work is dealt out. Under layer norm a batch row never meets another one, so a thread owns rows for all T and
// the time loop has no barrier ("rows"). Under batch norm a column never meets another one except through h, so a
// thread owns hidden units (all their gates) for all rows: its statistics are its own, and one barrier per step
// publishes h, or d(ah) in the backward ("columns"). A set of owned units is a group p, and its arrays are laid out
// [group][row][gate][unit of the group]; in rows there is one group with all units, so this is the plain (row, G).
//
// What is kept. Saved between forward and backward: h and c of every step, the raw terms ax and ah, and statistics;
// gates are rebuilt from those, which costs less than streaming them; in a joint LSTM they take their place. Without ax
// or ah (null) they are recomputed, a chunk of steps at a time: one large product each, still in cache when the
// recurrence reads it. The backward works in the same chunks: the recurrence fills d(ax), d(ah) of a chunk, then all
// threads turn them into weight gradients and dx.
//
// Rows of different lengths come longest first, so the rows that run at step t are the first ones, and only those are
// computed or kept: ax, ah and their gradients hold first[t] .. first[t + 1] for step t, while x, hs, c and rs have all
// B rows of a step.
#include "cells.h"
#include <algorithm>
#include <initializer_list>
#include <omp.h>

enum { LSTM, GRU, RNN };
enum { INPUT = 1, RECURRENT = 2, CELL = 4 };

struct Args {  // build.py reads this declaration for ctypes
    int64_t T, B, D, H, cell, columns, sites, threads, groups, chunk, given_stats, external, centred, joint, relu;
    double eps;
    const int64_t *lengths, *first, *places;  // (B) falling, (T+1), (first[T]) t*B+b of each; or all null
    const float *x, *c0, *w_ih, *w_hh;        // (T,B,D) (B,H) (G,D) (G,H)
    const float *b_ih, *b_hh, *g_ih, *g_hh, *g_c, *b_c, *inner;  // (G) x 4, (H) x 2, (G); null: 0, gains 1
    float *hs, *c, *ax, *ah, *rs;             // (T+1,B,H) with h0 first, (T,B,H), (first[T],G) x 2, (T,B,8)
    float *mean_x, *var_x, *mean_h, *var_h, *mean_c, *var_c;  // (T,G) x 4, (T,H) x 2: batch norm
    float *h_last, *c_last;                   // (B,H)
    const float *dout, *dh_last, *dc_last;    // (T,B,H) (B,H) (B,H); null: 0
    float *dx, *dh0, *dc0, *dw_ih, *dw_hh, *db_ih, *db_hh, *dg_ih, *dg_hh, *dg_c, *db_c, *dinner, *dax, *dah;
    float *work;
};

// ---------------------------------------------------------------------------------------------------------- the plan

constexpr long BLOCKS = 16;  // gains' and biases' gradients are summed in so many blocks of rows, whatever the threads
constexpr long THIN = 4;     // inputs this narrow get loops over columns instead of a tile that would be mostly padding

struct Chunk { long begin, end; };  // steps of time

// Summed inputs or their gradients, (row, G) in the groups' layout.
struct Terms {
    float* data;
    bool whole;  // of all steps, else of a chunk
};

// A call's sizes, and where in the workspace its intermediate results lie; null where it has none.
struct Plan {
    const Args& a;
    const long gates, G, groups, chunk_rows, blocks;
    const bool measures;    // batch statistics are taken here, not given
    const bool reads_terms; // not so the backward of a joint RNN without a norm, which needs h alone
    const bool keeps_gates; // in place of their summed inputs
    const bool redoes_ax, redoes_ah;  // the backward computes them again
    long size = 0;        // of the workspace, in floats
    float *packed_w_ih, *packed_w_hh, *packed_w_ih_back, *packed_w_hh_back;
    Terms ax, ah, dax, dah;
    float *packed_x, *packed_h;        // of a chunk, for the gradients of the weights
    Affine parameters;                 // in the groups' layout, as the others with G or H numbers
    float *inner_bias;                 // (G)
    float *statistics;                 // of one step, columns: mean and rstd (G) of x, of h, and (H) of c
    Affine means;                      // over the batch of the gradients of one step
    float *gradients, *step_gradients; // Affines: of all steps by blocks of rows, of one step by groups
    float *activations, *scratch;      // (B or threads, n) of one step, (threads, A_BLOCK) for products
    float *dh, *dc;                    // (B, H)

    Plan(const Args& a, bool backward, float* base)
        : a(a), gates(a.cell == GRU ? 3 : a.cell == LSTM ? 4 : 1), G(gates * a.H), groups(a.columns ? a.groups : 1),
          chunk_rows(a.chunk * a.B), blocks(a.columns ? 1 : std::min<long>(a.B, BLOCKS)),
          measures(a.columns && !a.given_stats),
          reads_terms(!backward || !a.joint || a.cell == LSTM || on(RECURRENT)),
          keeps_gates(a.joint && a.cell == LSTM && a.ah),
          redoes_ax(backward && reads_terms && !(a.joint ? a.ah : a.ax)), redoes_ah(backward && reads_terms && !a.ah) {
        const bool products = !a.external;
        auto take = [&](long n, bool needed = true) -> float* {
            if (!needed) return nullptr;
            float* p = base ? base + size : nullptr;
            size += up(n, 16) + 16;
            return p;
        };
        const long H = a.H, padded_D = up(a.D, W), padded_G = G + groups * gates * W;
        packed_w_ih = take(padded_G * a.D, products && (!backward || redoes_ax));
        packed_w_hh = take(padded_G * H, products && (!backward || redoes_ah));
        packed_w_ih_back = take(G * padded_D, backward && products && a.dx);
        packed_w_hh_back = take((H + groups * W) * G, backward && products);
        auto terms = [&](float* saved, long rows, bool needed = true) {
            return Terms{saved ? saved : take(rows * G, needed), saved != nullptr};
        };
        ah = terms(a.ah, backward || a.joint ? chunk_rows : a.B, reads_terms);
        ax = a.joint ? ah : terms(a.ax, chunk_rows);
        dah = terms(a.dah, chunk_rows, backward);
        dax = a.joint ? dah : terms(a.dax, chunk_rows, backward);
        packed_x = take(chunk_rows * padded_D, backward && products && a.dw_ih && a.D > THIN);
        packed_h = take(chunk_rows * up(H, W), backward && products && a.dw_hh);
        parameters = affine(take(affine_size()));
        inner_bias = take(G, a.inner);
        statistics = take(4 * G + 2 * H, a.columns);
        means = affine(take(affine_size(), a.columns && backward));
        gradients = take(blocks * affine_size(), backward);
        step_gradients = take(affine_size(), a.columns && backward);
        activations = take((a.columns ? a.B : a.threads) * (backward ? 5 : 1) * (H + 16));
        scratch = take(a.threads * A_BLOCK, products);
        dh = take(a.B * H, backward);
        dc = take(a.B * H, backward && a.cell == LSTM);
    }

    bool on(int site) const { return a.sites & site; }

    // Rows: block .. block + 1 hold rows row_begin(block) .. row_begin(block + 1).
    long row_begin(long block) const { return block * a.B / blocks; }
    long first(long t) const { return a.first ? a.first[t] : t * a.B; }
    long rows(long t) const { return first(t + 1) - first(t); }
    long place(long i) const { return a.places ? a.places[i] : i; }

    // Groups: group p holds `units(p)` units from `unit(p)` on, and `columns(p)` summed inputs from `column(p)` on.
    long unit(long p) const { return std::min<long>(a.H, groups == 1 ? a.H * p : up(a.H * p / groups, 4)); }
    long units(long p) const { return unit(p + 1) - unit(p); }
    long column(long p) const { return gates * unit(p); }
    long columns(long p) const { return gates * units(p); }
    // The row of the weight matrix of column i of group p.
    long weight_row(long p, long i) const { return i / units(p) * a.H + unit(p) + i % units(p); }
    long packed_columns_before(long p) const {
        long width = 0;
        for (long q = 0; q < p; q++) width += up(columns(q), W);
        return width;
    }
    long packed_units_before(long p) const {
        long width = 0;
        for (long q = 0; q < p; q++) width += up(units(q), W);
        return width;
    }
    float* recurrent_weights_back(long own, long p) const {  // of d(ah) of group p to dh of group own
        return packed_w_hh_back + packed_units_before(own) * G + up(units(own), W) * column(p);
    }

    // Row (t, b) of group p, or null; a term that is not whole holds the steps of the chunk.
    float* at(Terms terms, Chunk chunk, long t, long p, long b) const {
        if (!terms.data) return nullptr;
        const long begin = first(terms.whole ? 0 : chunk.begin), end = first(terms.whole ? a.T : chunk.end);
        return terms.data + (end - begin) * column(p) + (first(t) - begin + b) * columns(p);
    }
    // ah in the forward: one step's, but where it begins as ax the chunk's.
    float* recurrent_at(Chunk chunk, long t, long p) const {
        return at(ah, a.joint ? chunk : Chunk{t, t + 1}, t, p, 0);
    }
    // Calls run(row among all (T, B), row of the chunk, rows) for stretches of steps whose rows lie side by side in
    // both.
    template <class Run> void stretches(Chunk chunk, Run run) const {
        for (long t = chunk.begin, end; t < chunk.end; t = end) {
            for (end = t + 1; end < chunk.end && rows(end - 1) == a.B;) end++;
            run(t * a.B, first(t) - first(chunk.begin), first(end) - first(t));
        }
    }
    // The first block of rows of thread tid of n in a chunk; each thread gets as many rows to run.
    long block_begin(Chunk chunk, long tid, long n) const {
        if (!a.first) return blocks * tid / n;
        const long share = (first(chunk.end) - first(chunk.begin)) * tid / n;
        for (long block = 0; block < blocks; block++) {
            long before = 0;
            for (long t = chunk.begin; t < chunk.end; t++) before += std::min(rows(t), row_begin(block));
            if (before >= share) return block;
        }
        return blocks;
    }

    // Gains and biases or the like: (G) x 4 and (H) x 2 in one piece. But in the GRU the two biases are one.
    long affine_size() const { return up(4 * G + 2 * a.H, 16); }
    Affine affine(float* v) const {
        if (!v) return {};
        return {v + 2 * G, v + 3 * G, v, a.cell == GRU ? v + G : v, v + 4 * G, v + 4 * G + a.H};
    }
    Affine of_group(Affine v, long p) const {
        const long o = column(p), u = unit(p);
        return {v.gain_x + o, v.gain_h + o, v.bias_x + o, v.bias_h + o, v.gain_c + u, v.bias_c + u};
    }
    void fill_parameters() const {
        const Affine& v = parameters;
        for (long p = 0; p < groups; p++)
            for (long i = 0; i < columns(p); i++) {
                const long o = column(p) + i, row = weight_row(p, i);
                const float bias_x = a.b_ih ? a.b_ih[row] : 0, bias_h = a.b_hh ? a.b_hh[row] : 0;
                v.gain_x[o] = a.g_ih ? a.g_ih[row] : 1;
                v.gain_h[o] = a.g_hh ? a.g_hh[row] : 1;
                v.bias_h[o] = bias_h;
                v.bias_x[o] = a.cell == GRU ? bias_x : bias_x + bias_h;
                if (inner_bias) inner_bias[o] = a.inner[row];
            }
        for (long j = 0; j < a.H; j++) {
            v.gain_c[j] = a.g_c ? a.g_c[j] : 1;
            v.bias_c[j] = a.b_c ? a.b_c[j] : 0;
        }
    }

    void pack_forward(const float* w, long K, float* out, long tid, long n) const {
        for (long p = 0; p < groups; p++)
            pack<true>(K, columns(p), [&](long i) { return w + weight_row(p, i) * K; },
                       out + packed_columns_before(p) * K, tid, n);
    }
    // out = start + in W^T for the rows of a chunk, dealt evenly: ax from the inputs in (T,B,K), or ah from the states
    // before those steps. start (G) in the groups' layout, or null: 0, or onto: what out holds.
    void term(const float* in, long K, const float* packed, Terms out, const float* start, bool onto, Chunk chunk,
              long tid, long n) const {
        stretches(chunk, [&](long row, long own, long count) {
            const long r0 = count * tid / n, r1 = count * (tid + 1) / n;
            for (long p = 0; p < groups; p++) {
                float* o = at(out, chunk, chunk.begin, p, own + r0);
                if (start)
                    for (long r = 0; r < r1 - r0; r++)
                        memcpy(o + r * columns(p), start + column(p), sizeof(float) * columns(p));
                gemm<false>(r1 - r0, columns(p), K, in + (row + r0) * K, K, packed + packed_columns_before(p) * K,
                            o, columns(p), onto || start, scratch + tid * A_BLOCK);
            }
        });
    }

    template <bool COL> Cell<COL> cell(long p) const {
        Cell<COL> s;
        s.n = units(p);
        s.p = of_group(parameters, p);
        if constexpr (COL) {
            s.x.column_mean = mean_of(INPUT, p); s.x.column_rstd = rstd_of(INPUT, p);
            s.h.column_mean = mean_of(RECURRENT, p); s.h.column_rstd = rstd_of(RECURRENT, p);
            s.c.column_mean = mean_of(CELL, p); s.c.column_rstd = rstd_of(CELL, p);
        }
        return s;
    }

    // Batch norm. The statistics of group p at a site, one step's.
    float* mean_of(int site, long p) const {
        if (site == CELL) return statistics + 4 * G + unit(p);
        return statistics + (site == INPUT ? 0 : 2 * G) + column(p);
    }
    float* rstd_of(int site, long p) const { return mean_of(site, p) + (site == CELL ? a.H : G); }
    // Reads the statistics of step t as mean and rstd; before that, measure: takes them from `term`, whose rows lie ld
    // apart.
    void take_statistics(int site, long p, long t, bool measure, const float* term, long ld) const {
        float *mean = mean_of(site, p), *rstd = rstd_of(site, p);
        const long n = units(p), parts = site == CELL ? 1 : gates;
        if (!on(site)) {
            std::fill(mean, mean + parts * n, 0.f);
            std::fill(rstd, rstd + parts * n, 1.f);
            return;
        }
        float* means = site == INPUT ? a.mean_x : site == RECURRENT ? a.mean_h : a.mean_c;
        float* vars = site == INPUT ? a.var_x : site == RECURRENT ? a.var_h : a.var_c;
        if (measure) column_statistics(term, ld, rows(t), parts * n, mean, rstd);
        for (long k = 0; k < parts; k++) {
            float *m = means + (t * parts + k) * a.H + unit(p), *v = vars + (t * parts + k) * a.H + unit(p);
            if (measure) {
                memcpy(m, mean + k * n, sizeof(float) * n);
                memcpy(v, rstd + k * n, sizeof(float) * n);
            }
            for (long j = 0; j < n; j++) {
                mean[k * n + j] = m[j];
                rstd[k * n + j] = float(1 / std::sqrt(v[j] + a.eps));
            }
        }
    }
};

// ------------------------------------------------------------------------------------------------------------ forward

// Layer norm. What a row's statistics at a step are saved as: (8), mean and rstd of x, of x's second set of gates or of
// the cell, of h, of h's second set.
static void save(const Cell<false>& s, bool gru, float* to) {
    const Site<false>& x = s.x;
    const float second[2] = {gru ? x.mean[1] : s.c.mean[0], gru ? x.rstd[1] : s.c.rstd[0]};
    const float all[8] = {x.mean[0], x.rstd[0], second[0], second[1],
                          s.h.mean[0], s.h.rstd[0], s.h.mean[1], s.h.rstd[1]};
    memcpy(to, all, sizeof all);
}
static void restore(Cell<false>& s, bool gru, const float* from) {
    const long other = gru ? 2 : 0;  // the LSTM's gates are all in one set
    for (int set_ = 0; set_ < 2; set_++) {
        s.x.mean[set_] = from[set_ * other]; s.x.rstd[set_] = from[set_ * other + 1];
        s.h.mean[set_] = from[set_ * other + 4]; s.h.rstd[set_] = from[set_ * other + 5];
    }
    if (!gru) { s.c.mean[0] = from[2]; s.c.rstd[0] = from[3]; }
}

static void rows_forward(const Plan& q, Chunk chunk, long t, long b0, long b1, float* scratch, float* o) {
    const Args& a = q.a;
    const long H = a.H, G = q.G;
    const bool gru = a.cell == GRU;
    float* ah = q.recurrent_at(chunk, t, 0);
    if (!a.external)
        gemm<false>(b1 - b0, G, H, a.hs + (t * a.B + b0) * H, H, q.packed_w_hh, ah + b0 * G, G, a.joint, scratch);
    Cell<false> s = q.cell<false>(0);
    auto measure = [&](Site<false>& site, const float* term) {
        row_statistics(term, gru ? 2 * H : G, a.eps, a.centred, site.mean[0], site.rstd[0]);
        if (gru) row_statistics(term + 2 * H, H, a.eps, a.centred, site.mean[1], site.rstd[1]);
        else site.mean[1] = site.mean[0], site.rstd[1] = site.rstd[0];
    };
    for (long b = b0; b < b1; b++) {
        const long row = t * a.B + b;
        const float* x = a.joint ? nullptr : q.at(q.ax, chunk, t, 0, b);
        float *h_row = ah + b * G, *h = a.hs + (row + a.B) * H;
        if (q.on(INPUT)) measure(s.x, x);
        if (q.on(RECURRENT)) measure(s.h, h_row);
        if (gru) {
            gru_step(s, x, h_row, a.hs + row * H, h);
        } else if (a.cell == RNN) {
            rnn_step(s, a.relu, x, h_row, h);
        } else {
            float* c = a.c + row * H;
            lstm_gates(s, x, h_row, t ? c - a.B * H : a.c0 + b * H, c, o, q.keeps_gates ? h_row : nullptr);
            if (q.on(CELL)) row_statistics(c, H, a.eps, a.centred, s.c.mean[0], s.c.rstd[0]);
            lstm_output(s, c, o, h);
        }
        save(s, gru, a.rs + row * 8);
    }
}

static void columns_forward(const Plan& q, Chunk chunk, long t, long p, float* scratch) {
    const Args& a = q.a;
    const long H = a.H, n = q.units(p), u = q.unit(p), cols = q.columns(p), rows = q.rows(t);
    float* ah = q.recurrent_at(chunk, t, p);
    const float* ax = q.at(q.ax, chunk, t, p, 0);
    if (!a.external)
        gemm<false>(rows, cols, H, a.hs + t * a.B * H, H, q.packed_w_hh + q.packed_columns_before(p) * H, ah, cols,
                    a.joint, scratch);
    q.take_statistics(INPUT, p, t, q.measures, ax, cols);
    q.take_statistics(RECURRENT, p, t, q.measures, ah, cols);
    Cell<true> s = q.cell<true>(p);
    float* o = q.activations + a.B * u;
    for (long b = 0; b < rows; b++) {
        const long row = t * a.B + b;
        const float* x = a.joint ? nullptr : ax + b * cols;
        float *h_row = ah + b * cols, *h = a.hs + (row + a.B) * H + u, *c = a.c + row * H + u;
        if (a.cell == GRU) gru_step(s, x, h_row, a.hs + row * H + u, h);
        else if (a.cell == RNN) rnn_step(s, a.relu, x, h_row, h);
        else lstm_gates(s, x, h_row, t ? c - a.B * H : a.c0 + b * H + u, c, o + b * n, q.keeps_gates ? h_row : nullptr);
    }
    if (a.cell != LSTM) return;
    q.take_statistics(CELL, p, t, q.measures, a.c + t * a.B * H + u, H);
    for (long b = 0; b < rows; b++)
        lstm_output(s, a.c + (t * a.B + b) * H + u, o + b * n, a.hs + ((t + 1) * a.B + b) * H + u);
}

extern "C" void ln_forward(const Args* args) {
    const Args& a = *args;
    const Plan q(a, false, a.work);
    const long H = a.H, state = sizeof(float) * H;
#pragma omp parallel num_threads(a.threads)
    {
        const long tid = omp_get_thread_num(), n = omp_get_num_threads();
        float* scratch = a.external ? nullptr : q.scratch + tid * A_BLOCK;
        if (tid == 0) q.fill_parameters();
        for (long t = tid; t < a.T; t += n)
            memset(a.hs + ((t + 1) * a.B + q.rows(t)) * H, 0, state * (a.B - q.rows(t)));
        if (!a.external) {
            q.pack_forward(a.w_ih, a.D, q.packed_w_ih, tid, n);
            q.pack_forward(a.w_hh, H, q.packed_w_hh, tid, n);
        }
#pragma omp barrier
        for (long begin = 0; begin < a.T; begin += a.chunk) {
            const Chunk chunk{begin, std::min<long>(begin + a.chunk, a.T)};
            const long b0 = q.row_begin(q.block_begin(chunk, tid, n));
            const long end = q.row_begin(q.block_begin(chunk, tid + 1, n));
            if (!a.external) q.term(a.x, a.D, q.packed_w_ih, q.ax, q.inner_bias, false, chunk, tid, n);
#pragma omp barrier
            for (long t = chunk.begin; t < chunk.end; t++) {
                if (a.columns) {
                    for (long p = tid; p < q.groups; p += n) columns_forward(q, chunk, t, p, scratch);
#pragma omp barrier
                } else if (const long b1 = std::min(end, q.rows(t)); b0 < b1) {
                    rows_forward(q, chunk, t, b0, b1, scratch, q.activations + tid * (H + 16));
                }
            }
            if (!q.ax.whole && !a.columns) {
#pragma omp barrier
            }
        }
    }
    for (long b = 0; b < a.B; b++) {
        const long last = a.lengths ? a.lengths[b] : a.T;
        memcpy(a.h_last + b * H, a.hs + (last * a.B + b) * H, state);
        if (a.cell == LSTM) memcpy(a.c_last + b * H, last ? a.c + ((last - 1) * a.B + b) * H : a.c0 + b * H, state);
    }
}

// ----------------------------------------------------------------------------------------------------------- backward

static void rows_backward(const Plan& q, Chunk chunk, long t, long block, float* scratch) {
    const Args& a = q.a;
    const long H = a.H, G = q.G;
    const bool gru = a.cell == GRU;
    Cell<false> s = q.cell<false>(0);
    s.d = q.affine(q.gradients + block * q.affine_size());
    for (long b = q.row_begin(block), end = std::min(q.row_begin(block + 1), q.rows(t)); b < end; b++) {
        const long row = t * a.B + b;
        float *dx = q.at(q.dax, chunk, t, 0, b), *dah = q.at(q.dah, chunk, t, 0, b), *dh = q.dh + b * H;
        const float* x = a.joint ? nullptr : q.at(q.ax, chunk, t, 0, b);
        float* h = q.at(q.ah, chunk, t, 0, b);
        const float* dout = a.dout ? a.dout + row * H : nullptr;
        restore(s, gru, a.rs + row * 8);
        Sums g;
        if (gru) {
            g = gru_step_back(s, x, h, a.hs + row * H, dout, dh, dx, dah);
        } else if (a.cell == RNN) {
            g = rnn_step_back(s, a.relu, x, h, a.hs + (row + a.B) * H, dout, dh, dx, dah);
        } else {
            float *c = a.c + row * H, *dcell = scratch + 4 * H, sum_dn, sum_dn_hat;
            float* act = q.keeps_gates ? h : scratch;
            lstm_output_back(s, x, q.keeps_gates ? nullptr : h, c, dout, dh, act, dcell, dx, sum_dn, sum_dn_hat);
            if (!q.on(CELL)) sum_dn = sum_dn_hat = 0;
            if (!a.centred) sum_dn = 0;  // a mean that was not taken away has no gradient
            g = lstm_gates_back(s, x, h, t ? c - a.B * H : a.c0 + b * H, c, act, dcell, sum_dn / H, sum_dn_hat / H,
                                nullptr, nullptr, q.dc + b * H, dx, dah);
            memset(dh, 0, sizeof(float) * H);
        }
        for (int set_ = 0; set_ < (gru ? 2 : 1); set_++) {
            const long begin = set_ * 2 * H, end = gru && !set_ ? 2 * H : G, m = end - begin;
            auto back = [&](const Site<false>& site, const float* term, float sum, float sum_hat, float* d) HOT {
                if (!a.centred) sum = 0;
                site_back(site, set_, begin, end, term, nullptr, sum / m, sum_hat / m, nullptr, nullptr, d);
            };
            if (q.on(INPUT)) back(s.x, x, g.x[set_], g.x_hat[set_], dx);
            if (q.on(RECURRENT)) back(s.h, h, g.h[set_], g.h_hat[set_], dah);
        }
    }
}

static void columns_backward(const Plan& q, Chunk chunk, long t, long p) {
    const Args& a = q.a;
    const long H = a.H, n = q.units(p), u = q.unit(p), cols = q.columns(p), rows = q.rows(t);
    const float count = rows ? rows : 1;
    for (int site : {INPUT, RECURRENT, CELL}) q.take_statistics(site, p, t, false, nullptr, 0);
    Cell<true> s = q.cell<true>(p);
    s.d = q.of_group(q.affine(q.step_gradients), p);
    const Affine total = q.of_group(q.affine(q.gradients), p), mean = q.of_group(q.means, p);
    for (float* v : {s.d.bias_x, s.d.bias_h, s.d.gain_x, s.d.gain_h}) memset(v, 0, sizeof(float) * cols);
    for (float* v : {s.d.gain_c, s.d.bias_c}) memset(v, 0, sizeof(float) * n);
    auto ax = [&](long b) { return a.joint ? nullptr : q.at(q.ax, chunk, t, p, b); };
    auto ah = [&](long b) { return q.at(q.ah, chunk, t, p, b); };
    auto dx = [&](long b) { return q.at(q.dax, chunk, t, p, b); };
    auto dah = [&](long b) { return q.at(q.dah, chunk, t, p, b); };
    auto dh = [&](long b) { return q.dh + b * H + u; };
    auto dout = [&](long b) { return a.dout ? a.dout + (t * a.B + b) * H + u : nullptr; };
    auto cell = [&](long b) { return a.c + (t * a.B + b) * H + u; };
    // The means over the batch that a normalization's gradient subtracts are those of the step's own gradients of bias
    // and gain, so no further pass is needed.
    auto take_mean = [&](const float* from, long length, float* to) {
        for (long i = 0; i < length; i++) to[i] = from[i] / count;
    };
    if (a.cell == GRU) {
        for (long b = 0; b < rows; b++)
            gru_step_back(s, ax(b), ah(b), a.hs + (t * a.B + b) * H + u, dout(b), dh(b), dx(b), dah(b));
    } else if (a.cell == RNN) {
        for (long b = 0; b < rows; b++)
            rnn_step_back(s, a.relu, ax(b), ah(b), a.hs + ((t + 1) * a.B + b) * H + u, dout(b), dh(b), dx(b), dah(b));
    } else {
        auto dcell = [&](long b) { return q.activations + 5 * (a.B * u + b * n); };
        auto act = [&](long b) { return q.keeps_gates ? ah(b) : dcell(b) + n; };
        float unused[2];
        for (long b = 0; b < rows; b++)
            lstm_output_back(s, ax(b), q.keeps_gates ? nullptr : ah(b), cell(b), dout(b), dh(b), act(b), dcell(b),
                             dx(b), unused[0], unused[1]);
        const bool subtract = q.measures && q.on(CELL);
        if (subtract) {
            take_mean(s.d.bias_c, n, mean.bias_c);
            take_mean(s.d.gain_c, n, mean.gain_c);
        }
        for (long b = 0; b < rows; b++) {
            lstm_gates_back(s, ax(b), ah(b), t ? cell(b) - a.B * H : a.c0 + b * H + u, cell(b), act(b), dcell(b), 0,
                            0, subtract ? mean.bias_c : nullptr, mean.gain_c, q.dc + b * H + u, dx(b), dah(b));
            memset(dh(b), 0, sizeof(float) * n);
        }
    }
    take_mean(s.d.bias_x, cols, mean.bias_x);
    take_mean(s.d.bias_h, cols, mean.bias_h);
    take_mean(s.d.gain_x, cols, mean.gain_x);
    take_mean(s.d.gain_h, cols, mean.gain_h);
    const float *mean_x = q.measures ? mean.bias_x : nullptr, *mean_h = q.measures ? mean.bias_h : nullptr;
    for (long b = 0; b < rows; b++) {
        if (q.on(INPUT)) site_back(s.x, 0, 0, cols, ax(b), s.p.gain_x, 0, 0, mean_x, mean.gain_x, dx(b));
        if (q.on(RECURRENT)) site_back(s.h, 0, 0, cols, ah(b), s.p.gain_h, 0, 0, mean_h, mean.gain_h, dah(b));
    }
    auto add_to = [](float* sum, const float* v, long length) {
        for (long i = 0; i < length; i++) sum[i] += v[i];
    };
    add_to(total.bias_x, s.d.bias_x, cols);
    if (a.cell == GRU) add_to(total.bias_h, s.d.bias_h, cols);
    add_to(total.gain_x, s.d.gain_x, cols);
    add_to(total.gain_h, s.d.gain_h, cols);
    add_to(total.gain_c, s.d.gain_c, n);
    add_to(total.bias_c, s.d.bias_c, n);
}

// out (columns of group p, width) += d^T x for a narrow x (rows, width), or for x = 1 with x null.
static void thin_outer(const Plan& q, long p, const float* d, long rows, const float* x, long width, float* out,
                       long tid, long n) {
    const long ld = q.columns(p), vectors = (ld + W - 1) / W;
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
                for (long i = 0; i < W && j + i < ld; i++) out[q.weight_row(p, j + i) * width + k] += lane[i];
            }
        };
        if (j + W <= ld) column_block(Full{});
        else column_block(Tail{int(ld - j)});
    }
}

// What a finished chunk of d(ax), d(ah) is for: dx, the weights' gradients and the inner bias'.
static void chunk_products(const Plan& q, Chunk chunk, long tid, long n, float* scratch) {
    const Args& a = q.a;
    const long rows = q.first(chunk.end) - q.first(chunk.begin), D = a.D, H = a.H;
    for (long p = 0; p < q.groups; p++) {
        const long units = q.units(p), cols = q.columns(p);
        const float *dax = q.at(q.dax, chunk, chunk.begin, p, 0), *dah = q.at(q.dah, chunk, chunk.begin, p, 0);
        q.stretches(chunk, [&](long row, long own, long count) {
            const long r0 = count * tid / n, r1 = count * (tid + 1) / n;
            const float* d = dax + own * cols;
            if (a.dx && D <= THIN) {
                for (long r = r0; r < r1; r++)
                    for (long k = 0; k < D; k++) {
                        vf s = {};
                        const float* w = q.packed_w_ih_back + q.column(p) * D + k * cols;
                        lanes(cols, [&](long j, auto L) HOT { s += load(d + r * cols + j, L) * load(w + j, L); });
                        a.dx[(row + r) * D + k] = sum(s) + (p ? a.dx[(row + r) * D + k] : 0);
                    }
            } else if (a.dx) {
                gemm<false>(r1 - r0, D, cols, d + r0 * cols, cols, q.packed_w_ih_back + up(D, W) * q.column(p),
                            a.dx + (row + r0) * D, D, p > 0, scratch);
            }
            if (a.dw_ih && D <= THIN) thin_outer(q, p, d, count, a.x + row * D, D, a.dw_ih, tid, n);
        });
        if (a.dinner) thin_outer(q, p, dax, rows, nullptr, 1, a.dinner, tid, n);
        // One group: all rows of W at once, shared by the threads; else a gate of a group to each thread.
        const bool alone = q.groups == 1;
        for (long k = 0; k < (alone ? 1 : q.gates); k++) {
            if (!alone && (p * q.gates + k) % n != tid) continue;
            const long i0 = alone ? cols * tid / n : 0, i1 = alone ? cols * (tid + 1) / n : units;
            const long own = k * units + i0, row = k * H + q.unit(p) + i0;
            if (a.dw_ih && D > THIN)
                gemm<true>(i1 - i0, D, rows, dax + own, cols, q.packed_x, a.dw_ih + row * D, D, true, scratch);
            if (a.dw_hh)
                gemm<true>(i1 - i0, H, rows, dah + own, cols, q.packed_h, a.dw_hh + row * H, H, true, scratch);
        }
    }
}

static void pack_backward(const Plan& q, long tid, long n) {
    const Args& a = q.a;
    for (long p = 0; p < q.groups; p++) {
        const long cols = q.columns(p);
        auto input_weights = [&](long i) { return a.w_ih + q.weight_row(p, i) * a.D; };
        if (a.dx && a.D > THIN) {
            pack<false>(cols, a.D, input_weights, q.packed_w_ih_back + q.column(p) * up(a.D, W), tid, n);
        } else if (a.dx && tid == 0) {
            for (long k = 0; k < a.D; k++)
                for (long i = 0; i < cols; i++)
                    q.packed_w_ih_back[q.column(p) * a.D + k * cols + i] = input_weights(i)[k];
        }
        for (long own = 0; own < q.groups; own++) {
            auto recurrent_weights = [&](long i) { return a.w_hh + q.weight_row(p, i) * a.H + q.unit(own); };
            pack<false>(cols, q.units(own), recurrent_weights, q.recurrent_weights_back(own, p), tid, n);
        }
    }
    if (q.redoes_ax) q.pack_forward(a.w_ih, a.D, q.packed_w_ih, tid, n);
    if (q.redoes_ah) q.pack_forward(a.w_hh, a.H, q.packed_w_hh, tid, n);
}

// Adds up the blocks' gradients of gains and biases, and hands them out in the order of the weights' rows.
static void hand_out_gradients(const Plan& q) {
    const Args& a = q.a;
    const Affine sum = q.affine(q.gradients);
    for (long block = 1; block < q.blocks; block++)
        for (long i = 0; i < 4 * q.G + 2 * a.H; i++) q.gradients[i] += q.gradients[block * q.affine_size() + i];
    for (long p = 0; p < q.groups; p++)
        for (long i = 0; i < q.columns(p); i++) {
            const long o = q.column(p) + i, row = q.weight_row(p, i);
            if (a.db_ih) a.db_ih[row] = sum.bias_x[o];
            if (a.db_hh) a.db_hh[row] = sum.bias_h[o];
            if (a.dg_ih) a.dg_ih[row] = sum.gain_x[o];
            if (a.dg_hh) a.dg_hh[row] = sum.gain_h[o];
        }
    if (a.dg_c) memcpy(a.dg_c, sum.gain_c, sizeof(float) * a.H);
    if (a.db_c) memcpy(a.db_c, sum.bias_c, sizeof(float) * a.H);
}

extern "C" void ln_backward(const Args* args) {
    const Args& a = *args;
    const Plan q(a, true, a.work);
    const long H = a.H, B = a.B, states = sizeof(float) * B * H;
    auto begin_with = [&](float* to, const float* from) {
        if (from) memcpy(to, from, states);
        else memset(to, 0, states);
    };
#pragma omp parallel num_threads(a.threads)
    {
        const long tid = omp_get_thread_num(), n = omp_get_num_threads();
        float* scratch = a.external ? nullptr : q.scratch + tid * A_BLOCK;
        if (tid == 0) {
            q.fill_parameters();
            memset(q.gradients, 0, sizeof(float) * q.blocks * q.affine_size());
            begin_with(q.dh, a.dh_last);
            if (a.cell == LSTM) begin_with(q.dc, a.dc_last);
            if (a.dw_ih) memset(a.dw_ih, 0, sizeof(float) * q.G * a.D);
            if (a.dw_hh) memset(a.dw_hh, 0, sizeof(float) * q.G * H);
            if (a.dinner) memset(a.dinner, 0, sizeof(float) * q.G);
        }
        if (a.dx)
            for (long t = tid; t < a.T; t += n)
                memset(a.dx + (t * B + q.rows(t)) * a.D, 0, sizeof(float) * (B - q.rows(t)) * a.D);
        if (!a.external) pack_backward(q, tid, n);
#pragma omp barrier
        for (Chunk chunk{0, a.T}; chunk.end > 0; chunk.end = chunk.begin) {
            chunk.begin = std::max<long>(chunk.end - a.chunk, 0);
            const long begin = q.first(chunk.begin), rows = q.first(chunk.end) - begin;
            const long block0 = q.block_begin(chunk, tid, n), block1 = q.block_begin(chunk, tid + 1, n);
            const long b0 = q.row_begin(block0);
            if (!a.external) {
                if (q.redoes_ax) q.term(a.x, a.D, q.packed_w_ih, q.ax, q.inner_bias, false, chunk, tid, n);
                if (q.redoes_ah) q.term(a.hs, H, q.packed_w_hh, q.ah, nullptr, a.joint, chunk, tid, n);
                if (q.packed_x)
                    pack<false>(rows, a.D, [&](long r) { return a.x + q.place(begin + r) * a.D; }, q.packed_x, tid, n);
                if (q.packed_h)
                    pack<false>(rows, H, [&](long r) { return a.hs + q.place(begin + r) * H; }, q.packed_h, tid, n);
#pragma omp barrier
            }
            for (long t = chunk.end - 1; t >= chunk.begin; t--) {
                if (a.columns) {
                    for (long p = tid; p < q.groups; p += n) columns_backward(q, chunk, t, p);
#pragma omp barrier
                    for (long own = tid; own < q.groups && !a.external; own += n)
                        for (long p = 0; p < q.groups; p++)
                            gemm<false>(q.rows(t), q.units(own), q.columns(p), q.at(q.dah, chunk, t, p, 0),
                                        q.columns(p), q.recurrent_weights_back(own, p), q.dh + q.unit(own), H, true,
                                        scratch);
                } else if (const long b1 = std::min(q.row_begin(block1), q.rows(t)); b0 < b1) {
                    for (long block = block0; block < block1; block++)
                        rows_backward(q, chunk, t, block, q.activations + tid * 5 * (H + 16));
                    if (!a.external)
                        gemm<false>(b1 - b0, H, q.G, q.at(q.dah, chunk, t, 0, b0), q.G, q.packed_w_hh_back,
                                    q.dh + b0 * H, H, true, scratch);
                }
            }
#pragma omp barrier
            if (!a.external) {
                chunk_products(q, chunk, tid, n, scratch);
#pragma omp barrier
            }
        }
    }
    hand_out_gradients(q);
    if (a.dh0) memcpy(a.dh0, q.dh, states);
    if (a.dc0) memcpy(a.dc0, q.dc, states);
}

// Whether ctypes lays the arguments out as the compiler does is known by their size.
extern "C" int64_t ln_args_size() { return sizeof(Args); }

// Floats of workspace that a call with these arguments needs.
extern "C" int64_t ln_work_size(const Args* args, int64_t backward) { return Plan(*args, backward, nullptr).size; }

// C (M, N) = A (M, K) B^T with B (N, K): the product alone, for measuring its rate; work holds packed_size(K, N) +
// A_BLOCK floats.
extern "C" int64_t ln_gemm(int64_t M, int64_t N, int64_t K, const float* A, const float* B, float* C, float* work) {
    if (!C) return packed_size(K, N) + A_BLOCK;
    pack<true>(K, N, [&](long n) { return B + n * K; }, work);
    gemm<false>(M, N, K, A, K, work, C, N, false, work + packed_size(K, N));
    return 0;
}
