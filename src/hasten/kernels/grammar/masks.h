// Token masks. Of a thread the tokens that stay inside its lexeme are a row, shared by all that stand in the same automata
// (rows.h); the few others are resolved on the real stack and frames. What was found is kept by what was looked at: a trie whose
// nodes ask for the state one deeper in the stack or for the frame one further out, down to a leaf, the mask. This is Pre^3's
// trie over deeper states, for the stacks that occur.
#pragma once

#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "machine.h"
#include "rows.h"

class Masks {
  public:
    Masks(const Vocabulary &vocabulary, Machine &machine, Rows &rows, std::vector<std::shared_ptr<const Dfa>> automata);

    void fill(const Threads &threads, int32_t *mask);
    // By walking the whole vocabulary: the reference.
    void fill_plain(const Threads &threads, int32_t *mask);
    int64_t bytes() const { return allocated + int64_t(questions.size() * sizeof(Question) + roots.size() * 80); }
    int64_t leaves() const { return int64_t(kept.size()); }
    void clear();

  private:
    struct Leaf {
        std::shared_ptr<const Mask> base;  // null: empty
        std::vector<int32_t> add, remove;
        Trie recheck;  // tokens of which it depends on the values in a list
    };
    struct Root {
        int32_t lexer, barred, scan, characters, trusted;
        bool operator==(const Root &other) const {
            return lexer == other.lexer && barred == other.barred && scan == other.scan && characters == other.characters &&
                   trusted == other.trusted;
        }
    };
    struct HashRoot {
        size_t operator()(const Root &root) const {
            return mix(mix(mix(uint32_t(root.lexer), uint32_t(root.barred)), uint32_t(root.scan)), uint64_t(uint32_t(root.characters)) * 2 + root.trusted);
        }
    };
    struct Question {
        enum Kind : int32_t { NEW, LEAF, STATE, FRAME } kind = NEW;  // of what is one deeper
        int32_t leaf = -1;
        std::vector<std::pair<int32_t, int32_t>> answers;  // (answer, question), sorted
    };
    struct Looker;  // walks down the stack and the frames

    const Vocabulary &vocabulary;
    Machine &machine;
    Rows &rows;
    std::vector<std::shared_ptr<const Dfa>> automata;  // of languages
    std::unordered_map<Root, int32_t, HashRoot> roots;
    std::vector<Question> questions;
    std::deque<Leaf> kept;
    std::unordered_set<const Mask *> bases;  // of the leaves: rows that are forgotten elsewhere live on here
    std::vector<int32_t> representatives;  // by lexer state: one that no token can tell from it, -1: not looked for
    int64_t allocated = 0;

    std::vector<Threads> levels;  // of a walk, by depth
    std::vector<uint8_t> unsure;
    std::vector<int32_t> scratch, saved, named, suspects, limited;
    std::vector<Part> parts;

    // Whether what comes may be taken to be no duplicate, but for the tokens `suspects`, which are to be tried (duplicates.cpp).
    bool trust(const Thread &thread);
    bool allows(const Part &part, int32_t token);
    const Leaf &leaf_of(const Part &part, bool trusted);
    int32_t next_question(int32_t question, int32_t answer);
    int32_t representative(int32_t lexer);
    Leaf resolve(const Part &part, bool trusted);
    // The limits that a token may break; false: they are not the same for all that the thread may become.
    struct Limits {
        int32_t more = 0, most = -1;  // characters that are needed, that are left; -1: no end
        bool hold() const { return more > 0 || most >= 0; }
    };
    bool limits_of(const Thread &thread, Limits &out) const;
    void keep_within(const Limits &limits, int32_t *mask) const;
    void walk(const Trie &trie, const Part &part, int32_t *mask, Pieces *recheck);
    Leaf compress(const std::vector<std::shared_ptr<const TokenRow>> &used) const;
    void add(const Leaf &leaf, const Part &part, bool first, int32_t *mask);
    void add_named(const Threads &threads, int32_t *mask);
};
