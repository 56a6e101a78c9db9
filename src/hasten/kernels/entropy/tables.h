// Tables as the coder reads them: whole groups of LANES channels.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "api.h"

namespace {  // each instruction set has its own: the linker must not give one's to another

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

struct Tables {
    std::unique_ptr<uint16_t, Free> counts;  // [alphabet + 1, width]
    int64_t width = 0;

    // 0 or a Fault. A channel that is not there has one symbol of all the probability, which leaves its state as it is.
    int64_t fill(const uint16_t *from, int64_t channels, int64_t alphabet) {
        width = (channels + LANES - 1) / LANES * LANES;
        counts.reset(static_cast<uint16_t *>(std::aligned_alloc(64, size_t((alphabet + 1) * width) * sizeof(uint16_t))));
        if (!counts) return NO_MEMORY;
        for (int64_t s = 0; s <= alphabet; ++s) {
            uint16_t *row = counts.get() + s * width;
            std::memcpy(row, from + s * channels, size_t(channels) * sizeof(uint16_t));
            for (int64_t c = channels; c < width; ++c) row[c] = s ? TOTAL : 0;
            for (int64_t c = 0; c < channels; ++c) {
                if (s == 0 ? row[c] != 0 : row[c] <= row[c - width]) return BAD_TABLE;
                if (s == alphabet && row[c] != TOTAL) return BAD_TABLE;
            }
        }
        return 0;
    }
};

inline bool sizes_fit(int64_t rows, int64_t channels, int64_t alphabet) {
    constexpr int64_t most = int64_t(1) << 40;
    return rows >= 0 && channels > 0 && channels <= (1 << 20) && alphabet >= 2 && alphabet <= MOST_SYMBOLS && rows <= most / channels;
}

}  // namespace
