// The tokens that a cut of the distribution may keep: collecting them in token order, and cutting them by count or by mass.
#pragma once

#include <algorithm>

#include "simd.h"

namespace {

// Float64 sums of float lanes.
struct Mass {
#if defined(__AVX512F__)
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add(vf v) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }
    double total() const {
        double x[8], sum = 0;
        _mm512_storeu_pd(x, _mm512_add_pd(low, high));
        for (double lane : x) sum += lane;
        return sum;
    }
#else
    double lanes[W] = {};
    void add(vf v) {
        for (int i = 0; i < W; i++) lanes[i] += double(v[i]);
    }
    double total() const {
        double sum = 0;
        for (double lane : lanes) sum += lane;
        return sum;
    }
#endif
};

// In token order. Arrays have room for W more.
struct Candidates {
    float *x, *p;  // logit, weight
    int32_t *id;
    int n = 0;

    void append(vf logits, uint32_t which, int first_id) {
        if (!which) return;
#if defined(__AVX512F__)
        const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32(first_id));
        _mm512_storeu_ps(x + n, _mm512_maskz_compress_ps(__mmask16(which), logits));
        _mm512_storeu_si512(id + n, _mm512_maskz_compress_epi32(__mmask16(which), ids));
        n += __builtin_popcount(which);
#else
        for (; which; which &= which - 1) {
            int lane = __builtin_ctz(which);
            x[n] = logits[lane], id[n++] = first_id + lane;
        }
#endif
    }

    // Keeps those with a larger logit than `cut`, and those equal to it up to index `last`.
    void cut_below(float cut, int last) {
        int kept = 0, i = 0;
#if defined(__AVX512F__)
        const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (; i + W <= n; i += W) {  // what is written lies before what is still to be read
            vf v = load(x + i), w = load(p + i);
            __m512i ids = _mm512_loadu_si512(id + i);
            __mmask16 early = _mm512_cmple_epi32_mask(_mm512_add_epi32(lanes, _mm512_set1_epi32(i)), _mm512_set1_epi32(last));
            __mmask16 which = less(set1(cut), v) | (equal(v, set1(cut)) & early);
            _mm512_storeu_ps(x + kept, _mm512_maskz_compress_ps(which, v));
            _mm512_storeu_ps(p + kept, _mm512_maskz_compress_ps(which, w));
            _mm512_storeu_si512(id + kept, _mm512_maskz_compress_epi32(which, ids));
            kept += __builtin_popcount(which);
        }
#endif
        for (; i < n; i++)
            if (x[i] > cut || (x[i] == cut && i <= last)) x[kept] = x[i], p[kept] = p[i], id[kept++] = id[i];
        n = kept;
    }
};

// Narrows [low, high) around the logit at which the weight of all larger ones passes `target`: weight(x >= high) < target <=
// weight(x >= low), with a margin for rounding. Each pass weighs what lies above eight thresholds at once.
inline void bracket(const Candidates &c, double target, float &low, float &high) {
    constexpr int CUTS = 8;
    for (int pass = 0; pass < 3; pass++) {
        float cuts[CUTS];
        for (int k = 0; k < CUTS; k++) cuts[k] = low + (high - low) * (float(k + 1) / (CUTS + 1));
        if (!(cuts[CUTS - 1] < high && cuts[0] > low)) return;
        vf sums[CUTS] = {};
        for (int i = 0; i + W <= c.n; i += W) {
            vf x = load(c.x + i), p = load(c.p + i);
            for (int k = 0; k < CUTS; k++) sums[k] = sums[k] + choose(less(x, set1(cuts[k])), vf{}, p);
        }
        float from = low, to = high;
        for (int k = 0; k < CUTS; k++) {
            double sum = sum_lanes(sums[k]);
            for (int i = c.n / W * W; i < c.n; i++) sum += c.x[i] >= cuts[k] ? c.p[i] : 0;
            if (sum > target * 1.00001) from = std::max(from, cuts[k]);
            if (sum < target * 0.99999) to = std::min(to, cuts[k]);
        }
        low = from, high = to;
    }
}

// Keeps, of the candidates ordered by logit (largest first, lower ids first among equals), the shortest prefix that is not empty
// and whose weights p sum to `target`. `list` is work memory for all of them.
void keep_prefix(Candidates &c, double target, int32_t *list) {
    constexpr int BUCKETS = 1024, MANY = 4096;
    double before = 0;  // weight of everything larger than what is listed
    int n = 0;
    if (c.n > MANY) {
        vf least = set1(INF), most = set1(-INF);
        for (int i = 0; i < c.n; i += W) {
            vf x = load(c.x + std::min(i, c.n - W));
            least = vf{} - vmax(vf{} - least, vf{} - x), most = vmax(most, x);
        }
        float low = -max_lanes(vf{} - least), high = std::nextafter(max_lanes(most), INF);
        bracket(c, target, low, high);
        Mass larger;
        int i = 0;
        for (; i + W <= c.n; i += W) {
            vf x = load(c.x + i);
            mask below = less(x, set1(high));
            larger.add(choose(below, vf{}, load(c.p + i)));
            uint32_t which = mask_bits(below) & ~mask_bits(less(x, set1(low))) & ((1u << W) - 1);
            for (; which; which &= which - 1) list[n++] = i + __builtin_ctz(which);
        }
        before = larger.total();
        for (; i < c.n; i++) {
            if (c.x[i] >= high) before += c.p[i];
            if (c.x[i] < high && c.x[i] >= low) list[n++] = i;
        }
    } else {
        for (int i = 0; i < c.n; i++) list[n++] = i;
    }
    float lowest, highest;
    while (true) {
        lowest = INF, highest = -INF;
        for (int i = 0; i < n; i++) lowest = std::min(lowest, c.x[list[i]]), highest = std::max(highest, c.x[list[i]]);
        if (n <= 64 || lowest == highest) break;
        float scale = (BUCKETS - 1) / (highest - lowest);
        if (!(scale > 0 && scale < INF)) break;
        auto bucket_of = [&](int i) { return std::min(int((highest - c.x[i]) * scale), BUCKETS - 1); };
        double weights[BUCKETS] = {}, sum = before;
        int last = 0, crossing = 0, left = 0;
        for (int i = 0; i < n; i++) {
            int bucket = bucket_of(list[i]);
            weights[bucket] += c.p[list[i]], last = std::max(last, bucket);
        }
        while (crossing < last && sum + weights[crossing] < target) sum += weights[crossing++];
        for (int i = 0; i < n; i++)
            if (bucket_of(list[i]) == crossing) list[left++] = list[i];
        if (left == 0) break;  // only by rounding at an empty bucket: sort what there is
        before = sum;
        if (left == n) break;
        n = left;
    }
    if (lowest != highest)  // equal ones are in order already
        std::sort(list, list + n, [&](int a, int b) { return c.x[a] != c.x[b] ? c.x[a] > c.x[b] : a < b; });
    int last = list[0];
    double sum = before + c.p[last];
    for (int i = 1; i < n && sum < target; i++) last = list[i], sum += c.p[last];
    c.cut_below(c.x[last], last);
}

}  // namespace
