// A grammar as grammar.py writes it (`Grammar.blob`), read and checked: what is wrong in it is an Error, whatever it holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Act of grammar.py
enum { NONE = 0, OPEN = 1, KEY = 2, COMMA = 3, CLOSE = 4, EMPTY = 5, TOKEN = 6 };

struct Terminal {
    int32_t language, act, argument, witness, least, most, priority;  // most -1: no end
    bool distinct;
    std::string name;
    bool counted() const { return least > 0 || most >= 0; }
};

struct Row {
    int32_t least, most;  // most -1: no end
    std::vector<int32_t> required, forbidden;  // bits, sorted
};

struct Plan {
    bool array, unique, ordered;
    int32_t bits, witnesses;  // witnesses' bits follow those of the keys, then one which says that a key without a bit has come
    std::vector<Row> rows;
    int32_t enough;  // a count beyond this one is like it
    int32_t words() const { return (bits + witnesses + ordered + 63) / 64; }
};

struct Production {
    int32_t left;                // number of the nonterminal
    std::vector<int32_t> right;  // symbols: terminal t is t, nonterminal n is -1 - n
};

struct Language {
    int32_t form;
    std::string program;
};

struct Grammar {
    bool longest;
    std::vector<Language> languages;
    std::vector<Terminal> terminals;
    std::vector<Plan> plans;
    std::vector<std::string> names;  // of nonterminals
    std::vector<Production> productions;
    int32_t start;  // number of the nonterminal
};

Grammar read_blob(const uint8_t *blob, int64_t size);
