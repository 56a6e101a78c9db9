#include "compiled.h"

#include <algorithm>

#include "languages.h"

namespace {

constexpr int32_t MOST_LANGUAGE_STATES = 20'000;
constexpr int64_t MOST_AUTOMATA_BYTES = 256 << 20;  // of one grammar

std::vector<std::shared_ptr<const Dfa>> compile(const Grammar &grammar, double most_s) {
    Budget budget{now_s() + most_s, MOST_LANGUAGE_STATES};
    std::vector<std::shared_ptr<const Dfa>> automata;  // of languages
    int64_t bytes = 0;
    for (const Language &language : grammar.languages) {
        automata.push_back(shared_automaton(language, budget));
        bytes += automata.back()->bytes();
        if (bytes > MOST_AUTOMATA_BYTES) throw Error{"the automata of its terminals take more than " + std::to_string(MOST_AUTOMATA_BYTES >> 20) + " MiB"};
    }
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

State::State(std::shared_ptr<Compiled> of) : grammar(std::move(of)), position(std::make_shared<Position>()) {
    position->threads = grammar->machine.begin();
    grammar->states.insert(this);
}
State::State(const State &other) : grammar(other.grammar), position(other.position) { grammar->states.insert(this); }
State::~State() { grammar->states.erase(this); }

Compiled::Compiled(std::shared_ptr<VocabularyRows> vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes)
    : Compiled(vocabulary, read_for(*vocabulary, blob, size), most_s, most_bytes) {}

Compiled::Compiled(std::shared_ptr<VocabularyRows> vocabulary, const Grammar &grammar, double most_s, int64_t most_bytes)
    : Compiled(vocabulary, grammar, compile(grammar, most_s), most_bytes) {}

Compiled::Compiled(std::shared_ptr<VocabularyRows> of, const Grammar &grammar, const Automata &automata, int64_t most_bytes)
    : vocabulary(std::move(of)), machine(grammar, automata), masks(*vocabulary, machine, vocabulary->rows, automata), most_bytes(most_bytes) {
    for (const auto &one : automata) automata_bytes += one->bytes();
}

bool Compiled::advance(State &state, int32_t token) {
    if (token < 0 || token >= vocabulary->tokens) return false;
    const Threads &from = state.position->threads;
    Threads reached;
    if (!vocabulary->is_end(token)) read(from, vocabulary->text(token), reached);
    machine.token(from, token, reached);
    // Nothing can follow an end, unless the grammar has the same token inside a text too.
    if (reached.empty() && !(vocabulary->is_end(token) && machine.ended(from))) return false;
    state.position = std::make_shared<Position>(Position{std::move(reached), state.position});
    return true;
}

// Each way to go on by itself, as masks are found.
void Compiled::read(const Threads &from, std::string_view text, Threads &out) {
    if (text.empty()) return;
    std::vector<Part> parts;
    Threads reached;
    machine.spread(from, parts);
    for (const Part &part : parts) {
        machine.enter(part, text, reached);
        out.insert(out.end(), reached.begin(), reached.end());
    }
    machine.merge(out);
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
    int32_t count = 0;
    try {
        for (; count < size; count++) {
            machine.tokens(at, tokens);
            if (!tokens.empty() || machine.ended(at)) break;
            int32_t found = 0;
            for (int32_t byte = 0; byte < 256 && found < 2; byte++) {
                machine.step(at, uint8_t(byte), next);
                if (next.empty()) continue;
                found++;
                out[count] = uint8_t(byte);
                only = next;
            }
            if (found != 1) break;
            at.swap(only);
        }
    } catch (const Error &) {  // too much work: what was found is certain all the same
    }
    return count;
}

std::string Compiled::report() const {
    auto field = [](const char *name, int64_t value) { return "\"" + std::string(name) + "\": " + std::to_string(value); };
    return "{" + field("terminals", int64_t(machine.grammar.terminals.size())) + ", " +
           field("productions", int64_t(machine.grammar.productions.size())) + ", " + field("states", machine.lr.size()) + ", " +
           field("conflicts", machine.lr.conflicts()) + ", " + field("edges", machine.edges.count()) + ", " +
           field("lexer_states", machine.lexer.size()) + ", " + field("leaves", masks.leaves()) + ", " +
           field("shared_bytes", vocabulary->rows.bytes()) + ", " + field("automata_bytes", shared_automata_bytes()) + ", " +
           field("crowded", machine.crowded) + ", " + field("bytes", bytes()) + "}";
}

void Compiled::bound_memory() {
    if (machine.passing() + masks.bytes() <= std::max(most_bytes - machine.lr.bytes(), most_bytes / 2)) return;
    std::unordered_set<Position *> seen;
    std::vector<Threads *> live;
    for (State *state : states)
        for (Position *at = state->position.get(); at && seen.insert(at).second; at = at->before.get()) live.push_back(&at->threads);
    masks.clear();
    machine.collect(live);
}
