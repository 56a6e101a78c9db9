#include "rows.h"

#include <algorithm>

#include "utf8.h"

namespace {

constexpr size_t MOST_SPARSE = 1024, MOST_BOUNDARY = 16384;
constexpr int64_t MOST_CLEARED = 40'000;
constexpr size_t MOST_CLOSURE = 256;

// Bytes of which any sequence keeps the language alive from a state on: ASCII ones, and all well-formed others.
struct Safe {
    uint64_t ascii[2] = {~uint64_t(0), ~uint64_t(0)};
    bool other = true;

    bool has(uint8_t byte) const { return byte < 128 ? ascii[byte / 64] >> (byte % 64) & 1 : other; }
    bool covers(const Signature &signature) const {
        return !signature.broken && !(signature.ascii[0] & ~ascii[0]) && !(signature.ascii[1] & ~ascii[1]) && (other || !signature.other);
    }
};

// How many of the safe ASCII bytes a state is dead on.
int32_t count_dead(const Dfa &dfa, int32_t state, const Safe &safe) {
    int32_t dead = 0;
    for (int32_t byte = 0; byte < 128; byte++) dead += safe.has(uint8_t(byte)) && dfa.step(state, uint8_t(byte)) < 0;
    return dead;
}

// All states that safe bytes lead to must be alive on safe bytes. A byte that a state is dead on leaves the set, and so does one that
// leads to a state which is dead on most of the others, such as the end of a string.
Safe find_safe(const Dfa &dfa, int32_t start, bool with_other) {
    Safe safe;
    safe.other = with_other;
    for (int32_t byte = 0; byte < 128; byte++)
        if (dfa.step(start, uint8_t(byte)) < 0) safe.ascii[byte / 64] &= ~(uint64_t(1) << (byte % 64));
    std::vector<uint8_t> seen(size_t(dfa.states) * Utf8::COUNT);
    std::vector<std::pair<int32_t, Utf8::At>> reached{{start, Utf8::BETWEEN}};
    seen[size_t(start) * Utf8::COUNT] = 1;
    for (size_t i = 0; i < reached.size(); i++) {
        if (reached.size() > MOST_CLOSURE) return {{0, 0}, false};
        auto [state, at] = reached[i];
        for (int32_t byte = at == Utf8::BETWEEN ? 0 : 128; byte < (with_other ? 256 : 128); byte++) {
            Utf8 next{at};
            if (!safe.has(uint8_t(byte)) || !next.step(uint8_t(byte))) continue;
            int32_t to = dfa.step(state, uint8_t(byte)), left = __builtin_popcountll(safe.ascii[0]) + __builtin_popcountll(safe.ascii[1]);
            bool fresh = to >= 0 && !seen[size_t(to) * Utf8::COUNT + next.at];
            if (to < 0 || (fresh && next.at == Utf8::BETWEEN && count_dead(dfa, to, safe) * 2 > left)) {
                if (byte >= 128) return find_safe(dfa, start, false);
                safe.ascii[byte / 64] &= ~(uint64_t(1) << (byte % 64));
            } else if (fresh) {
                seen[size_t(to) * Utf8::COUNT + next.at] = 1;
                reached.emplace_back(to, next.at);
            }
        }
    }
    return safe;
}

// Sets the tokens of safe bytes; false: it is not worth it, and nothing is set.
bool set_safe(const Vocabulary &vocabulary, const Safe &safe, std::vector<int32_t> &mask) {
    int64_t cleared = 0;
    for (int32_t byte = 0; byte <= 128; byte++)
        if (!safe.has(uint8_t(byte))) cleared += int64_t(vocabulary.containing[byte].size());
    if (cleared > MOST_CLEARED) return false;
    mask = vocabulary.whole;
    for (int32_t byte = 0; byte <= 128; byte++)
        if (!safe.has(uint8_t(byte)))
            for (int32_t token : vocabulary.containing[byte]) vocabulary.clear(mask.data(), token);
    return true;
}

TokenRow make_row(const Vocabulary &vocabulary, const Dfa &dfa, int32_t start) {
    TokenRow row;
    std::vector<int32_t> mask;
    Safe safe = find_safe(dfa, start, true);
    if (!set_safe(vocabulary, safe, mask)) {
        safe = {{0, 0}, false};
        mask.assign(vocabulary.words, 0);
    }
    struct Level {
        int32_t state;
        bool safe, accepted;  // all bytes so far; after one of them
    };
    std::vector<Level> levels(vocabulary.deepest + 1);
    levels[0] = {start, true, false};
    Pieces boundary, closing;
    const Trie &trie = vocabulary.trie;
    for (size_t i = 0; i < trie.size();) {
        const Node &node = trie[i];
        const Level &before = levels[node.depth - 1];
        if (before.safe && safe.covers(vocabulary.signatures[i])) {
            i = size_t(node.skip);
            continue;
        }
        int32_t state = dfa.step(before.state, node.byte);
        if (state < 0) {
            if (before.accepted && !row.wide)
                for (int32_t below = int32_t(i); below < node.skip; below++)
                    if (int32_t token = trie[below].token; token >= 0) boundary.emplace_back(vocabulary.text(token), token);
            row.wide |= boundary.size() > MOST_BOUNDARY;
            i = size_t(node.skip);
            continue;
        }
        bool accepts = dfa.accepts[state];
        levels[node.depth] = {state, before.safe && safe.has(node.byte), before.accepted || accepts};
        if (node.token >= 0) {
            vocabulary.set(mask.data(), node.token);
            const int32_t *edges = &dfa.next[size_t(state) * dfa.classes];
            if (accepts && std::all_of(edges, edges + dfa.classes, [](int32_t next) { return next < 0; }))
                closing.emplace_back(vocabulary.text(node.token), node.token);
        }
        i++;
    }
    if (!row.wide) row.boundary = Vocabulary::tree(boundary);
    row.closing = Vocabulary::tree(closing);
    for (int32_t word : mask) row.count += __builtin_popcount(uint32_t(word));
    if (row.count > int32_t(MOST_SPARSE)) {
        row.dense = std::move(mask);
        return row;
    }
    for (int32_t i = 0; i < vocabulary.words; i++)
        for (uint32_t word = uint32_t(mask[i]); word; word &= word - 1) row.sparse.push_back(i * 32 + __builtin_ctz(word));
    return row;
}

}  // namespace

void TokenRow::add_to(int32_t *mask) const {
    for (int32_t i = 0; i < int32_t(dense.size()); i++) mask[i] |= dense[i];
    for (int32_t token : sparse) mask[token >> 5] |= int32_t(1u << (token & 31));
}

std::shared_ptr<const TokenRow> Rows::find(const std::shared_ptr<const Dfa> &dfa, int32_t state) {
    Key key{dfa.get(), state};
    {
        std::lock_guard<std::mutex> guard(lock);
        if (auto at = found.find(key); at != found.end()) {
            entries.splice(entries.begin(), entries, at->second);
            return at->second->row;
        }
    }
    auto row = std::make_shared<const TokenRow>(make_row(vocabulary, *dfa, state));
    std::lock_guard<std::mutex> guard(lock);
    if (auto at = found.find(key); at != found.end()) return at->second->row;
    entries.push_front({key, dfa, row});
    found[key] = entries.begin();
    total += row->bytes();
    while (total > MOST_BYTES && entries.size() > 1) {
        total -= entries.back().row->bytes();
        found.erase(entries.back().key);
        entries.pop_back();
    }
    return row;
}

int64_t Rows::bytes() {
    std::lock_guard<std::mutex> guard(lock);
    return total;
}
