#include "api.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>

#include "compiled.h"
#include "error.h"

namespace {

using Lock = std::lock_guard<std::mutex>;

State &state_of(void *state) { return *static_cast<State *>(state); }
Compiled &compiled(void *grammar) { return *static_cast<Compiled *>(grammar); }

template <class Make> void *make(char *error, int32_t error_size, Make make_it) {
    try {
        return make_it();
    } catch (const Error &refused) {
        std::snprintf(error, size_t(error_size), "%s", refused.what.c_str());
    } catch (const std::exception &failed) {  // no memory
        std::snprintf(error, size_t(error_size), "%s", failed.what());
    }
    return nullptr;
}

int64_t copy(const std::string &text, char *out, int64_t size) {
    if (size > 0) {
        size_t fits = std::min(text.size(), size_t(size) - 1);
        std::memcpy(out, text.data(), fits);
        out[fits] = 0;
    }
    return int64_t(text.size());
}

}  // namespace

void *hasten_vocabulary_new(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count, char *error,
                            int32_t error_size) {
    return make(error, error_size, [&] { return new VocabularyRows(bytes, offsets, tokens, ends, end_count); });
}

void hasten_vocabulary_free(void *vocabulary) { delete static_cast<VocabularyRows *>(vocabulary); }

void *hasten_grammar_new(void *vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes, char *error, int32_t error_size) {
    return make(error, error_size, [&] { return new Compiled(*static_cast<VocabularyRows *>(vocabulary), blob, size, most_s, most_bytes); });
}

void hasten_grammar_free(void *grammar) { delete &compiled(grammar); }

int64_t hasten_grammar_bytes(void *grammar) {
    Lock guard(compiled(grammar).lock);
    return compiled(grammar).bytes();
}

int64_t hasten_grammar_report(void *grammar, char *out, int64_t size) {
    Lock guard(compiled(grammar).lock);
    return copy(compiled(grammar).report(), out, size);
}

void *hasten_state_new(void *grammar) {
    Lock guard(compiled(grammar).lock);
    return new State(compiled(grammar));
}

void *hasten_state_fork(void *state) {
    Lock guard(state_of(state).grammar.lock);
    return new State(state_of(state));
}

void hasten_state_free(void *state) {
    Lock guard(state_of(state).grammar.lock);
    delete &state_of(state);
}

int32_t hasten_state_advance(void *state, int32_t token) {
    Compiled &grammar = state_of(state).grammar;
    Lock guard(grammar.lock);
    grammar.bound_memory();
    return grammar.advance(state_of(state), token) ? 0 : -1;
}

int32_t hasten_state_rollback(void *state, int32_t count) {
    Lock guard(state_of(state).grammar.lock);
    std::shared_ptr<Position> to = state_of(state).position;
    for (int32_t i = 0; i < count && to; i++) to = to->before;
    if (count < 0 || !to) return -1;
    state_of(state).position = std::move(to);
    return 0;
}

int32_t hasten_state_ended(void *state) {
    Lock guard(state_of(state).grammar.lock);
    return state_of(state).grammar.machine.ended(state_of(state).position->threads);
}

void hasten_state_fill_plain(void *state, int32_t *mask) {
    Lock guard(state_of(state).grammar.lock);
    state_of(state).grammar.masks.fill_plain(state_of(state).position->threads, mask);
}

int32_t hasten_state_bytes(void *state, const uint8_t *text, int32_t size) {
    Lock guard(state_of(state).grammar.lock);
    return state_of(state).grammar.match(state_of(state), text, size);
}

int32_t hasten_state_forced(void *state, uint8_t *out, int32_t size) {
    Lock guard(state_of(state).grammar.lock);
    return state_of(state).grammar.forced(state_of(state), out, size);
}

int64_t hasten_state_expected(void *state, char *out, int64_t size) {
    Lock guard(state_of(state).grammar.lock);
    std::string names;
    for (const std::string &name : state_of(state).grammar.machine.expected(state_of(state).position->threads)) names += name + "\n";
    return copy(names, out, size);
}

void hasten_state_fill(void *state, int32_t *mask) {
    Lock guard(state_of(state).grammar.lock);
    state_of(state).grammar.masks.fill(state_of(state).position->threads, mask);
}

void hasten_states_fill(void *const *states, int32_t count, int32_t *masks, int64_t stride, int32_t threads) {
    // States of one grammar wait for each other, so only those of different ones gain.
    std::atomic<int32_t> next{0};
    auto work = [&] {
        for (int32_t i; (i = next++) < count;) hasten_state_fill(states[i], masks + i * stride);
    };
    std::vector<std::thread> helpers;
    for (int32_t i = 1; i < std::min(threads, count); i++) helpers.emplace_back(work);
    work();
    for (std::thread &helper : helpers) helper.join();
}
