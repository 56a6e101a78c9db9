// The worker that computes attention jobs: tiles of a view from left to right, merged into the job's rows.
#pragma once

#include <algorithm>
#include <climits>

#include "attention_rows.h"
#include "attention_tile.h"
#include "scratch.h"

namespace {

// The rows of one register block and the range of positions they ask from.
struct Rows {
    int first, count;  // among the job's rows
    int32_t lowest, highest;
};

// Computes jobs over keys and values as `Store` gives them: numbers of its type `Number` at a tile's offsets, or sums of its own
// (`BY_DOT`). Queries and outputs are of the call's type.
template <class Store> class Worker {
    using E = typename Store::Number;
    using A = typename ArithmeticOf<E>::type;
    static constexpr int P_WORDS = TILE / A::STEP;

  public:
    static size_t bytes(const Call &call, int max_rows) { return Worker(call, max_rows, nullptr).taken; }

    Worker(const Call &call, int max_rows, void *memory)
        : call(call), placed(call), words(int(call.dim / A::STEP)), width(call.width()), pieces{(char *)memory}, store_of(call, max_rows, pieces) {
        if (Store::BITS) placed.dim = 1;
        q = pieces.next<int32_t>(size_t(max_rows) * words);
        own = {pieces.next<float>(size_t(max_rows) * width), pieces.next<float>(max_rows), pieces.next<float>(max_rows), width};
        blocks = pieces.next<Rows>(max_rows);
        k = pieces.next<int32_t>(size_t(PANELS) * words * PW);
        v = pieces.next<int32_t>(size_t((call.dim + PW - 1) / PW) * P_WORDS * PW);
        s = pieces.next<float>(MR * TILE);
        p = pieces.next<int32_t>(MR * P_WORDS);
        tile = pieces.next<Tile>(1);
        ahead = pieces.next<Tile>(1);
        taken = pieces.used;
    }

    // Computes `work` and all that `claims` gives after it. Each tile is laid out while the one before it is computed, so
    // that its keys can be on their way from memory, over the border of two jobs too.
    void run(Work work, const Claims &claims) {
        Cursor cursor(placed, *work.job, work.from * TILE);
        cursor.next(*tile);
        while (work.job) {
            begin(work);
            for (int t = work.from; t < work.to; t++) {
                if (t + 1 < work.to) {
                    cursor.next(*ahead);
                } else {
                    lay_out_next(claims, cursor);
                }
                packed_keys = 0, values_to = 0, read_from = PANELS, read_to = 0;
                if constexpr (Store::BITS != 0) store_of.open(*tile, highest);
                part = work.partial ? work.partial + size_t(t) * rows * (width + 2) : nullptr;
                for (int b = 0; b < block_count; b++) attend_block(blocks[b]);
                entries_read += std::max(0, std::min(read_to * PW, tile->n) - read_from * PW);
                std::swap(tile, ahead);
            }
            if (!work.partial && !work.kept) now.finish(call, *work.job);
            if (work.from >= work.to) {  // an empty view
                lay_out_next(claims, cursor);
                std::swap(tile, ahead);
            }
            work = next;
        }
        count_kv_bytes(entries_read * Store::entry_bytes(call.dim));
    }

  private:
    const Call &call;
    Call placed;  // as the cursor sees it: offsets in elements, or in rows where keys and values are codes
    const Job *job = nullptr;
    int words, width, group = 0, rows = 0, block_count = 0;
    int32_t *q, *k, *v, *p;
    float *s, *part = nullptr;
    Partial now, own;  // the rows computed now are the worker's own unless the work says where it wants them
    Rows *blocks;
    Tile *tile, *ahead;  // the one computed now and the next
    Work next{};         // where `ahead` belongs if not to this work
    uint32_t packed_keys = 0;            // bit by panel of the tile
    int values_from = 0, values_to = 0;  // packed range of entries
    int read_from = 0, read_to = 0;      // range of the tile's panels that some row reads
    int64_t entries_read = 0;
    size_t taken;
    int32_t highest = 0;  // position among the rows
    float scale = 0;      // of the job's scores
    Pieces pieces;
    Store store_of;

    void begin(const Work &work) {
        job = work.job;
        scale = float(call.scale * job->sharper);
        group = call.group();
        rows = (job->to - job->from) * group;
        call.is_bf16 ? prepare_rows<bf16>() : prepare_rows<float>();
        if (work.partial) return;
        now = own;
        if (work.kept) {
            float *maxima = work.kept + size_t(rows) * width;
            now = {work.kept, maxima, maxima + rows, width};
        }
        now.clear(rows);
    }

    void lay_out_next(const Claims &claims, Cursor &cursor) {
        next = claims();
        if (!next.job) return std::fill(ahead->offset, ahead->offset + TILE, int64_t(0));
        cursor = Cursor(placed, *next.job, next.from * TILE);
        cursor.next(*ahead);
    }

    // Keys and values of a tile are of the same size: while the keys are read the tile's values are fetched, while the values are
    // read the next tile's keys.
    Ahead<E> values_ahead() const { return {store_of.values, tile->offset}; }
    Ahead<E> keys_ahead() const { return {store_of.keys, ahead->offset}; }

    template <class Q> const Q *query(int row) const {
        return (const Q *)call.q + job->token(row / group) * call.q_stride + (job->head * group + row % group) * call.dim;
    }
    int32_t position(int row) const { return call.index->positions[job->token(row / group)]; }

    // Cuts the rows into blocks as even as possible and packs the queries: [block][word][row of the block].
    template <class Q> void prepare_rows() {
        block_count = (rows + MR - 1) / MR;
        int first = 0;
        highest = INT_MIN;
        for (int b = 0; b < block_count; b++) {
            int count = rows / block_count + (b < rows % block_count);
            Rows block{first, count, INT_MAX, INT_MIN};
            for (int r = 0; r < count; r++) {
                int at = first + r;
                block.lowest = std::min(block.lowest, position(at)), block.highest = std::max(block.highest, position(at));
                const Q *from = query<Q>(at);
                if constexpr (Store::BY_DOT) {
                    store_of.take_query(first, count, r, from);
                } else {
                    pack_query(from, count, q + size_t(first) * words + r);
                }
            }
            blocks[b] = block;
            highest = std::max(highest, block.highest);
            first += count;
        }
    }

    template <class Q> void pack_query(const Q *from, int count, int32_t *to) const {
        for (int w = 0; w < words; w++) {
            if (A::STEP == 2) {
                std::memcpy(to + w * count, from + 2 * w, 4);
            } else {
                float wide = widen(from[w]);
                std::memcpy(to + w * count, &wide, 4);
            }
        }
    }

    void attend_block(const Rows &block) {
        switch (block.count) {
            case 1: return attend<1>(block);
            case 2: return attend<2>(block);
            case 3: return attend<3>(block);
            case 4: return attend<4>(block);
            case 5: return attend<5>(block);
            case 6: return attend<6>(block);
        }
    }

    bool reaches_own_tokens() const { return job->own && tile->first + tile->n > job->length - job->own; }

    template <int M> void attend(const Rows &block) {
        // The panels that some row may see, and whether every row sees all of each.
        bool tree = reaches_own_tokens(), all = !tree;
        int64_t low = call.window ? block.lowest - call.window : INT64_MIN;
        int64_t low_of_last = call.window ? block.highest - call.window : INT64_MIN;
        int panels = (tile->n + PW - 1) / PW, begin = panels, end = 0;
        for (int panel = 0; panel < panels; panel++) {
            int32_t highest = tile->highest[panel];
            if (!tree && (tile->lowest[panel] > block.highest || highest <= low)) continue;
            begin = std::min(begin, panel), end = panel + 1;
        }
        for (int panel = begin; panel < end; panel++)
            all &= tile->highest[panel] <= block.lowest && tile->lowest[panel] > low_of_last;
        if (begin >= end) {
            if (part)
                for (int r = 0; r < M; r++) part[size_t(block.first + r) * (width + 2) + width] = -INF;
            return;
        }
        read_from = std::min(read_from, begin), read_to = std::max(read_to, end);
        score<M>(block, begin, end);
        float top[M], mass[M], keep[M], add[M];
        for (int r = 0; r < M; r++) {
            float *row = s + r * TILE;
            if (tree) hide_by_tree(block.first + r, row, begin * PW, end * PW);
            softmax(row, block.first + r, begin * PW, end * PW, all || tree, top[r], mass[r]);
            if constexpr (!Store::BY_DOT) pack_probabilities<A>(row, begin * PW, end * PW, p + r * P_WORDS);
        }
        if (part) {
            for (int r = 0; r < M; r++) {
                float *kept = part + size_t(block.first + r) * (width + 2) + width;
                kept[0] = top[r], kept[1] = mass[r];
            }
        } else {
            now.merge(block.first, M, top, mass, keep, add);
        }
        sum_values<M>(block, begin * PW, std::min(end * PW, (tile->n + A::STEP - 1) / A::STEP * A::STEP), keep, add);
    }

    // Whether there are more rows than this block's M. Cut evenly, each block has half of MR then, so that less need not be compiled.
    template <int M> bool several() const { return M >= MR / 2 && block_count > 1; }

    template <int M> void score(const Rows &block, int begin, int end) {
        if constexpr (Store::BY_DOT) {
            if (several<M>())
                store_of.template score<M, false>(block.first, begin * PW, end * PW, scale, s);
            else
                store_of.template score<M, true>(block.first, begin * PW, end * PW, scale, s);
        } else {
            score_numbers<M>(block, begin, end);
        }
        if (call.log_weight)
            for (int r = 0; r < M; r++)
                for (int e = begin * PW; e < end * PW; e += W) store(s + r * TILE + e, load(s + r * TILE + e) + load(tile->weight + e));
    }

    template <int M> void score_numbers(const Rows &block, int begin, int end) {
        const E *cache = store_of.keys;
        int dim = int(call.dim);
        for (int panel = begin; panel < end; panel++) {
#if defined(__AVX2__)
            if (!several<M>() && !call.deterministic) {
                const E *queries[M];
                for (int r = 0; r < M; r++) queries[r] = query<E>(r);
                for (int key = panel * PW; key < (panel + 1) * PW; key += W)
                    score_rows<M>(cache, tile->offset, key, dim, values_ahead(), queries, scale, s);
                continue;
            }
#endif
            if (!several<M>()) {
                score_keys<A, M>(cache, tile->offset, panel * PW, tile->n, dim, values_ahead(), q, scale, s);
                continue;
            }
            int32_t *keys = k + size_t(panel) * words * PW;
            if (!(packed_keys >> panel & 1)) {
                pack_keys<A>(cache, tile->offset, panel * PW, tile->n, dim, values_ahead(), keys);
                packed_keys |= 1u << panel;
            }
            vf acc[M][NV];
            multiply<A, M, NV, 1, M>(q + size_t(block.first) * words, keys, words, acc);
            for (int r = 0; r < M; r++)
                for (int n = 0; n < NV; n++) store(s + r * TILE + panel * PW + n * W, acc[r][n] * set1(scale));
        }
    }

    // Scores -> exp2(score - largest), 0 where hidden; and the largest and the sum.
    void softmax(float *row, int at, int from, int to, bool all, float &top, float &mass) {
        vf highest = set1(-INF);
        if (all) {
            for (int e = from; e < to; e += W) highest = vmax(highest, load(row + e));
        } else {
            int32_t here = position(at);
            ints upper = ints{} + here, lower = ints{} + (call.window ? int32_t(std::max<int64_t>(here - call.window, INT_MIN)) : INT_MIN);
            for (int e = from; e < to; e += W) {
                ints stored = load_ints(tile->position + e);
                // not after the query, and after the window's lower end
                vf x = choose(less(upper, stored), set1(-INF), load(row + e));
                x = choose(less(lower, stored), x, set1(-INF));
                store(row + e, x);
                highest = vmax(highest, x);
            }
        }
        top = max_lanes(highest);
        vf base = set1(top == -INF ? 0.0f : top), sum = {};
        for (int e = from; e < to; e += W) {
            vf x = exp2v(load(row + e) - base);
            sum = sum + x;
            store(row + e, x);
            if constexpr (Store::BY_DOT)
                if (block_count == 1) store_of.fetch_early(*ahead, e, at);
        }
        mass = sum_lanes(sum);
    }

    // The mask of one row of a tree span, entry by entry: trees are small.
    void hide_by_tree(int at, float *row, int from, int to) {
        const Index &index = *call.index;
        int token = job->token(at / group);
        int64_t here = index.positions[token], low = call.window ? here - call.window : INT64_MIN;
        const uint64_t *bits = (const uint64_t *)index.ancestors + token * index.words;
        for (int e = from; e < to; e++) {
            int j = tile->first + e - (job->length - job->own);
            bool seen = e < tile->n && tile->position[e] > low;
            seen = seen && (j < 0 ? tile->position[e] <= here : (bits[j / 64] >> j % 64 & 1) != 0);
            if (!seen) row[e] = -INF;
        }
    }

    template <int M> void sum_values(const Rows &block, int from, int to, const float *keep, const float *add) {
        if constexpr (Store::BY_DOT) {
            store_of.template take_probabilities<M>(s, from, to);
            constexpr int MOST = Store::template most_at_once<M>();
            int d = 0;
            for (; d + MOST * W <= width; d += MOST * W) sum_codes<M, MOST>(block, d, keep, add);
            for (; d < width; d += 2 * W) sum_codes<M, 2>(block, d, keep, add);
            return;
        } else {
            sum_numbers<M>(block, from, to, keep, add);
        }
    }

    template <int M, int N> void sum_codes(const Rows &block, int d, const float *keep, const float *add) {
        vf acc[M][N];
        if (several<M>())
            store_of.template sum<M, N, false>(d, *ahead, acc);
        else
            store_of.template sum<M, N, true>(d, *ahead, acc);
        merge_panel<M, N>(block, d, keep, add, acc);
    }

    template <int M> void sum_numbers(const Rows &block, int from, int to, const float *keep, const float *add) {
        int d = 0, dim = int(call.dim);
        if (several<M>()) {
            pack_value_range(from, to);
            for (; d + PW <= width; d += PW) sum_packed<M, NV>(block, from, to, d, keep, add);
            if (NV > 2 && d + 2 * W <= width) sum_packed<M, 2>(block, from, to, d, keep, add), d += 2 * W;
            if (d < width) sum_packed<M, 1>(block, from, to, d, keep, add);
            return;
        }
        if constexpr (M <= 2)  // few enough accumulators to read whole rows
            for (; d + 2 * PW <= dim; d += 2 * PW) sum_rows_of<M, 2 * NV, true>(block, from, to, d, keep, add);
        for (; d + PW <= dim; d += PW) sum_rows_of<M, NV, true>(block, from, to, d, keep, add);
        if (NV > 2 && d + 2 * W <= dim) sum_rows_of<M, 2, true>(block, from, to, d, keep, add), d += 2 * W;
        if (d + W <= dim) sum_rows_of<M, 1, true>(block, from, to, d, keep, add), d += W;
        if (d < dim) sum_rows_of<M, 1, false>(block, from, to, d, keep, add);
    }

    void pack_value_range(int from, int to) {
        auto pack = [&](int a, int b) {
            if (a < b) pack_values<A>((const E *)store_of.values, tile->offset, a, b, tile->n, int(call.dim), keys_ahead(), v);
        };
        if (!values_to) {
            pack(from, to);
            values_from = from, values_to = to;
        } else {
            pack(from, values_from);
            pack(values_to, to);
            values_from = std::min(values_from, from), values_to = std::max(values_to, to);
        }
    }

    template <int M, int N> void sum_packed(const Rows &block, int from, int to, int d, const float *keep, const float *add) {
        vf acc[M][N];
        const int32_t *values = v + size_t(d / PW) * P_WORDS * PW + from / A::STEP * PW + d % PW;
        multiply<A, M, N, P_WORDS, 1>(p + from / A::STEP, values, (to - from + A::STEP - 1) / A::STEP, acc);
        merge_panel<M, N>(block, d, keep, add, acc);
    }

    template <int M, int N, bool FULL>
    void sum_rows_of(const Rows &block, int from, int to, int d, const float *keep, const float *add) {
        vf acc[M][N];
        const E *values = store_of.values;
        sum_rows<A, M, N, FULL>(values, tile->offset, from, to, tile->n, d, int(call.dim), keys_ahead(), p, acc);
        merge_panel<M, N>(block, d, keep, add, acc);
    }

    template <int M, int N>
    inline __attribute__((always_inline)) void merge_panel(const Rows &block, int d, const float *keep, const float *add,
                                                           const vf (&acc)[M][N]) {
        for (int r = 0; r < M; r++) {
            size_t row = block.first + r;
            if (part) {
                for (int n = 0; n < N; n++) store(part + row * (width + 2) + d + n * W, acc[r][n]);
            } else {
                float *to = now.o + row * width + d;
                for (int n = 0; n < N; n++) store(to + n * W, fma(load(to + n * W), set1(keep[r]), acc[r][n] * set1(add[r])));
            }
        }
    }
};

thread_local Scratch kept_scratch;

template <class Worker> void work_with(const void *call, int max_rows, const void *first, const void *claims) {
    const Call &of = *(const Call *)call;
    Worker worker(of, max_rows, kept_scratch.take(Worker::bytes(of, max_rows)));
    worker.run(*(const Work *)first, *(const Claims *)claims);
}

}  // namespace
