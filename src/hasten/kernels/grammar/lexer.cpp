#include "lexer.h"

#include <algorithm>

int32_t Lexer::start(const std::vector<int32_t> &terminals) {
    std::vector<Pair> pairs;
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
        const int32_t *edges = &automaton(t).next[q * automaton(t).classes];
        if (std::all_of(edges, edges + automaton(t).classes, [](int32_t next) { return next < 0; })) state.complete.push_back(t);
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
    for (auto [t, q] : states[state].pairs) {
        if (grammar.terminals[t].act == TOKEN) continue;
        if (int32_t next = automaton(t).step(q, byte); next >= 0) pairs.push_back({t, next});
    }
    int32_t next = intern(std::move(pairs), false);
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

namespace {

// Before the first quotation mark, between characters, in an escape; after the first of a pair of surrogates, and in its second.
enum { BEFORE, PLAIN, ESCAPE, U, UD, HEX3, HEX2, HEX1, HIGH2, HIGH1, LOW, LOW_ESCAPE, LOW4, LOW3, LOW2, LOW1 };

}  // namespace

bool Scan::between(int32_t state) { return state == PLAIN; }

Scan Scan::step(int32_t state, uint8_t byte) {
    switch (state) {
        case BEFORE:
            return {byte == '"' ? PLAIN : BEFORE, false, false};
        case ESCAPE:
            return {byte == 'u' ? U : PLAIN, false, false};
        case U:
            return {byte == 'D' || byte == 'd' ? UD : HEX3, false, false};
        case UD:  // D8 to DB is the first half of a pair
            return {byte == '8' || byte == '9' || byte == 'A' || byte == 'B' || byte == 'a' || byte == 'b' ? HIGH2 : HEX2, false, false};
        case HEX1:
        case LOW1:
            return {PLAIN, false, false};
        case LOW:
            if (byte == '\\') return {LOW_ESCAPE, false, false};
            break;
        case PLAIN:
            break;
        default:  // one of several digits
            return {state + 1, false, false};
    }
    if (byte == '"') return {BEFORE, false, true};
    if (byte == '\\') return {ESCAPE, true, false};
    return {PLAIN, (byte & 0xC0) != 0x80, false};
}
