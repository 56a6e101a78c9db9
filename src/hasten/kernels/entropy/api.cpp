// What Python calls, by what the processor offers.
#include <atomic>

#include "tables.h"

namespace plain { int64_t decode(const Decode *); }
#if defined(__x86_64__)
namespace avx2 { int64_t decode(const Decode *); }
namespace avx512 { int64_t decode(const Decode *); }
#endif

namespace {

using Decoder = int64_t (*)(const Decode *);

struct Variants {
    Decoder all[3];
    int count = 0;
    Variants() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (vectors && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq"))
            all[count++] = avx512::decode;
        if (vectors) all[count++] = avx2::decode;
#endif
        all[count++] = plain::decode;
    }
};

const Variants variants;
std::atomic<int> chosen{0};

}  // namespace

int32_t hasten_entropy_interface() { return 1; }  // raise it here and in native.py whenever api.h changes

int32_t hasten_entropy_variants() { return variants.count; }

int32_t hasten_entropy_use(int32_t variant) {
    if (variant < 0 || variant >= variants.count) return int32_t(BAD_ARGUMENT);
    chosen = variant;
    return 0;
}

int64_t hasten_entropy_decode(const Decode *a) {
    if (!sizes_fit(a->rows, a->channels, a->alphabet) || a->bytes < 0 || a->escape_count < 0 || a->escape >= a->alphabet ||
        (a->base && a->base_rows <= 0))
        return BAD_ARGUMENT;
    return variants.all[chosen.load(std::memory_order_relaxed)](a);
}
