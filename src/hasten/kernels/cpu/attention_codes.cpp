// Attention over keys and values that are codes of 8 or 4 bits.
#include "attention_worker.h"
#include "coded_tile.h"

HASTEN_PART void work_on_codes(const void *call, int max_rows, const void *first, const void *claims) {
    (((const Call *)call)->bits == 8 ? work_with<Worker<CodedTile<8>>> : work_with<Worker<CodedTile<4>>>)(call, max_rows, first, claims);
}
