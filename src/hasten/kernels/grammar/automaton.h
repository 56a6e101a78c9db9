// Deterministic automata over small integers: classes of code points, later of bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "error.h"

constexpr size_t MOST_EDGES = 1 << 21;  // minimising so many takes some 100 MB

struct Edge {
    int32_t label, next;
};

struct Automaton {  // from state 0; without states: nothing is accepted
    std::vector<int32_t> first{0};  // state s has edges [first[s], first[s + 1]), by label; where there is none, the text is not accepted
    std::vector<Edge> edges;
    std::vector<uint8_t> accepts;

    int32_t states() const { return int32_t(accepts.size()); }
    void end_state(bool accepting) {  // the edges added since the last state are this one's
        if (edges.size() > MOST_EDGES) throw Error{"its automaton has too many edges"};
        first.push_back(int32_t(edges.size()));
        accepts.push_back(accepting);
    }
};

// The smallest automaton of the same language, all of whose states lead to acceptance, numbered in breadth-first order.
Automaton minimise(const Automaton &from, const Budget &budget);

// What both accept.
Automaton product(const Automaton &left, const Automaton &right, const Budget &budget);

// What is not accepted, of all texts of labels 0 .. labels - 1.
Automaton complement(const Automaton &from, int32_t labels, const Budget &budget);

// Of lists of integers, for hash tables. A multiplication spreads each number over the high bits, the shift brings them down again.
struct Hash {
    size_t operator()(const std::vector<int32_t> &numbers) const {
        uint64_t hash = numbers.size();
        for (int32_t number : numbers) {
            hash = (hash ^ uint32_t(number)) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 29;
        }
        return hash;
    }
};
