// The pushdown machine: where a text stands in its grammar, and what one more byte makes of that.
//
// A thread is one way to read the text: the LR stack after its complete lexemes, the frames of its open containers, and what the bytes
// since may become. Reductions wait until a lexeme's end is certain. There are several threads where a lexeme may end here or go on,
// where several terminals match it, and where the grammar has conflicts; equal ones are one.
#pragma once

#include <list>
#include <unordered_map>

#include "edges.h"
#include "frames.h"
#include "lexer.h"
#include "scan.h"
#include "vocab.h"

struct Thread {
    int32_t stack, frame, lexer;
    int32_t text;            // cells of the lexeme's bytes, where what it says matters; -1
    int32_t scan, characters;  // where a counted string stands, and how many characters it has begun, or UNCOUNTED

    static constexpr int32_t UNCOUNTED = -1;  // its limits are left out of account

    bool operator==(const Thread &other) const {
        return stack == other.stack && frame == other.frame && lexer == other.lexer && text == other.text && scan == other.scan &&
               characters == other.characters;
    }
    bool operator<(const Thread &other) const;
};
using Threads = std::vector<Thread>;

// A thread of which no lexeme may end before its first byte, nor may that be one with which lexer state `barred` goes on.
struct Part {
    Thread thread;
    int32_t barred = Lexer::NOTHING;
};

class Machine {
  public:
    static constexpr size_t MOST_THREADS = 512;

    Machine(Grammar grammar, std::vector<std::shared_ptr<const Dfa>> automata);
    Machine(const Machine &) = delete;

    Threads begin();
    // The ways to go on, whose readings do not depend on each other: each thread, and what it begins where its lexeme ends here.
    void spread(const Threads &threads, std::vector<Part> &out);
    void enter(const Part &part, uint8_t byte, Threads &out);
    void step(const Threads &from, uint8_t byte, Threads &out);
    // All of a text that is not empty.
    void enter(const Part &part, std::string_view text, Threads &out);
    // Sorted, equal ones are one; beyond MOST_THREADS the rest is left out.
    void merge(Threads &threads);
    void token(const Threads &from, int32_t token, Threads &out);  // by its number
    bool ended(const Threads &threads);
    // The tokens that may come by their number.
    void tokens(const Threads &threads, std::vector<int32_t> &out);
    std::vector<std::string> expected(const Threads &threads);

    const Grammar grammar;
    Work work;  // of the call that is being answered; where it is used up, Error is thrown and nothing has changed
    Lr lr;
    Edges edges;
    Frames frames;
    Lexer lexer;
    int64_t crowded = 0;  // how often there were too many threads

    int64_t bytes() const { return lr.bytes() + passing(); }
    int64_t passing() const;  // of what can be forgotten
    // Forgets all that can be found again and what no thread in `live` refers to; these are renumbered.
    void collect(const std::vector<Threads *> &live);

  private:
    // What was found, and how far down it was looked for it.
    struct Start {
        int32_t lexer, stack_lowest, frame_lowest;
    };
    struct After {
        Threads threads;
        int32_t stack_lowest, frame_lowest;
    };
    int32_t empty_text;
    std::unordered_map<uint64_t, Start> starts;                             // by (stack, frame)
    std::unordered_map<uint64_t, std::list<std::pair<int32_t, After>>> afters;  // by (stack, frame), for each terminal
    int64_t after_bytes = 0;

    bool at_start(const Thread &thread) const { return thread.lexer < 0 || lexer[thread.lexer].start; }
    template <class Each> void each_start(const Threads &threads, Each each);
    bool start(int32_t stack, int32_t frame, Thread &out);
    int32_t find_start(int32_t stack, int32_t frame);
    bool key_follows(int32_t stack, int32_t comma, const View &view);
    bool go_on(const Thread &from, uint8_t byte, Thread &out);
    void keep_allowed(Thread &thread, const Scan &scan);
    // The threads that begin the next lexeme after this one has ended as terminal t.
    const Threads &after(const Thread &thread, int32_t t, Threads &own);
    // Runs `find`, which looks at the stack and frames; writes how far down it looked.
    template <class Find> void track(int32_t &stack_lowest, int32_t &frame_lowest, Find find);
    void look_at(int32_t stack_lowest, int32_t frame_lowest) {
        edges.lowest = std::min(edges.lowest, stack_lowest), frames.lowest = std::min(frames.lowest, frame_lowest);
    }
};
