// x @ w^T with a fixed order of summation for each output, whatever the batch: one accumulator vector over the row of w from left
// to right, then its lanes. So any blocking over rows and outputs gives the same bits, and so does any number of threads.
#include "arguments.h"

namespace {

// One step of the sum: the elements that one vector instruction multiplies.
template <class E> constexpr int step_of() { return W; }
template <class E> inline vf step(vf acc, const E *a, const E *b) { return fma(load(a), load(b), acc); }
template <class E> inline vf last_step(vf acc, const E *a, const E *b, int n) { return fma(load_n(a, n), load_n(b, n), acc); }
#if defined(HASTEN_DOT_BF16)
template <> constexpr int step_of<bf16>() { return 2 * W; }
inline vf step(vf acc, const bf16 *a, const bf16 *b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}
inline vf last_step(vf acc, const bf16 *a, const bf16 *b, int n) {
    __mmask32 m = (1u << n) - 1;
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_maskz_loadu_epi16(m, a), (__m512bh)_mm512_maskz_loadu_epi16(m, b));
}
#endif


// M rows by N outputs, their accumulators in registers. While few rows leave the memory as the limit, the next N rows of w are
// fetched: rows are too short for the processor to do so by itself.
template <class E, int M, int N> void block(const Linear<E> &a, int64_t row, int64_t output) {
    const E *x = a.x + row * a.x_stride, *w = a.w + output * a.w_stride;
    vf acc[M][N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = vf{};
    constexpr int STEP = step_of<E>();
    int64_t i = 0;
    for (; i + STEP <= a.inner; i += STEP)
        for (int n = 0; n < N; n++) {
            if (M <= 4) __builtin_prefetch(w + (n + N) * a.w_stride + i, 0, 2);
            for (int m = 0; m < M; m++) acc[m][n] = step(acc[m][n], x + m * a.x_stride + i, w + n * a.w_stride + i);
        }
    if (i < a.inner)
        for (int n = 0; n < N; n++)
            for (int m = 0; m < M; m++)
                acc[m][n] = last_step(acc[m][n], x + m * a.x_stride + i, w + n * a.w_stride + i, int(a.inner - i));
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float sum = sum_lanes(acc[m][n]);
            if (a.bias) sum += widen(a.bias[output + n]);
            narrow(sum, a.out + (row + m) * a.out_stride + output + n);
        }
}

template <class E, int M, int N> void strip(const Linear<E> &a, int64_t row, int64_t from, int64_t to) {
    int64_t output = from;
    for (; output + N <= to; output += N) block<E, M, N>(a, row, output);
    for (; output < to; output++) block<E, M, 1>(a, row, output);
}

template <class E> void linear(const Linear<E> &a, Team &team) {
    constexpr int M = 4, N = W == 16 ? 6 : 2;  // fills the registers
    constexpr int64_t ROWS = 64;               // rows of x that stay in the second-level cache while weights stream by
    // Enough outputs to a job that rows of w are read in long streams, few enough that threads share evenly.
    int64_t most = (a.outputs + 15) / 16, width = (int64_t(1) << 18) / (a.inner * int64_t(sizeof(E)) + 1);
    width = ((width < most ? width : most) + 23) / 24 * 24;
    int64_t across = (a.outputs + width - 1) / width, down = (a.rows + ROWS - 1) / ROWS;
    team.share(across * down, worth_sharing(a), [&](int64_t job) {
        int64_t from = job % across * width, to = from + width < a.outputs ? from + width : a.outputs;
        int64_t first = job / across * ROWS, last = first + ROWS < a.rows ? first + ROWS : a.rows;
        if (last - first == 1) {
            strip<E, 1, 8>(a, first, from, to);
        } else if (last - first == 2) {
            strip<E, 2, W == 16 ? 8 : 4>(a, first, from, to);
        } else {
            for (int64_t output = from; output < to; output += N) {  // the outputs' weights stay in the first-level cache
                int64_t end = output + N < to ? output + N : to, row = first;
                for (; row + M <= last; row += M) strip<E, M, N>(a, row, output, end);
                if (last - row == 3) strip<E, 3, N>(a, row, output, end);
                if (last - row == 2) strip<E, 2, N>(a, row, output, end);
                if (last - row == 1) strip<E, 1, N>(a, row, output, end);
            }
        }
    });
}

}  // namespace

HASTEN_PART void part_linear(const void *args, void *with) {
    auto a = (const Linear<void> *)args;
    auto team = (Team *)with;
    a->is_bf16 ? linear(*(const Linear<bf16> *)a, *team) : linear(*(const Linear<float> *)a, *team);
}

extern "C" void hasten_linear(const Linear<void> *a) {
    gather(worth_sharing(*a), [&](Team &team) { part_linear(a, &team); });
}
