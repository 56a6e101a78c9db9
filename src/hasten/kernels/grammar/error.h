// Why something cannot be compiled, and what compiling it may cost.
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
