// Classes of code points: those that no part of a program tells apart are one label of its automata.
#pragma once

#include <cstdint>
#include <vector>

#include "error.h"

struct Span {
    int32_t low, high;  // inclusive
};

class Alphabet {
  public:
    // `sets`: of code points, each sorted; surrogates and what lies beyond the last code point do not count.
    Alphabet(const std::vector<std::vector<Span>> &sets, const Budget &budget);

    int32_t classes() const { return int32_t(spans.size()); }
    const std::vector<Span> &spans_of(int32_t label) const { return spans[label]; }

    // The labels of a set, or of a part of one, as the constructor was given it; sorted.
    std::vector<int32_t> labels(const std::vector<Span> &set) const;
    // Of one code point; -1: it is a surrogate or none.
    int32_t label(int32_t point) const;

  private:
    std::vector<int32_t> lows;   // intervals between the bounds that occur, by their lowest code point
    std::vector<int32_t> label_of;  // an interval's label, -1: surrogates and what lies beyond
    std::vector<std::vector<Span>> spans;

    size_t interval(int32_t point) const;
};
