// What every token does to one state of one language's automaton, whatever grammar it occurs in: computed once and shared.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "dfa.h"
#include "vocab.h"

struct TokenRow {
    int32_t count = 0;             // of the tokens all of whose bytes the language goes on with
    std::vector<int32_t> dense;    // their mask, or
    std::vector<int32_t> sparse;   // where they are few: these tokens
    Trie boundary;                 // other tokens, where the language accepts before their last byte
    bool wide = false;             // there are too many of them: the vocabulary's own tree stands for `boundary`
    Trie closing;                  // of the first: those after which the language accepts and cannot go on

    int64_t bytes() const {
        return int64_t(sizeof(TokenRow) + (dense.size() + sparse.size()) * 4 + (boundary.size() + closing.size()) * sizeof(Node));
    }
    void add_to(int32_t *mask) const;
};

// The rows of a vocabulary, for all grammars: the least recently used are forgotten. Thread-safe.
class Rows {
  public:
    explicit Rows(const Vocabulary &vocabulary) : vocabulary(vocabulary) {}

    std::shared_ptr<const TokenRow> find(const std::shared_ptr<const Dfa> &dfa, int32_t state);
    int64_t bytes();

  private:
    using Key = std::pair<const Dfa *, int32_t>;
    struct Entry {
        Key key;
        std::shared_ptr<const Dfa> dfa;  // keeps the key's address taken
        std::shared_ptr<const TokenRow> row;
    };
    static constexpr int64_t MOST_BYTES = 256 << 20;

    const Vocabulary &vocabulary;
    std::mutex lock;
    std::list<Entry> entries;  // the latest first
    std::map<Key, std::list<Entry>::iterator> found;
    int64_t total = 0;
};
