// Canonical LR(1) automata, built state by state as they are reached. Conflicts are no errors: an action table with several entries
// gives several outcomes. Canonical, because then a terminal with an action in the top state is one that may really come next.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "blob.h"
#include "error.h"
#include "sets.h"

class Lr {
  public:
    static constexpr int64_t MOST_BYTES = 128 << 20;  // states are never forgotten: stacks refer to them

    // `usable[t]`: whether terminal t matches any text; productions that no text comes of are left out. Throws Error where nothing is
    // left, and later where a state is too much for `work` or MOST_BYTES: then nothing has changed.
    Lr(const Grammar &grammar, const std::vector<uint8_t> &usable, Work &work);

    struct Item {
        int32_t production, dot, ahead;  // ahead: a set of terminals
        bool operator==(const Item &other) const {
            return production == other.production && dot == other.dot && ahead == other.ahead;
        }
        bool operator<(const Item &other) const {
            if (production != other.production) return production < other.production;
            return dot != other.dot ? dot < other.dot : ahead < other.ahead;
        }
    };
    struct State {
        std::vector<std::pair<int32_t, Item>> moves;  // (symbol after the dot, item), sorted by symbol
        std::vector<Item> finished;
        int32_t terminals;  // that have an action: a set, without the end of text
        bool ends;          // the text may end
    };

    static constexpr int32_t START = 0;
    const State &operator[](int32_t state) const { return states[state]; }
    const std::vector<int32_t> &terminals(int32_t state) const { return sets[states[state].terminals]; }
    int32_t size() const { return int32_t(states.size()); }
    int32_t conflicts() const { return conflicting; }
    const Production &production(int32_t number) const { return productions[number]; }

    // The state after `symbol` (terminal t: t, nonterminal n: -1 - n), -1: none.
    int32_t go(int32_t state, int32_t symbol);
    bool reduces(const Item &finished, int32_t terminal) const { return sets.has(finished.ahead, terminal); }
    int64_t bytes() const { return allocated + sets.bytes() + int64_t(gotos.size()) * 40; }

  private:
    Work &work;
    int32_t end;  // the terminal that stands for the end of text
    std::vector<Production> productions;
    std::vector<std::vector<int32_t>> of;  // nonterminal -> its productions
    std::vector<int32_t> first;            // nonterminal -> set of terminals
    Sets sets;
    std::vector<State> states;
    std::map<std::vector<Item>, int32_t> kernels;
    std::unordered_map<uint64_t, int32_t> gotos;
    int32_t conflicting = 0;
    int64_t allocated = 0;

    void keep_productive(const Grammar &grammar, const std::vector<uint8_t> &usable);
    void find_first();
    std::vector<int32_t> by_beginnings() const;
    int32_t unite(int32_t a, int32_t b) { return work.spend(1 + int64_t(sets[a].size() + sets[b].size()) / 16), sets.unite(a, b); }
    int32_t first_of(int32_t symbol) { return symbol < 0 ? first[-1 - symbol] : sets.intern({symbol}); }
    int32_t state_of(std::vector<Item> kernel);
    State close(const std::vector<Item> &kernel);
    void count_conflicts(const State &state);
};
