// Why something cannot be compiled or gone on with, and what that may cost.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

struct Error {  // thrown inside the library only
    std::string what;
};

inline double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Budget {
    double until;  // as now_s has it
    int64_t most_states;

    // Called in every loop that grows with the input.
    void check(int64_t states) const {
        if (states > most_states) throw Error{"it takes more than " + std::to_string(most_states) + " states"};
        if (now_s() > until) throw Error{"compiling it takes too long"};
    }
};

// What one call may take that others wait for, such as a mask. Counted in steps of some 20 ns, not measured: so it does not depend on
// what else the machine does. As each step may keep something, it bounds what a call can add to memory too.
class Work {
  public:
    static constexpr int64_t MOST = 1 << 24;

    void begin(int64_t most = MOST) { left = most; }
    void spend(int64_t steps) {
        if ((left -= steps) < 0) throw Error{"too much is possible here: following all of it takes too long"};
    }

    // What is done already, and kept: the next step says that it was too much.
    void charge(int64_t steps) { left -= steps; }

  private:
    int64_t left = MOST;
};
