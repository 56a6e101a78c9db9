// Ragged paged attention: decoded tokens, chunks of prompts and token trees in one call.
//
// The work is cut into jobs (span, KV head, chunk of tokens); a job's rows are its tokens times the query heads of its group, so
// keys and values are read once for all of them. A job walks over the tiles of its view from left to right and merges each tile's
// result into its rows. Jobs that are too long for the number of threads are cut into ranges of tiles whose results are kept and
// merged afterwards, in the same order by the same arithmetic.
#include <algorithm>
#include <atomic>
#include <climits>
#include <vector>

#include "arguments.h"
#include "attention_rows.h"
#include "attention_team.h"
#include "scratch.h"

namespace {

struct Item {
    int32_t job, part;
};

// What a call needs besides its data, kept by the calling thread.
struct Plan {
    std::vector<Job> jobs;
    std::vector<Item> items;
    Scratch partial_memory;
    float *partial;  // results of jobs that are cut into parts; null where none is
    int max_rows;    // of a job
    double work;     // in tiles times rows
};
thread_local Plan kept_plan;
thread_local Scratch kept_scratch;

void lay_out(const Call &call, Plan &plan, int threads) {
    const Index &index = *call.index;
    int group = call.group();
    plan.jobs.clear(), plan.items.clear();
    // Chunks of many rows amortise packing; smaller ones give every thread something to do.
    int64_t total_rows = int64_t(index.span_offsets[index.spans]) * call.heads, chunk_rows = 256;
    while (chunk_rows > 48 && total_rows / chunk_rows < 3 * threads) chunk_rows /= 2;
    int chunk = std::max(1, int(chunk_rows / group));
    plan.max_rows = 0, plan.work = 0;
    auto cost = [&](const Job &job) { return double(job.tiles()) * ((job.to - job.from) * group + 4); };
    for (int span = 0; span < index.spans; span++) {
        for (int head = 0; head < call.kv_heads; head++) {
            Job job{};
            read_view(index, span, head, job);
            job.head = head, job.parts = 1;
            for (int from = index.span_offsets[span]; from < index.span_offsets[span + 1]; from += chunk) {
                job.from = from, job.to = std::min(from + chunk, index.span_offsets[span + 1]);
                plan.max_rows = std::max(plan.max_rows, (job.to - job.from) * group);
                plan.work += cost(job);
                plan.jobs.push_back(job);
            }
        }
    }
    size_t floats = 0;
    for (int j = int(plan.jobs.size()) - 1; j >= 0; j--) {  // the last chunks of a prompt see most and so start first
        Job &job = plan.jobs[j];
        int rows = (job.to - job.from) * group;
        double share = threads > 1 ? cost(job) * 4 * threads / plan.work : 0;
        if (share > 1.5 && rows <= 96) job.parts = std::max(1, std::min(job.tiles(), int(share + 0.5)));
        if (job.parts > 1) {
            job.partial = floats;
            floats += size_t(job.tiles()) * rows * (call.width() + 2);
        }
        for (int part = 0; part < job.parts; part++) plan.items.push_back({j, part});
    }
    plan.partial = floats ? (float *)plan.partial_memory.take(floats * sizeof(float)) : nullptr;
}

// Merges the kept tiles of a job, each [rows][width + 2], and writes its rows.
void join(const Call &call, const Plan &plan, const Job &job) {
    int rows = (job.to - job.from) * call.group(), width = call.width();
    Pieces pieces{(char *)kept_scratch.take(size_t(rows) * (width + 2) * sizeof(float) + 3 * 64)};
    Partial all{pieces.next<float>(size_t(rows) * width), pieces.next<float>(rows), pieces.next<float>(rows), width};
    all.clear(rows);
    for (int r = 0; r < rows; r++) {
        float *row = all.o + size_t(r) * width;
        for (int t = 0; t < job.tiles(); t++) {
            const float *kept = plan.partial + job.partial + (size_t(t) * rows + r) * (width + 2);
            if (kept[width] == -INF) continue;
            float keep, add;
            all.merge(r, 1, kept + width, kept + width + 1, &keep, &add);
            for (int d = 0; d < width; d += W) store(row + d, fma(load(row + d), set1(keep), load(kept + d) * set1(add)));
        }
    }
    all.finish(call, job);
}

std::atomic<int64_t> kv_bytes{0};

bool goes_by_forest(const Call &call) { return call.index->forest && !call.deterministic && !call.bits; }

}  // namespace

struct MeasureViews {  // as native.py packs it
    const int32_t *span_offsets, *runs, *run_offsets;
    const uint8_t *is_tree;  // or null
    int64_t spans, groups, tokens, run_count, words;
    int32_t *lengths;  // [spans * groups], written
    int32_t *ends;     // [2], written: one past the highest block, one past the highest slot
};

extern "C" {

// Checks a ViewIndex and measures its views. Returns 0, or what is wrong: 1 offsets, 2 a run, 3 a tree too large for its ancestors,
// 4 a tree's view shorter than the tree.
int64_t hasten_measure_views(const MeasureViews *a) {
    a->ends[0] = a->ends[1] = 0;
    if (a->span_offsets[0] != 0 || a->span_offsets[a->spans] != a->tokens) return 1;
    if (a->run_offsets[0] < 0 || a->run_offsets[a->spans * a->groups] > a->run_count) return 1;
    for (int64_t span = 0; span < a->spans; span++) {
        int size = a->span_offsets[span + 1] - a->span_offsets[span];
        if (size < 0) return 1;
        bool tree = a->is_tree && a->is_tree[span];
        if (tree && size > 64 * a->words) return 3;
        for (int64_t view = span * a->groups; view < (span + 1) * a->groups; view++) {
            int64_t length = 0;
            if (a->run_offsets[view + 1] < a->run_offsets[view]) return 1;
            for (int r = a->run_offsets[view]; r < a->run_offsets[view + 1]; r++) {
                const int32_t *run = a->runs + 4 * r;
                if (run[0] < 0 || run[1] < 0 || run[2] < 0 || run[2] > INT_MAX - run[1] || run[0] == INT_MAX) return 2;
                a->ends[0] = std::max(a->ends[0], run[0] + 1), a->ends[1] = std::max(a->ends[1], run[1] + run[2]);
                length += run[2];
            }
            if (length > INT_MAX) return 2;
            if (tree && length < size) return 4;
            a->lengths[view] = int32_t(length);
        }
    }
    return 0;
}

}

HASTEN_PART void count_kv_bytes(int64_t bytes) { kv_bytes.fetch_add(bytes, std::memory_order_relaxed); }

// Bytes of keys and values that attention has read from caches in this process, each as often as it was fetched for some rows.
extern "C" int64_t hasten_kv_bytes(const void *) { return kv_bytes.load(std::memory_order_relaxed); }

HASTEN_PART void part_attention(const void *args, void *with) {
    Call call = *(const Call *)args;
    if (goes_by_forest(call)) return part_forest(args, with);
    auto &team = *(Team *)with;
    const int64_t *notes = team.once([&](int64_t *note) {
        lay_out(call, kept_plan, team.count);
        note[0] = int64_t(&kept_plan);
        note[1] = int64_t(kept_plan.items.size());
        note[2] = kept_plan.partial ? int64_t(kept_plan.jobs.size()) : 0;
        note[3] = worth_a_team(call, kept_plan.work, kept_plan.items.size());
    });
    call.scale *= LOG2E;
    const Plan &plan = *(const Plan *)notes[0];
    work_as_team(call, plan.max_rows, notes[1], notes[3], team, [&](int64_t i) -> Work {
        const Job &job = plan.jobs[plan.items[i].job];
        int64_t part = plan.items[i].part, tiles = job.tiles();
        int from = int(tiles * part / job.parts), to = int(tiles * (part + 1) / job.parts);
        return {&job, from, to, job.parts > 1 ? plan.partial + job.partial : nullptr, nullptr};
    });
    team.share(notes[2], true, [&](int64_t j) {
        if (plan.jobs[j].parts > 1) join(call, plan, plan.jobs[j]);
    });
}

extern "C" void hasten_attention(const void *args) {
    const Call &call = *(const Call *)args;
    bool worth;
    if (goes_by_forest(call)) {
        worth = forest_is_worth_sharing(args);
    } else {
        lay_out(call, kept_plan, omp_get_max_threads());
        worth = worth_a_team(call, kept_plan.work, kept_plan.items.size());
    }
    int64_t rows = call.index->span_offsets[call.index->spans];
    gather(worth, rows, [&](Team &team) { part_attention(args, &team); });
}

// The same by the calling thread alone, whatever torch's number of threads: for measuring.
extern "C" void hasten_attention_alone(const void *args) {
    Phase phases[PHASES];
    Team alone(phases, 0, 1);
    part_attention(args, &alone);
}
