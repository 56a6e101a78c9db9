// A grammar with a vocabulary, and the states of sequences in it.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_set>

#include "machine.h"

// After how many tokens of a sequence; those before are kept for rollbacks and shared by forks.
struct Position {
    Threads threads;
    std::shared_ptr<Position> before;

    ~Position();
};

struct State;

struct Compiled {
    const Vocabulary &vocabulary;
    Machine machine;
    const int64_t most_bytes;
    std::mutex lock;  // of all that follows and of what the states refer to
    std::unordered_set<State *> states;

    Compiled(const Vocabulary &vocabulary, const uint8_t *blob, int64_t size, double most_s, int64_t most_bytes);

    bool advance(State &state, int32_t token);
    // How many bytes of a text may follow.
    int32_t match(const State &state, const uint8_t *text, int32_t size);
    int32_t forced(const State &state, uint8_t *out, int32_t size);
    // The mask by walking the whole vocabulary: the reference for `fill`.
    void fill_plain(const State &state, int32_t *mask);
    int64_t bytes() const { return machine.bytes(); }
    std::string report() const;
    void bound_memory();

  private:
    Compiled(const Vocabulary &vocabulary, Grammar grammar, double most_s, int64_t most_bytes);

    std::vector<Threads> levels;  // of a walk, by depth

    void walk(const Trie &trie, const Threads &from, int32_t *mask);
};

struct State {
    Compiled &grammar;
    std::shared_ptr<Position> position;

    explicit State(Compiled &grammar);
    State(const State &other);
    ~State();
};
