// What every token does to one state of one language's automaton, whatever grammar it occurs in: computed once and shared.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "dfa.h"
#include "vocab.h"

using Mask = std::vector<int32_t>;

struct TokenRow {
    // The tokens all of whose bytes the language goes on with: those of a mask (null: none), and changes to it.
    std::shared_ptr<const Mask> dense;
    std::vector<int32_t> more, less;
    std::shared_ptr<const Trie> boundary;  // other tokens, where the language accepts before their last byte
    int32_t reach = 0;                     // bytes of a token that the language goes on with, at most
    int32_t visited = 0;                   // nodes of the vocabulary's tree, to find it
    bool wide = false;                     // there are too many of them: the vocabulary's own tree stands for `boundary`
    std::shared_ptr<const Trie> closing;   // of the first: those after which the language accepts and cannot go on

    int64_t bytes() const {
        return int64_t(sizeof(TokenRow) + (more.size() + less.size()) * 4 + (boundary->size() + closing->size()) * sizeof(Node)) +
               (dense && dense.use_count() == 1 ? int64_t(dense->size() * 4) : 0);
    }
    void add_to(int32_t *mask) const;
};

// The row of a state by walking the vocabulary's tree.
TokenRow make_row(const Vocabulary &vocabulary, const Dfa &dfa, int32_t state);
// The state that most characters lead to, and then stay in; -1: there is none but perhaps `state` itself.
int32_t usual_next(const Dfa &dfa, int32_t state);
// The row of a state, from the row of another one, where their ways part: false where they do for too long.
bool derive_row(const Vocabulary &vocabulary, const Dfa &dfa, int32_t state, int32_t other, const TokenRow &known, TokenRow &out);

// The rows of a vocabulary, for all grammars: the least recently used are forgotten. Thread-safe.
class Rows {
  public:
    explicit Rows(const Vocabulary &vocabulary) : vocabulary(vocabulary) {}

    // `dfa`: a shared one. What finding the row took is charged to `work`.
    std::shared_ptr<const TokenRow> find(const Dfa &dfa, int32_t state, Work &work);
    // A state whose row is known and that no token can tell from `state`, or itself.
    int32_t representative(const Dfa &dfa, int32_t state);
    int64_t bytes();

  private:
    using Key = std::pair<uint64_t, int32_t>;  // the automaton's number, which outlives it
    struct Entry {
        Key key;
        int32_t roughly;  // Likeness
        int64_t bytes;    // when it was made: its mask may be shared since
        std::shared_ptr<const TokenRow> row;
    };
    static constexpr int64_t MOST_BYTES = 256 << 20;

    const Vocabulary &vocabulary;
    std::mutex lock;
    std::list<Entry> entries;  // the latest first
    std::map<Key, std::list<Entry>::iterator> found;
    std::map<Key, int32_t> bases;  // (automaton, Likeness::roughly) -> the last state whose row was made, not derived: changes must not add up
    int64_t total = 0;

    std::shared_ptr<const TokenRow> base_of(const Dfa &dfa, int32_t state, int32_t &other);
    bool derive(const Dfa &dfa, int32_t state, TokenRow &out, Work &work);
};
