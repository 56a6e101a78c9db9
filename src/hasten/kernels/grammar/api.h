// Everything that Python calls (engine/decoding/constraints/native.py). Masks are int32 words, one bit a token, lowest bit first; what
// lies beyond the vocabulary is 0. A function with `error` writes there why it failed, ends it with 0, and returns null. Others return
// FAILED, or null, where all that is possible is too much to follow in one call or memory is short: `hasten_failure` says why.
#pragma once

#include <cstdint>

extern "C" {

constexpr int32_t REFUSED = -1, FAILED = -2;

int32_t hasten_grammar_interface();
int64_t hasten_failure(char *out, int64_t size);  // of the last call of this thread that failed; returns the length

// ---- languages (tests, front ends): an expression's program compiled to an automaton of bytes in a form (0 text, 1 string, 2 any string)
void *hasten_language_new(const uint8_t *program, int64_t size, int32_t form, int32_t most_states, double most_s, char *error, int32_t error_size);
void hasten_language_free(void *language);
int32_t hasten_language_states(void *language);  // that lead to acceptance; 0: there is no text
// Number of bytes of `text` that some accepted text begins with; *accepted: whether all of it is one.
int64_t hasten_language_match(void *language, const uint8_t *text, int64_t size, int32_t *accepted);

// ---- vocabularies: token i is bytes[offsets[i], offsets[i + 1]); empty ones are never legal by their text. `ends`: tokens that end a text.
void *hasten_vocabulary_new(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count, char *error,
                            int32_t error_size);
void hasten_vocabulary_free(void *vocabulary);

// ---- grammars (`Grammar.blob`), compiled as far as the first mask needs; the rest is done when it is reached
void *hasten_grammar_new(void *vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes, char *error, int32_t error_size);
void hasten_grammar_free(void *grammar);
int64_t hasten_grammar_bytes(void *grammar);
// What is known of it, as JSON: sizes, conflicts. Returns the length, which may be more than fits.
int64_t hasten_grammar_report(void *grammar, char *out, int64_t size);

// ---- states: where one sequence stands. Not thread-safe each; different ones may be used by different threads. A state keeps its
// grammar, and a grammar its vocabulary: they may be freed in any order.
void *hasten_state_new(void *grammar);
void *hasten_state_fork(void *state);
void hasten_state_free(void *state);
int32_t hasten_state_advance(void *state, int32_t token);  // 0, or REFUSED: not legal; nothing has changed unless it is 0
int32_t hasten_state_rollback(void *state, int32_t count);  // 0, or REFUSED: there were not so many tokens, nothing has changed
int32_t hasten_state_ended(void *state);  // whether the text may end here
int32_t hasten_state_fill(void *state, int32_t *mask);
int32_t hasten_state_fill_plain(void *state, int32_t *mask);  // the same by walking the whole vocabulary, for tests
int32_t hasten_states_fill(void *const *states, int32_t count, int32_t *masks, int64_t stride, int32_t threads);
int32_t hasten_state_bytes(void *state, const uint8_t *text, int32_t size);  // how many of the bytes may follow; changes nothing
int32_t hasten_state_forced(void *state, uint8_t *out, int32_t size);  // bytes that must follow, as far as is certain
int64_t hasten_state_expected(void *state, char *out, int64_t size);  // names of the terminals that may come or go on, one a line

}
