// Which terminals the bytes since the last lexeme's end may still become: sorted vectors of (terminal, state of its automaton), each
// kept once, with transitions that are found when they are first taken. Nothing here knows of stacks.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "blob.h"
#include "dfa.h"

struct Pair {
    int32_t terminal, state;
    bool operator<(const Pair &other) const { return terminal != other.terminal ? terminal < other.terminal : state < other.state; }
    bool operator==(const Pair &other) const { return terminal == other.terminal && state == other.state; }
};

struct LexerState {
    std::vector<Pair> pairs;
    bool start;                     // no byte has been read: nothing can end
    bool counted, distinct;         // some terminal's characters are counted; some terminal's text must be new
    std::vector<int32_t> accepted;  // terminals that match the bytes
    std::vector<int32_t> complete;  // those of them that cannot go on
    std::vector<int32_t> tokens;    // of a start: terminals that are one token
    std::array<int32_t, 256> next;  // -1: no terminal goes on, UNKNOWN
};

class Lexer {
  public:
    static constexpr int32_t NOTHING = -1, UNKNOWN = -2;

    Lexer(const Grammar &grammar, std::vector<std::shared_ptr<const Dfa>> automata, Work &work)
        : grammar(grammar), automata(std::move(automata)), work(work) {}

    int32_t start(const std::vector<int32_t> &terminals);
    int32_t intern(std::vector<Pair> pairs, bool start);  // NOTHING for none
    int32_t step(int32_t state, uint8_t byte) {
        int32_t next = states[state].next[byte];
        return next != UNKNOWN ? next : find_next(state, byte);
    }
    const LexerState &operator[](int32_t state) const { return states[state]; }
    const Dfa &automaton(int32_t terminal) const { return *automata[grammar.terminals[terminal].language]; }
    int32_t size() const { return int32_t(states.size()); }
    int64_t bytes() const { return allocated; }
    std::vector<int32_t> compact(const std::vector<uint8_t> &live);  // as Pool's

  private:
    const Grammar &grammar;
    std::vector<std::shared_ptr<const Dfa>> automata;  // of languages
    Work &work;
    std::deque<LexerState> states;
    std::map<std::pair<bool, std::vector<Pair>>, int32_t> numbers;
    int64_t allocated = 0;

    int32_t find_next(int32_t state, uint8_t byte);
};
