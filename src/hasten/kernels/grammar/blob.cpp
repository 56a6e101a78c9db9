#include "blob.h"

#include <algorithm>
#include <cstring>

#include "dfa.h"

namespace {

constexpr int32_t MOST_BITS = 65536;

class Reader {
  public:
    Reader(const uint8_t *at, int64_t size) : at(at), left(size) {}

    int32_t number() {
        int32_t value;
        take(&value, sizeof value);
        return value;
    }
    int32_t number(int32_t low, int32_t high, const char *what) {
        int32_t value = number();
        if (value < low || value > high)
            throw Error{std::string("grammar: ") + what + " is " + std::to_string(value) + ", not within " + std::to_string(low) + " to " +
                        std::to_string(high)};
        return value;
    }
    // A number of things that take at least four bytes each, so that it says nothing of memory which is not there.
    int32_t count(const char *what) { return number(0, int32_t(std::min<int64_t>(left / 4, INT32_MAX)), what); }
    std::string chunk() {
        int32_t size = number(0, int32_t(std::min<int64_t>(left, INT32_MAX - 3)), "a length");
        std::string data((size + 3) / 4 * 4, 0);
        take(data.data(), data.size());
        data.resize(size);
        return data;
    }
    std::vector<int32_t> numbers(int32_t low, int32_t high, const char *what) {
        std::vector<int32_t> all(count(what));
        for (int32_t &one : all) one = number(low, high, what);
        return all;
    }
    int64_t rest() const { return left; }

  private:
    const uint8_t *at;
    int64_t left;

    void take(void *to, size_t size) {
        if (left < int64_t(size)) throw Error{"grammar: it ends too early"};
        std::memcpy(to, at, size);
        at += size, left -= int64_t(size);
    }
};

Terminal read_terminal(Reader &in, const Grammar &grammar) {
    Terminal one;
    one.language = in.number(0, int32_t(grammar.languages.size()) - 1, "a terminal's language");
    one.act = in.number(NONE, TOKEN, "a terminal's act");
    one.argument = in.number();
    one.witness = in.number(-1, MOST_BITS - 1, "a terminal's witness");
    one.least = in.number(0, INT32_MAX, "a terminal's least");
    one.most = in.number(-1, INT32_MAX, "a terminal's most");
    one.priority = in.number();
    one.distinct = in.number(0, 1, "a terminal's distinct");
    one.name = in.chunk();
    if (one.counted() && grammar.languages[one.language].form == TEXT) throw Error{"grammar: only strings' characters are counted"};
    if (one.act == KEY && (one.argument < -1 || one.argument >= MOST_BITS)) throw Error{"grammar: a key's bit is out of range"};
    if (one.distinct && one.act != KEY) throw Error{"grammar: only keys can be distinct"};
    return one;
}

Plan read_plan(Reader &in) {
    Plan plan;
    plan.array = in.number(0, 1, "a plan's array");
    plan.bits = in.number(0, MOST_BITS, "a plan's bits");
    plan.witnesses = in.number(0, MOST_BITS, "a plan's witnesses");
    int32_t flags = in.number(0, 3, "a plan's flags");
    plan.unique = flags & 1, plan.ordered = flags & 2;
    plan.rows.resize(in.count("a plan's rows"));
    plan.enough = 0;
    for (Row &row : plan.rows) {
        row.least = in.number(0, INT32_MAX, "a row's least");
        row.most = in.number(-1, INT32_MAX, "a row's most");
        row.required = in.numbers(0, plan.bits - 1, "a required bit");
        row.forbidden = in.numbers(0, plan.bits - 1, "a forbidden bit");
        std::sort(row.required.begin(), row.required.end()), std::sort(row.forbidden.begin(), row.forbidden.end());
        plan.enough = std::max({plan.enough, row.least, row.most < INT32_MAX ? row.most + 1 : row.most});
        if (plan.array && !row.required.empty()) throw Error{"grammar: an array's rows have no bits"};
    }
    return plan;
}

}  // namespace

Grammar read_blob(const uint8_t *blob, int64_t size) {
    if (size < 4 || std::memcmp(blob, "hgr1", 4)) throw Error{"grammar: it does not begin with hgr1"};
    Reader in(blob + 4, size - 4);
    Grammar grammar;
    grammar.longest = in.number(0, 1, "longest");
    grammar.languages.resize(in.count("the number of languages"));
    for (Language &one : grammar.languages) {
        one.form = in.number(TEXT, ANY_STRING, "a language's form");
        one.program = in.chunk();
    }
    int32_t terminals = in.count("the number of terminals");
    for (int32_t i = 0; i < terminals; i++) grammar.terminals.push_back(read_terminal(in, grammar));
    grammar.plans.resize(in.count("the number of plans"));
    for (Plan &plan : grammar.plans) plan = read_plan(in);
    for (const Terminal &one : grammar.terminals)
        if (one.act == OPEN && (one.argument < 0 || one.argument >= int32_t(grammar.plans.size())))
            throw Error{"grammar: a terminal opens a plan that there is not"};
    grammar.names.resize(in.count("the number of nonterminals"));
    int32_t nonterminals = int32_t(grammar.names.size());
    grammar.start = in.number(0, nonterminals - 1, "the start");
    grammar.productions.resize(in.count("the number of productions"));
    for (std::string &name : grammar.names) name = in.chunk();
    for (Production &one : grammar.productions) {
        one.left = in.number(0, nonterminals - 1, "a production's left side");
        one.right = in.numbers(-nonterminals, terminals - 1, "a symbol");
        if (one.right.empty()) throw Error{"grammar: a production has no right side"};
    }
    if (in.rest()) throw Error{"grammar: something follows its end"};
    return grammar;
}
