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
using GrammarHandle = std::shared_ptr<Compiled>;
using VocabularyHandle = std::shared_ptr<VocabularyRows>;

constexpr int64_t FORCED_WORK = Work::MOST / 8;

State &state_of(void *state) { return *static_cast<State *>(state); }
Compiled &compiled(void *grammar) { return **static_cast<GrammarHandle *>(grammar); }

thread_local std::string failure;

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

// What `act` returns, or `failed`: an Error leaves everything as it was; what else is thrown (no memory) may come at any place.
template <class Result, class Act> Result guarded(Compiled &grammar, Result failed, Act act) {
    Lock guard(grammar.lock);
    if (!grammar.broken.empty()) return failure = grammar.broken, failed;
    grammar.machine.work.begin();
    try {
        return act();
    } catch (const Error &refused) {
        failure = refused.what;
    } catch (const std::exception &thrown) {
        failure = grammar.broken = thrown.what();
    }
    return failed;
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

int64_t hasten_failure(char *out, int64_t size) { return copy(failure, out, size); }

void *hasten_vocabulary_new(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count, char *error,
                            int32_t error_size) {
    return make(error, error_size, [&] { return new VocabularyHandle(std::make_shared<VocabularyRows>(bytes, offsets, tokens, ends, end_count)); });
}

void hasten_vocabulary_free(void *vocabulary) { delete static_cast<VocabularyHandle *>(vocabulary); }

void *hasten_grammar_new(void *vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes, char *error, int32_t error_size) {
    return make(error, error_size, [&] {
        return new GrammarHandle(std::make_shared<Compiled>(*static_cast<VocabularyHandle *>(vocabulary), blob, size, most_s, most_bytes));
    });
}

void hasten_grammar_free(void *grammar) { delete static_cast<GrammarHandle *>(grammar); }

int64_t hasten_grammar_bytes(void *grammar) {
    Lock guard(compiled(grammar).lock);
    return compiled(grammar).bytes();
}

int64_t hasten_grammar_report(void *grammar, char *out, int64_t size) {
    return guarded(compiled(grammar), int64_t(FAILED), [&] { return copy(compiled(grammar).report(), out, size); });
}

void *hasten_state_new(void *grammar) {
    return guarded(compiled(grammar), (void *)nullptr, [&] { return (void *)new State(*static_cast<GrammarHandle *>(grammar)); });
}

void *hasten_state_fork(void *state) {
    return guarded(*state_of(state).grammar, (void *)nullptr, [&] { return (void *)new State(state_of(state)); });
}

void hasten_state_free(void *state) {
    GrammarHandle grammar = state_of(state).grammar;  // its lock must outlive the state
    Lock guard(grammar->lock);
    delete &state_of(state);
}

int32_t hasten_state_advance(void *state, int32_t token) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, FAILED, [&] {
        grammar.bound_memory();
        return grammar.advance(state_of(state), token) ? 0 : REFUSED;
    });
}

int32_t hasten_state_rollback(void *state, int32_t count) {
    Lock guard(state_of(state).grammar->lock);
    std::shared_ptr<Position> to = state_of(state).position;
    for (int32_t i = 0; i < count && to; i++) to = to->before;
    if (count < 0 || !to) return REFUSED;
    state_of(state).position = std::move(to);
    return 0;
}

int32_t hasten_state_ended(void *state) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, FAILED, [&] { return int32_t(grammar.machine.ended(state_of(state).position->threads)); });
}

int32_t hasten_state_fill(void *state, int32_t *mask) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, FAILED, [&] {
        grammar.bound_memory();  // forks can be asked for masks without ever being advanced
        return grammar.masks.fill(state_of(state).position->threads, mask), 0;
    });
}

int32_t hasten_state_fill_plain(void *state, int32_t *mask) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, FAILED, [&] { return grammar.masks.fill_plain(state_of(state).position->threads, mask), 0; });
}

int32_t hasten_state_bytes(void *state, const uint8_t *text, int32_t size) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, FAILED, [&] { return grammar.match(state_of(state), text, size); });
}

int32_t hasten_state_forced(void *state, uint8_t *out, int32_t size) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, 0, [&] {
        grammar.machine.work.begin(FORCED_WORK);  // it is only a hint: where it takes long, nothing is certain
        return grammar.forced(state_of(state), out, size);
    });
}

int64_t hasten_state_expected(void *state, char *out, int64_t size) {
    Compiled &grammar = *state_of(state).grammar;
    return guarded(grammar, int64_t(FAILED), [&] {
        std::string names;
        for (const std::string &name : grammar.machine.expected(state_of(state).position->threads)) names += name + "\n";
        return copy(names, out, size);
    });
}

int32_t hasten_states_fill(void *const *states, int32_t count, int32_t *masks, int64_t stride, int32_t threads) {
    // States of one grammar wait for each other, so only those of different ones gain.
    std::atomic<int32_t> next{0}, result{0};
    std::mutex lock;
    std::string why;
    auto work = [&] {
        for (int32_t i; (i = next++) < count;) {
            if (hasten_state_fill(states[i], masks + i * stride) == 0) continue;
            Lock guard(lock);
            result = FAILED, why = failure;  // of the helper's thread
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int32_t i = 1; i < std::min(threads, count); i++) helpers.emplace_back(work);
    } catch (const std::exception &) {  // there is no further thread: those that are do it all
    }
    work();
    for (std::thread &helper : helpers) helper.join();
    if (result) failure = why;
    return result;
}
