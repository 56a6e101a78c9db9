// The jobs an attention call is cut into, and the walk over the runs of a view, tile by tile.
#pragma once

#include <algorithm>
#include <climits>

#include "arguments.h"
#include "attention_tile.h"

namespace {

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

struct Job {
    int32_t span, head, from, to;  // tokens [from, to) of the flat batch
    int32_t length;                // entries of the view
    int32_t parts;                 // 1, or the number of tile ranges computed apart
    size_t partial;                // where its tiles' results lie, in floats, if parts > 1
    int tiles() const { return (length + TILE - 1) / TILE; }
};

// Tiles [from, to) of a job. Without `partial` they are merged and the job's rows written; else each tile's result is kept there.
struct Work {
    const Job *job;
    int from, to;
    float *partial;
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
        int64_t view = call.index->groups == 1 ? job.span : job.span * call.index->groups + job.head;
        run = call.index->runs + 4 * call.index->run_offsets[view];
        end = call.index->runs + 4 * call.index->run_offsets[view + 1];
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
