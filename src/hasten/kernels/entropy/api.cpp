// What Python calls, by what the processor offers.
#include <atomic>

#include "tables.h"

namespace plain { int64_t decode(const Decode *); int64_t place(const Place *); }
#if defined(__x86_64__)
namespace avx2 { int64_t decode(const Decode *); int64_t place(const Place *); }
namespace avx512 { int64_t decode(const Decode *); int64_t place(const Place *); }
#endif

namespace {

struct Variant {
    int64_t (*decode)(const Decode *);
    int64_t (*place)(const Place *);
};

struct Variants {
    Variant all[3];
    int count = 0;
    Variants() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (vectors && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq"))
            all[count++] = {avx512::decode, avx512::place};
        if (vectors) all[count++] = {avx2::decode, avx2::place};
#endif
        all[count++] = {plain::decode, plain::place};
    }
};

const Variants variants;
std::atomic<int> chosen{0};

const Variant &variant() { return variants.all[chosen.load(std::memory_order_relaxed)]; }

}  // namespace

int32_t hasten_entropy_interface() { return 2; }  // raise it here and in native.py whenever api.h changes

int32_t hasten_entropy_variants() { return variants.count; }

int32_t hasten_entropy_use(int32_t variant) {
    if (variant < 0 || variant >= variants.count) return int32_t(BAD_ARGUMENT);
    chosen = variant;
    return 0;
}

int64_t hasten_entropy_decode(const Decode *a) {
    if (!sizes_fit(a->rows, a->channels, a->alphabet) || a->bytes < 0 || a->escape_count < 0 || a->escape >= a->alphabet ||
        (a->base && a->base_rows <= 0) || (a->place && (a->place->rows != a->rows || a->place->heads * a->place->dim != a->channels)))
        return BAD_ARGUMENT;
    return variant().decode(a);
}

int64_t hasten_entropy_place(const Place *a) { return variant().place(a); }
