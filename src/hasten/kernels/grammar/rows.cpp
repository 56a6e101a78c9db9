#include "rows.h"

#include <algorithm>
#include <utility>

#include "utf8.h"

namespace {

constexpr size_t MOST_SPARSE = 1024, MOST_BOUNDARY = 16384, MOST_VISITED = 16384;
constexpr int64_t MOST_CLEARED = 100'000;
constexpr size_t MOST_CLOSURE = 4096;

struct Ascii {
    uint64_t half[2] = {0, 0};

    bool has(int32_t byte) const { return half[byte / 64] >> (byte % 64) & 1; }
    void add(int32_t byte) { half[byte / 64] |= uint64_t(1) << (byte % 64); }
    Ascii operator&(const Ascii &other) const { return {{half[0] & other.half[0], half[1] & other.half[1]}}; }
    Ascii operator-(const Ascii &other) const { return {{half[0] & ~other.half[0], half[1] & ~other.half[1]}}; }
    int32_t size() const { return __builtin_popcountll(half[0]) + __builtin_popcountll(half[1]); }
};

// Bytes of which any sequence keeps the language alive from a state on: ASCII ones, and all well-formed others.
struct Safe {
    Ascii ascii;
    bool other = false;

    bool has(uint8_t byte) const { return byte < 128 ? ascii.has(byte) : other; }
    bool covers(const Signature &signature) const {
        return !signature.broken && !(Ascii{{signature.ascii[0], signature.ascii[1]}} - ascii).size() && (other || !signature.other);
    }
};

// All states that safe bytes lead to must be alive on safe bytes. A byte that a state is dead on leaves the set, and so does one that
// leads to a state which is dead on most of the others, such as the end of a string.
class SafeFinder {
  public:
    SafeFinder(const Dfa &dfa, int32_t start) : dfa(dfa), start(start), classes(dfa.classes) {
        for (int32_t byte = 0; byte < 128; byte++) classes[dfa.class_of[byte]].add(byte);
    }

    Safe find() {
        Safe safe;
        return search(true, safe) || search(false, safe) ? safe : Safe{};
    }

  private:
    const Dfa &dfa;
    const int32_t start;
    std::vector<Ascii> classes;
    std::vector<uint8_t> seen;
    std::vector<std::pair<int32_t, Utf8::At>> reached;

    Ascii alive(int32_t state) const {
        Ascii out;
        for (int32_t c = 0; c < dfa.classes; c++)
            if (dfa.next[size_t(state) * dfa.classes + c] >= 0)
                out.half[0] |= classes[c].half[0], out.half[1] |= classes[c].half[1];
        return out;
    }
    bool reach(int32_t state, Utf8::At at) {
        uint8_t &known = seen[size_t(state) * Utf8::COUNT + at];
        if (!known) reached.emplace_back(state, at);
        return std::exchange(known, 1);
    }
    bool is_trap(int32_t state, const Ascii &safe) const {
        return !seen[size_t(state) * Utf8::COUNT] && (safe - alive(state)).size() * 2 > safe.size();
    }

    bool search(bool with_other, Safe &safe) {
        safe = {alive(start), with_other};
        seen.assign(size_t(dfa.states) * Utf8::COUNT, 0);
        reached.clear();
        reach(start, Utf8::BETWEEN);
        for (size_t i = 0; i < reached.size(); i++) {
            if (reached.size() > MOST_CLOSURE) return false;
            auto [state, at] = reached[i];
            for (int32_t c = 0; at == Utf8::BETWEEN && c < dfa.classes; c++) {
                if (!(safe.ascii & classes[c]).size()) continue;
                int32_t to = dfa.next[size_t(state) * dfa.classes + c];
                if (to < 0 || is_trap(to, safe.ascii)) safe.ascii = safe.ascii - classes[c];
                else reach(to, Utf8::BETWEEN);
            }
            for (int32_t byte = 128; with_other && byte < 256; byte++) {
                Utf8 next{at};
                if (!next.step(uint8_t(byte))) continue;
                int32_t to = dfa.step(state, uint8_t(byte));
                if (to < 0 || (next.at == Utf8::BETWEEN && is_trap(to, safe.ascii))) return false;
                reach(to, next.at);
            }
        }
        return true;
    }
};

bool is_complete(const Dfa &dfa, int32_t state) {
    const int32_t *edges = &dfa.next[size_t(state) * dfa.classes];
    return dfa.accepts[state] && std::all_of(edges, edges + dfa.classes, [](int32_t next) { return next < 0; });
}

// Sets the tokens of safe bytes; false: it is not worth it, and nothing is set.
bool set_safe(const Vocabulary &vocabulary, const Safe &safe, Mask &mask) {
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

}  // namespace

TokenRow make_row(const Vocabulary &vocabulary, const Dfa &dfa, int32_t start) {
    TokenRow row;
    Mask mask;
    Safe safe = SafeFinder(dfa, start).find();
    if (!set_safe(vocabulary, safe, mask)) {
        safe = {};
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
            if (is_complete(dfa, state)) closing.emplace_back(vocabulary.text(node.token), node.token);
        }
        i++;
    }
    row.boundary = std::make_shared<const Trie>(row.wide ? Trie{} : Vocabulary::tree(boundary));
    row.closing = std::make_shared<const Trie>(Vocabulary::tree(closing));
    size_t count = 0;
    for (int32_t word : mask) count += __builtin_popcount(uint32_t(word));
    if (count > MOST_SPARSE) {
        row.dense = std::make_shared<const Mask>(std::move(mask));
        return row;
    }
    for (int32_t i = 0; i < vocabulary.words; i++)
        for (uint32_t word = uint32_t(mask[i]); word; word &= word - 1) row.more.push_back(i * 32 + __builtin_ctz(word));
    return row;
}

int32_t usual_next(const Dfa &dfa, int32_t state) {
    auto most = [&](int32_t from) {
        std::vector<int32_t> counts(dfa.states);
        for (int32_t byte = 0x20; byte < 0x7F; byte++)
            if (int32_t to = dfa.step(from, uint8_t(byte)); to >= 0) counts[to]++;
        auto found = std::max_element(counts.begin(), counts.end());
        return *found > (0x7F - 0x20) / 2 ? int32_t(found - counts.begin()) : -1;
    };
    int32_t next = most(state);
    return next >= 0 && next != state && most(next) == next ? next : -1;
}

bool derive_row(const Vocabulary &vocabulary, const Dfa &dfa, int32_t state, int32_t other, const TokenRow &known, TokenRow &out) {
    if (!known.dense || known.wide) return false;
    struct Way {
        int32_t state;
        bool accepted;
        void step(const Dfa &dfa, uint8_t byte) {
            state = state < 0 ? -1 : dfa.step(state, byte);
            accepted |= state >= 0 && dfa.accepts[state];
        }
        bool operator==(const Way &way) const { return state == way.state && accepted == way.accepted; }
    };
    std::vector<std::pair<Way, Way>> levels(vocabulary.deepest + 1);
    levels[0] = {{state, false}, {other, false}};
    std::vector<int32_t> no_boundary, no_closing;  // tokens of `known` that are none here
    Pieces boundary, closing;
    size_t visited = 0;
    const Trie &trie = vocabulary.trie;
    auto change = [&](bool here, bool there, int32_t token, Pieces &add, std::vector<int32_t> &remove) {
        if (here && !there) add.emplace_back(vocabulary.text(token), token);
        if (there && !here) remove.push_back(token);
    };
    for (size_t i = 0; i < trie.size();) {
        if (++visited > MOST_VISITED) return false;
        const Node &node = trie[i];
        auto &[here, there] = levels[node.depth] = levels[node.depth - 1];
        here.step(dfa, node.byte), there.step(dfa, node.byte);
        if (here == there) {
            i = size_t(node.skip);
            continue;
        }
        if (node.token >= 0) {
            std::vector<int32_t> &changed = here.state >= 0 ? out.more : out.less;
            for (int32_t token = node.token; token >= 0 && (here.state < 0) != (there.state < 0); token = vocabulary.equal[token])
                changed.push_back(token);
            change(here.state < 0 && here.accepted, there.state < 0 && there.accepted, node.token, boundary, no_boundary);
            change(here.state >= 0 && is_complete(dfa, here.state), there.state >= 0 && is_complete(dfa, there.state), node.token, closing,
                   no_closing);
        }
        i++;
    }
    auto changed = [&](const std::shared_ptr<const Trie> &of, Pieces &add, const std::vector<int32_t> &remove) {
        if (add.empty() && remove.empty()) return of;
        for (const Node &node : *of)
            if (node.token >= 0 && std::find(remove.begin(), remove.end(), node.token) == remove.end())
                add.emplace_back(vocabulary.text(node.token), node.token);
        std::sort(add.begin(), add.end());
        return std::make_shared<const Trie>(Vocabulary::tree(add));
    };
    out.dense = known.dense;
    out.boundary = changed(known.boundary, boundary, no_boundary);
    out.closing = changed(known.closing, closing, no_closing);
    return true;
}

void TokenRow::add_to(int32_t *mask) const {
    std::vector<int32_t> without;  // tokens that only the mask has
    for (int32_t token : less)
        if (!(mask[token >> 5] >> (token & 31) & 1)) without.push_back(token);
    if (dense)
        for (size_t i = 0; i < dense->size(); i++) mask[i] |= (*dense)[i];
    for (int32_t token : without) mask[token >> 5] &= int32_t(~(1u << (token & 31)));
    for (int32_t token : more) mask[token >> 5] |= int32_t(1u << (token & 31));
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
    auto made = std::make_shared<TokenRow>();
    int32_t other = usual_next(*dfa, state);
    if (other < 0 || !derive_row(vocabulary, *dfa, state, other, *find(dfa, other), *made)) *made = make_row(vocabulary, *dfa, state);
    std::shared_ptr<const TokenRow> row = made;
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
