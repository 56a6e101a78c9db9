// Expressions of languages.py, which are sent as programs in postfix order, as automata.
#pragma once

#include <cstddef>
#include <cstdint>

#include "alphabet.h"
#include "automaton.h"

struct PointLanguage {  // of code points, not yet of bytes
    Alphabet alphabet;
    Automaton automaton;  // minimal; labels are classes of the alphabet
};

PointLanguage read_program(const uint8_t *program, size_t size, const Budget &budget);

// One of the words, which are lists of labels and sorted: minimal but for the order of its states.
Automaton any_word(const std::vector<std::vector<int32_t>> &words, const Budget &budget);
