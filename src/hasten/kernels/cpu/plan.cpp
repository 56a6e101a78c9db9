// A whole step in one call: the kernels of all layers, one after another, by one team of threads.
//
// The plan holds the packed arguments of every kernel, recorded once for as many rows as a plan may have; a step says how many
// rows it has now, and all that a row count changes is that number.
#include <chrono>
#include <vector>

#include "arguments.h"
#include "team.h"

extern "C" void hasten_attention(const void *args);

namespace {

// In the order of native.py.
enum Kind : int64_t { RMS_NORM, ADD_RMS_NORM, ACT_MUL, ROPE, ATTENTION, LINEAR, QUANTIZED };

struct Op {
    int64_t kind;
    const void *args;
};

struct Run {
    const Op *ops;
    int64_t count, rows;
    double *seconds;  // by kind, to be added to, or null
};

// Seconds of a kind from one call to the next, where they are wanted.
class Stopwatch {
  public:
    explicit Stopwatch(double *seconds) : seconds(seconds), last(seconds ? Clock::now() : Clock::time_point()) {}
    void operator()(int64_t kind) {
        if (!seconds) return;
        auto now = Clock::now();
        seconds[kind] += std::chrono::duration<double>(now - last).count();
        last = now;
    }

  private:
    using Clock = std::chrono::steady_clock;
    double *seconds;
    Clock::time_point last;
};

template <class Args> Args with_rows(const void *args, int64_t Args::*rows, int64_t now) {
    Args copy = *(const Args *)args;
    copy.*rows = now;
    return copy;
}

// 0, or what `check_rope` says is wrong; every thread finds the same.
int64_t one(const Op &op, int64_t rows, Team &team) {
    switch (Kind(op.kind)) {
        case RMS_NORM: {
            auto args = with_rows(op.args, &RmsNorm::outer, rows);
            part_rms_norm(&args, &team);
            return 0;
        }
        case ADD_RMS_NORM: {
            auto args = with_rows(op.args, &AddRmsNorm::rows, rows);
            part_add_rms_norm(&args, &team);
            return 0;
        }
        case ACT_MUL: {
            auto args = with_rows(op.args, &ActMul::rows, rows);
            part_act_mul(&args, &team);
            return 0;
        }
        case ROPE: {
            auto args = with_rows(op.args, &Rope::tokens, rows);
            if (int64_t wrong = check_rope(&args)) return wrong;
            part_rope_and_store(&args, &team);
            return 0;
        }
        case ATTENTION: part_attention((const Call *)op.args, &team); return 0;
        case LINEAR: {
            auto args = with_rows(op.args, &Linear<void>::rows, rows);
            part_linear(&args, &team);
            return 0;
        }
        case QUANTIZED: {
            auto args = with_rows(op.args, &Quantized::rows, rows);
            part_quantized_linear(&args, &team);
            return 0;
        }
    }
    return 0;
}

// Whether some product of the plan is worth more threads than one.
bool worth_a_team(const Run &run) {
    for (int64_t i = 0; i < run.count; i++) {
        const Op &op = run.ops[i];
        if (op.kind == LINEAR && worth_sharing(with_rows(op.args, &Linear<void>::rows, run.rows))) return true;
        if (op.kind == QUANTIZED && worth_sharing(with_rows(op.args, &Quantized::rows, run.rows))) return true;
    }
    return false;
}

}  // namespace

// Returns 0, or 1 for a position out of range, 2 for a slot out of range: then nothing from that op on was done.
extern "C" int64_t hasten_run_plan(const Run *run) {
    if (!worth_a_team(*run)) {
        Stopwatch clock(run->seconds);
        for (int64_t i = 0; i < run->count; i++) {
            Phase phases[PHASES];
            Team alone(phases, 0, 1);
            const Op &op = run->ops[i];
            if (op.kind == ATTENTION)
                hasten_attention(op.args);  // may be worth it all the same
            else if (int64_t wrong = one(op, run->rows, alone))
                return wrong;
            clock(op.kind);
        }
        return 0;
    }
    std::vector<Phase> phases(run->count * PHASES);
    std::atomic<int64_t> result{0};
    in_parallel(true, true, [&](int id, int count) {
        Stopwatch clock(id == 0 ? run->seconds : nullptr);
        for (int64_t i = 0; i < run->count; i++) {
            Team team(&phases[i * PHASES], id, count);
            if (int64_t wrong = one(run->ops[i], run->rows, team)) {
                result = wrong;
                return;
            }
            clock(run->ops[i].kind);
        }
    });
    return result;
}
