// Attention over keys and values that lie in the cache as they are.
#include "attention_worker.h"

namespace {

template <class E> struct Whole {
    using Number = E;
    static constexpr int BITS = 0;
    static constexpr bool BY_DOT = false;
    static int64_t entry_bytes(int64_t dim) { return dim * 2 * int64_t(sizeof(E)); }  // key and value
    const E *keys, *values;
    Whole(const Call &call, int, Pieces &) : keys((const E *)call.k_cache), values((const E *)call.v_cache) {}
};

}  // namespace

HASTEN_PART void work_on_numbers(const void *call, int max_rows, const void *first, const void *claims) {
    (((const Call *)call)->is_bf16 ? work_with<Worker<Whole<bf16>>> : work_with<Worker<Whole<float>>>)(call, max_rows, first, claims);
}
