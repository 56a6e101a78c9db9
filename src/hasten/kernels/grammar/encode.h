// From code points to the bytes they are written in.
#pragma once

#include "automaton.h"
#include "expression.h"

struct Arc {
    int32_t state;
    uint8_t low, high;  // inclusive
    int32_t next;
};

struct ByteGraph {  // deterministic; state 0 is the start
    std::vector<Arc> arcs;
    std::vector<uint8_t> accepts;  // its size is the number of states
};

ByteGraph encode_text(const PointLanguage &language, const Budget &budget);
// In quotes, each character in its shortest JSON form.
ByteGraph encode_string(const PointLanguage &language, const Budget &budget);
// Every JSON string.
ByteGraph any_string();
