// A grammar with a vocabulary, and the states of sequences in it.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_set>

#include "masks.h"

// After how many tokens of a sequence; those before are kept for rollbacks and shared by forks.
struct Position {
    Threads threads;
    std::shared_ptr<Position> before;

    ~Position();
};

struct State;

// A vocabulary with what is known of it, for all grammars.
struct VocabularyRows : Vocabulary {
    Rows rows{*this};
    using Vocabulary::Vocabulary;
};

// Shared by whoever made it and its states, which garbage collectors may free in any order.
struct Compiled {
    const std::shared_ptr<VocabularyRows> vocabulary;
    Machine machine;
    Masks masks;
    const int64_t most_bytes;  // the automata, which others may have too, not included
    std::mutex lock;           // of all that follows and of what the states refer to
    std::unordered_set<State *> states;
    std::string broken;  // why nothing here can be relied on any more; empty: nothing has happened

    Compiled(std::shared_ptr<VocabularyRows> vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes);

    bool advance(State &state, int32_t token);
    // How many bytes of a text may follow.
    int32_t match(const State &state, const uint8_t *text, int32_t size);
    int32_t forced(const State &state, uint8_t *out, int32_t size);
    int64_t bytes() const { return machine.bytes() + masks.bytes() + automata_bytes; }
    std::string report() const;
    // Forgets what can be found again where that has become too much; what states refer to is renumbered.
    void bound_memory();

  private:
    using Automata = std::vector<std::shared_ptr<const Dfa>>;
    int64_t automata_bytes = 0;
    Compiled(std::shared_ptr<VocabularyRows> vocabulary, const Grammar &grammar, double most_s, int64_t most_bytes);
    Compiled(std::shared_ptr<VocabularyRows> vocabulary, const Grammar &grammar, const Automata &automata, int64_t most_bytes);
    void read(const Threads &from, std::string_view text, Threads &out);
};

struct State {  // made and destroyed under the grammar's lock
    const std::shared_ptr<Compiled> grammar;
    std::shared_ptr<Position> position;

    explicit State(std::shared_ptr<Compiled> grammar);
    State(const State &other);
    ~State();
};
