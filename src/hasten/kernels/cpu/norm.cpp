// RMS norm, residual addition fused with it, gated activations, rotary embedding fused with storing keys, block copies.
#include "simd.h"

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

template <class E>
void rms_norm(const E *x, const E *weight, E *out, int64_t outer, int64_t inner, int64_t m, int64_t x_outer, int64_t x_inner,
              int64_t out_outer, int64_t out_inner, float eps) {
    int64_t rows = outer * inner;
#pragma omp parallel for schedule(static) if (rows * m > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        int64_t o = r / inner, i = r % inner;
        normalise(x + o * x_outer + i * x_inner, weight, out + o * out_outer + i * out_inner, int(m), eps);
    }
}

template <class E>
void add_rms_norm(E *x, const E *delta, const E *weight, E *out, int64_t rows, int64_t m, int64_t x_stride, int64_t delta_stride,
                  int64_t out_stride, float eps) {
#pragma omp parallel for schedule(static) if (rows * m > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        E *row = x + r * x_stride;
        const E *add = delta + r * delta_stride;
        int i = 0;
        for (; i + W <= m; i += W) store(row + i, load(row + i) + load(add + i));
        if (i < m) store_n(row + i, load_n(row + i, int(m) - i) + load_n(add + i, int(m) - i), int(m) - i);
        normalise(row, weight, out + r * out_stride, int(m), eps);
    }
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + expv(vmax(0.0f - x, set1(-87.0f)))); }

template <int KIND> inline vf activate(vf x) {
    if (KIND == 0) return x * sigmoid(choose(less(x, set1(-87.0f)), set1(-87.0f), x));  // silu
    // tanh form of gelu: 0.5 (1 + tanh z) = sigmoid(2 z)
    vf z = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x * sigmoid(choose(less(z, set1(-87.0f)), set1(-87.0f), z));
}

template <class E, int KIND>
void act_mul(const E *gate_up, E *out, int64_t rows, int64_t n, int64_t in_stride, int64_t out_stride) {
    // Cut in pieces of columns too, so that one row of a wide layer is shared by the threads.
    const int64_t piece = 4096, pieces = (n + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
    for (int64_t job = 0; job < rows * pieces; job++) {
        int64_t r = job / pieces, i = job % pieces * piece, end = i + piece < n ? i + piece : n;
        const E *gate = gate_up + r * in_stride, *up = gate + n;
        E *to = out + r * out_stride, rounded[W];
        for (; i + W <= end; i += W) {
            store(rounded, activate<KIND>(load(gate + i)));
            store(to + i, load(rounded) * load(up + i));
        }
        if (i < end) {
            store(rounded, activate<KIND>(load_n(gate + i, int(end - i))));
            store_n(to + i, load(rounded) * load_n(up + i, int(end - i)), int(end - i));
        }
    }
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

struct Rope {  // mirrored in native.py
    void *q, *k, *v, *k_cache, *v_cache;
    const float *cos_sin;
    const int32_t *positions;
    const int64_t *slots;
    int64_t q_stride, k_stride, v_stride, tokens, heads, kv_heads, dim, half, table_rows, blocks, block_size;
};

template <class E> void rope_and_store(const Rope &a) {
    int64_t width = (a.heads + 2 * a.kv_heads) * a.dim;
#pragma omp parallel for schedule(static) if (a.tokens * width > SMALL)
    for (int64_t t = 0; t < a.tokens; t++) {
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
}

}  // namespace

extern "C" {

void hasten_rms_norm(int is_bf16, const void *x, const void *weight, void *out, int64_t outer, int64_t inner, int64_t m,
                     int64_t x_outer, int64_t x_inner, int64_t out_outer, int64_t out_inner, float eps) {
    if (is_bf16)
        rms_norm((const bf16 *)x, (const bf16 *)weight, (bf16 *)out, outer, inner, m, x_outer, x_inner, out_outer, out_inner, eps);
    else
        rms_norm((const float *)x, (const float *)weight, (float *)out, outer, inner, m, x_outer, x_inner, out_outer, out_inner,
                 eps);
}

void hasten_add_rms_norm(int is_bf16, void *x, const void *delta, const void *weight, void *out, int64_t rows, int64_t m,
                         int64_t x_stride, int64_t delta_stride, int64_t out_stride, float eps) {
    if (is_bf16)
        add_rms_norm((bf16 *)x, (const bf16 *)delta, (const bf16 *)weight, (bf16 *)out, rows, m, x_stride, delta_stride,
                     out_stride, eps);
    else
        add_rms_norm((float *)x, (const float *)delta, (const float *)weight, (float *)out, rows, m, x_stride, delta_stride,
                     out_stride, eps);
}

// kind: 0 silu, 1 gelu_tanh
void hasten_act_mul(int is_bf16, int kind, const void *gate_up, void *out, int64_t rows, int64_t n, int64_t in_stride,
                    int64_t out_stride) {
    if (is_bf16)
        (kind ? act_mul<bf16, 1> : act_mul<bf16, 0>)((const bf16 *)gate_up, (bf16 *)out, rows, n, in_stride, out_stride);
    else
        (kind ? act_mul<float, 1> : act_mul<float, 0>)((const float *)gate_up, (float *)out, rows, n, in_stride, out_stride);
}

// Returns 0, or 1 for a position out of range, 2 for a slot out of range; then nothing was written.
int hasten_rope_and_store(int is_bf16, const Rope *a) {
    for (int64_t t = 0; t < a->tokens; t++) {
        if (a->positions[t] < 0 || a->positions[t] >= a->table_rows) return 1;
        if (a->slots[t] < -1 || a->slots[t] >= a->blocks * a->block_size) return 2;
    }
    is_bf16 ? rope_and_store<bf16>(*a) : rope_and_store<float>(*a);
    return 0;
}

// Returns 0, or 1 for a block out of range; then nothing was written.
int hasten_copy_blocks(char *cache, const int64_t *src, const int64_t *dst, int64_t n, int64_t blocks, int64_t block_bytes) {
    for (int64_t i = 0; i < n; i++)
        if (src[i] < 0 || src[i] >= blocks || dst[i] < 0 || dst[i] >= blocks) return 1;
#pragma omp parallel for schedule(static) if (n * block_bytes > (1 << 18))
    for (int64_t i = 0; i < n; i++) std::memcpy(cache + dst[i] * block_bytes, cache + src[i] * block_bytes, block_bytes);
    return 0;
}
}
