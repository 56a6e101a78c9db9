#include "expression.h"

#include <algorithm>
#include <cstring>

#include "nfa.h"

namespace {

// Codes of the operations, in the order of languages.py.
enum { NONE, EMPTY, CHARS, WORDS, CAT, EITHER, BOTH, WITHOUT, REPEAT, AUTOMATON };

class Reader {
  public:
    Reader(const uint8_t *at, size_t size) : at(at), end(at + size) {}
    bool more() const { return at < end; }
    int operation() { return *at++; }
    int32_t number() {
        if (end - at < 4) throw Error{"the program ends too early"};
        int32_t value;
        std::memcpy(&value, at, 4);
        at += 4;
        return value;
    }
    // Of things that take at least so many bytes of the program each, `bytes` may be 0.
    int32_t count(int bytes) {
        int32_t value = number();
        if (value < 0 || int64_t(value) * bytes > end - at) throw Error{"the program has a wrong count"};
        return value;
    }
    std::vector<Span> spans(int32_t count) {
        std::vector<Span> out(count);
        for (Span &span : out) span.low = number(), span.high = number();
        return out;
    }

  private:
    const uint8_t *at, *end;
};

// All sets of code points that a program tells apart. A word's code points are gathered before: there are many and few kinds.
Alphabet find_alphabet(Reader reader, const Budget &budget) {
    std::vector<std::vector<Span>> sets;
    std::vector<int32_t> points;
    while (reader.more()) {
        budget.check(0);
        switch (reader.operation()) {
            case NONE: case EMPTY: case WITHOUT: break;
            case CHARS: sets.push_back(reader.spans(reader.count(8))); break;
            case WORDS:
                for (int32_t words = reader.count(4); words > 0; words--) {
                    for (int32_t length = reader.count(4); length > 0; length--) points.push_back(reader.number());
                }
                break;
            case CAT: case EITHER: case BOTH: reader.number(); break;
            case REPEAT: reader.number(), reader.number(); break;
            case AUTOMATON:
                for (int32_t states = reader.count(4); states > 0; states--) {
                    for (int32_t edges = reader.count(12); edges > 0; edges--) sets.push_back(reader.spans(1)), reader.number();
                }
                for (int32_t accepting = reader.count(4); accepting > 0; accepting--) reader.number();
                break;
            default: throw Error{"the program has an unknown operation"};
        }
    }
    std::sort(points.begin(), points.end());
    points.erase(std::unique(points.begin(), points.end()), points.end());
    for (int32_t point : points) sets.push_back({{point, point}});
    auto before = [](const std::vector<Span> &a, const std::vector<Span> &b) {
        return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](const Span &x, const Span &y) {
            return x.low != y.low ? x.low < y.low : x.high < y.high;
        });
    };
    std::sort(sets.begin(), sets.end(), before);
    sets.erase(std::unique(sets.begin(), sets.end(), [&](const auto &a, const auto &b) { return !before(a, b) && !before(b, a); }), sets.end());
    return Alphabet(sets, budget);
}

// Values are fragments as long as nothing needs them deterministic.
struct Value {
    bool exact;
    Automaton automaton;  // if exact
    Fragment fragment;    // otherwise
    Nfa::Mark since;      // where the fragment begins
};

class Evaluator {
  public:
    Evaluator(Reader reader, const Alphabet &alphabet, const Budget &budget) : reader(reader), alphabet(alphabet), budget(budget) {}

    Automaton run() {
        while (reader.more()) {
            budget.check(0);
            step(reader.operation());
        }
        if (stack.size() != 1) throw Error{"the program leaves " + std::to_string(stack.size()) + " values"};
        return take_exact(stack.back());
    }

  private:
    Reader reader;
    const Alphabet &alphabet;
    const Budget &budget;
    Nfa nfa;
    std::vector<Value> stack;

    void step(int operation) {
        Nfa::Mark since = nfa.mark();
        switch (operation) {
            case NONE: stack.push_back({true, {}, {}, since}); break;
            case EMPTY: {
                int32_t state = nfa.state();
                push({state, state}, since);
                break;
            }
            case CHARS: {
                int32_t start = nfa.state(), end = nfa.state();
                nfa.read(start, alphabet.labels(reader.spans(reader.count(8))), end);
                push({start, end}, since);
                break;
            }
            case WORDS: stack.push_back({true, read_words(), {}, since}); break;
            case CAT: cat(operands()); break;
            case EITHER: either(operands()); break;
            case BOTH: both(operands()), check_size(); break;
            case WITHOUT: {
                Value &value = top();
                value.automaton = minimise(complement(take_exact(value), alphabet.classes(), budget), budget);
                check_size();
                break;
            }
            case REPEAT: repeat(top()); break;
            case AUTOMATON: stack.push_back({true, minimise(read_automaton(), budget), {}, since}), check_size(); break;
        }
    }

    void push(Fragment fragment, Nfa::Mark since) { stack.push_back({false, {}, fragment, since}); }

    Value &top() {
        if (stack.empty()) throw Error{"the program lacks an operand"};
        return stack.back();
    }

    void check_size() const {
        size_t edges = 0;
        for (const Value &value : stack) edges += value.automaton.edges.size();
        if (edges > 2 * MOST_EDGES) throw Error{"its parts have too many edges"};
    }

    size_t operands() {
        int32_t count = reader.number();
        if (count < 1 || size_t(count) > stack.size()) throw Error{"the program lacks an operand"};
        return stack.size() - count;
    }

    Fragment as_fragment(const Value &value) { return value.exact ? nfa.embed(value.automaton, budget) : value.fragment; }

    // Of the last value: its fragment, which is dropped, lies behind all others.
    Automaton take_exact(Value &value) {
        if (!value.exact) {
            value.automaton = minimise(nfa.determinise(value.fragment, value.since, alphabet.classes(), budget), budget);
            nfa.drop(value.since);
            value.exact = true;
        }
        return std::move(value.automaton);
    }

    // `from`: index of the first operand. What is embedded now lies behind the last operand, so all of it still is one piece.
    void cat(size_t from) {
        Nfa::Mark since = stack[from].since;
        Fragment whole = as_fragment(stack[from]);
        for (size_t i = from + 1; i < stack.size(); i++) {
            Fragment part = as_fragment(stack[i]);
            nfa.join(whole.end, part.start);
            whole.end = part.end;
        }
        stack.resize(from);
        push(whole, since);
    }

    void either(size_t from) {
        Nfa::Mark since = stack[from].since;
        int32_t start = nfa.state(), end = nfa.state();
        for (size_t i = from; i < stack.size(); i++) {
            Fragment part = as_fragment(stack[i]);
            nfa.join(start, part.start), nfa.join(part.end, end);
        }
        stack.resize(from);
        push({start, end}, since);
    }

    void both(size_t from) {
        Nfa::Mark since = stack[from].since;
        Automaton all = take_exact(stack.back());
        for (stack.pop_back(); stack.size() > from; stack.pop_back()) {
            all = minimise(product(all, take_exact(stack.back()), budget), budget);
        }
        stack.push_back({true, std::move(all), {}, since});
    }

    // A chain of copies. The states between them are new, so that a way out after some copies is taken by nothing else.
    void repeat(Value &value) {
        int32_t least = reader.number(), most = reader.number();
        if (least < 0 || most == 0 || (most > 0 && most < least)) throw Error{"the program repeats wrongly"};
        Nfa::Mark since = value.since;
        Nfa::Mark from = value.exact ? nfa.mark() : since;
        Fragment part = as_fragment(value);
        Nfa::Mark to = nfa.mark();
        std::vector<Fragment> copies{part};  // before the first one is joined to anything
        for (int32_t i = 1; i < (most < 0 ? least : most); i++) {
            budget.check(0);
            copies.push_back(nfa.copy(part, from, to));
        }
        int32_t start = nfa.state(), end = nfa.state(), at = start, before = start;
        for (int32_t i = 0; i < int32_t(copies.size()); i++) {
            if (i >= least) nfa.join(at, end);
            nfa.join(at, copies[i].start);
            before = at, at = nfa.state();
            nfa.join(copies[i].end, at);
        }
        if (most < 0) nfa.join(at, before);
        nfa.join(at, end);
        value = {false, {}, {start, end}, since};
    }

    Automaton read_words() {
        std::vector<std::vector<int32_t>> words;
        std::vector<int32_t> word, last;
        for (int32_t count = reader.count(4); count > 0; count--) {
            word.clear();
            bool possible = true;
            std::vector<int32_t> labels;
            for (int32_t length = reader.count(4); length > 0; length--) {
                word.push_back(reader.number());
                labels.push_back(alphabet.label(word.back()));
                possible &= labels.back() >= 0;  // a surrogate is no code point
            }
            if (!last.empty() && word <= last) throw Error{"the program has words out of order"};
            std::swap(word, last);
            if (possible) words.push_back(std::move(labels));
        }
        return any_word(words, budget);
    }

    Automaton read_automaton() {
        Automaton out;
        int32_t states = reader.count(4);
        for (int32_t state = 0; state < states; state++) {
            budget.check(0);
            std::vector<Edge> row;
            for (int32_t edges = reader.count(12); edges > 0; edges--) {
                std::vector<int32_t> labels = alphabet.labels(reader.spans(1));
                int32_t next = reader.number();
                if (next < 0 || next >= states) throw Error{"the program has an edge to nowhere"};
                for (int32_t label : labels) row.push_back({label, next});
            }
            std::sort(row.begin(), row.end(), [](const Edge &a, const Edge &b) { return a.label < b.label; });
            for (size_t i = 1; i < row.size(); i++) {
                if (row[i].label == row[i - 1].label) throw Error{"the program has an automaton with two ways"};
            }
            out.edges.insert(out.edges.end(), row.begin(), row.end());
            out.end_state(false);
        }
        for (int32_t accepting = reader.count(4); accepting > 0; accepting--) {
            int32_t state = reader.number();
            if (state < 0 || state >= states) throw Error{"the program accepts nowhere"};
            out.accepts[state] = true;
        }
        return out;
    }
};

}  // namespace

PointLanguage read_program(const uint8_t *program, size_t size, const Budget &budget) {
    Alphabet alphabet = find_alphabet({program, size}, budget);
    Automaton automaton = Evaluator({program, size}, alphabet, budget).run();
    return {std::move(alphabet), std::move(automaton)};
}
