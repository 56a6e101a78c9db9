// Regular languages as deterministic automata of bytes: what terminals are matched with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "error.h"
#include "likeness.h"

struct Dfa {  // minimal; state 0 is the start; -1 = dead; every state leads to acceptance
    int32_t states = 0;  // 0: the language is empty
    int32_t classes = 0;
    uint8_t class_of[256] = {};
    std::vector<int32_t> next;     // [states * classes], -1 dead
    std::vector<uint8_t> accepts;  // [states]
    // Of those that are shared (languages.h):
    uint64_t number = 0;  // never given twice
    Likeness likeness;

    int32_t step(int32_t state, uint8_t byte) const { return next[size_t(state) * classes + class_of[byte]]; }
    bool is_complete(int32_t state) const {  // whether a text that leads there is accepted and cannot go on
        for (int32_t c = 0; c < classes; c++)
            if (next[size_t(state) * classes + c] >= 0) return false;
        return accepts[state];
    }
    int64_t bytes() const { return int64_t(sizeof(Dfa) + next.size() * 4 + accepts.size()) + likeness.bytes(); }
};

// What form a language is written in (`Form` of grammar.py).
enum { TEXT = 0, STRING = 1, ANY_STRING = 2 };

// `program`: as `program` of languages.py makes it; not read for ANY_STRING. Equal languages give equal automata. Throws Error.
Dfa compile_language(const uint8_t *program, size_t size, int form, const Budget &budget);
