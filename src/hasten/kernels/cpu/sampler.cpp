// Drawing tokens. A row costs one pass for its maximum and, when it is sampled, one for the race or, by top-p, for the mass;
// thresholds are found among the few candidates that can pass them, by histograms, never by sorting the vocabulary.
#include <functional>

#include "candidates.h"
#include "race.h"
#include "scratch.h"
#include "team.h"

namespace {

constexpr int BLOCK = 64;  // tokens whose maximum is kept

struct Row {
    float temperature, top_p, min_p;
    int32_t top_k;
    uint64_t key;
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

// The winner of the race among all tokens. Only those whose bound passes the best one so far are looked at closely: a few.
template <class E> int draw_from_all(const E *row, int n, const float *maxima, float maximum, float inverse, uint64_t key) {
    const Race race{key};
    Winner winner;
    for (int start = 0; start < n; start += BLOCK) {
        const float most = (maxima[start / BLOCK] - maximum) * inverse;
        if (most + Race::EARLIEST < winner.score) continue;
        int end = std::min(start + BLOCK, n);
        for (int i = start; i < end; i += W) {
            vf x = (part_of(row, i, end) - maximum) * inverse;
            uint32_t may = ~mask_bits(less(x + race.bound(i), set1(float(winner.score) - Race::SLACK))) & ((1u << W) - 1);
            for (; may; may &= may - 1) {
                int lane = __builtin_ctz(may);
                if (i + lane < end) winner.meet(double(x[lane]) + race.earliness(i + lane), i + lane);
            }
        }
    }
    return winner.token;
}

// Mass of all candidates.
inline double mass_of(const Candidates &c) {
    Mass mass;
    for (int i = 0; i < c.n; i += W) mass.add(vmax(part_of(c.p, i, c.n), vf{}));  // -inf past the end
    return mass.total();
}

// The winner of the race among the candidates with p >= least.
inline int draw_from(const Candidates &c, float least, float maximum, float inverse, uint64_t key) {
    const Race race{key};
    Winner winner;
    for (int i = 0; i < c.n; i++)
        if (c.p[i] >= least) winner.meet(double((c.x[i] - maximum) * inverse) + race.earliness(c.id[i]), c.id[i]);
    return winner.token;
}

// Returns -1 for a row that cannot be sampled.
template <class E> int64_t sample_row(const E *row, int n, const Row &with, Work &work) {
    float maximum = find_maxima(row, n, work.maxima);
    if (!(maximum > -INF)) return -1;
    if (!(with.temperature > 0)) return first_index_of(row, n, work.maxima, maximum);
    float inverse = std::min(1.0f / with.temperature, 1e30f);
    bool some = with.top_k > 0 && with.top_k < n, nucleus = with.top_p < 1, floor = with.min_p > 0;
    if (!some && !nucleus && !floor) return draw_from_all(row, n, work.maxima, maximum, inverse, with.key);

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
        if (some) total = mass_of(c);
        keep_prefix(c, double(with.top_p) * total, work.list);
    }
    return draw_from(c, std::min(with.min_p, 1.0f), maximum, inverse, with.key);
}

struct Sample {  // as native.py packs it
    int64_t is_bf16;
    const void *logits;
    int64_t rows, n, stride;
    const float *temperature;
    const int32_t *top_k;
    const float *top_p, *min_p;
    const uint64_t *keys;
    int64_t *out;
};

template <class E> int64_t sample(const Sample &a) {
    bool worth = a.rows > 1 && a.rows * a.n > 32768;
    gather(worth, a.rows, [&](Team &team) {
        team.share(a.rows, worth, [&](int64_t r) {
            Work work;
            size_t bytes = Work::lay(work, nullptr, int(a.n));
            Work::lay(work, (char *)kept.take(bytes), int(a.n));
            Row with{a.temperature[r], a.top_p[r], a.min_p[r], a.top_k[r], a.keys[r]};
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
