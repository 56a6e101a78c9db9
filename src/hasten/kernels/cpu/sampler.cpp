// Drawing tokens. A row costs one pass for its maximum and, when it is sampled from all tokens or by top-p, one for the mass;
// thresholds are found among the few candidates that can pass them, by histograms, never by sorting the vocabulary.
#include <functional>

#include "candidates.h"
#include "scratch.h"
#include "team.h"

namespace {

constexpr int BLOCK = 64;  // tokens whose maximum is kept

struct Row {
    float temperature, top_p, min_p;
    int32_t top_k;
    double u;
};

// Work memory of one thread for rows of up to `vocabulary` tokens.
struct Work {
    Candidates all;
    float *maxima, *ordered;
    int32_t *list;
    static size_t lay(Work &w, char *memory, int vocabulary) {
        Pieces pieces{memory};
        size_t n = vocabulary + W, blocks = vocabulary / BLOCK + 1;
        w.all.x = pieces.next<float>(n);
        w.all.p = pieces.next<float>(n);
        w.all.id = pieces.next<int32_t>(n);
        w.maxima = pieces.next<float>(blocks);
        w.ordered = pieces.next<float>(blocks);
        w.list = pieces.next<int32_t>(n);
        return pieces.used;
    }
};
thread_local Scratch kept;

template <class E> inline vf part_of(const E *row, int i, int end) {
    if (i + W <= end) return load(row + i);
    vf v = load_n(row + i, end - i);
    float lanes[W];
    store(lanes, v);
    for (int k = end - i; k < W; k++) lanes[k] = -INF;
    return load(lanes);
}

// Maxima of the row's blocks; the row's maximum, or NaN when some logit is NaN or +inf.
template <class E> float find_maxima(const E *row, int n, float *maxima) {
    vf most = set1(-INF);
    uint32_t good = ~0u;
    for (int start = 0; start < n; start += BLOCK) {
        int end = std::min(start + BLOCK, n);
        vf here = set1(-INF);
        for (int i = start; i < end; i += W) {
            vf x = part_of(row, i, end);
            good &= mask_bits(less(x, set1(INF)));  // false for NaN too
            here = vmax(here, x);
        }
        maxima[start / BLOCK] = max_lanes(here);
        most = vmax(most, here);
    }
    const uint32_t every = W == 32 ? ~0u : (1u << W) - 1;
    return (good & every) == every ? max_lanes(most) : NAN;
}

template <class E> int first_index_of(const E *row, int n, const float *maxima, float value) {
    int block = 0;
    while (maxima[block] != value) block++;
    for (int i = block * BLOCK; i < n; i++)
        if (widen(row[i]) == value) return i;
    return -1;
}

// Tokens with logits >= bound, in token order; blocks whose maximum lies below are not read.
template <class E> void collect(const E *row, int n, const float *maxima, float bound, Candidates &c) {
    vf limit = set1(std::max(bound, -std::numeric_limits<float>::max()));  // never -inf itself
    c.n = 0;
    for (int start = 0; start < n; start += BLOCK) {
        if (!(maxima[start / BLOCK] >= bound)) continue;
        int end = std::min(start + BLOCK, n);
        for (int i = start; i < end; i += W) {
            vf x = part_of(row, i, end);
            c.append(x, ~mask_bits(less(x, limit)) & ((1u << W) - 1), i);
        }
    }
}

inline vf probability(vf x, float maximum, float inverse) { return expv((x - maximum) * inverse); }

template <class E> double mass_of(const E *row, int from, int to, float maximum, float inverse) {
    Mass mass;
    for (int i = from; i < to; i += W) mass.add(probability(part_of(row, i, to), maximum, inverse));
    return mass.total();
}

// The token where the row's cumulative mass passes u, all tokens kept: mass by stretches, then within one.
template <class E> int draw_from_all(const E *row, int n, float maximum, float inverse, double u) {
    constexpr int STRETCH = 2048;
    double masses[512], total = 0;
    int stretch = std::max(STRETCH, (n + 511) / 512), count = 0;
    for (int i = 0; i < n; i += stretch) total += masses[count++] = mass_of(row, i, std::min(i + stretch, n), maximum, inverse);
    double target = u * total, sum = 0;
    int s = 0, last = -1;
    while (s + 1 < count && sum + masses[s] <= target) sum += masses[s++];
    for (int i = s * stretch; i < n; i++) {
        double p = probability(set1(widen(row[i])), maximum, inverse)[0];
        if (p > 0) last = i;
        sum += p;
        if (p > 0 && sum > target) return i;
    }
    if (last < 0)  // rounding put the target past the end of the last mass
        for (int i = n - 1; last < 0; i--)
            if (probability(set1(widen(row[i])), maximum, inverse)[0] > 0) last = i;
    return last;
}

// Mass of the candidates [from, to) with p >= least.
inline double mass_of(const Candidates &c, int from, int to, float least) {
    Mass mass;
    for (int i = from; i < to; i += W) {
        vf p = part_of(c.p, i, to);  // -inf past the end
        mass.add(choose(less(p, set1(least)), vf{}, p));
    }
    return mass.total();
}

// The candidate where the cumulative mass of those with p >= least passes u.
inline int draw_from(const Candidates &c, float least, double u) {
    constexpr int STRETCH = 1024;
    double total = 0, sum = 0;
    for (int i = 0; i < c.n; i += STRETCH) total += mass_of(c, i, std::min(i + STRETCH, c.n), least);
    double target = u * total;
    int i = 0, last = 0;
    for (; i + STRETCH < c.n; i += STRETCH) {
        double here = mass_of(c, i, i + STRETCH, least);
        if (sum + here > target) break;
        sum += here;
    }
    for (; i < c.n; i++) {
        if (c.p[i] < least || !(c.p[i] > 0)) continue;
        sum += c.p[i], last = i;
        if (sum > target) return c.id[i];
    }
    for (i = c.n - 1; last == 0 && i > 0; i--)  // rounding put the target past the end of the last mass
        if (c.p[i] >= least && c.p[i] > 0) last = i;
    return c.id[last];
}

// Returns -1 for a row that cannot be sampled.
template <class E> int64_t sample_row(const E *row, int n, const Row &with, Work &work) {
    float maximum = find_maxima(row, n, work.maxima);
    if (!(maximum > -INF)) return -1;
    if (!(with.temperature > 0)) return first_index_of(row, n, work.maxima, maximum);
    float inverse = std::min(1.0f / with.temperature, 1e30f);
    bool some = with.top_k > 0 && with.top_k < n, nucleus = with.top_p < 1, floor = with.min_p > 0;
    if (!some && !nucleus && !floor) return draw_from_all(row, n, maximum, inverse, with.u);

    Candidates &c = work.all;
    double total = 0;
    if (some) {
        // At least k tokens are as large as the k-th largest of the blocks' maxima.
        int blocks = (n + BLOCK - 1) / BLOCK;
        float bound = -INF;
        if (with.top_k <= blocks) {
            std::copy(work.maxima, work.maxima + blocks, work.ordered);
            std::nth_element(work.ordered, work.ordered + with.top_k - 1, work.ordered + blocks, std::greater<float>());
            bound = work.ordered[with.top_k - 1];
        }
        collect(row, n, work.maxima, bound, c);
        std::fill(c.p, c.p + c.n, 1.0f);
        if (c.n > with.top_k) keep_prefix(c, with.top_k, work.list);
    } else {
        // All tokens below the bound together cannot hold the mass that top-p leaves out: there are n, and the total is >= 1.
        float share = nucleus ? std::max(1 - with.top_p, 1e-30f) / n : 1;
        if (floor) share = nucleus ? std::max(share, 0.99f * with.min_p) : 0.99f * with.min_p;
        share = std::min(share, 0.99f);  // the maximum itself always stays
        if (nucleus) total = mass_of(row, 0, n, maximum, inverse);
        collect(row, n, work.maxima, maximum + std::log(share) / inverse * 1.0001f, c);
    }
    for (int i = 0; i < c.n; i += W) store(c.p + i, probability(load(c.x + i), maximum, inverse));
    if (nucleus) {
        if (some) total = mass_of(c, 0, c.n, 0);
        keep_prefix(c, double(with.top_p) * total, work.list);
    }
    return draw_from(c, std::min(with.min_p, 1.0f), with.u);
}

struct Sample {  // as native.py packs it
    int64_t is_bf16;
    const void *logits;
    int64_t rows, n, stride;
    const float *temperature;
    const int32_t *top_k;
    const float *top_p, *min_p;
    const double *u;
    int64_t *out;
};

template <class E> int64_t sample(const Sample &a) {
    bool worth = a.rows > 1 && a.rows * a.n > 32768;
    gather(worth, a.rows, [&](Team &team) {
        team.share(a.rows, worth, [&](int64_t r) {
            Work work;
            size_t bytes = Work::lay(work, nullptr, int(a.n));
            Work::lay(work, (char *)kept.take(bytes), int(a.n));
            Row with{a.temperature[r], a.top_p[r], a.min_p[r], a.top_k[r], a.u[r]};
            a.out[r] = sample_row((const E *)a.logits + r * a.stride, int(a.n), with, work);
        });
    });
    for (int64_t r = 0; r < a.rows; r++)
        if (a.out[r] < 0) return r;
    return -1;
}

}  // namespace

// Returns -1, or the first row that cannot be sampled.
extern "C" int64_t hasten_sample(const Sample *a) { return a->is_bf16 ? sample<bf16>(*a) : sample<float>(*a); }
