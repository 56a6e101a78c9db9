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
    : grammar(std::move(read)), lr(grammar, usable(grammar, automata)), edges(lr), frames(grammar), lexer(grammar, std::move(automata)),
      empty_text(frames.cells.intern({0, 0, -1})) {}

Threads Machine::begin() {
    Thread first;
    Threads threads;
    if (start(edges.bottom(), Frames::OUTSIDE, first)) threads.push_back(first);
    return threads;
}

// ---------------------------------------------------------------- the start of a lexeme

bool Machine::start(int32_t stack, int32_t frame, Thread &out) {
    auto [at, fresh] = starts.emplace(uint64_t(uint32_t(stack)) << 32 | uint32_t(frame), Lexer::NOTHING);
    if (fresh) {
        int32_t found = find_start(stack, frame);
        at = starts.insert_or_assign(uint64_t(uint32_t(stack)) << 32 | uint32_t(frame), found).first;
    }
    if (at->second < 0) return false;
    bool read = lexer[at->second].distinct || (frame >= 0 && frames.frames[frame].watched);
    out = {stack, frame, at->second, read ? empty_text : -1, 0, 0};
    return true;
}

int32_t Machine::find_start(int32_t stack, int32_t frame) {
    View view(grammar, frames, frame);
    std::vector<int32_t> terminals;
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

void Machine::step(const Threads &from, uint8_t byte, Threads &out) {
    out.clear();
    Thread next;
    for (const Thread &thread : from) {
        bool goes_on = go_on(thread, byte, next);
        if (goes_on) out.push_back(next);
        if ((goes_on && grammar.longest) || at_start(thread)) continue;
        for (int32_t t : lexer[thread.lexer].accepted) {
            Threads own;
            for (const Thread &begun : after(thread, t, own))
                if (go_on(begun, byte, next)) out.push_back(next);
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
        out.characters = from.characters + scan.begins;
    }
    if (from.text >= 0) out.text = frames.cells.intern({byte, 0, from.text});
    if (scan.begins || scan.closes || (out.text >= 0 && !lexer[next].complete.empty())) keep_allowed(out, scan);
    if (out.lexer < 0) return false;
    if (!lexer[out.lexer].counted) out.scan = out.characters = 0;
    return true;
}

// Drops the terminals that a string is too long or too short for, and those that cannot go on and would end in a duplicate.
void Machine::keep_allowed(Thread &thread, const Scan &scan) {
    const LexerState &state = lexer[thread.lexer];
    std::vector<Pair> kept;
    for (const Pair &pair : state.pairs) {
        const Terminal &terminal = grammar.terminals[pair.terminal];
        if (terminal.counted()) {
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
    bool read = thread.text >= 0 && frames.watches(thread.frame, t);
    if (!read)
        if (auto found = afters.find({thread.stack, thread.frame, t}); found != afters.end()) return found->second;
    int32_t frame = frames.apply(thread.frame, t, thread.text);
    std::vector<int32_t> stacks;
    if (frame != Frames::REFUSED) edges.shift(thread.stack, t, stacks);
    Thread begun;
    for (int32_t stack : stacks) {
        // Where the text ends here no terminal can start.
        if (!start(stack, frame, begun)) begun = {stack, frame, Lexer::NOTHING, -1, 0, 0};
        own.push_back(begun);
    }
    return read ? own : afters[{thread.stack, thread.frame, t}] = own;
}

void Machine::merge(Threads &threads) {
    if (threads.size() < 2) return;
    std::sort(threads.begin(), threads.end());
    threads.erase(std::unique(threads.begin(), threads.end()), threads.end());
    if (threads.size() > MOST_THREADS) crowded++, threads.clear();
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

int64_t Machine::bytes() const {
    return lr.bytes() + edges.bytes() + lexer.bytes() + frames.frames.bytes() + frames.cells.bytes() + int64_t(starts.size()) * 40 +
           int64_t(afters.size()) * 120;
}

void Machine::collect(const std::vector<Threads *> &live) {
    starts.clear();
    afters.clear();
    edges.clear();
    std::vector<uint8_t> stacks(edges.stacks.size()), opened(frames.frames.size()), cells(frames.cells.size());
    std::vector<uint8_t> lexers(lexer.size());
    cells[empty_text] = 1;
    auto mark = [](std::vector<uint8_t> &marks, int64_t at) {
        if (at >= 0) marks[at] = 1;
    };
    for (Threads *threads : live)
        for (const Thread &thread : *threads) {
            mark(stacks, thread.stack), mark(opened, thread.frame), mark(cells, thread.text), mark(lexers, thread.lexer);
        }
    for (int32_t i = edges.stacks.size(); i-- > 0;)
        if (stacks[i]) mark(stacks, edges.stacks[i].parent);
    for (int32_t i = frames.frames.size(); i-- > 0;)
        if (opened[i]) {
            Frame frame = frames.frames[i];
            mark(opened, frame.parent), mark(cells, frame.seen), mark(cells, frame.list);
        }
    for (int32_t i = frames.cells.size(); i-- > 0;)
        if (cells[i]) mark(cells, frames.cells[i].parent);

    using Numbers = std::vector<int32_t>;
    auto renumber = [](const Numbers &numbers, auto &at) {
        if (at >= 0) at = numbers[at];
    };
    Numbers stack_of = edges.stacks.compact(stacks, [&](StackNode &one, const Numbers &now) { renumber(now, one.parent); });
    Numbers cell_of = frames.cells.compact(cells, [&](Cell &one, const Numbers &now) { renumber(now, one.parent); });
    Numbers frame_of = frames.frames.compact(opened, [&](Frame &one, const Numbers &now) {
        renumber(now, one.parent), renumber(cell_of, one.seen), renumber(cell_of, one.list);
    });
    Numbers lexer_of = lexer.compact(lexers);
    empty_text = cell_of[empty_text];
    for (Threads *threads : live)
        for (Thread &thread : *threads) {
            renumber(stack_of, thread.stack), renumber(frame_of, thread.frame), renumber(cell_of, thread.text);
            renumber(lexer_of, thread.lexer);
        }
}
