#include "compiled.h"

#include <algorithm>

#include "languages.h"

namespace {

constexpr int32_t MOST_LANGUAGE_STATES = 20'000;

std::vector<std::shared_ptr<const Dfa>> compile(const Grammar &grammar, double most_s) {
    Budget budget{now_s() + most_s, MOST_LANGUAGE_STATES};
    std::vector<std::shared_ptr<const Dfa>> automata;
    for (const Language &language : grammar.languages) automata.push_back(shared_automaton(language, budget));
    return automata;
}

Grammar read_for(const Vocabulary &vocabulary, const uint8_t *blob, int64_t size) {
    Grammar grammar = read_blob(blob, size);
    for (const Terminal &one : grammar.terminals)
        if (one.act == TOKEN && (one.argument < 0 || one.argument >= vocabulary.tokens))
            throw Error{"grammar: token " + std::to_string(one.argument) + " is not in the vocabulary"};
    return grammar;
}

}  // namespace

Position::~Position() {
    // One after the other: a long history must not overflow the stack.
    for (auto next = std::move(before); next && next.use_count() == 1;) next = std::move(next->before);
}

State::State(Compiled &grammar) : grammar(grammar), position(std::make_shared<Position>()) {
    position->threads = grammar.machine.begin();
    grammar.states.insert(this);
}
State::State(const State &other) : grammar(other.grammar), position(other.position) { grammar.states.insert(this); }
State::~State() { grammar.states.erase(this); }

Compiled::Compiled(const Vocabulary &vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes)
    : Compiled(vocabulary, read_for(vocabulary, blob, size), most_s, most_bytes) {}

Compiled::Compiled(const Vocabulary &vocabulary, Grammar grammar, double most_s, int64_t most_bytes)
    : vocabulary(vocabulary), machine(grammar, compile(grammar, most_s)), most_bytes(most_bytes), levels(vocabulary.deepest + 1) {}

bool Compiled::advance(State &state, int32_t token) {
    if (token < 0 || token >= vocabulary.tokens) return false;
    const Threads &from = state.position->threads;
    Threads reached, next;
    if (vocabulary.is_end(token)) {
        // Nothing can follow; a grammar may have the same token inside a text too.
        machine.token(from, token, reached);
        if (reached.empty() && !machine.ended(from)) return false;
    } else {
        std::string_view text = vocabulary.text(token);
        if (!text.empty()) reached = from;
        for (uint8_t byte : text) {
            machine.step(reached, byte, next);
            reached.swap(next);
        }
        machine.token(from, token, reached);
        if (reached.empty()) return false;
    }
    state.position = std::make_shared<Position>(Position{std::move(reached), state.position});
    return true;
}

int32_t Compiled::match(const State &state, const uint8_t *text, int32_t size) {
    Threads at = state.position->threads, next;
    for (int32_t i = 0; i < size; i++) {
        machine.step(at, text[i], next);
        if (next.empty()) return i;
        at.swap(next);
    }
    return size;
}

int32_t Compiled::forced(const State &state, uint8_t *out, int32_t size) {
    Threads at = state.position->threads, next, only;
    std::vector<int32_t> tokens;
    for (int32_t count = 0;; count++) {
        machine.tokens(at, tokens);
        if (count == size || !tokens.empty() || machine.ended(at)) return count;
        int32_t found = 0;
        for (int32_t byte = 0; byte < 256 && found < 2; byte++) {
            machine.step(at, uint8_t(byte), next);
            if (next.empty()) continue;
            found++;
            out[count] = uint8_t(byte);
            only = next;
        }
        if (found != 1) return count;
        at.swap(only);
    }
}

void Compiled::fill_plain(const State &state, int32_t *mask) {
    std::fill(mask, mask + vocabulary.words, 0);
    const Threads &threads = state.position->threads;
    auto set = [&](int32_t token) { mask[token >> 5] |= int32_t(1u << (token & 31)); };
    if (machine.ended(threads)) std::for_each(vocabulary.ends.begin(), vocabulary.ends.end(), set);
    std::vector<int32_t> tokens;
    machine.tokens(threads, tokens);
    std::for_each(tokens.begin(), tokens.end(), set);
    walk(vocabulary.trie, threads, mask);
}

void Compiled::walk(const Trie &trie, const Threads &from, int32_t *mask) {
    levels[0] = from;
    for (size_t i = 0; i < trie.size();) {
        const Node &node = trie[i];
        machine.step(levels[node.depth - 1], node.byte, levels[node.depth]);
        if (levels[node.depth].empty()) {
            i = size_t(node.skip);
            continue;
        }
        if (node.token >= 0) vocabulary.set(mask, node.token);
        i++;
    }
}

std::string Compiled::report() const {
    auto field = [](const char *name, int64_t value) { return "\"" + std::string(name) + "\": " + std::to_string(value); };
    return "{" + field("terminals", int64_t(machine.grammar.terminals.size())) + ", " +
           field("productions", int64_t(machine.grammar.productions.size())) + ", " + field("states", machine.lr.size()) + ", " +
           field("conflicts", machine.lr.conflicts()) + ", " + field("edges", machine.edges.count()) + ", " +
           field("lexer_states", machine.lexer.size()) + ", " + field("crowded", machine.crowded) + ", " + field("bytes", bytes()) + "}";
}

void Compiled::bound_memory() {
    if (bytes() <= most_bytes) return;
    std::unordered_set<Position *> seen;
    std::vector<Threads *> live;
    for (State *state : states)
        for (Position *at = state->position.get(); at && seen.insert(at).second; at = at->before.get()) live.push_back(&at->threads);
    machine.collect(live);
}
