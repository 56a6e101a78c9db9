#include "rows.h"

#include <algorithm>
#include <iterator>

#include "safe.h"

namespace {

constexpr size_t MOST_SPARSE = 1024, MOST_BOUNDARY = 16384;
constexpr int32_t MOST_VISITED = 16384;
constexpr int64_t MOST_CLEARED = 100'000;

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
    Safe safe = find_safe(dfa, start);
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
        row.visited++;
        const Node &node = trie[i];
        const Level &before = levels[node.depth - 1];
        if (before.safe && safe.covers(vocabulary.signatures[i])) {
            row.reach = std::max(row.reach, node.depth + vocabulary.heights[i]);
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
        row.reach = std::max<int32_t>(row.reach, node.depth);
        bool accepts = dfa.accepts[state];
        levels[node.depth] = {state, before.safe && safe.has(node.byte), before.accepted || accepts};
        if (node.token >= 0) {
            vocabulary.set(mask.data(), node.token);
            if (dfa.is_complete(state)) closing.emplace_back(vocabulary.text(node.token), node.token);
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
    if (known.wide) return false;
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
    std::vector<int32_t> fresh, gone, no_boundary, no_closing;  // tokens that are legal here only, or there only
    Pieces boundary, closing;
    const Trie &trie = vocabulary.trie;
    out.reach = known.reach;
    auto change = [&](bool here, bool there, int32_t token, Pieces &add, std::vector<int32_t> &remove) {
        if (here && !there) add.emplace_back(vocabulary.text(token), token);
        if (there && !here) remove.push_back(token);
    };
    for (size_t i = 0; i < trie.size();) {
        if (++out.visited > MOST_VISITED) return false;
        const Node &node = trie[i];
        auto &[here, there] = levels[node.depth] = levels[node.depth - 1];
        here.step(dfa, node.byte), there.step(dfa, node.byte);
        if (here.state >= 0) out.reach = std::max<int32_t>(out.reach, node.depth);
        bool alike = here.accepted == there.accepted && here.state >= 0 && there.state >= 0 &&
                     dfa.likeness.alike(here.state, there.state, vocabulary.heights[i]);
        if (here == there || alike) {
            i = size_t(node.skip);
            continue;
        }
        if (node.token >= 0) {
            std::vector<int32_t> &changed = here.state >= 0 ? fresh : gone;
            for (int32_t token = node.token; token >= 0 && (here.state < 0) != (there.state < 0); token = vocabulary.equal[token])
                changed.push_back(token);
            change(here.state < 0 && here.accepted, there.state < 0 && there.accepted, node.token, boundary, no_boundary);
            change(here.state >= 0 && dfa.is_complete(here.state), there.state >= 0 && dfa.is_complete(there.state), node.token, closing,
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
    // Both are changes to the same mask.
    std::sort(fresh.begin(), fresh.end()), std::sort(gone.begin(), gone.end());
    auto set_in_mask = [&](int32_t token) { return known.dense && ((*known.dense)[token >> 5] >> (token & 31) & 1); };
    auto combine = [](const std::vector<int32_t> &before, const std::vector<int32_t> &without, const std::vector<int32_t> &with, auto wanted) {
        std::vector<int32_t> all;
        for (int32_t token : before)
            if (!std::binary_search(without.begin(), without.end(), token)) all.push_back(token);
        std::copy_if(with.begin(), with.end(), std::back_inserter(all), wanted);
        return all;
    };
    out.dense = known.dense;
    out.more = combine(known.more, gone, fresh, [&](int32_t token) { return !set_in_mask(token); });
    out.less = combine(known.less, fresh, gone, set_in_mask);
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

std::shared_ptr<const TokenRow> Rows::find(const Dfa &dfa, int32_t state, Work &work) {
    Key key{dfa.number, state};
    {
        std::lock_guard<std::mutex> guard(lock);
        if (auto at = found.find(key); at != found.end()) {
            entries.splice(entries.begin(), entries, at->second);
            return at->second->row;
        }
    }
    work.spend(vocabulary.words / 16);
    auto made = std::make_shared<TokenRow>();
    bool derived = derive(dfa, state, *made, work);
    if (!derived) *made = make_row(vocabulary, dfa, state);
    work.charge(made->visited / 8);
    std::shared_ptr<const TokenRow> row = made;
    std::lock_guard<std::mutex> guard(lock);
    if (auto at = found.find(key); at != found.end()) return at->second->row;
    int32_t roughly = dfa.likeness.roughly(state);
    entries.push_front({key, roughly, row->bytes(), row});
    found[key] = entries.begin();
    if (!derived && roughly >= 0) bases[{dfa.number, roughly}] = state;
    total += entries.front().bytes;
    while (total > MOST_BYTES && entries.size() > 1) {
        const Entry &oldest = entries.back();
        total -= oldest.bytes;
        auto base = bases.find({oldest.key.first, oldest.roughly});
        if (base != bases.end() && base->second == oldest.key.second) bases.erase(base);
        found.erase(oldest.key);
        entries.pop_back();
    }
    return row;
}

// From the row of the state that most characters lead to, or of one that is like this one.
bool Rows::derive(const Dfa &dfa, int32_t state, TokenRow &out, Work &work) {
    if (int32_t other = usual_next(dfa, state); other >= 0) {
        if (derive_row(vocabulary, dfa, state, other, *find(dfa, other, work), out)) return true;
        out = {};
    }
    int32_t other;
    auto base = base_of(dfa, state, other);
    if (base && derive_row(vocabulary, dfa, state, other, *base, out)) return true;
    out = {};
    return false;
}

// The row that was made last for a state that is roughly like this one.
std::shared_ptr<const TokenRow> Rows::base_of(const Dfa &dfa, int32_t state, int32_t &other) {
    int32_t roughly = dfa.likeness.roughly(state);
    if (roughly < 0) return nullptr;
    std::lock_guard<std::mutex> guard(lock);
    auto base = bases.find({dfa.number, roughly});
    if (base == bases.end()) return nullptr;
    other = base->second;
    auto at = found.find({dfa.number, other});
    return at == found.end() ? nullptr : at->second->row;
}

int32_t Rows::representative(const Dfa &dfa, int32_t state) {
    int32_t other;
    auto base = base_of(dfa, state, other);
    // One byte more: that on which the language no longer goes on.
    return base && dfa.likeness.alike(state, other, base->reach + 1) ? other : state;
}

int64_t Rows::bytes() {
    std::lock_guard<std::mutex> guard(lock);
    return total;
}
