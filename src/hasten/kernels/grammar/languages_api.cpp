// Languages on their own, for front ends and tests.
#include <cstdio>
#include <exception>

#include "api.h"
#include "dfa.h"

void *hasten_language_new(const uint8_t *program, int64_t size, int32_t form, int32_t most_states, double most_s, char *error, int32_t error_size) {
    try {
        return new Dfa(compile_language(program, size_t(size), form, {now_s() + most_s, most_states}));
    } catch (const Error &refused) {
        std::snprintf(error, size_t(error_size), "%s", refused.what.c_str());
    } catch (const std::exception &failed) {  // no memory
        std::snprintf(error, size_t(error_size), "%s", failed.what());
    }
    return nullptr;
}

void hasten_language_free(void *language) { delete static_cast<Dfa *>(language); }

int32_t hasten_language_states(void *language) { return static_cast<Dfa *>(language)->states; }

int64_t hasten_language_match(void *language, const uint8_t *text, int64_t size, int32_t *accepted) {
    const Dfa &dfa = *static_cast<Dfa *>(language);
    *accepted = 0;
    if (dfa.states == 0) return 0;
    int32_t state = 0;
    for (int64_t i = 0; i < size; i++) {
        state = dfa.step(state, text[i]);
        if (state < 0) return i;
    }
    *accepted = dfa.accepts[state];
    return size;
}
