// For how many bytes the states of an automaton cannot be told apart. Those of a counted pattern, one for each count, differ only close
// to its bounds, which no token reaches from most of them.
#pragma once

#include <cstdint>
#include <vector>

struct Dfa;

class Likeness {
  public:
    Likeness() = default;  // no state is like another one
    explicit Likeness(const Dfa &dfa);

    // Whether two states accept, and go on, alike over all texts of up to so many bytes; false where that is not known.
    bool alike(int32_t a, int32_t b, int32_t bytes) const { return bytes <= rounds && class_of(a, bytes) == class_of(b, bytes); }
    // States with the same number are alike for a few bytes; -1: nothing is known.
    int32_t roughly(int32_t state) const { return rounds < FEW ? -1 : class_of(state, FEW); }
    int64_t bytes() const { return int64_t(of.size() * sizeof(int32_t) + classes.size() * sizeof(Class)); }

  private:
    static constexpr int32_t FEW = 8;
    struct Class {
        int32_t from, round;  // it was split off that class in that round
    };
    int32_t rounds = -1;       // that are known; beyond all where no state can be told apart any more
    std::vector<int32_t> of;   // a state's class in the end
    std::vector<Class> classes;

    int32_t class_of(int32_t state, int32_t round) const {
        int32_t at = of[state];
        while (classes[at].round > round) at = classes[at].from;
        return at;
    }
    friend class Splitting;
};
