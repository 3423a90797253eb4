// Vectors of one instruction set, vectorized exp/tanh/sigmoid, and a packed matrix product.
//
// The file is compiled for the instruction set of the machine it runs on (build.py picks x86-64-v4, x86-64-v3 or the
// compiler's baseline), so the vector width W and the tile of the micro-kernel are constants here.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16, MR = 12;  // 24 accumulators + 2 operands of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, MR = 6;    // 12 accumulators + 2 operands of 16 registers
#else
constexpr int W = 4, MR = 6;
#endif
constexpr int NR = 2 * W;          // columns of a packed panel
constexpr long KC = 1024;          // summands per block: long, since every block reads and writes C once more
constexpr long CHAIN_SUMMED = 96;  // where A is transposed, thousands of rows are summed: short chains are more exact
constexpr long FETCH_EVERY = 8;    // summands between two fetches from the next panel of B, which has to come from L3
constexpr long MC = 8 * MR;        // rows per block: a block of A (up to 400 KB) and a panel of B stay in L2
constexpr long MOST_ROWS = 96;     // so many are still one block, since every block reads all of B
constexpr long A_STRIDE = KC + 16; // not a multiple of the page: rows of a tile must not share one L1 set
constexpr long A_BLOCK = MOST_ROWS * A_STRIDE;
static_assert(MC <= MOST_ROWS);

typedef float vf __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))
#define HOT __attribute__((always_inline))  // for lambdas

// A whole vector, or the first n lanes of one (the others read as 0 and are not written).
struct Full {};
struct Tail { int n; };

INLINE vf set(float v) { return v - vf{}; }  // not v + 0, which the compiler must compute, since -0 + 0 = 0
INLINE vf load(const float* p, Full = {}) { return *(const vf*)p; }
INLINE void store(float* p, vf v, Full = {}) { *(vf*)p = v; }
INLINE vf keep(vf v, Full) { return v; }
#if defined(__AVX512F__)
INLINE vf load(const float* p, Tail t) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << t.n) - 1), p); }
INLINE void store(float* p, vf v, Tail t) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << t.n) - 1), (__m512)v); }
INLINE vf keep(vf v, Tail t) { return (vf)_mm512_maskz_mov_ps((__mmask16)((1u << t.n) - 1), (__m512)v); }
#elif defined(__AVX2__)
static const int32_t ON_THEN_OFF[2 * W] = {-1, -1, -1, -1, -1, -1, -1, -1};
INLINE __m256i first(int n) { return _mm256_loadu_si256((const __m256i*)(ON_THEN_OFF + W - n)); }
INLINE vf load(const float* p, Tail t) { return (vf)_mm256_maskload_ps(p, first(t.n)); }
INLINE void store(float* p, vf v, Tail t) {  // in halves: a masked store costs a dozen cycles on some processors
    __m128 rest = _mm256_castps256_ps128((__m256)v);
    if (t.n & 4) { _mm_storeu_ps(p, rest); rest = _mm256_extractf128_ps((__m256)v, 1); p += 4; }
    if (t.n & 2) { _mm_storel_pi((__m64*)p, rest); rest = _mm_movehl_ps(rest, rest); p += 2; }
    if (t.n & 1) _mm_store_ss(p, rest);
}
INLINE vf keep(vf v, Tail t) { return (vf)_mm256_and_ps((__m256)v, _mm256_castsi256_ps(first(t.n))); }
#else
INLINE vf load(const float* p, Tail t) { float b[W] = {}; for (int i = 0; i < t.n; i++) b[i] = p[i]; return load(b); }
INLINE void store(float* p, vf v, Tail t) { float b[W]; store(b, v); for (int i = 0; i < t.n; i++) p[i] = b[i]; }
INLINE vf keep(vf v, Tail t) { float b[W]; store(b, v); return load(b, t); }
#endif

INLINE float sum(vf v) {
    float b[W];
    store(b, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) b[i] += b[i + half];
    return b[0];
}

// Calls f(j, Full or Tail) for j = 0, W, 2W, ... < n.
template <class F> INLINE void lanes(long n, F f) {
    long j = 0;
    for (; j + W <= n; j += W) f(j, Full{});
    if (j < n) f(j, Tail{int(n - j)});
}

// exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1) with |r| <= ln(2)/2; no cancellation near 0, so tanh keeps its relative
// accuracy.
INLINE vf expm1_parts(vf x, vf& scale) {
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer and leaves it in the low bits
    vf shifted = x * 1.44269504f + magic, n = shifted - magic;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = set(1.f / 5040) * r + 1.f / 720;
    p = p * r + 1.f / 120; p = p * r + 1.f / 24; p = p * r + 1.f / 6; p = p * r + 0.5f;
    scale = (vf)(((vi)shifted << 23) + 0x3f800000);
    return r * r * p + r;
}
INLINE vf clamp(vf x, float lo, float hi) {  // NaN passes through
    x = x < lo ? set(lo) : x;
    return x > hi ? set(hi) : x;
}
INLINE vf sigmoid(vf x) {
    vf s, p = expm1_parts(clamp(-x, -87.f, 87.f), s);
    return 1.f / (1.f + (s + s * p));
}
INLINE vf tanh_(vf x) {
    vf s, p = expm1_parts(clamp(2.f * x, -20.f, 20.f), s);
    vf e = s * p + (s - 1.f);
    return e / (e + 2.f);
}

// One tile: C (mr, width) (+)= A (mr, K) B (K, width); A's strides are constants, so that every address is base +
// displacement.
// Sums run over at most CHAIN summands before they are added to C. Meanwhile a share of the next panel of B is fetched.
template <int M, int NV, int RS, int CS, int CHAIN>
static void micro(long K, const float* a, const float* b, const float* next, float* c, long ldc, long cols,
                  bool accumulate) {
    for (long k0 = 0; k0 < K; k0 += CHAIN, accumulate = true) {
        vf s[M][NV];
#pragma GCC unroll 16
        for (int r = 0; r < M; r++)
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) s[r][v] = vf{};
        auto step = [&]() HOT {
            vf bv[NV];
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) bv[v] = load(b + v * W);
#pragma GCC unroll 16
            for (int r = 0; r < M; r++) {
                vf av = set(a[r * RS]);
#pragma GCC unroll 2
                for (int v = 0; v < NV; v++) s[r][v] += av * bv[v];
            }
            a += CS;
            b += NV * W;
        };
        long k = K - k0 < CHAIN ? K - k0 : CHAIN;
        for (; k >= FETCH_EVERY; k -= FETCH_EVERY, next += NV * W) {
#pragma GCC unroll 2
            for (int line = 0; line < NV * W; line += 16) __builtin_prefetch(next + line, 0, 2);
            for (int i = 0; i < FETCH_EVERY; i++) step();
        }
        for (; k > 0; k--) step();
#pragma GCC unroll 16
        for (int r = 0; r < M; r++)
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) {
                float* p = c + r * ldc + v * W;
                long n = cols - v * W;
                if (n >= W) store(p, accumulate ? load(p) + s[r][v] : s[r][v]);
                else if (n > 0) store(p, accumulate ? load(p, Tail{int(n)}) + s[r][v] : s[r][v], Tail{int(n)});
            }
    }
}

typedef void (*Micro)(long, const float*, const float*, const float*, float*, long, long, bool);
template <int RS, int CS, int CHAIN> struct Micros {
    Micro at[2][MR];
    template <int M> void fill() {
        at[0][M - 1] = micro<M, 1, RS, CS, CHAIN>;
        at[1][M - 1] = micro<M, 2, RS, CS, CHAIN>;
        if constexpr (M > 1) fill<M - 1>();
    }
    Micros() { fill<MR>(); }
};
static const Micros<A_STRIDE, 1, KC> micro_rows;          // A copied row by row
static const Micros<1, MR, CHAIN_SUMMED> micro_cols;  // A transposed: the rows of a tile lie side by side

// The W x W numbers of W vectors, transposed: blocks of S x S change places, for S = W/2, W/4, ... 1.
template <int S, int... J> INLINE void exchange(vf& a, vf& b, std::integer_sequence<int, J...>) {
    const vi low = {(J & S ? W + J - S : J)...}, high = {(J & S ? W + J : J + S)...};
    const vf first = __builtin_shuffle(a, b, low);
    b = __builtin_shuffle(a, b, high);
    a = first;
}
template <int S = W / 2> INLINE void transpose(vf* v) {
    if constexpr (S > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & S)) exchange<S>(v[i], v[i + S], std::make_integer_sequence<int, W>());
        transpose<S / 2>(v);
    }
}

INLINE long up(long n, long m) { return (n + m - 1) / m * m; }
inline long packed_size(long K, long N) { return K * up(N, W); }

// Panels of NR columns, each (K, NR) contiguous; the last one W wide where that is enough. Packs panels first,
// first + step, ...
// Rows are given by a function: by_column: element (k, n) = row(n)[k]; otherwise row(k)[n].
template <bool BY_COLUMN, class Row>
static void pack(long K, long N, Row row, float* out, long first = 0, long step = 1) {
    for (long p = first; p * NR < N; p += step) {
        long n0 = p * NR, cols = N - n0 < NR ? N - n0 : NR, width = cols <= W ? W : NR;
        float* o = out + n0 * K;
        if constexpr (BY_COLUMN) {
            for (long n = 0; n < cols; n += W)
                lanes(K, [&](long k, auto L) HOT {
                    vf block[W];
#pragma GCC unroll 16
                    for (int i = 0; i < W; i++) block[i] = n + i < cols ? load(row(n0 + n + i) + k, L) : vf{};
                    transpose(block);
#pragma GCC unroll 16
                    for (int i = 0; i < W; i++)
                        if (k + i < K) store(o + (k + i) * width + n, block[i]);
                });
        } else if (cols == NR) {
            for (long k = 0; k < K; k++) memcpy(o + k * NR, row(k) + n0, sizeof(float) * NR);
        } else {
            memset(o, 0, sizeof(float) * K * width);
            for (long k = 0; k < K; k++) memcpy(o + k * width, row(k) + n0, sizeof(float) * cols);
        }
    }
}

// C (M, N) (+)= A B with A (M, K) row-major, or (K, M) row-major where TRANSPOSED; B packed; scratch of A_BLOCK floats.
// Each element sums over k in one fixed order whatever the tile, so results do not depend on how rows are dealt to
// threads.
template <bool TRANSPOSED>
static void gemm(long M, long N, long K, const float* A, long lda, const float* B, float* C, long ldc, bool accumulate,
                 float* scratch) {
    const long k_blocks = (K + KC - 1) / KC, kc = (K + k_blocks - 1) / (k_blocks ? k_blocks : 1);
    for (long k0 = 0; k0 < K; k0 += kc, accumulate = true) {
        const long nk = K - k0 < kc ? K - k0 : kc;
        const long m_blocks = M <= MOST_ROWS ? 1 : (M + MC - 1) / MC;  // even blocks, since each of them reads all of B
        for (long block = 0; block < m_blocks; block++) {
            const long m0 = block * M / m_blocks, nm = (block + 1) * M / m_blocks - m0, tiles = (nm + MR - 1) / MR;
            auto begin = [&](long tile) { return tile * nm / tiles; };  // even tiles rather than one small rest
            if constexpr (TRANSPOSED) {
                for (long at = 0; at < nk; at += 16)  // few rows of A at a time, so that their lines are still in L1
                    for (long tile = 0; tile < tiles; tile++) {
                        const long m = begin(tile), rows = begin(tile + 1) - m, end = at + 16 < nk ? at + 16 : nk;
                        const float* a = A + k0 * lda + m0 + m;
                        float* s = scratch + tile * MR * KC;
                        lanes(rows, [&](long r, auto L) HOT {
                            for (long k = at; k < end; k++) store(s + k * MR + r, load(a + k * lda + r, L), L);
                        });
                    }
            } else {
                for (long m = 0; m < nm; m++)
                    memcpy(scratch + m * A_STRIDE, A + (m0 + m) * lda + k0, sizeof(float) * nk);
            }
            for (long n0 = 0; n0 < N; n0 += NR) {
                const long cols = N - n0 < NR ? N - n0 : NR, wide = cols > W, width = wide ? NR : W;
                const float* b = B + n0 * K + k0 * width;
                for (long tile = 0; tile < tiles; tile++) {
                    const long m = begin(tile), rows = begin(tile + 1) - m;
                    float* c = C + (m0 + m) * ldc + n0;
                    const float* next = b + NR * K + tile * (nk / FETCH_EVERY) * width;
                    const float* a = scratch + (TRANSPOSED ? tile * MR * KC : m * A_STRIDE);
                    const Micro run = TRANSPOSED ? micro_cols.at[wide][rows - 1] : micro_rows.at[wide][rows - 1];
                    run(nk, a, b, next, c, ldc, cols, accumulate);
                }
            }
        }
    }
}
