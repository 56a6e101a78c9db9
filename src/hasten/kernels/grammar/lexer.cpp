#include "lexer.h"

#include <algorithm>

int32_t Lexer::start(const std::vector<int32_t> &terminals) {
    std::vector<Pair> pairs;
    work.spend(int64_t(terminals.size()));
    for (int32_t t : terminals) pairs.push_back({t, 0});
    return intern(std::move(pairs), true);
}

int32_t Lexer::intern(std::vector<Pair> pairs, bool start) {
    if (pairs.empty()) return NOTHING;
    auto [at, fresh] = numbers.emplace(std::make_pair(start, std::move(pairs)), size());
    if (!fresh) return at->second;
    LexerState state{at->first.second, start, false, false, {}, {}, {}, {}};
    state.next.fill(UNKNOWN);
    int32_t highest = INT32_MIN;
    for (auto [t, q] : state.pairs) {
        const Terminal &terminal = grammar.terminals[t];
        if (terminal.act == TOKEN) {
            state.tokens.push_back(t);
            continue;
        }
        state.counted |= terminal.counted();
        state.distinct |= terminal.distinct;
        if (!automaton(t).accepts[q]) continue;
        state.accepted.push_back(t);
        highest = std::max(highest, terminal.priority);
        if (automaton(t).is_complete(q)) state.complete.push_back(t);
    }
    if (grammar.longest) {
        auto low = [&](int32_t t) { return grammar.terminals[t].priority < highest; };
        state.accepted.erase(std::remove_if(state.accepted.begin(), state.accepted.end(), low), state.accepted.end());
    }
    allocated += int64_t(sizeof(LexerState) + state.pairs.size() * sizeof(Pair) * 2 + 160);
    states.push_back(std::move(state));
    return size() - 1;
}

int32_t Lexer::find_next(int32_t state, uint8_t byte) {
    std::vector<Pair> pairs;
    work.spend(1 + int64_t(states[state].pairs.size()));
    for (auto [t, q] : states[state].pairs) {
        if (grammar.terminals[t].act == TOKEN) continue;
        if (int32_t next = automaton(t).step(q, byte); next >= 0) pairs.push_back({t, next});
    }
    int32_t before = size(), next = intern(std::move(pairs), false);
    if (size() > before) work.charge(64);  // a state takes a kilobyte and more
    return states[state].next[byte] = next;
}

std::vector<int32_t> Lexer::compact(const std::vector<uint8_t> &live) {
    std::deque<LexerState> old;
    old.swap(states);
    numbers.clear();
    allocated = 0;
    std::vector<int32_t> renumbered(old.size(), NOTHING);
    for (size_t i = 0; i < old.size(); i++)
        if (live[i]) renumbered[i] = intern(std::move(old[i].pairs), old[i].start);
    return renumbered;
}
