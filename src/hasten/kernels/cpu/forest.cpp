// Attention over views that share runs, each shared run read once for the rows of all who share it.
//
// The index's forest says how: a node is a stretch of runs and the rows that read it, a task some tiles of a node. Every task leaves
// for its rows what is known of them so far (outputs not yet divided, maxima, masses); then each row is merged along its path from
// the root to its leaf. Tasks come longest first and whoever is free takes the next: the least-loaded thread, as it turns out to be.
#include <algorithm>
#include <vector>

#include "arguments.h"
#include "attention_team.h"
#include "scratch.h"

namespace {

// A row of Forest::nodes.
struct Node {
    int32_t span, first_run, end_run;  // runs of the span's view; end_run -1: to its end
    int32_t first_entry, entries;      // of the view; entries -1: to its end
    int32_t from, to;                  // in Forest::rows
};
struct Task {
    int32_t node, from, to;  // tiles; to -1: to the node's end
};
struct Step {
    int32_t node, row;  // the token is the node's row
};

struct Item {
    int32_t job, from, to;
    int64_t kept;  // in floats, or -1: the rows are finished at once
};

struct Kept {        // results of a node's tasks
    int64_t at, size;  // floats: of the first, of each
    int32_t parts;
    bool direct;  // the node is all that its rows read, in one task
};

struct Plan {
    std::vector<Job> jobs;  // node by node, head by head
    std::vector<Kept> nodes;
    std::vector<Item> items;
    Scratch memory;
    float *kept;
    int max_rows;
    double work;  // in tiles times rows
};
thread_local Plan kept_plan;
thread_local Scratch kept_scratch;

void lay_out(const Call &call, Plan &plan) {
    const Index &index = *call.index;
    const Forest &forest = *index.forest;
    int group = call.group(), heads = int(call.kv_heads);
    auto nodes = (const Node *)forest.nodes;
    auto tasks = (const Task *)forest.tasks;
    plan.jobs.clear(), plan.items.clear(), plan.nodes.assign(forest.node_count, {});
    plan.max_rows = 0, plan.work = 0;
    for (int64_t t = 0; t < forest.task_count; t++) plan.nodes[tasks[t].node].parts++;
    int64_t floats = 0;
    for (int64_t n = 0; n < forest.node_count; n++) {
        const Node &node = nodes[n];
        Kept &kept = plan.nodes[n];
        Job job{};
        read_view(index, node.span, 0, job);
        bool leaf = node.entries < 0;
        if (forest.contexts && forest.contexts[n]) job.sharper = 1 / forest.temperature;
        if (!leaf) job.end = job.run + 4 * node.end_run, job.own = 0;
        job.run += 4 * node.first_run;
        job.length = leaf ? job.length - node.first_entry : node.entries;
        job.tokens = forest.rows, job.from = node.from, job.to = node.to, job.parts = 1;
        int rows = (job.to - job.from) * group;
        plan.max_rows = std::max(plan.max_rows, rows);
        plan.work += double(job.tiles()) * (rows + 4) * heads;
        kept.direct = leaf && node.first_entry == 0 && kept.parts == 1;
        kept.at = floats, kept.size = (int64_t(rows) * (call.width() + 2) + 15) / 16 * 16;
        if (!kept.direct) floats += kept.size * kept.parts * heads;
        kept.parts = 0;
        for (job.head = 0; job.head < heads; job.head++) plan.jobs.push_back(job);
    }
    for (int64_t t = 0; t < forest.task_count; t++) {
        const Task &task = tasks[t];
        Kept &kept = plan.nodes[task.node];
        int tiles = plan.jobs[int64_t(task.node) * heads].tiles();
        int to = std::min(tiles, task.to < 0 ? tiles : task.to), from = std::min(task.from, to);
        for (int head = 0; head < heads; head++) {
            int64_t place = kept.at + kept.size * (int64_t(kept.parts) * heads + head);
            plan.items.push_back({int32_t(task.node * heads + head), from, to, kept.direct ? -1 : place});
        }
        kept.parts++;
    }
    plan.kept = floats ? (float *)plan.memory.take(floats * sizeof(float)) : nullptr;
}

// The rows of one token and KV head, merged from the tasks on its path. What the context nodes of the path give together counts with
// its log-sum-exp multiplied by the forest's scale: their maxima are shifted by what that changes.
template <class E> void merge_path(const Call &call, const Plan &plan, int64_t token, int head) {
    const Forest &forest = *call.index->forest;
    auto path = (const Step *)forest.paths + forest.path_offsets[token], end = (const Step *)forest.paths + forest.path_offsets[token + 1];
    if (path != end && plan.nodes[path->node].direct) return;
    int group = call.group(), width = call.width(), heads = int(call.kv_heads);
    auto sum = (float *)kept_scratch.take(width * sizeof(float));
    auto each = [&](int row, auto use) {
        for (auto step = path; step != end; step++) {
            bool context = forest.contexts && forest.contexts[step->node];
            const Kept &kept = plan.nodes[step->node];
            const Job &job = plan.jobs[int64_t(step->node) * heads];
            int64_t rows = int64_t(job.to - job.from) * group, at = int64_t(step->row) * group + row;
            for (int part = 0; part < kept.parts; part++) {
                const float *o = plan.kept + kept.at + kept.size * (int64_t(part) * heads + head), *m = o + rows * width + at;
                use(o + at * width, m[0], m[rows], context);
            }
        }
    };
    for (int row = 0; row < group; row++) {
        float top = -INF, mass = 0, shift = 0;
        if (forest.contexts) {
            each(row, [&](const float *, float m, float, bool context) { top = context ? std::max(top, m) : top; });
            each(row, [&](const float *, float m, float l, bool context) { mass += context && m > -INF ? std::exp2(m - top) * l : 0; });
            if (mass > 0) shift = float(forest.scale - 1) * (top + std::log2(mass));
            top = -INF, mass = 0;
        }
        each(row, [&](const float *, float m, float, bool context) { top = std::max(top, context ? m + shift : m); });
        std::fill(sum, sum + width, 0.0f);
        each(row, [&](const float *o, float m, float l, bool context) {
            if (m == -INF) return;
            float share = std::exp2((context ? m + shift : m) - top);
            mass += share * l;
            vf shares = set1(share);
            for (int d = 0; d < width; d += W) store(sum + d, fma(load(o + d), shares, load(sum + d)));
        });
        int64_t query_head = int64_t(head) * group + row;
        E *to = (E *)call.out + token * call.out_stride + query_head * call.dim;
        vf whole = set1(mass > 0 ? mass : 1.0f);
        int d = 0;
        for (; d + W <= call.dim; d += W) store(to + d, load(sum + d) / whole);
        if (d < call.dim) store_n(to + d, load(sum + d) / whole, int(call.dim) - d);
        if (call.lse) call.lse[token * call.heads + query_head] = mass > 0 ? LN2 * (top + std::log2(mass)) : -INF;
    }
}

}  // namespace

HASTEN_PART int64_t forest_is_worth_sharing(const void *args) {
    const Call &call = *(const Call *)args;
    lay_out(call, kept_plan);
    return worth_a_team(call, kept_plan.work, kept_plan.items.size());
}

HASTEN_PART void part_forest(const void *args, void *with) {
    Call call = *(const Call *)args;
    auto &team = *(Team *)with;
    const int64_t *notes = team.once([&](int64_t *note) {
        lay_out(call, kept_plan);
        note[0] = int64_t(&kept_plan);
        note[1] = int64_t(kept_plan.items.size());
        note[2] = kept_plan.kept ? call.index->span_offsets[call.index->spans] * call.kv_heads : 0;
        note[3] = worth_a_team(call, kept_plan.work, kept_plan.items.size());
    });
    call.scale *= LOG2E;
    const Plan &plan = *(const Plan *)notes[0];
    work_as_team(call, plan.max_rows, notes[1], notes[3], team, [&](int64_t i) -> Work {
        const Item &item = plan.items[i];
        return {&plan.jobs[item.job], item.from, item.to, nullptr, item.kept < 0 ? nullptr : plan.kept + item.kept};
    });
    auto merge = call.is_bf16 ? merge_path<bf16> : merge_path<float>;
    team.share_rows(notes[2], notes[3], [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++) merge(call, plan, i / call.kv_heads, int(i % call.kv_heads));
    });
}

struct CheckForest {  // as native.py packs it
    const Index *index;
    int64_t row_count, path_count;
};

// Whether a forest fits the index it is in, as far as memory goes and so that every row reads as many entries as its view has. (That
// those who share a node have the same runs there is the planner's to know.) Returns 0, or what is wrong: 1 a node, 2 a task, 3 a path.
extern "C" int64_t hasten_check_forest(const CheckForest *a) {
    const Index &index = *a->index;
    const Forest &forest = *index.forest;
    auto nodes = (const Node *)forest.nodes;
    int tokens = index.span_offsets[index.spans];
    if (index.groups != 1) return 1;
    std::vector<int64_t> covered(forest.node_count);  // tiles of each node that tasks compute; -1: to its end
    for (int64_t n = 0; n < forest.node_count; n++) {
        const Node &node = nodes[n];
        if (node.span < 0 || node.span >= index.spans || node.from < 0 || node.to < node.from || node.to > a->row_count) return 1;
        int runs = index.run_offsets[node.span + 1] - index.run_offsets[node.span];
        bool leaf = node.entries < 0, tree = index.is_tree && index.is_tree[node.span];
        int end = leaf ? runs : node.end_run;
        if (node.first_run < 0 || node.first_run > end || end > runs) return 1;
        int64_t before = 0, held = 0;
        const int32_t *run = index.runs + 4 * index.run_offsets[node.span];
        for (int r = 0; r < end; r++) (r < node.first_run ? before : held) += run[4 * r + 2];
        if (before != node.first_entry || (!leaf && (held != node.entries || !held))) return 1;
        if (leaf && tree && held < index.span_offsets[node.span + 1] - index.span_offsets[node.span]) return 1;
        for (int i = node.from; i < node.to; i++) {
            int token = forest.rows[i];
            if (token < 0 || token >= tokens) return 1;
            if (leaf && (token < index.span_offsets[node.span] || token >= index.span_offsets[node.span + 1])) return 1;
        }
    }
    auto tasks = (const Task *)forest.tasks;
    std::vector<std::vector<Task>> of(forest.node_count);
    for (int64_t t = 0; t < forest.task_count; t++) {
        if (tasks[t].node < 0 || tasks[t].node >= forest.node_count || tasks[t].from < 0) return 2;
        of[tasks[t].node].push_back(tasks[t]);
    }
    for (auto &mine : of) {
        std::sort(mine.begin(), mine.end(), [](const Task &x, const Task &y) { return x.from < y.from; });
        int at = 0;
        for (size_t i = 0; i < mine.size(); i++) {
            bool last = i + 1 == mine.size();
            if (mine[i].from != at || (mine[i].to < 0) != last || (!last && mine[i].to < at)) return 2;
            at = mine[i].to;
        }
        if (mine.empty()) return 2;
    }
    auto path = (const Step *)forest.paths;
    if (forest.path_offsets[0] != 0 || forest.path_offsets[tokens] != a->path_count) return 3;
    for (int span = 0; span < index.spans; span++) {
        for (int token = index.span_offsets[span]; token < index.span_offsets[span + 1]; token++) {
            int64_t at = 0;
            bool ended = false;
            if (forest.path_offsets[token + 1] < forest.path_offsets[token]) return 3;
            for (int i = forest.path_offsets[token]; i < forest.path_offsets[token + 1]; i++) {
                if (path[i].node < 0 || path[i].node >= forest.node_count) return 3;
                const Node &node = nodes[path[i].node];
                if (path[i].row < 0 || path[i].row >= node.to - node.from || forest.rows[node.from + path[i].row] != token) return 3;
                if (ended || node.first_entry != at) return 3;
                ended = node.entries < 0;
                at += node.entries;
            }
            if (!ended) return 3;
        }
    }
    return 0;
}
