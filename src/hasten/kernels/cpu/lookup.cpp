// Rows of a weight of 8 or 4 bits, as plain numbers: what tokens are looked up in. The layout is quantized.cpp's.
#include <cstring>

#include "half.h"
#include "team.h"

namespace {

constexpr int PANEL = 64;  // outputs

struct Lookup {  // as native.py packs it
    int64_t is_bf16, bits, zero, has_zeros;
    const int64_t *ids;
    const uint8_t *panels;
    void *out;
    int64_t rows, outputs, inner, group, out_stride, panel_bytes;
    double unit;
};

// Levels of one output in one group, and what they are worth.
template <class E> void group_of(const Lookup &a, const uint8_t *at, int64_t lane, int64_t n, E *out) {
    int64_t words = a.group * PANEL * a.bits / 8;
    uint16_t half;
    std::memcpy(&half, at + words + 2 * lane, 2);
    float scale = from_half(half) * float(a.unit);
    int zero = a.has_zeros ? at[words + 2 * PANEL + lane] : int(a.zero);
    float values[256];
    at += 4 * lane;
    if (a.bits == 8) {
        for (int64_t c = 0; c < a.group; c += 4, at += 4 * PANEL)
            for (int i = 0; i < 4; i++) values[c + i] = float(at[i] - zero) * scale;
    } else {
        for (int64_t c = 0; c < a.group; c += 8, at += 4 * PANEL)
            for (int i = 0; i < 4; i++) {
                values[c + i] = float((at[i] & 15) - zero) * scale;
                values[c + 4 + i] = float((at[i] >> 4) - zero) * scale;
            }
    }
    int64_t c = 0;
    for (; c + W <= n; c += W) store(out + c, load(values + c));
    if (c < n) store_n(out + c, load(values + c), int(n - c));
}

template <class E> void look_up(const Lookup &a, Team &team) {
    int64_t groups = (a.inner + a.group - 1) / a.group, bytes = a.panel_bytes / groups;
    team.share_rows(a.rows, a.rows * a.inner > 16384, [&](int64_t from, int64_t to) {
        for (int64_t row = from; row < to; row++) {
            const uint8_t *panel = a.panels + a.ids[row] / PANEL * a.panel_bytes;
            E *out = (E *)a.out + row * a.out_stride;
            for (int64_t g = 0; g < groups; g++)
                group_of(a, panel + g * bytes, a.ids[row] % PANEL, std::min(a.group, a.inner - g * a.group), out + g * a.group);
        }
    });
}

}  // namespace

// Returns 0, or 1 for an id out of range; then nothing was written.
extern "C" int64_t hasten_quantized_rows(const Lookup *a) {
    for (int64_t i = 0; i < a->rows; i++)
        if (a->ids[i] < 0 || a->ids[i] >= a->outputs) return 1;
    gather(a->rows * a->inner > 16384, a->rows, [&](Team &team) { a->is_bf16 ? look_up<bf16>(*a, team) : look_up<float>(*a, team); });
    return 0;
}
