// x @ w^T for weights of 8 and 4 bits. Activations are rounded to int8 on the way in, group by group of their columns, so a
// product is integer multiply-adds with one float multiply-add a group: sum over groups of sx sw (sum of qx qw - z sum of qx).
//
// Weights lie in panels of 64 outputs, each one stream of bytes read from front to end: for every group its words, 32 bits of
// every output in turn (four columns of 8 bits, or eight of 4 bits: column b and b + 4 in byte b), then its scales (fp16) and,
// where it has any, its zero points. Sums of a row are exact integers added up in one order, so its bits do not depend on the
// batch or on threads.
#include "arguments.h"
#include "half.h"
#include "scratch.h"

namespace {

constexpr int PANEL = 64;           // outputs
constexpr int N = 4;                // vectors of outputs in registers
constexpr int M = W == 16 ? 6 : 2;  // rows in registers
constexpr int64_t ROWS = 192;       // rows whose activations stay in the second-level cache while panels stream by
constexpr int64_t CHUNK = 1024;      // columns of a panel that stay in the first-level cache while rows pass

// Four columns of one row for all lanes, and their products with four unsigned columns of each lane's output.
#if defined(__AVX512VNNI__)
struct Four {
    ints all;
    explicit Four(int32_t x) : all(ints{} + x) {}
};
inline ints dot(ints acc, ints w, Four x) { return (ints)_mm512_dpbusd_epi32((vi)acc, (vi)w, (vi)x.all); }
#elif defined(__AVX2__)
#if defined(__AVX512F__)
inline ints low_half(ints v) { return (ints)_mm512_srai_epi16(_mm512_slli_epi16((vi)v, 8), 8); }
inline ints high_half(ints v) { return (ints)_mm512_srai_epi16((vi)v, 8); }
#else
inline ints low_half(ints v) { return (ints)_mm256_srai_epi16(_mm256_slli_epi16((vi)v, 8), 8); }
inline ints high_half(ints v) { return (ints)_mm256_srai_epi16((vi)v, 8); }
#endif
struct Four {
    ints even, odd;  // columns 0 and 2, 1 and 3, as 16-bit integers
    explicit Four(int32_t x) : even(low_half(ints{} + x)), odd(high_half(ints{} + x)) {}
};
inline ints dot(ints acc, ints w, Four x) { return acc + pairs(w & 0x00ff00ff, x.even) + pairs(high_unsigned(w), x.odd); }
#else
struct Four {
    int32_t column[4];
    explicit Four(int32_t x) : column{int8_t(x), int8_t(x >> 8), int8_t(x >> 16), int8_t(x >> 24)} {}
};
inline ints dot(ints acc, ints w, Four x) {
    for (int c = 0; c < 4; c++) acc += ((w >> (8 * c)) & 0xff) * x.column[c];
    return acc;
}
#endif

#if defined(__AVX512F__)
inline vf to_floats(ints v) { return _mm512_cvtepi32_ps((vi)v); }
inline ints load_bytes(const uint8_t *p) { return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
inline ints nearest(vf v) { return (ints)_mm512_cvtps_epi32(v); }
inline void store_bytes(int8_t *p, ints v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((vi)v)); }
inline vf magnitude(vf v) { return _mm512_abs_ps(v); }
#else
#if defined(__AVX2__)
inline vf to_floats(ints v) { return _mm256_cvtepi32_ps((vi)v); }
inline ints load_bytes(const uint8_t *p) { return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
#else
inline vf to_floats(ints v) { return vf{float(v[0]), float(v[1]), float(v[2]), float(v[3])}; }
inline ints load_bytes(const uint8_t *p) { return ints{p[0], p[1], p[2], p[3]}; }
#endif
inline ints nearest(vf v) { return to_ints(round_to_int(v)); }
inline void store_bytes(int8_t *p, ints v) {
    for (int i = 0; i < W; i++) p[i] = int8_t(v[i]);
}
inline vf magnitude(vf v) { return bits_to_floats(floats_to_bits(v) & 0x7fffffff); }
#endif

// Activations of a call: q [rows][groups * group], scale and sum [rows][groups].
struct Activations {
    int8_t *q;
    float *scale;
    int32_t *sum;
    int64_t width, groups;
};

// One group of one row: `n` values from x on, zeros up to `group`.
template <class E> void round_group(const E *x, int n, int group, int8_t *q, float *scale, int32_t *sum) {
    vf most = {};
    int i = 0;
    for (; i + W <= n; i += W) most = vmax(most, magnitude(load(x + i)));
    if (i < n) most = vmax(most, magnitude(load_n(x + i, n - i)));
    float largest = max_lanes(most);
    vf inverse = set1(largest > 0 ? 127.0f / largest : 0.0f);
    ints total = {};
    for (i = 0; i < group; i += W) {
        vf v = i + W <= n ? load(x + i) : i < n ? load_n(x + i, n - i) : vf{};
        ints rounded = nearest(v * inverse);
        total += rounded;
        store_bytes(q + i, rounded);
    }
    int32_t lanes[W], all = 0;
    std::memcpy(lanes, &total, sizeof lanes);
    for (int32_t lane : lanes) all += lane;
    *scale = largest / 127.0f, *sum = all;
}

template <class E> void round_rows(const Quantized &a, const Activations &to, Team &team) {
    team.share_rows(a.rows * a.groups, a.rows * a.inner > 16384, [&](int64_t from, int64_t end) {
        for (int64_t job = from; job < end; job++) {
            int64_t row = job / a.groups, at = job % a.groups * a.group;
            int n = int(a.inner - at < a.group ? a.inner - at : a.group);
            round_group((const E *)a.x + row * a.x_stride + at, n, int(a.group), to.q + row * to.width + at, to.scale + job,
                        to.sum + job);
        }
    });
}

// Groups of a panel: words, scales and zero points of the first one, and how far the next group's are from them.
struct Panel {
    const uint8_t *words, *scales, *zeros;
    int64_t step;
};

// zero * -sum in every lane; both are within 16 bits.
inline ints zero_times(ints zero, int32_t minus_sum) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpwssd_epi32(_mm512_setzero_si512(), (vi)zero, (vi)(ints{} + (minus_sum & 0xffff)));
#else
    return zero * minus_sum;
#endif
}

// Adds the products of R rows, from `row` on, with N vectors of outputs, from lane `lane` on, to their totals [R][PANEL], one group
// after another.
template <int R, int BITS, bool ZEROS>
inline void multiply(const Quantized &a, const Panel &panel, int64_t groups, int lane, const Activations &x, int64_t row, int64_t group,
                     float *totals) {
    const int words = int(a.group) / (BITS == 4 ? 8 : 4);
    const int8_t *q = x.q + row * x.width + group * a.group;
    vf total[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) total[r][n] = load(totals + r * PANEL + lane + n * W);
    for (int64_t g = 0; g < groups; g++, q += a.group) {
        const int32_t *sum = x.sum + row * x.groups + group + g;
        const float *x_scale = x.scale + row * x.groups + group + g;
        ints acc[R][N];
        for (int n = 0; n < N; n++) {
            ints zero = ZEROS ? load_bytes(panel.zeros + g * panel.step + lane + n * W) : ints{};
            for (int r = 0; r < R; r++)
                acc[r][n] = ZEROS ? zero_times(zero, -sum[r * x.groups]) : ints{} + int32_t(a.zero) * -sum[r * x.groups];
        }
        const uint8_t *from = panel.words + g * panel.step + 4 * lane;
        for (int w = 0; w < words; w++, from += 4 * PANEL) {
            ints word[N];
            for (int n = 0; n < N; n++) word[n] = load_ints((const int32_t *)from + n * W);
            for (int r = 0; r < R; r++) {
                int32_t four[2];
                std::memcpy(four, q + r * x.width + w * (BITS == 4 ? 8 : 4), BITS == 4 ? 8 : 4);
                if (BITS == 8) {
                    Four one(four[0]);
                    for (int n = 0; n < N; n++) acc[r][n] = dot(acc[r][n], word[n], one);
                } else {
                    Four low(four[0]), high(four[1]);
                    for (int n = 0; n < N; n++) {
                        acc[r][n] = dot(acc[r][n], word[n] & 0x0f0f0f0f, low);
                        acc[r][n] = dot(acc[r][n], (word[n] >> 4) & 0x0f0f0f0f, high);
                    }
                }
            }
        }
        for (int n = 0; n < N; n++) {
            vf scale = load_half((const uint16_t *)(panel.scales + g * panel.step) + lane + n * W);
            for (int r = 0; r < R; r++) total[r][n] = fma(to_floats(acc[r][n]) * set1(x_scale[r * x.groups]), scale, total[r][n]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(totals + r * PANEL + lane + n * W, total[r][n]);
}

template <int R, int BITS>
void add_rows(const Quantized &a, const Panel &panel, int64_t groups, const Activations &x, int64_t row, int64_t group, float *totals) {
    for (int lane = 0; lane < PANEL; lane += N * W)
        a.has_zeros ? multiply<R, BITS, true>(a, panel, groups, lane, x, row, group, totals)
                    : multiply<R, BITS, false>(a, panel, groups, lane, x, row, group, totals);
}

// The same for rows [first, last), in blocks as even as possible.
template <int BITS>
void add_all(const Quantized &a, const Panel &panel, int64_t groups, const Activations &x, int64_t first, int64_t last, int64_t group,
             float *totals) {
    int64_t blocks = (last - first + M - 1) / M, each = (last - first) / blocks, more = (last - first) % blocks;
    for (int64_t b = 0, row = first; b < blocks; b++) {
        int64_t count = each + (b < more);
        float *to = totals + (row - first) * PANEL;
        switch (count) {
            case 1: add_rows<1, BITS>(a, panel, groups, x, row, group, to); break;
            case 2: add_rows<2, BITS>(a, panel, groups, x, row, group, to); break;
            case 3: add_rows<(M > 2 ? 3 : 1), BITS>(a, panel, groups, x, row, group, to); break;
            case 4: add_rows<(M > 3 ? 4 : 1), BITS>(a, panel, groups, x, row, group, to); break;
            case 5: add_rows<(M > 4 ? 5 : 1), BITS>(a, panel, groups, x, row, group, to); break;
            case 6: add_rows<(M > 5 ? 6 : 1), BITS>(a, panel, groups, x, row, group, to); break;
        }
        row += count;
    }
}

// Some groups of 4 bits as groups of 8 bits, for many rows.
void widen_groups(const Quantized &a, const Panel &panel, int64_t groups, uint8_t *to) {
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t *from = panel.words + g * panel.step;
        for (int64_t w = 0; w < a.group / 8; w++, from += 4 * PANEL, to += 8 * PANEL)
            for (int i = 0; i < 4 * PANEL; i += 4 * W) {
                ints word = load_ints((const int32_t *)(from + i)), low = word & 0x0f0f0f0f, high = (word >> 4) & 0x0f0f0f0f;
                std::memcpy(to + i, &low, sizeof low);
                std::memcpy(to + 4 * PANEL + i, &high, sizeof high);
            }
        std::memcpy(to, panel.scales + g * panel.step, 2 * PANEL);
        if (a.has_zeros) std::memcpy(to + 2 * PANEL, panel.zeros + g * panel.step, PANEL);
        to += 3 * PANEL;
    }
}

template <class E> void write_rows(const Quantized &a, int64_t output, int64_t first, int64_t last, const float *totals) {
    const vf unit = set1(float(a.unit));
    for (int64_t row = first; row < last; row++, totals += PANEL)
        for (int lane = 0; lane < PANEL && output + lane < a.outputs; lane += W) {
            int left = int(std::min<int64_t>(a.outputs - output - lane, W));
            vf bias = a.bias ? load_n((const E *)a.bias + output + lane, left) : vf{};
            vf value = fma(load(totals + lane), unit, bias);
            E *to = (E *)a.out + row * a.out_stride + output + lane;
            left == W ? store(to, value) : store_n(to, value, left);
        }
}

template <class E> void linear(const Quantized &a, Team &team) {
    static thread_local Scratch kept, private_memory;
    const int64_t *notes = team.once([&](int64_t *note) {
        for (char *memory = nullptr;;) {
            Pieces pieces{memory};
            note[0] = int64_t(pieces.next<int8_t>(a.rows * a.groups * a.group + 8));
            note[1] = int64_t(pieces.next<float>(a.rows * a.groups));
            note[2] = int64_t(pieces.next<int32_t>(a.rows * a.groups));
            if (memory) break;
            memory = (char *)kept.take(pieces.used);
        }
    });
    const Activations x{(int8_t *)notes[0], (float *)notes[1], (int32_t *)notes[2], a.groups * a.group, a.groups};
    round_rows<E>(a, x, team);
    const int64_t words = a.group * PANEL * a.bits / 8, step = words + 2 * PANEL + a.has_zeros * PANEL;
    const int64_t across = (a.outputs + PANEL - 1) / PANEL, down = (a.rows + ROWS - 1) / ROWS;
    team.share(across * down, worth_sharing(a), [&](int64_t job) {
        int64_t output = job % across * PANEL, first = job / across * ROWS, last = std::min(a.rows, first + ROWS);
        const uint8_t *stream = a.panels + job % across * a.panel_bytes;
        bool many = last - first > 6 * M, widen = many && a.bits == 4;
        // Many rows take as many groups at a time as stay in the first-level cache.
        int64_t together = many ? std::max<int64_t>(1, CHUNK / a.group) : a.groups;
        uint8_t *wide;
        float *totals;
        for (char *memory = nullptr;;) {
            Pieces pieces{memory};
            totals = pieces.next<float>((last - first) * PANEL);
            wide = pieces.next<uint8_t>(widen ? together * (a.group + 3) * PANEL : 0);
            if (memory) break;
            memory = (char *)private_memory.take(pieces.used);
        }
        std::fill(totals, totals + (last - first) * PANEL, 0.0f);
        for (int64_t group = 0; group < a.groups; group += together) {
            int64_t groups = std::min(together, a.groups - group);
            const uint8_t *at = stream + group * step;
            Panel panel{at, at + words, at + words + 2 * PANEL, step};
            if (widen) {
                widen_groups(a, panel, groups, wide);
                const uint8_t *scales = wide + a.group * PANEL;
                panel = {wide, scales, scales + 2 * PANEL, (a.group + 3) * PANEL};
            }
            a.bits == 4 && !widen ? add_all<4>(a, panel, groups, x, first, last, group, totals)
                                  : add_all<8>(a, panel, groups, x, first, last, group, totals);
        }
        write_rows<E>(a, output, first, last, totals);
    });
}

}  // namespace

HASTEN_PART void part_quantized_linear(const void *args, void *with) {
    auto a = (const Quantized *)args;
    auto team = (Team *)with;
    a->is_bf16 ? linear<bf16>(*a, *team) : linear<float>(*a, *team);
}

extern "C" void hasten_quantized_linear(const Quantized *a) {
    gather(worth_sharing(*a), a->rows, [&](Team &team) { part_quantized_linear(a, &team); });
}
