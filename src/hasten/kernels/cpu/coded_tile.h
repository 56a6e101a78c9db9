// Scores and sums of a tile whose keys and values are codes of 8 or 4 bits (coded.h).
//
// With products of whole numbers (coded_products.h), queries and probabilities become such of 15 bits, so that nothing is lost beside
// what the codes have lost: the sums are exact, of any order, and a row's bits depend on nothing around it. Without, the codes of a
// tile become plain numbers in a buffer that stays in the processor's cache.
#pragma once

#include "attention_view.h"
#include "coded_products.h"
#include "scratch.h"

namespace {

struct Strip {
    int64_t at;  // number of the strip in the cache
    int lane, count, entry;
};

// The strips that a tile's entries lie in, in their order. `offset` holds row numbers.
inline int strips_of(const Tile &tile, Strip *strips) {
    int count = 0;
    for (int e = 0; e < tile.n;) {
        int64_t row = tile.offset[e];
        int lane = int(row % STRIP), most = std::min(STRIP - lane, tile.n - e), n = most;
        int64_t apart = 0;
        for (int i = 0; i < most; i++) apart |= tile.offset[e + i] ^ (row + i);
        if (apart)
            for (n = 1; n < most && tile.offset[e + n] == row + n;) n++;
        strips[count++] = {row / STRIP, lane, n, e};
        e += n;
    }
    return count;
}

#if defined(__AVX2__)

static_assert(int64_t(255 * WHOLE) * TILE <= INT_MAX, "sums of a tile's values");

template <int BITS_> class CodedTile {
  public:
    using Number = float;
    static constexpr int BITS = BITS_;
    static constexpr bool BY_DOT = true;
    static int64_t entry_bytes(int64_t dim) { return coded_bytes<BITS>(dim); }
    // Vectors of dimensions for which `sum` is to be called at once with M rows: within a group, within the registers.
    template <int M> static constexpr int most_at_once() { return (W == 16 ? BITS == 8 && M <= 3 : M <= 2) ? 4 : 2; }

    CodedTile(const Call &call, int max_rows, Pieces &pieces)
        : keys((const uint8_t *)call.k_cache), values((const uint8_t *)call.v_cache), key_params((const uint16_t *)call.k_params),
          value_params((const uint16_t *)call.v_params), dim(int(call.dim)), words(dim / 4), groups(groups_of<BITS>(dim)) {
        q = pieces.next<int32_t>(size_t(max_rows) * words * 2);
        unit = pieces.next<float>(max_rows);
        sums = pieces.next<float>(size_t(max_rows) * groups);
        strips = pieces.next<Strip>(TILE);
        scale = pieces.next<float>(size_t(groups) * TILE);
        low = pieces.next<float>(size_t(groups) * TILE);
        digits = pieces.next<int8_t>(size_t(MR) * groups * TILE * 2 * STRIP);
        flat = pieces.next<int32_t>(TILE + 2 * STRIP);
        share = pieces.next<float>(size_t(MR) * groups);
        shift = pieces.next<float>(size_t(MR) * groups);
    }

    // Row r of `count` in the block that begins at row `first` of the job.
    template <class Q> void take_query(int first, int count, int r, const Q *query) {
        vf largest = {};
        for (int d = 0; d < dim; d += W) {
            vf x = load(query + d);
            largest = vmax(largest, vmax(x, vf{} - x));
        }
        const float whole_top = largest_whole(((1 << BITS) - 1) * (dim / groups));
        float top = max_lanes(largest), inverse = top > 0 ? whole_top / top : 0.0f;
        unit[first + r] = top / whole_top;
        int8_t one[W], two[W];
        float *sum = sums + size_t(first + r) * groups;
        std::fill(sum, sum + groups, 0.0f);
        for (int d = 0; d < dim; d += W) {
            ints whole = nearest(load(query + d) * set1(inverse));
            split(whole, one, two);
            sum[BITS == 8 ? 0 : d / GROUP] += float(sum_whole(whole));
            for (int w = 0; w < W / 4; w++) {
                int32_t *to = q + (size_t(first) * words + size_t(d / 4 + w) * count + r) * 2;
                std::memcpy(to, one + 4 * w, 4), std::memcpy(to + 1, two + 4 * w, 4);
            }
        }
    }

    void open(Tile &tile, int32_t) {
        count = strips_of(tile, strips);
        aligned = true;  // entry e is slot e % 16 of strip e / 16
        for (int i = 0; i < count; i++) aligned &= strips[i].lane == 0 && strips[i].entry == i * STRIP;
        for (int g = 0; g < groups; g++) {
            float *a = scale + g * TILE, *b = low + g * TILE;
            for (int i = 0; i < count; i++) {
                const Strip &strip = strips[i];
                vf x[LANES], y[LANES];
                for (int l = 0; l < LANES; l++)
                    scale_and_low<BITS>(value_params + strip.at * strip_params<BITS>(dim), g, l * W, x[l], y[l]);
                put(a + strip.entry, x, strip), put(b + strip.entry, y, strip);
            }
            int past = (tile.n + PW - 1) / PW * PW - tile.n;
            std::fill(a + tile.n, a + tile.n + past, 0.0f), std::fill(b + tile.n, b + tile.n + past, 0.0f);
        }
    }

    // Scores of the block's rows for the entries [from, to), rows of TILE. FETCH: values are on their way from memory meanwhile.
    template <int M, bool FETCH> void score(int first, int from, int to, float factor, float *s) const {
        int i = 0, end = count;
        while (i < end && strips[i].entry + strips[i].count <= from) i++;
        while (i < end && strips[end - 1].entry >= to) end--;
        if constexpr (W == 16 ? M <= 3 : M <= 2)  // with more rows their sums alone fill the registers
            for (; i + 2 <= end; i += 2) score_strips<M, 2, FETCH>(first, strips + i, factor, s);
        for (; i < end; i++) score_strips<M, 1, FETCH>(first, strips + i, factor, s);
    }

    // Makes the probabilities s (rows of TILE) of entries [from, to) into whole numbers.
    template <int M> void take_probabilities(const float *s, int from, int to) {
        to = (to + STRIP - 1) / STRIP * STRIP;  // probabilities and scales are zeros there
        begin = 0, end = count;
        while (begin < end && strips[begin].entry + strips[begin].count <= from) begin++;
        while (begin < end && strips[end - 1].entry >= to) end--;
        for (int r = 0; r < M; r++) {
            const float *p = s + r * TILE;
            for (int g = 0; g < groups; g++) {
                const float *a = scale + g * TILE, *b = low + g * TILE;
                vf largest = {}, lows = {};
                for (int e = from; e < to; e += W) {
                    largest = vmax(largest, load(p + e) * load(a + e));
                    lows = fma(load(p + e), load(b + e), lows);
                }
                float top = max_lanes(largest), inverse = top > 0 ? WHOLE / top : 0.0f;
                share[r * groups + g] = top / WHOLE, shift[r * groups + g] = sum_lanes(lows);
                int8_t *out = digits + size_t(r * groups + g) * count * 2 * STRIP;
                auto whole = [&](int e) { return nearest(load(p + e) * load(a + e) * set1(inverse)); };
                if (aligned) {
                    for (int e = from; e < to; e += W) {
                        int8_t *here = out + e / STRIP * 2 * STRIP + e % STRIP;
                        split(whole(e), here, here + STRIP);
                    }
                    continue;
                }
                for (int e = from; e < to; e += W) {
                    ints x = whole(e);
                    std::memcpy(flat + STRIP + e, &x, sizeof x);
                }
                for (int i = begin; i < end; i++) spread(strips[i], from, to, out + i * 2 * STRIP);
            }
        }
    }

    // Between keys and values, while softmax is computed: some of the keys at entries e .. e + 16 of the next tile, others for every row.
    void fetch_early(const Tile &ahead, int e, int row) const {
        constexpr int LINES = BITS / 2;
        const int64_t bytes = strip_bytes<BITS>(dim), from = row * 64 * LINES;
        const uint8_t *next = keys + ahead.offset[e] / STRIP * bytes + from;
        if (e % STRIP == 0 && from < bytes)
            for (int i = 0; i < LINES; i++) __builtin_prefetch(next + 64 * i, 0, 2);
    }

    // Sums of values at dimensions d .. d + W N. FETCH: the keys of tile `ahead` are on their way meanwhile.
    template <int M, int N, bool FETCH> void sum(int d, const Tile &ahead, vf (&acc)[M][N]) const {
        constexpr int STEPS = BITS / 2;  // vectors of a strip at each dimension
        Sums sums_of[M][N];
        const int64_t bytes = strip_bytes<BITS>(dim);
        const int g = BITS == 8 ? 0 : d / GROUP;
        const int8_t *of = digits + size_t(g) * count * 2 * STRIP;
        const size_t row = size_t(groups) * count * 2 * STRIP;
        for (int i = begin; i < end; i++) {
            const uint8_t *codes = values + strips[i].at * bytes + 4 * d;
            int64_t strip = ahead.offset[std::min(i * STRIP, TILE - 1)] / STRIP;
            const uint8_t *next = keys + strip * bytes + 4 * d;
            if (FETCH && d == 0) {  // of 16 slots each, scattered: no processor guesses where the next ones lie
                __builtin_prefetch(key_params + strip * strip_params<BITS>(dim), 0, 3);
                __builtin_prefetch(value_params + strip * strip_params<BITS>(dim), 0, 3);
                if (strip_params<BITS>(dim) > 32) {
                    __builtin_prefetch(key_params + strip * strip_params<BITS>(dim) + 32, 0, 3);
                    __builtin_prefetch(value_params + strip * strip_params<BITS>(dim) + 32, 0, 3);
                }
            }
            const int8_t *p = of + i * 2 * STRIP;
#pragma GCC unroll (W == 16 ? 8 : 1)  // with few registers the words of one step are enough to hold
            for (int step = 0; step < STEPS; step++) {
                ints x[N];
                for (int n = 0; n < N; n++) {
                    const int at = step * 4 * dim + 4 * W * n;
                    x[n] = load_ints((const int32_t *)(codes + at));
                    if (FETCH && n % LANES == 0) __builtin_prefetch(next + at, 0, 2);
                }
                add(x, p + (8 / BITS) * 4 * step, row, STRIP, 4, sums_of);
            }
        }
        for (int r = 0; r < M; r++)
            for (int n = 0; n < N; n++)
                acc[r][n] = fma(sums_of[r][n].joined(), set1(share[r * groups + g]), set1(shift[r * groups + g]));
    }

  private:
    const uint8_t *keys, *values;
    const uint16_t *key_params, *value_params;
    int dim, words, groups, count = 0, begin = 0, end = 0;
    bool aligned = false;
    int32_t *q;    // [block][word][row][2], 4 dimensions each
    float *unit;   // of a row's whole numbers
    float *sums;   // [row][group] of them
    Strip *strips;
    float *scale, *low;      // [group][TILE], of the values
    int8_t *digits;          // [row][group][strip][2][slot], words of 4 slots each
    int32_t *flat;           // the numbers of one row and group in the order of entries, with room around
    float *share, *shift;    // [row][group]: what the digits' sums are multiplied by, and what is added

    // The numbers of a strip's slots, zeros where no entry of [from, to) lies.
    void spread(const Strip &strip, int from, int to, int8_t *out) const {
        const int apart = strip.entry - strip.lane;  // entry of slot 0
        const int first = std::max(strip.lane, from - apart), past = std::min(strip.lane + strip.count, to - apart);
        int32_t slots[STRIP] = {};
        for (int i = first; i < past; i++) slots[i] = flat[STRIP + apart + i];
        for (int lane = 0; lane < STRIP; lane += W) split(load_ints(slots + lane), out + lane, out + STRIP + lane);
    }
    // A strip's lanes in the order of its entries.
    static void put(float *to, const vf (&lanes)[LANES], const Strip &strip) {
        if (strip.count == STRIP) {
            for (int l = 0; l < LANES; l++) store(to + l * W, lanes[l]);
        } else {
            float slots[STRIP];
            for (int l = 0; l < LANES; l++) store(slots + l * W, lanes[l]);
            std::memcpy(to, slots + strip.lane, strip.count * sizeof(float));
        }
    }
    // Adds the products of words x with the numbers at p: of 4 bits each is two words of codes, the second one's numbers `further`.
    template <int M, int N>
    static inline __attribute__((always_inline)) void add(const ints (&x)[N], const int8_t *p, size_t row, int other, int further,
                                                          Sums (&sums)[M][N]) {
        if constexpr (BITS == 8) {
            add_products(x, whole_byte, p, row, other, sums);
        } else {
            add_products(x, low_half, p, row, other, sums);
            add_products(x, high_half, p + further, row, other, sums);
        }
    }

    template <int M, int S, bool FETCH> void score_strips(int first, const Strip *strip, float factor, float *s) const {
        constexpr int N = S * LANES;
        const int64_t bytes = strip_bytes<BITS>(dim);
        const uint8_t *codes[S], *fetched[S];
        for (int j = 0; j < S; j++) codes[j] = keys + strip[j].at * bytes, fetched[j] = values + strip[j].at * bytes;
        const int32_t *of = q + size_t(first) * words * 2;
        vf total[M][S][LANES];
        for (auto &row : total)
            for (auto &lanes : row) std::fill(lanes, lanes + LANES, vf{});
        const int steps = BITS == 8 ? words : GROUP / 8;
        for (int g = 0; g < groups; g++) {
            Sums sums_of[M][N];
            for (int step = 0; step < steps; step++) {
                ints x[N];
                int64_t at = int64_t(g * steps + step) * 4 * STRIP;
                for (int j = 0; j < S; j++) {
                    for (int l = 0; l < LANES; l++) x[j * LANES + l] = load_ints((const int32_t *)(codes[j] + at) + l * W);
                    if (FETCH) __builtin_prefetch(fetched[j] + at, 0, 2);
                }
                add(x, (const int8_t *)(of + size_t(g * steps + step) * (8 / BITS) * M * 2), 8, 4, 8 * M, sums_of);
            }
            for (int j = 0; j < S; j++)
                for (int l = 0; l < LANES; l++) {
                    vf a, b;
                    scale_and_low<BITS>(key_params + strip[j].at * strip_params<BITS>(dim), g, l * W, a, b);
                    for (int r = 0; r < M; r++) {
                        vf &sum = total[r][j][l];
                        sum = sum + fma(a, sums_of[r][j * LANES + l].joined(), b * set1(sums[size_t(first + r) * groups + g]));
                    }
                }
        }
        for (int r = 0; r < M; r++)
            for (int j = 0; j < S; j++) {
                for (int l = 0; l < LANES; l++) total[r][j][l] = total[r][j][l] * set1(unit[first + r] * factor);
                put(s + r * TILE + strip[j].entry, total[r][j], strip[j]);
            }
    }
};

#else

template <int BITS_> class CodedTile {
  public:
    using Number = float;
    static constexpr int BITS = BITS_;
    static constexpr bool BY_DOT = false;
    static int64_t entry_bytes(int64_t dim) { return coded_bytes<BITS>(dim); }
    float *keys, *values;  // the tile's, rows of dim

    CodedTile(const Call &call, int, Pieces &pieces) : call(call), dim(int(call.dim)) {
        keys = pieces.next<float>(size_t(TILE) * dim);
        values = pieces.next<float>(size_t(TILE) * dim);
        strips = pieces.next<Strip>(TILE);
    }

    // Decodes what a query at `highest` may see of a tile, whose offsets are then those of the buffers.
    void open(Tile &tile, int32_t highest) {
        int count = strips_of(tile, strips);
        for (int i = 0; i < count; i++) {
            const Strip &strip = strips[i];
            int32_t lowest = INT_MAX;
            for (int j = 0; j < strip.count; j++) lowest = std::min(lowest, tile.position[strip.entry + j]);
            if (lowest > highest) {  // a probability of 0 will multiply them
                std::fill(values + size_t(strip.entry) * dim, values + size_t(strip.entry + strip.count) * dim, 0.0f);
                continue;
            }
            decode_keys(strip);
            decode_values(strip);
        }
        for (int i = 0; i < TILE; i++) tile.offset[i] = i < tile.n ? int64_t(i) * dim : 0;
    }

  private:
    const Call &call;
    int dim;
    Strip *strips;

    void decode_keys(const Strip &strip) {
        const uint8_t *codes = (const uint8_t *)call.k_cache + strip.at * strip_bytes<BITS>(dim);
        const uint16_t *params = (const uint16_t *)call.k_params + strip.at * strip_params<BITS>(dim);
        for (int lane = 0; lane < STRIP; lane += W) {
            for (int d = 0; d < dim; d += W) {  // W dimensions of W slots, then the other way round
                vf scale, low;
                scale_and_low<BITS>(params, BITS == 8 ? 0 : d / GROUP, lane, scale, low);
                ints x[W];
                for (int i = 0; i < W; i += 4) {
                    int word = (d + i) / 4;
                    ints four = load_ints((const int32_t *)(codes + (BITS == 8 ? word : word / 2) * 4 * STRIP + 4 * lane));
                    if (BITS == 4) four = (word % 2 ? four >> 4 : four) & 0x0f0f0f0f;
                    for (int b = 0; b < 4; b++) x[i + b] = floats_to_bits(fma(scale, to_floats(four >> 8 * b & 255), low));
                }
                transpose(x);
                for (int i = 0; i < W; i++) {
                    int slot = lane + i - strip.lane;
                    if (slot >= 0 && slot < strip.count) store(keys + size_t(strip.entry + slot) * dim + d, bits_to_floats(x[i]));
                }
            }
        }
    }

    void decode_values(const Strip &strip) {
        const uint8_t *codes = (const uint8_t *)call.v_cache + strip.at * strip_bytes<BITS>(dim);
        const uint16_t *params = (const uint16_t *)call.v_params + strip.at * strip_params<BITS>(dim);
        for (int g = 0; g < groups_of<BITS>(dim); g++) {
            float scale[STRIP], low[STRIP];
            for (int lane = 0; lane < STRIP; lane += W) {
                vf a, b;
                scale_and_low<BITS>(params, g, lane, a, b);
                store(scale + lane, a), store(low + lane, b);
            }
            int from = BITS == 8 ? 0 : g * GROUP, to = BITS == 8 ? dim : from + GROUP;
            for (int d = from; d < to; d += W)
                for (int word = 0; word < 4; word++) {
                    ints four = load_ints((const int32_t *)(codes + (BITS == 8 ? word : word / 2) * 4 * dim + 4 * d));
                    if (BITS == 4) four = (word % 2 ? four >> 4 : four) & 0x0f0f0f0f;
                    for (int b = 0; b < 4; b++) {
                        int slot = 4 * word + b - strip.lane;
                        if (slot < 0 || slot >= strip.count) continue;
                        vf x = fma(set1(scale[4 * word + b]), to_floats(four >> 8 * b & 255), set1(low[4 * word + b]));
                        store(values + size_t(strip.entry + slot) * dim + d, x);
                    }
                }
        }
    }
};

#endif

}  // namespace
