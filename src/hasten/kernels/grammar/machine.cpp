#include "machine.h"

#include <algorithm>
#include <set>
#include <tuple>

bool Thread::operator<(const Thread &other) const {
    return std::tie(stack, frame, lexer, text, scan, characters) <
           std::tie(other.stack, other.frame, other.lexer, other.text, other.scan, other.characters);
}

namespace {

std::vector<uint8_t> usable(const Grammar &grammar, const std::vector<std::shared_ptr<const Dfa>> &automata) {
    std::vector<uint8_t> out;
    for (const Terminal &one : grammar.terminals) out.push_back(one.act == TOKEN || automata[one.language]->states > 0);
    return out;
}

}  // namespace

Machine::Machine(Grammar read, std::vector<std::shared_ptr<const Dfa>> automata)
    : grammar(std::move(read)), lr(grammar, usable(grammar, automata), work), edges(lr, work), frames(grammar),
      lexer(grammar, std::move(automata), work),
      empty_text(frames.cells.intern({0, 0, -1, -1})) {}

Threads Machine::begin() {
    Thread first;
    Threads threads;
    if (start(edges.bottom(), Frames::OUTSIDE, first)) threads.push_back(first);
    return threads;
}

// ---------------------------------------------------------------- the start of a lexeme

template <class Find> void Machine::track(int32_t &stack_lowest, int32_t &frame_lowest, Find find) {
    struct Restored {  // also where `find` throws
        int32_t &at, before;
        ~Restored() { at = before; }
    } stack{edges.lowest, edges.lowest}, frame{frames.lowest, frames.lowest};
    edges.lowest = frames.lowest = INT32_MAX;
    find();
    stack_lowest = edges.lowest, frame_lowest = frames.lowest;
}

bool Machine::start(int32_t stack, int32_t frame, Thread &out) {
    uint64_t key = uint64_t(uint32_t(stack)) << 32 | uint32_t(frame);
    auto found = starts.find(key);
    if (found == starts.end()) {
        Start fresh;
        track(fresh.stack_lowest, fresh.frame_lowest, [&] { fresh.lexer = find_start(stack, frame); });
        found = starts.emplace(key, fresh).first;
    }
    look_at(found->second.stack_lowest, found->second.frame_lowest);
    if (found->second.lexer < 0) return false;
    bool read = lexer[found->second.lexer].distinct || (frame >= 0 && frames.frames[frame].watched);
    out = {stack, frame, found->second.lexer, read ? empty_text : -1, 0, 0};
    return true;
}

int32_t Machine::find_start(int32_t stack, int32_t frame) {
    frames.look_at(frame);
    View view(grammar, frames, frame);
    std::vector<int32_t> terminals;
    work.spend(64 + int64_t(lr.terminals(edges.top(stack)).size()));
    for (int32_t t : lr.terminals(edges.top(stack))) {
        if (!view.enabled(grammar.terminals[t])) continue;
        if (grammar.terminals[t].act == COMMA && frames.is_object(frame) && !key_follows(stack, t, view)) continue;
        terminals.push_back(t);
    }
    return lexer.start(terminals);
}

bool Machine::key_follows(int32_t stack, int32_t comma, const View &view) {
    std::vector<int32_t> stacks;
    edges.shift(stack, comma, stacks);
    for (int32_t after : stacks)
        for (int32_t t : lr.terminals(edges.top(after)))
            if (grammar.terminals[t].act == KEY && view.enabled(grammar.terminals[t])) return true;
    return false;
}

// ---------------------------------------------------------------- a byte

void Machine::spread(const Threads &threads, std::vector<Part> &out) {
    out.clear();
    for (const Thread &thread : threads) {
        if (thread.lexer < 0) continue;
        out.push_back({thread});
        if (at_start(thread)) continue;
        for (int32_t t : lexer[thread.lexer].accepted) {
            Threads own;
            for (const Thread &begun : after(thread, t, own))
                if (begun.lexer >= 0) work.spend(1), out.push_back({begun, grammar.longest ? thread.lexer : Lexer::NOTHING});
        }
    }
}

void Machine::enter(const Part &part, uint8_t byte, Threads &out) {
    out.clear();
    work.spend(1);
    Thread next;
    if (part.barred >= 0 && lexer.step(part.barred, byte) >= 0) return;
    if (go_on(part.thread, byte, next)) out.push_back(next);
}

void Machine::enter(const Part &part, std::string_view text, Threads &out) {
    enter(part, uint8_t(text[0]), out);
    Threads next;
    for (size_t i = 1; i < text.size() && !out.empty(); i++) {
        step(out, uint8_t(text[i]), next);
        out.swap(next);
    }
}

void Machine::step(const Threads &from, uint8_t byte, Threads &out) {
    out.clear();
    work.spend(int64_t(from.size()));
    Thread next;
    for (const Thread &thread : from) {
        if (go_on(thread, byte, next)) out.push_back(next);
        if (at_start(thread) || (grammar.longest && lexer.step(thread.lexer, byte) >= 0)) continue;
        for (int32_t t : lexer[thread.lexer].accepted) {
            Threads own;
            for (const Thread &begun : after(thread, t, own)) {
                work.spend(1);
                if (go_on(begun, byte, next)) out.push_back(next);
            }
        }
    }
    merge(out);
}

bool Machine::go_on(const Thread &from, uint8_t byte, Thread &out) {
    int32_t next = from.lexer < 0 ? Lexer::NOTHING : lexer.step(from.lexer, byte);
    if (next < 0) return false;
    out = {from.stack, from.frame, next, -1, 0, 0};
    Scan scan{};
    if (lexer[from.lexer].counted) {
        scan = Scan::step(from.scan, byte);
        out.scan = scan.state;
        out.characters = from.characters == Thread::UNCOUNTED ? Thread::UNCOUNTED : from.characters + scan.begins;
    }
    if (from.text >= 0) out.text = frames.cells.intern({byte, 0, from.text, -1});
    if (scan.begins || scan.closes || (out.text >= 0 && !lexer[next].complete.empty())) keep_allowed(out, scan);
    if (out.lexer < 0) return false;
    if (!lexer[out.lexer].counted) out.scan = out.characters = 0;
    return true;
}

// Drops the terminals that a string is too long or too short for, and those that cannot go on and would end in a duplicate.
void Machine::keep_allowed(Thread &thread, const Scan &scan) {
    const LexerState &state = lexer[thread.lexer];
    std::vector<Pair> kept;
    work.spend(int64_t(state.pairs.size()));
    for (const Pair &pair : state.pairs) {
        const Terminal &terminal = grammar.terminals[pair.terminal];
        if (terminal.counted() && thread.characters != Thread::UNCOUNTED) {
            if (terminal.most >= 0 && thread.characters > terminal.most) continue;
            if (scan.closes && thread.characters < terminal.least) continue;
        }
        bool complete = thread.text >= 0 && std::find(state.complete.begin(), state.complete.end(), pair.terminal) != state.complete.end();
        if (complete && frames.apply(thread.frame, pair.terminal, thread.text) == Frames::REFUSED) continue;
        kept.push_back(pair);
    }
    if (kept.size() < state.pairs.size()) thread.lexer = lexer.intern(std::move(kept), false);
}

const Threads &Machine::after(const Thread &thread, int32_t t, Threads &own) {
    auto find = [&](Threads &out) {
        int32_t frame = frames.apply(thread.frame, t, thread.text);
        if (frame == Frames::REFUSED) return;
        std::vector<int32_t> stacks;
        edges.shift(thread.stack, t, stacks);
        for (int32_t stack : stacks) {
            Thread begun;
            // Where the text ends here no terminal can start.
            if (!start(stack, frame, begun)) begun = {stack, frame, Lexer::NOTHING, -1, 0, 0};
            out.push_back(begun);
        }
    };
    if (thread.text >= 0 && frames.watches(thread.frame, t)) {
        find(own);
        return own;
    }
    auto &known = afters[uint64_t(uint32_t(thread.stack)) << 32 | uint32_t(thread.frame)];
    auto found = std::find_if(known.begin(), known.end(), [&](const auto &one) { return one.first == t; });
    if (found == known.end()) {
        After fresh;
        track(fresh.stack_lowest, fresh.frame_lowest, [&] { find(fresh.threads); });
        after_bytes += int64_t(sizeof fresh + fresh.threads.size() * sizeof(Thread) + 32);
        known.emplace_back(t, std::move(fresh));
        found = std::prev(known.end());
    }
    look_at(found->second.stack_lowest, found->second.frame_lowest);
    return found->second.threads;
}

void Machine::merge(Threads &threads) {
    if (threads.size() < 2) return;
    std::sort(threads.begin(), threads.end());
    threads.erase(std::unique(threads.begin(), threads.end()), threads.end());
    if (threads.size() > MOST_THREADS) crowded++, threads.resize(MOST_THREADS);
}

// ---------------------------------------------------------------- between bytes

bool Machine::ended(const Threads &threads) {
    for (const Thread &thread : threads) {
        if (at_start(thread) && lr[edges.top(thread.stack)].ends) return true;
        // A terminal matches the empty text only where that is all there is.
        if (at_start(thread) && thread.stack != edges.bottom()) continue;
        for (int32_t t : lexer[thread.lexer].accepted) {
            Threads own;
            for (const Thread &begun : after(thread, t, own))
                if (lr[edges.top(begun.stack)].ends) return true;
        }
    }
    return false;
}

// Calls `each(thread at a lexeme's start)` for all that a thread may be once its lexeme has ended here.
template <class Each> void Machine::each_start(const Threads &threads, Each each) {
    for (const Thread &thread : threads) {
        if (at_start(thread)) {
            if (thread.lexer >= 0) each(thread);
            continue;
        }
        for (int32_t t : lexer[thread.lexer].accepted) {
            Threads own;
            for (const Thread &begun : after(thread, t, own))
                if (begun.lexer >= 0) each(begun);
        }
    }
}

void Machine::token(const Threads &from, int32_t token, Threads &out) {
    each_start(from, [&](const Thread &begun) {
        for (int32_t t : lexer[begun.lexer].tokens) {
            if (grammar.terminals[t].argument != token) continue;
            Threads own;
            const Threads &next = after(begun, t, own);
            out.insert(out.end(), next.begin(), next.end());
        }
    });
    merge(out);
}

void Machine::tokens(const Threads &threads, std::vector<int32_t> &out) {
    each_start(threads, [&](const Thread &begun) {
        for (int32_t t : lexer[begun.lexer].tokens) out.push_back(grammar.terminals[t].argument);
    });
}

std::vector<std::string> Machine::expected(const Threads &threads) {
    std::set<std::string> names;
    auto add = [&](const Thread &thread) {
        for (const Pair &pair : lexer[thread.lexer].pairs) names.insert(grammar.terminals[pair.terminal].name);
    };
    for (const Thread &thread : threads)
        if (thread.lexer >= 0) add(thread);
    each_start(threads, add);
    if (ended(threads)) names.insert("the end");
    return {names.begin(), names.end()};
}

// ---------------------------------------------------------------- memory

int64_t Machine::passing() const {
    return edges.bytes() + lexer.bytes() + frames.frames.bytes() + frames.cells.bytes() + int64_t(starts.size()) * 48 +
           int64_t(afters.size()) * 80 + after_bytes;
}

void Machine::collect(const std::vector<Threads *> &live) {
    starts.clear();
    afters.clear();
    after_bytes = 0;
    edges.clear();
    std::vector<uint8_t> stacks(edges.stacks.size()), opened(frames.frames.size()), cells(frames.cells.size()), lexers(lexer.size());
    auto mark = [](std::vector<uint8_t> &marks, int32_t at) {
        if (at >= 0) marks[at] = 1;
    };
    cells[empty_text] = 1;
    for (Threads *threads : live)
        for (const Thread &thread : *threads) {
            mark(stacks, thread.stack), mark(opened, thread.frame), mark(cells, thread.text), mark(lexers, thread.lexer);
        }
    for (int32_t i = edges.stacks.size(); i-- > 0;)
        if (stacks[i]) mark(stacks, edges.stacks[i].parent);

    using Numbers = std::vector<int32_t>;
    auto renumber = [](const Numbers &numbers, int32_t &at) {
        if (at >= 0) at = numbers[at];
    };
    Numbers stack_of = edges.stacks.compact(stacks, [&](StackNode &one, const Numbers &now) { renumber(now, one.parent); });
    Numbers frame_of, cell_of, lexer_of = lexer.compact(lexers);
    frames.compact(opened, cells, frame_of, cell_of);
    empty_text = cell_of[empty_text];
    for (Threads *threads : live)
        for (Thread &thread : *threads) {
            renumber(stack_of, thread.stack), renumber(frame_of, thread.frame), renumber(cell_of, thread.text);
            renumber(lexer_of, thread.lexer);
        }
}
