#include "masks.h"

#include <cstring>

namespace {

constexpr size_t MOST_CHANGES = 2048;  // to a shared row; more are a row of its own

void set(int32_t *mask, int32_t token) { mask[token >> 5] |= int32_t(1u << (token & 31)); }
void unset(int32_t *mask, int32_t token) { mask[token >> 5] &= int32_t(~(1u << (token & 31))); }
bool has(const int32_t *mask, int32_t token) { return mask[token >> 5] >> (token & 31) & 1; }

}  // namespace

Masks::Masks(const Vocabulary &vocabulary, Machine &machine, Rows &rows, std::vector<std::shared_ptr<const Dfa>> automata)
    : vocabulary(vocabulary), machine(machine), rows(rows), automata(std::move(automata)), levels(vocabulary.deepest + 1),
      unsure(vocabulary.deepest + 1), scratch(vocabulary.words) {}

void Masks::fill(const Threads &threads, int32_t *mask) {
    machine.spread(threads, parts);
    bool first = true;
    for (const Part &part : parts) {
        suspects.clear();
        bool trusted = part.thread.text >= 0 && trust(part.thread);
        Limits limits;
        Part own = part;
        own.thread.lexer = representative(part.thread.lexer);
        bool alike = machine.lexer[part.thread.lexer].counted && limits_of(part.thread, limits);
        if (alike) own.thread.characters = Thread::UNCOUNTED;
        if (alike && limits.hold()) {
            limited.resize(vocabulary.words);
            add(leaf_of(own, trusted), own, true, limited.data());
            keep_within(limits, limited.data());
            for (int32_t i = 0; i < vocabulary.words; i++) mask[i] = limited[i] | (first ? 0 : mask[i]);
        } else {
            add(leaf_of(own, trusted), own, first, mask);
        }
        first = false;
    }
    if (first) std::fill(mask, mask + vocabulary.words, 0);
    add_named(threads, mask);
}

void Masks::fill_plain(const Threads &threads, int32_t *mask) {
    std::fill(mask, mask + vocabulary.words, 0);
    machine.spread(threads, parts);
    for (const Part &part : parts) walk(vocabulary.trie, part, mask, nullptr);
    add_named(threads, mask);
}

// What is legal by its number: the ends, and tokens that are terminals.
void Masks::add_named(const Threads &threads, int32_t *mask) {
    if (machine.ended(threads))
        for (int32_t token : vocabulary.ends) set(mask, token);
    named.clear();
    machine.tokens(threads, named);
    for (int32_t token : named) set(mask, token);
}

void Masks::add(const Leaf &leaf, const Part &part, bool first, int32_t *mask) {
    const Mask *dense = leaf.base.get();
    saved.clear();  // what neither this leaf has nor others
    auto leave_out = [&](int32_t token) {
        if (first || !has(mask, token)) saved.push_back(token);
    };
    for (int32_t token : leaf.remove) leave_out(token);
    for (int32_t token : suspects)
        if (!allows(part, token))
            for (; token >= 0; token = vocabulary.equal[token]) leave_out(token);
    if (first && dense) std::memcpy(mask, dense->data(), dense->size() * sizeof(int32_t));
    else if (first) std::fill(mask, mask + vocabulary.words, 0);
    else if (dense)
        for (int32_t i = 0; i < vocabulary.words; i++) mask[i] |= (*dense)[i];
    for (int32_t token : leaf.add) set(mask, token);
    for (int32_t token : saved) unset(mask, token);
    if (!leaf.recheck.empty()) walk(leaf.recheck, part, mask, nullptr);
}

// ---------------------------------------------------------------- finding out

Masks::Leaf Masks::resolve(const Part &part, bool trusted) {
    const Thread &thread = part.thread;
    struct Trust {  // until the end, also where it is too much work
        int32_t &frame;
        ~Trust() { frame = Frames::REFUSED; }
    } trust{machine.frames.trusted};
    if (trusted) trust.frame = thread.frame;
    std::fill(scratch.begin(), scratch.end(), 0);
    std::vector<std::shared_ptr<const TokenRow>> used;
    Pieces recheck;
    // A lexeme that goes on here must not end, so what begins after it has fewer first bytes, and more of each row would be wrong; and
    // rows know nothing of limits.
    bool counted = machine.lexer[thread.lexer].counted && thread.characters != Thread::UNCOUNTED;
    bool whole = part.barred >= 0 || counted;
    for (const Pair &pair : machine.lexer[thread.lexer].pairs) {
        const Terminal &terminal = machine.grammar.terminals[pair.terminal];
        if (terminal.act == TOKEN) continue;
        used.push_back(rows.find(*automata[terminal.language], pair.state, machine.work));
        whole |= used.back()->wide;
        if (!whole) used.back()->add_to(scratch.data());
    }
    if (whole) {
        std::fill(scratch.begin(), scratch.end(), 0);
        walk(vocabulary.trie, part, scratch.data(), &recheck);
    } else {
        if (thread.text >= 0)
            for (const auto &row : used) {
                for (const Node &node : *row->closing)
                    if (node.token >= 0) vocabulary.clear(scratch.data(), node.token);
            }
        for (const auto &row : used) {
            walk(*row->boundary, part, scratch.data(), &recheck);
            if (thread.text >= 0) walk(*row->closing, part, scratch.data(), &recheck);
        }
    }
    std::sort(recheck.begin(), recheck.end());
    recheck.erase(std::unique(recheck.begin(), recheck.end()), recheck.end());
    Leaf leaf = compress(used);
    leaf.recheck = Vocabulary::tree(recheck);
    return leaf;
}

bool Masks::limits_of(const Thread &thread, Limits &out) const {
    bool alike = true, first = true;
    for (const Pair &pair : machine.lexer[thread.lexer].pairs) {
        const Terminal &terminal = machine.grammar.terminals[pair.terminal];
        Limits own;
        own.more = std::max(0, terminal.least - thread.characters);
        int32_t left = terminal.most - thread.characters;
        if (terminal.most >= 0 && left < int32_t(vocabulary.longer.size())) own.most = left;
        alike &= first || (own.more == out.more && own.most == out.most);
        out = own, first = false;
    }
    // Tokens are counted from between two characters on.
    return alike && (thread.scan == Scan::BETWEEN || !out.hold());
}

void Masks::keep_within(const Limits &limits, int32_t *mask) const {
    if (limits.most >= 0)
        for (int32_t i = 0; i < vocabulary.words; i++) mask[i] &= ~vocabulary.longer[limits.most][i];
    for (auto [token, characters] : vocabulary.closers)
        if (characters < limits.more) vocabulary.clear(mask, token);
}

void Masks::walk(const Trie &trie, const Part &part, int32_t *mask, Pieces *recheck) {
    unsure[0] = 0;
    auto keep = [&](int32_t token) { recheck->emplace_back(vocabulary.text(token), token); };
    for (size_t i = 0; i < trie.size();) {
        const Node &node = trie[i];
        Threads &reached = levels[node.depth];
        machine.frames.consulted = false;
        if (node.depth == 1) machine.enter(part, node.byte, reached);
        else machine.step(levels[node.depth - 1], node.byte, reached);
        unsure[node.depth] = unsure[node.depth - 1] || machine.frames.consulted;
        bool later = recheck && unsure[node.depth];
        if (reached.empty()) {
            for (int32_t below = int32_t(i); later && below < node.skip; below++)
                if (trie[below].token >= 0) keep(trie[below].token);
            i = size_t(node.skip);
            continue;
        }
        if (node.token >= 0) later ? keep(node.token) : vocabulary.set(mask, node.token);
        i++;
    }
}

// The mask in `scratch`, as changes to the row that has most of it.
Masks::Leaf Masks::compress(const std::vector<std::shared_ptr<const TokenRow>> &used) const {
    Leaf leaf;
    for (const auto &row : used)
        if (row->dense) leaf.base = row->dense;
    for (int32_t i = 0; i < vocabulary.words && leaf.add.size() + leaf.remove.size() <= MOST_CHANGES; i++) {
        uint32_t base = leaf.base ? uint32_t((*leaf.base)[i]) : 0, wanted = uint32_t(scratch[i]);
        if (base == wanted) continue;
        for (uint32_t more = wanted & ~base; more; more &= more - 1) leaf.add.push_back(i * 32 + __builtin_ctz(more));
        for (uint32_t less = base & ~wanted; less; less &= less - 1) leaf.remove.push_back(i * 32 + __builtin_ctz(less));
    }
    if (leaf.add.size() + leaf.remove.size() > MOST_CHANGES) {
        leaf = {};
        leaf.base = std::make_shared<const Mask>(scratch);
    }
    return leaf;
}
