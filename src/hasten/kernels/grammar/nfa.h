// Automata that guess: concatenation, alternatives and repetition are edges that read nothing (Thompson 1968).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "automaton.h"

struct Fragment {  // what is read on the ways from one state to the other
    int32_t start, end;
};

// Fragments lie one after the other, each in states and links of its own: so the last one can be copied and dropped.
class Nfa {
  public:
    struct Mark {
        int32_t states, links;
    };
    Mark mark() const { return {int32_t(head.size()), int32_t(links.size())}; }
    void drop(Mark since) { head.resize(since.states), links.resize(since.links); }

    int32_t state();
    void join(int32_t from, int32_t to) { link(from, -1, to); }
    void read(int32_t from, const std::vector<int32_t> &labels, int32_t to);
    // `fragment`, which lies between the marks, once more.
    Fragment copy(Fragment fragment, Mark from, Mark to);
    Fragment embed(const Automaton &automaton, const Budget &budget);

    // By the subset construction. `since`: where the fragment begins.
    Automaton determinise(Fragment fragment, Mark since, int32_t labels, const Budget &budget) const;

  private:
    struct Link {
        int32_t set, to, more;  // a set of labels, -1: reads nothing; the next link of the same state, -1: none
    };
    std::vector<int32_t> head;  // a state's first link
    std::vector<Link> links;
    std::vector<std::vector<int32_t>> sets;
    std::unordered_map<std::vector<int32_t>, int32_t, Hash> number;  // of a set
    size_t labels_kept = 0;                                          // in all sets

    void link(int32_t from, int32_t set, int32_t to);
    friend class Subsets;
};
