// What two automata accept both, and what one does not accept.
#include <unordered_map>

#include "automaton.h"

Automaton product(const Automaton &left, const Automaton &right, const Budget &budget) {
    Automaton out;
    if (left.states() == 0 || right.states() == 0) return out;
    std::unordered_map<int64_t, int32_t> number;
    std::vector<std::pair<int32_t, int32_t>> pairs;
    auto state_of = [&](int32_t a, int32_t b) {
        auto [found, fresh] = number.try_emplace(int64_t(a) << 32 | b, int32_t(pairs.size()));
        if (fresh) pairs.push_back({a, b});
        return found->second;
    };
    state_of(0, 0);
    for (size_t i = 0; i < pairs.size(); i++) {
        budget.check(int64_t(pairs.size()));
        auto [a, b] = pairs[i];
        int32_t e = left.first[a], f = right.first[b];
        while (e < left.first[a + 1] && f < right.first[b + 1]) {
            int32_t ours = left.edges[e].label, theirs = right.edges[f].label;
            if (ours == theirs) out.edges.push_back({ours, state_of(left.edges[e].next, right.edges[f].next)});
            e += ours <= theirs, f += theirs <= ours;
        }
        out.end_state(left.accepts[a] && right.accepts[b]);
    }
    return out;
}

Automaton complement(const Automaton &from, int32_t labels, const Budget &budget) {
    Automaton out;
    int32_t sink = from.states();  // after a text that no accepted one begins with
    for (int32_t state = 0; state < sink; state++) {
        budget.check(sink);
        int32_t e = from.first[state];
        for (int32_t label = 0; label < labels; label++) {
            bool known = e < from.first[state + 1] && from.edges[e].label == label;
            out.edges.push_back({label, known ? from.edges[e++].next : sink});
        }
        out.end_state(!from.accepts[state]);
    }
    for (int32_t label = 0; label < labels; label++) out.edges.push_back({label, sink});
    out.end_state(true);
    return out;
}
