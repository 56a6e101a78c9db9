// One tile of attention: keys and values gathered from their slots, and the two small matrix products over them.
//
// In deterministic calls every query row goes through the same arithmetic, decoded token or part of a prompt: a chain of multiply-adds
// over the head dimension for each score, and over the tile's entries for each output, one accumulator each. So its bits do not
// depend on which rows are computed with it. Many rows share packed panels of keys and values; a few rows (a decoded token and
// its group of heads) take them straight from the registers that would have been packed.
#pragma once

#include <algorithm>

#include "dot.h"

namespace {

constexpr int TILE = 256;                 // view entries whose scores are held at once
constexpr int MR = 6;                     // query rows of a register block
constexpr int NV = W == 16 ? 4 : 2;       // vectors of a panel: MR * NV accumulators fill the registers
constexpr int PW = NV * W;                // lanes of a panel: keys while scoring, output dimensions while summing values
constexpr int PANELS = TILE / PW;

// How two packed operands are multiplied. A word is 32 bits: one float, or two bf16 of neighbouring steps.
struct InFloat {
    static constexpr int STEP = 1;
    static vf dot(vf acc, ints a, ints b) { return fma(bits_to_floats(a), bits_to_floats(b), acc); }
};
#if defined(HASTEN_DOT_BF16)
struct InBf16 {
    static constexpr int STEP = 2;
    static vf dot(vf acc, ints a, ints b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
};
template <class E> struct ArithmeticOf { using type = InFloat; };
template <> struct ArithmeticOf<bf16> { using type = InBf16; };
#else
template <class E> struct ArithmeticOf { using type = InFloat; };
#endif

// acc[r][v] += a[r] . b[v] over `steps` words. a: word (r, s) at r * ROW + s * ACROSS; b: [steps][PW].
template <class A, int M, int N, int ROW, int ACROSS>
inline __attribute__((always_inline)) void multiply(const int32_t *a, const int32_t *b, int steps, vf (&acc)[M][N]) {
    for (int r = 0; r < M; r++)
        for (int v = 0; v < N; v++) acc[r][v] = vf{};
#pragma GCC unroll 2
    for (int s = 0; s < steps; s++) {
        ints lanes[N];
        for (int v = 0; v < N; v++) lanes[v] = load_ints(b + s * PW + v * W);
        for (int r = 0; r < M; r++) {
            ints one = ints{} + a[r * ROW + s * ACROSS];
            for (int v = 0; v < N; v++) acc[r][v] = A::dot(acc[r][v], one, lanes[v]);
        }
    }
}

// Transposes W rows of W words in registers.
inline void transpose(ints (&x)[W]) {
#if defined(__AVX512F__)
    __m512i *r = (__m512i *)x, t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int half = 0; half < 16; half += 8)
        for (int i = half; i < half + 4; i++) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
#elif defined(__AVX2__)
    __m256i *r = (__m256i *)x, t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    std::memcpy(r, t, sizeof t);
#else
    alignas(64) int32_t words[W][W];  // compilers turn this into shuffles well enough for these widths
    for (int i = 0; i < W; i++) std::memcpy(words[i], &x[i], sizeof x[i]);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < i; j++) {
            int32_t swap = words[i][j];
            words[i][j] = words[j][i], words[j][i] = swap;
        }
    for (int i = 0; i < W; i++) x[i] = load_ints(words[i]);
#endif
}

// W words of a row from word s on, fewer (the rest zero) at the end of the row.
template <class A> inline ints words_of(const float *row, int s, int n) { return floats_to_bits(n >= W ? load(row + s) : load_n(row + s, n)); }
template <class A> inline ints words_of(const bf16 *row, int s, int n) {
    if (A::STEP == 1) return floats_to_bits(n >= W ? load(row + s) : load_n(row + s, n));
#if defined(HASTEN_DOT_BF16)
    return (ints)_mm512_maskz_loadu_epi32(n >= W ? 0xffff : __mmask16((1u << n) - 1), row + 2 * s);
#endif
}

// Rows that will be read next: as much of them is fetched from memory as the kernels consume of the current ones. All TILE offsets
// lie within the cache, whatever the tile holds.
template <class E> struct Ahead {
    const E *cache;
    const int64_t *offset;
    void fetch(int entry, int element) const { __builtin_prefetch(cache + offset[entry] + element, 0, 2); }
};

// The lines of the rows ahead, one row after another. Processors with narrow vectors have room for few lines on their way at once: what
// is asked for in a burst is late or never comes, so a line is fetched every few instructions, in the order of memory.
template <class E> class Sequence {
    static constexpr int LINE = 64 / sizeof(E);

  public:
    // From line `line` of the tile on.
    Sequence(const Ahead<E> &ahead, int dim, int line) : ahead(ahead), dim(dim), row(line / lines(dim)), element(line % lines(dim) * LINE) {}
    static int lines(int dim) { return (dim + LINE - 1) / LINE; }
    void fetch() {
        if (row >= TILE) return;
        ahead.fetch(row, element);
        element += LINE;
        if (element >= dim) element = 0, row++;
    }

  private:
    const Ahead<E> ahead;
    const int dim;
    int row, element;
};

// Words s .. s + W of W keys from `first` on, transposed: x[i] holds word s + i of each key. Keys past n become zeros.
template <class A, class E>
inline __attribute__((always_inline)) void gather_keys(const E *cache, const int64_t *offset, int first, int n, int s, int words,
                                                       const Ahead<E> &ahead, ints (&x)[W]) {
    if (first + W <= n && s + W <= words) {
        for (int i = 0; i < W; i++) x[i] = words_of<A>(cache + offset[first + i], s, W);
    } else {
        for (int i = 0; i < W; i++) x[i] = first + i < n ? words_of<A>(cache + offset[first + i], s, words - s) : ints{};
    }
    constexpr int LINE = 64 / sizeof(E);  // elements of a cache line
    if (s * A::STEP % LINE == 0)
        for (int i = 0; i < W; i++) ahead.fetch(first + i, s * A::STEP);
    transpose(x);
}

// Keys `first .. first + PW` of a tile of n -> packed [dim / STEP][PW].
template <class A, class E>
void pack_keys(const E *cache, const int64_t *offset, int first, int n, int dim, const Ahead<E> &ahead, int32_t *packed) {
    int words = dim / A::STEP;
    for (int key = 0; key < PW; key += W) {
        for (int s = 0; s < words; s += W) {
            ints x[W];
            gather_keys<A>(cache, offset, first + key, n, s, words, ahead, x);
            int32_t *to = packed + s * PW + key;
            if (s + W <= words) {
                for (int i = 0; i < W; i++) std::memcpy(to + i * PW, &x[i], sizeof x[i]);
            } else {
                for (int i = 0; i < W; i++)
                    if (s + i < words) std::memcpy(to + i * PW, &x[i], sizeof x[i]);
            }
        }
    }
}

// Scores of a few rows for the same keys without packing them: the same chains of multiply-adds, straight from the registers in
// which keys were transposed. q: [word][M]; scores: rows of TILE.
template <class A, int M, class E>
void score_keys(const E *cache, const int64_t *offset, int first, int n, int dim, const Ahead<E> &ahead, const int32_t *q, float scale,
                float *scores) {
    int words = dim / A::STEP;
    for (int key = 0; key < PW; key += 2 * W) {  // two groups of keys in turn: their chains hide each other's latency
        vf acc[2][M];
        for (int r = 0; r < M; r++) acc[0][r] = acc[1][r] = vf{};
        for (int s = 0; s < words; s += W) {
            for (int half = 0; half < 2; half++) {
                ints x[W];
                gather_keys<A>(cache, offset, first + key + half * W, n, s, words, ahead, x);
                const int32_t *of = q + s * M;
                for (int i = 0; i < W; i++) {
                    if (s + i >= words) break;
                    for (int r = 0; r < M; r++) acc[half][r] = A::dot(acc[half][r], ints{} + of[i * M + r], x[i]);
                }
            }
        }
        for (int half = 0; half < 2; half++)
            for (int r = 0; r < M; r++) store(scores + r * TILE + first + key + half * W, acc[half][r] * set1(scale));
    }
}

#if defined(__AVX2__)
// Scores of a few rows for keys `first .. first + W`, each product along its row from left to right: keys are read in the order in
// which they lie, which is what processors fetch ahead best. q: the M rows; scores: rows of TILE. Keys past the end of the tile are
// whatever its offsets name.
template <int M, class E>
inline __attribute__((always_inline)) void score_rows(const E *cache, const int64_t *offset, int first, int dim, const Ahead<E> &ahead,
                                                      const E *const *q, float scale, float *scores) {
    constexpr int STEP = step_of<E>();
    constexpr int KEYS = W == 16 || M <= 2 ? 4 : 2;  // whose products go on side by side, as many as there are registers for
    vf parts[M][W / 4];
    for (int g = 0; g < W / 4; g++) {
        vf sums[4][M];
        for (int from = 0; from < 4; from += KEYS) {
            vf acc[KEYS][M];
            const E *key[KEYS];
            for (int j = 0; j < KEYS; j++) {
                key[j] = cache + offset[first + 4 * g + from + j];
                for (int r = 0; r < M; r++) acc[j][r] = vf{};
                for (int d = 0; W == 16 && d < dim; d += 64 / int(sizeof(E))) ahead.fetch(first + 4 * g + from + j, d);
            }
            Sequence<E> next(ahead, dim, (first + 4 * g + from) * Sequence<E>::lines(dim));
            int i = 0;
            for (; i + STEP <= dim; i += STEP) {
                for (int j = 0; W == 8 && j < KEYS; j += 2) next.fetch();  // a step is half a line of each key
                for (int j = 0; j < KEYS; j++)
                    for (int r = 0; r < M; r++) acc[j][r] = step(acc[j][r], q[r] + i, key[j] + i);
            }
            if (i < dim)
                for (int j = 0; j < KEYS; j++)
                    for (int r = 0; r < M; r++) acc[j][r] = last_step(acc[j][r], q[r] + i, key[j] + i, dim - i);
            for (int j = 0; j < KEYS; j++)
                for (int r = 0; r < M; r++) sums[from + j][r] = acc[j][r];
        }
        for (int r = 0; r < M; r++) parts[r][g] = fold(sums[0][r], sums[1][r], sums[2][r], sums[3][r]);
    }
    for (int r = 0; r < M; r++) store(scores + r * TILE + first, sum_folded(parts[r]) * set1(scale));
}
#endif

// Whether two vectors of bf16 are widened at once: what follows two by two in memory then lies in two vectors, which takes half the
// instructions, until `interleave` puts the sums in order.
template <class E, int N, bool FULL> constexpr bool splits() { return W == 8 && sizeof(E) == 2 && FULL && N % 2 == 0; }

// Values of STEP entries at rows `one` and `two` (null past the end: zeros; unread where STEP is 1), their first `left` dimensions,
// N vectors of them: lane = dimension. With FULL, `left` is at least N * W.
template <class A, int N, bool FULL, class E>
inline __attribute__((always_inline)) void gather_values(const E *one, const E *two, int left, ints (&x)[N]) {
#if defined(HASTEN_DOT_BF16)
    if constexpr (A::STEP == 2) {
        const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                             35, 3, 34, 2, 33, 1, 32, 0);
        const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        for (int v = 0; v < N; v += 2) {
            int here = left - v * W;
            __mmask32 wanted = v + 1 == N ? 0xffffu : ~0u;
            if (!FULL && here < 2 * W) wanted &= (1u << here) - 1;
            __m512i a = _mm512_maskz_loadu_epi16(wanted, one + v * W);
            __m512i b = two ? _mm512_maskz_loadu_epi16(wanted, two + v * W) : __m512i{};
            x[v] = (ints)_mm512_permutex2var_epi16(a, low, b);
            if (v + 1 < N) x[v + 1] = (ints)_mm512_permutex2var_epi16(a, high, b);
        }
        return;
    }
#endif
    (void)two;
    if constexpr (splits<E, N, FULL>()) {
        for (int v = 0; v < N; v += 2) {
            ints both = load_ints((const int32_t *)(one + v * W));
            x[v] = floats_to_bits(lower_bf16(both)), x[v + 1] = floats_to_bits(upper_bf16(both));
        }
        return;
    }
    for (int v = 0; v < N; v++) {
        int here = left - v * W;
        if (FULL || here >= W)
            x[v] = floats_to_bits(load(one + v * W));
        else
            x[v] = here <= 0 ? ints{} : floats_to_bits(load_n(one + v * W, here));
    }
}

// Values of a tile's entries [from, to) -> packed [panel of output dimensions][TILE / STEP][PW]. from is a multiple of STEP, to <= n.
template <class A, class E>
void pack_values(const E *cache, const int64_t *offset, int from, int to, int n, int dim, const Ahead<E> &ahead, int32_t *packed) {
    constexpr int N = W == 16 ? 2 : 1;  // vectors that one load of bf16 gives
    for (int e = from; e < to; e += A::STEP) {
        const E *one = cache + offset[e], *two = A::STEP == 2 && e + 1 < n ? cache + offset[e + 1] : nullptr;
        for (int d = 0; d < dim; d += N * W) {
            ints x[N];
            gather_values<A, N, false>(one + d, two ? two + d : two, dim - d, x);
            int32_t *step = packed + (d / PW * (TILE / A::STEP) + e / A::STEP) * PW + d % PW;
            for (int v = 0; v < N; v++) std::memcpy(step + v * W, &x[v], sizeof x[v]);
        }
        for (int i = 0; i < A::STEP; i++)
            for (int d = 0; d < dim; d += 64 / int(sizeof(E))) ahead.fetch(e + i, d);
    }
}

// acc[r][v] = probabilities of row r over entries [from, to) times their values at dimensions d + v W .., without packing them.
template <class A, int M, int N, bool FULL, class E>
inline __attribute__((always_inline)) void sum_rows(const E *cache, const int64_t *offset, int from, int to, int n, int d, int dim,
                                                    const Ahead<E> &ahead, const int32_t *p, vf (&acc)[M][N]) {
    for (int r = 0; r < M; r++)
        for (int v = 0; v < N; v++) acc[r][v] = vf{};
    auto step = [&](int e, const E *one, const E *two) __attribute__((always_inline)) {
        ints x[N];
        gather_values<A, N, FULL>(one, two, dim - d, x);
        for (int r = 0; r < M; r++) {
            ints lanes = ints{} + p[r * (TILE / A::STEP) + e / A::STEP];
            for (int v = 0; v < N; v++) acc[r][v] = A::dot(acc[r][v], lanes, x[v]);
        }
    };
    // What is summed at once are lines of every entry, or parts of a line, the first of which stands for it.
    constexpr int LINE = 64 / sizeof(E), LINES = (N * W + LINE - 1) / LINE;
    Sequence<E> next(ahead, dim, d / LINE * TILE + LINES * from);
    int e = from;
    for (; e + A::STEP <= std::min(to, n); e += A::STEP) {
        for (int i = 0; i < A::STEP * LINES; i++) {
            if (W == 16)
                ahead.fetch(e + i / LINES, d + i % LINES * LINE);
            else if (d % LINE == 0)
                next.fetch();
        }
        step(e, cache + offset[e] + d, cache + offset[e + A::STEP - 1] + d);
    }
    if (e < to) step(e, cache + offset[e] + d, nullptr);
    if constexpr (splits<E, N, FULL>())
        for (int r = 0; r < M; r++)
            for (int v = 0; v < N; v += 2) interleave(acc[r][v], acc[r][v + 1]);
}

// One row's probabilities -> packed words, [TILE / STEP]; entries [from, to), multiples of PW.
template <class A> inline void pack_probabilities(const float *p, int from, int to, int32_t *packed) {
#if defined(HASTEN_DOT_BF16)
    if (A::STEP == 2) {
        for (int e = from; e < to; e += 2 * W)
            _mm512_storeu_si512(packed + e / 2, (__m512i)_mm512_cvtne2ps_pbh(load(p + e + W), load(p + e)));
        return;
    }
#endif
    std::memcpy(packed + from, p + from, (to - from) * sizeof(float));
}

}  // namespace
