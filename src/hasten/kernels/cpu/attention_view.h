// The jobs an attention call is cut into, and the walk over the runs of a view, tile by tile.
#pragma once

#include <algorithm>
#include <climits>

#include "arguments.h"
#include "attention_tile.h"

namespace {

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

struct Job {
    int32_t head, from, to;   // tokens [from, to) of the flat batch, or of `tokens`
    int32_t length;           // entries to be read
    const int32_t *run, *end;  // the runs they lie in
    const int32_t *tokens;    // null, or the tokens whose rows are computed together
    int32_t own;              // last entries that are the tokens of the rows' tree; 0: no tree
    int32_t first_own;        // the first of these tokens in the flat batch
    int32_t parts;            // 1, or the number of tile ranges computed apart
    size_t partial;           // where its tiles' results lie, in floats, if parts > 1
    double sharper;           // what its scores are multiplied by beside the call's scale
    int tiles() const { return (length + TILE - 1) / TILE; }
    int token(int i) const { return tokens ? tokens[from + i] : from + i; }
};

// Entries, runs and tree of a job over the whole view of a span.
inline void read_view(const Index &index, int span, int head, Job &job) {
    int64_t view = index.groups == 1 ? span : span * index.groups + head;
    job.length = index.lengths[view], job.sharper = 1;
    job.run = index.runs + 4 * index.run_offsets[view], job.end = index.runs + 4 * index.run_offsets[view + 1];
    job.first_own = index.span_offsets[span];
    job.own = index.is_tree && index.is_tree[span] ? index.span_offsets[span + 1] - job.first_own : 0;
}

// Tiles [from, to) of a job, merged. They give the job's rows; with `kept` they are left there unfinished: outputs [rows][width], then
// the rows' maxima, then their masses. With `partial` every tile's result is left for itself.
struct Work {
    const Job *job;
    int from, to;
    float *partial, *kept;
};

// Gives the work that a thread does next, until its job is null. It lives as long as what it was made of.
class Claims {
  public:
    template <class Next> explicit Claims(const Next &next) : context(&next), call([](const void *next) { return (*(const Next *)next)(); }) {}
    Work operator()() const { return call(context); }

  private:
    const void *context;
    Work (*call)(const void *);
};

// A tile's entries: where they lie and at which positions they stand.
struct Tile {
    int first, n;  // entry numbers first .. first + n
    int32_t position[TILE];
    int64_t offset[TILE];  // of an entry's row in a cache, in elements; 0 past n
    float weight[TILE];
    int32_t lowest[PANELS], highest[PANELS];
};

// Walks over the runs of one view.
class Cursor {
  public:
    Cursor(const Call &call, const Job &job, int first_entry) : call(&call), head(job.head), entry(first_entry) {
        run = job.run, end = job.end;
        int skip = first_entry;
        while (run != end && skip >= run[2]) skip -= run[2], run += 4;
        done = skip;
    }
    void next(Tile &tile) {
        int n = 0;
        for (; run != end && n < TILE; done = 0, run += 4) {
            int count = std::min(run[2] - done, TILE - n);
            int64_t slot = run[1] + done, row = (run[0] * call->kv_heads + head) * call->block_size + slot;
            for (int i = 0; i < count; i++) {
                tile.position[n + i] = run[3] + done + i;
                tile.offset[n + i] = (row + i) * call->dim;
            }
            if (call->log_weight)
                for (int i = 0; i < count; i++) tile.weight[n + i] = LOG2E * call->log_weight[run[0] * call->block_size + slot + i];
            n += count;
            if (done + count < run[2]) {
                done += count;
                break;
            }
        }
        tile.first = entry, tile.n = n;
        entry += n;
        for (int p = 0; p < PANELS; p++) {
            int32_t low = INT_MAX, high = INT_MIN;
            for (int i = p * PW; i < std::min(n, (p + 1) * PW); i++)
                low = std::min(low, tile.position[i]), high = std::max(high, tile.position[i]);
            tile.lowest[p] = low, tile.highest[p] = high;
        }
        std::fill(tile.offset + n, tile.offset + TILE, int64_t(0));
        // Positions past every query hide what is missing from the last panel.
        for (int i = n; i < std::min(TILE, (n + PW - 1) / PW * PW); i++) tile.position[i] = INT_MAX, tile.weight[i] = 0;
        if (n % PW) tile.highest[n / PW] = INT_MAX;
    }

  private:
    const Call *call;
    const int32_t *run, *end;
    int head, entry, done;
};

}  // namespace
