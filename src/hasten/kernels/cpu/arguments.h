// The arguments of each kernel, as native.py packs them, and the kernels as parts of a team's work.
#pragma once

#include <cstdint>

#include "simd.h"
#include "team.h"

namespace {

struct RmsNorm {
    int64_t is_bf16;
    const void *x, *weight;
    void *out;
    int64_t outer, inner, m, x_outer, x_inner, out_outer, out_inner;
    double eps;
};
struct AddRmsNorm {
    int64_t is_bf16;
    void *x;
    const void *delta, *weight;
    void *out;
    int64_t rows, m, x_stride, delta_stride, out_stride;
    double eps;
};
struct ActMul {
    int64_t is_bf16, kind;  // kind: 0 silu, 1 gelu_tanh
    const void *gate_up;
    void *out;
    int64_t rows, n, in_stride, out_stride;
};
struct Rope {
    int64_t is_bf16;
    void *q;
    const void *k, *v;
    void *k_cache, *v_cache;
    const float *cos_sin;
    const int32_t *positions;
    const int64_t *slots;
    int64_t q_stride, k_stride, v_stride, tokens, heads, kv_heads, dim, half, table_rows, blocks, block_size;
    int64_t bits;  // 0: stored as they are; 8, 4: as codes, with params beside them (coded.h)
    void *k_params, *v_params;
};
struct CopyBlocks {
    char *cache;
    const int64_t *src, *dst;
    int64_t n, blocks, block_bytes;
};

template <class E> struct Linear {
    int64_t is_bf16;
    const E *x, *w, *bias;
    E *out;
    int64_t rows, outputs, inner, x_stride, w_stride, out_stride;
};

struct Quantized {
    int64_t is_bf16, bits, zero, has_zeros;  // zero: the zero point of all groups where has_zeros is 0
    const void *x;
    const uint8_t *panels;
    const void *bias;
    void *out;
    int64_t rows, outputs, inner, group, groups, x_stride, out_stride, panel_bytes;
    double unit;  // what the stored scales are multiplied by
};

struct Forest {  // forest.Forest
    const int32_t *nodes, *rows, *tasks, *path_offsets, *paths;
    int64_t node_count, task_count;
    const uint8_t *contexts;    // by node, or null: none is a context
    double temperature, scale;  // of the contexts
};

struct Index {  // base.ViewIndex
    const int32_t *span_offsets, *positions, *runs, *run_offsets, *lengths;
    const int64_t *ancestors;
    const uint8_t *is_tree;
    int64_t spans, groups, words;
    const Forest *forest;  // or null
};

struct Call {
    int64_t is_bf16;
    const Index *index;
    const void *q, *k_cache, *v_cache;
    void *out;
    float *lse;               // or null
    const float *log_weight;  // or null
    int64_t q_stride, out_stride, heads, kv_heads, dim, block_size;
    int64_t window;         // 0 = none
    int64_t deterministic;  // whether a row's bits may not depend on the rows computed with it
    double scale;  // units of log 2 once the kernel has begun
    int64_t bits;  // 0: keys and values as they are; 8, 4: codes, with params beside them (coded.h)
    const void *k_params, *v_params;
    int group() const { return int(heads / kv_heads); }
    int width() const { return int((dim + W - 1) / W * W); }  // floats of an output row while it is accumulated
};

constexpr int LARGEST_HEAD = 512;  // dimensions of a head whose keys and values are codes

// A small product on one thread costs microseconds more at best, and never waits for a core that somebody else has.
template <class Args> bool worth_sharing(const Args &a) { return a.rows * a.outputs * a.inner > (1 << 19); }

}  // namespace

// Linked within one library only: the anonymous types above are one and the same in all its files.
HASTEN_PART void part_rms_norm(const void *args, void *team);
HASTEN_PART void part_add_rms_norm(const void *args, void *team);
HASTEN_PART void part_act_mul(const void *args, void *team);
HASTEN_PART void part_rope_and_store(const void *args, void *team);
HASTEN_PART void part_attention(const void *args, void *team);
HASTEN_PART void part_forest(const void *args, void *team);
HASTEN_PART int64_t forest_is_worth_sharing(const void *args);
HASTEN_PART void count_kv_bytes(int64_t bytes);
// Does `first` and what `claims` gives (Call, Work, Claims), none of more than max_rows rows. Keys and values as they are, or codes.
HASTEN_PART void work_on_numbers(const void *call, int max_rows, const void *first, const void *claims);
HASTEN_PART void work_on_codes(const void *call, int max_rows, const void *first, const void *claims);
HASTEN_PART void part_linear(const void *args, void *team);
HASTEN_PART void part_quantized_linear(const void *args, void *team);
HASTEN_PART int64_t check_rope(const void *args);
