// RMS norm, residual addition fused with it, gated activations, rotary embedding fused with storing keys, block copies.
#include "arguments.h"
#include "coded.h"

namespace {


// Rows of this many elements in all are not worth waking other threads for.
constexpr int64_t SMALL = 16384;

template <class E> void normalise(const E *x, const E *weight, E *out, int m, float eps) {
    // Four accumulators hide the latency of addition; their order is fixed by m alone.
    vf sum[4] = {};
    int i = 0;
    for (; i + 4 * W <= m; i += 4 * W)
        for (int k = 0; k < 4; k++) {
            vf v = load(x + i + k * W);
            sum[k] = fma(v, v, sum[k]);
        }
    for (; i + W <= m; i += W) {
        vf v = load(x + i);
        sum[0] = fma(v, v, sum[0]);
    }
    if (i < m) {
        vf v = load_n(x + i, m - i);
        sum[1] = fma(v, v, sum[1]);
    }
    vf factor = set1(1.0f / std::sqrt(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / m + eps));
    // The normalised value is rounded to the run dtype before the weight multiplies it, as in the models' own code.
    E rounded[W];
    for (i = 0; i + W <= m; i += W) {
        store(rounded, load(x + i) * factor);
        store(out + i, load(rounded) * load(weight + i));
    }
    if (i < m) {
        store(rounded, load_n(x + i, m - i) * factor);
        store_n(out + i, load(rounded) * load_n(weight + i, m - i), m - i);
    }
}

template <class E> void rms_norm(const RmsNorm &a, Team &team) {
    team.share_rows(a.outer * a.inner, a.outer * a.inner * a.m > SMALL, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) {
            int64_t o = r / a.inner, i = r % a.inner;
            normalise((const E *)a.x + o * a.x_outer + i * a.x_inner, (const E *)a.weight,
                      (E *)a.out + o * a.out_outer + i * a.out_inner, int(a.m), float(a.eps));
        }
    });
}

template <class E> void add_rms_norm(const AddRmsNorm &a, Team &team) {
    team.share_rows(a.rows, a.rows * a.m > SMALL, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) {
            E *x = (E *)a.x + r * a.x_stride;
            const E *delta = (const E *)a.delta + r * a.delta_stride;
            int i = 0, m = int(a.m);
            for (; i + W <= m; i += W) store(x + i, load(x + i) + load(delta + i));
            if (i < m) store_n(x + i, load_n(x + i, m - i) + load_n(delta + i, m - i), m - i);
            normalise(x, (const E *)a.weight, (E *)a.out + r * a.out_stride, m, float(a.eps));
        }
    });
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + expv(vmax(0.0f - x, set1(-87.0f)))); }

template <int KIND> inline vf activate(vf x) {
    if (KIND == 0) return x * sigmoid(choose(less(x, set1(-87.0f)), set1(-87.0f), x));  // silu
    // tanh form of gelu: 0.5 (1 + tanh z) = sigmoid(2 z)
    vf z = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x * sigmoid(choose(less(z, set1(-87.0f)), set1(-87.0f), z));
}

template <class E, int KIND> void act_mul(const ActMul &a, Team &team) {
    // Cut in pieces of columns too, so that one row of a wide layer is shared by the threads.
    const int64_t piece = 4096, pieces = (a.n + piece - 1) / piece;
    team.share_rows(a.rows * pieces, a.rows * a.n > SMALL, [&](int64_t from, int64_t to) {
        for (int64_t job = from; job < to; job++) {
            int64_t r = job / pieces, i = job % pieces * piece, end = i + piece < a.n ? i + piece : a.n;
            const E *gate = (const E *)a.gate_up + r * a.in_stride, *up = gate + a.n;
            E *out = (E *)a.out + r * a.out_stride, rounded[W];
            for (; i + W <= end; i += W) {
                store(rounded, activate<KIND>(load(gate + i)));
                store(out + i, load(rounded) * load(up + i));
            }
            if (i < end) {
                store(rounded, activate<KIND>(load_n(gate + i, int(end - i))));
                store_n(out + i, load(rounded) * load_n(up + i, int(end - i)), int(end - i));
            }
        }
    });
}

template <class E> void rotate(const E *x, E *out, const float *cos, const float *sin, int half, int dim) {
    int i = 0;
    for (; i + W <= half; i += W) {
        vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(out + i, a * c - b * s);
        store(out + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = widen(x[i]), b = widen(x[half + i]);
        narrow(a * cos[i] - b * sin[i], out + i);
        narrow(b * cos[i] + a * sin[i], out + half + i);
    }
    if (out != x) std::memcpy(out + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(E));
}

template <class E> void rope_and_store(const Rope &a, Team &team) {
    int64_t width = (a.heads + 2 * a.kv_heads) * a.dim;
    team.share_rows(a.tokens, a.tokens * width > SMALL, [&](int64_t from, int64_t to) {
        for (int64_t t = from; t < to; t++) {
            const float *cos = a.cos_sin + a.positions[t] * 2 * a.half, *sin = cos + a.half;
            E *q = (E *)a.q + t * a.q_stride;
            const E *k = (const E *)a.k + t * a.k_stride, *v = (const E *)a.v + t * a.v_stride;
            for (int64_t h = 0; h < a.heads; h++) rotate(q + h * a.dim, q + h * a.dim, cos, sin, int(a.half), int(a.dim));
            if (a.slots[t] < 0) continue;
            int64_t block = a.slots[t] / a.block_size, slot = a.slots[t] % a.block_size;
            for (int64_t h = 0; h < a.kv_heads; h++) {
                int64_t at = ((block * a.kv_heads + h) * a.block_size + slot) * a.dim;
                rotate(k + h * a.dim, (E *)a.k_cache + at, cos, sin, int(a.half), int(a.dim));
                std::memcpy((E *)a.v_cache + at, v + h * a.dim, a.dim * sizeof(E));
            }
        }
    });
}

// The same into codes. Slots share bytes, so one thread stores all tokens of a head.
template <class E, int BITS> void rope_and_encode(const Rope &a, Team &team) {
    bool worth = a.tokens * (a.heads + 2 * a.kv_heads) * a.dim > SMALL;
    auto cos_of = [&](int64_t t) { return a.cos_sin + a.positions[t] * 2 * a.half; };
    team.share_rows(a.tokens, worth, [&](int64_t from, int64_t to) {
        for (int64_t t = from; t < to; t++)
            for (int64_t h = 0; h < a.heads; h++) {
                E *q = (E *)a.q + t * a.q_stride + h * a.dim;
                rotate(q, q, cos_of(t), cos_of(t) + a.half, int(a.half), int(a.dim));
            }
    });
    team.share(a.kv_heads, worth, [&](int64_t h) {
        E rotated[LARGEST_HEAD];
        for (int64_t t = 0; t < a.tokens; t++) {
            if (a.slots[t] < 0) continue;
            int64_t slot = (a.slots[t] / a.block_size * a.kv_heads + h) * a.block_size + a.slots[t] % a.block_size;
            rotate((const E *)a.k + t * a.k_stride + h * a.dim, rotated, cos_of(t), cos_of(t) + a.half, int(a.half), int(a.dim));
            store_coded<BITS, true>(rotated, int(a.dim), slot, (uint8_t *)a.k_cache, (uint16_t *)a.k_params);
            store_coded<BITS, false>((const E *)a.v + t * a.v_stride + h * a.dim, int(a.dim), slot, (uint8_t *)a.v_cache,
                                     (uint16_t *)a.v_params);
        }
    });
}

template <class E> void rope(const Rope &a, Team &team) {
    if (a.bits == 8) return rope_and_encode<E, 8>(a, team);
    a.bits == 4 ? rope_and_encode<E, 4>(a, team) : rope_and_store<E>(a, team);
}

// 0, or 1 for a position out of range, 2 for a slot out of range.
int64_t check(const Rope &a) {
    for (int64_t t = 0; t < a.tokens; t++) {
        if (a.positions[t] < 0 || a.positions[t] >= a.table_rows) return 1;
        if (a.slots[t] < -1 || a.slots[t] >= a.blocks * a.block_size) return 2;
    }
    return 0;
}

}  // namespace

HASTEN_PART void part_rms_norm(const void *args, void *with) {
    auto a = (const RmsNorm *)args;
    auto team = (Team *)with;
    a->is_bf16 ? rms_norm<bf16>(*a, *team) : rms_norm<float>(*a, *team);
}

HASTEN_PART void part_add_rms_norm(const void *args, void *with) {
    auto a = (const AddRmsNorm *)args;
    auto team = (Team *)with;
    a->is_bf16 ? add_rms_norm<bf16>(*a, *team) : add_rms_norm<float>(*a, *team);
}

HASTEN_PART void part_act_mul(const void *args, void *with) {
    auto a = (const ActMul *)args;
    auto team = (Team *)with;
    if (a->is_bf16)
        a->kind ? act_mul<bf16, 1>(*a, *team) : act_mul<bf16, 0>(*a, *team);
    else
        a->kind ? act_mul<float, 1>(*a, *team) : act_mul<float, 0>(*a, *team);
}

HASTEN_PART void part_rope_and_store(const void *args, void *with) {
    auto a = (const Rope *)args;
    auto team = (Team *)with;
    a->is_bf16 ? rope<bf16>(*a, *team) : rope<float>(*a, *team);
}

HASTEN_PART int64_t check_rope(const void *args) { return check(*(const Rope *)args); }

extern "C" {

void hasten_rms_norm(const RmsNorm *a) {
    gather(a->outer * a->inner * a->m > SMALL, a->outer, [&](Team &team) { part_rms_norm(a, &team); });
}

void hasten_add_rms_norm(const AddRmsNorm *a) {
    gather(a->rows * a->m > SMALL, a->rows, [&](Team &team) { part_add_rms_norm(a, &team); });
}

void hasten_act_mul(const ActMul *a) {
    gather(a->rows * a->n > SMALL, a->rows, [&](Team &team) { part_act_mul(a, &team); });
}

// As `check` says; unless it is 0 nothing was written.
int64_t hasten_rope_and_store(const Rope *a) {
    int64_t wrong = check(*a);
    if (!wrong)
        gather(a->tokens * (a->heads + 2 * a->kv_heads) * a->dim > SMALL, a->tokens, [&](Team &team) { part_rope_and_store(a, &team); });
    return wrong;
}

// Returns 0, or 1 for a block out of range; then nothing was written.
int64_t hasten_copy_blocks(const CopyBlocks *a) {
    for (int64_t i = 0; i < a->n; i++)
        if (a->src[i] < 0 || a->src[i] >= a->blocks || a->dst[i] < 0 || a->dst[i] >= a->blocks) return 1;
    gather(a->n * a->block_bytes > (1 << 18), a->n, [&](Team &team) {
        team.share(a->n, true, [&](int64_t i) {
            std::memcpy(a->cache + a->dst[i] * a->block_bytes, a->cache + a->src[i] * a->block_bytes, a->block_bytes);
        });
    });
    return 0;
}
}
