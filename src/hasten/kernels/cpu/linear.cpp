// x @ w^T with a fixed order of summation for each output, whatever the batch: one accumulator vector over the row of w from left
// to right, then its lanes. So any blocking over rows and outputs gives the same bits, and so does any number of threads.
#include "arguments.h"
#include "dot.h"

namespace {

#if defined(__AVX512F__)
// Sums of four rows (quarters) by n outputs, at most four.
template <class E> void finish(const Linear<E> &a, int64_t row, int64_t output, int n, vf sums) {
    if (a.bias) sums += (vf)_mm512_broadcast_f32x4(_mm512_castps512_ps128(load_n(a.bias + output, n)));
    E rounded[W];
    store(rounded, sums);
    for (int m = 0; m < 4; m++) {
        E *to = a.out + (row + m) * a.out_stride + output;
        n == 4 ? std::memcpy(to, rounded + 4 * m, 4 * sizeof(E)) : std::memcpy(to, rounded + 4 * m, n * sizeof(E));
    }
}
#endif

// M rows by N outputs, their accumulators in registers. Where they come from memory, the next N rows of w are fetched: rows
// are too short for the processor to do so by itself.
template <class E, int M, int N, bool FETCH> void block(const Linear<E> &a, int64_t row, int64_t output) {
    const E *x = a.x + row * a.x_stride, *w = a.w + output * a.w_stride;
    vf acc[M][N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = vf{};
    constexpr int STEP = step_of<E>();
    int64_t i = 0;
    for (; i + STEP <= a.inner; i += STEP) {
        if constexpr (W == 16) {
            for (int n = 0; n < N; n++) {
                if (FETCH) __builtin_prefetch(w + (n + N) * a.w_stride + i, 0, 2);
                for (int m = 0; m < M; m++) acc[m][n] = step(acc[m][n], x + m * a.x_stride + i, w + n * a.w_stride + i);
            }
        } else if constexpr (M == 5) {  // too many for whole steps: their parts after one another
            for (int n = 0; FETCH && n < N; n++) __builtin_prefetch(w + (n + N) * a.w_stride + i, 0, 2);
            for (int p = 0; p < parts_of<E>(); p++) {
                vf of_w[N];
                for (int n = 0; n < N; n++) of_w[n] = part(w + n * a.w_stride + i, p);
                for (int m = 0; m < M; m++) {
                    vf of_x = part(x + m * a.x_stride + i, p);
                    for (int n = 0; n < N; n++) acc[m][n] = fma(of_x, of_w[n], acc[m][n]);
                }
            }
        } else {  // with few registers those of w are kept, of which there are fewer
            for (int n = 0; FETCH && n < N; n++) __builtin_prefetch(w + (n + N) * a.w_stride + i, 0, 2);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++) acc[m][n] = step(acc[m][n], x + m * a.x_stride + i, w + n * a.w_stride + i);
        }
    }
    if (i < a.inner)
        for (int n = 0; n < N; n++)
            for (int m = 0; m < M; m++)
                acc[m][n] = last_step(acc[m][n], x + m * a.x_stride + i, w + n * a.w_stride + i, int(a.inner - i));
    int done = 0;
#if defined(__AVX512F__)
    if constexpr (M == 4) {  // sixteen sums in as many instructions as four, one by one
        for (; done + 2 <= N; done += 4) {
            vf parts[4];
            for (int n = 0; n < 4; n++) {
                int from = done + n < N ? done + n : done;
                parts[n] = fold(acc[0][from], acc[1][from], acc[2][from], acc[3][from]);
            }
            finish(a, row, output + done, N - done < 4 ? N - done : 4, sum_quarters(parts[0], parts[1], parts[2], parts[3]));
        }
    }
#endif
    for (; done < N; done++)
        for (int m = 0; m < M; m++) {
            float sum = sum_lanes(acc[m][done]);
            if (a.bias) sum += widen(a.bias[output + done]);
            narrow(sum, a.out + (row + m) * a.out_stride + output + done);
        }
}

template <class E, int M, int N, bool FETCH> void strip(const Linear<E> &a, int64_t row, int64_t from, int64_t to) {
    int64_t output = from;
    for (; output + N <= to; output += N) block<E, M, N, FETCH>(a, row, output);
    for (; output < to; output++) block<E, M, 1, FETCH>(a, row, output);
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
        int64_t first = job / across * ROWS, last = first + ROWS < a.rows ? first + ROWS : a.rows, rows = last - first;
        if (rows == 1) {
            strip<E, 1, 8, true>(a, first, from, to);
        } else if (rows == 2) {
            strip<E, 2, W == 16 ? 8 : 4, true>(a, first, from, to);
        } else {
            for (int64_t output = from; output < to; output += N) {  // the outputs' weights stay in the first-level cache
                int64_t end = output + N < to ? output + N : to, row = first;
                // A lone row behind others takes about as long as four: with few registers it is made one of five.
                bool five = W == 8 && rows % M == 1;
                int64_t whole = five ? last - 5 : last;
                if (row + M <= whole) strip<E, M, N, true>(a, row, output, end), row += M;
                for (; row + M <= whole; row += M) strip<E, M, N, false>(a, row, output, end);
                if constexpr (W == 8) {
                    if (five) {
                        strip<E, 5, N, true>(a, row, output, end);
                        continue;
                    }
                }
                if (last - row == 3) strip<E, 3, N, true>(a, row, output, end);
                if (last - row == 2) strip<E, 2, N, false>(a, row, output, end);
                if (last - row == 1) strip<E, 1, N, false>(a, row, output, end);
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
    gather(worth_sharing(*a), a->rows, [&](Team &team) { part_linear(a, &team); });
}
