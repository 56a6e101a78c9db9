#include "encode.h"

#include <algorithm>
#include <unordered_map>

namespace {

struct Piece {
    int32_t low, high, next;
};
using Pieces = std::vector<Piece>;

constexpr int64_t MOST_STATES_EACH = 16;  // per code point state, before equal ones are found

// Nodes between code points (what follows a leading byte or a backslash) are shared wherever their pieces are equal.
class Encoder {
  public:
    Encoder(const PointLanguage &language, bool string, const Budget &budget) : language(language), string(string), budget(budget) {}

    ByteGraph run() {
        const Automaton &from = language.automaton;
        int32_t states = from.states(), shift = string ? 1 : 0;
        if (states == 0) return {};
        out.accepts.assign(shift, false);
        out.accepts.insert(out.accepts.end(), from.accepts.begin(), from.accepts.end());
        if (string) {
            std::fill(out.accepts.begin(), out.accepts.end(), false);
            int32_t end = state();
            out.accepts[end] = true;
            arc(0, '"', '"', 1);
            for (int32_t s = 0; s < states; s++) {
                if (from.accepts[s]) arc(s + 1, '"', '"', end);
            }
        }
        for (int32_t s = 0; s < states; s++) {
            budget.check(int64_t(out.accepts.size()) / MOST_STATES_EACH);
            if (out.arcs.size() > MOST_EDGES) throw Error{"its automaton has too many edges"};  // there is one at least for each arc
            Pieces pieces = pieces_of(s, shift);
            if (string) pieces = escape(s + shift, pieces);
            for (const Piece &one : clip(pieces, 0, 0x7F)) arc(s + shift, one.low, one.high, one.next);
            spread(s + shift, clip(pieces, 0x80, 0x7FF), 1, 0xC0);
            spread(s + shift, clip(pieces, 0x800, 0xFFFF), 2, 0xE0);
            spread(s + shift, clip(pieces, 0x10000, 0x10FFFF), 3, 0xF0);
        }
        return std::move(out);
    }

  private:
    const PointLanguage &language;
    bool string;
    const Budget &budget;
    ByteGraph out;
    std::unordered_map<std::vector<int32_t>, int32_t, Hash> known;

    int32_t state() {
        out.accepts.push_back(false);
        return int32_t(out.accepts.size()) - 1;
    }

    void arc(int32_t from, int32_t low, int32_t high, int32_t next) { out.arcs.push_back({from, uint8_t(low), uint8_t(high), next}); }

    // Where each code point leads: sorted, neighbours that lead to the same state are one piece.
    Pieces pieces_of(int32_t state, int32_t shift) const {
        const Automaton &from = language.automaton;
        Pieces all, joined;
        for (int32_t e = from.first[state]; e < from.first[state + 1]; e++) {
            for (const Span &span : language.alphabet.spans_of(from.edges[e].label)) {
                all.push_back({span.low, span.high, from.edges[e].next + shift});
            }
        }
        std::sort(all.begin(), all.end(), [](const Piece &a, const Piece &b) { return a.low < b.low; });
        for (const Piece &one : all) {
            if (!joined.empty() && joined.back().high + 1 == one.low && joined.back().next == one.next) {
                joined.back().high = one.high;
            } else {
                joined.push_back(one);
            }
        }
        return joined;
    }

    static Pieces clip(const Pieces &pieces, int32_t low, int32_t high) {
        Pieces out;
        for (const Piece &one : pieces) {
            if (one.high >= low && one.low <= high) out.push_back({std::max(one.low, low), std::min(one.high, high), one.next});
        }
        return out;
    }

    // The node of a kind with these pieces; fresh: it has no arcs yet.
    int32_t node(int32_t kind, const Pieces &pieces, bool &fresh) {
        std::vector<int32_t> key{kind};
        for (const Piece &one : pieces) key.insert(key.end(), {one.low, one.high, one.next});
        auto [found, added] = known.try_emplace(std::move(key), int32_t(out.accepts.size()));
        fresh = added;
        return added ? state() : found->second;
    }

    // Arcs for values that are written as the byte base + value / 64^count and `count` further bytes.
    void spread(int32_t from, const Pieces &pieces, int count, int32_t base) {
        const int32_t block = 1 << 6 * count;
        Pieces inside;
        int32_t at = 0;
        for (size_t i = 0; i < pieces.size();) {
            at = std::max(at, pieces[i].low);
            int32_t first = at / block, start = first * block;
            if (at == start && pieces[i].high >= start + block - 1) {  // whole blocks
                int32_t last = (pieces[i].high + 1) / block - 1;
                arc(from, base + first, base + last, tail({{0, block - 1, pieces[i].next}}, count));
                at = (last + 1) * block;
            } else {
                inside.clear();
                for (size_t k = i; k < pieces.size() && pieces[k].low < start + block; k++) {
                    inside.push_back({std::max(at, pieces[k].low) - start, std::min(pieces[k].high, start + block - 1) - start, pieces[k].next});
                }
                arc(from, base + first, base + first, tail(inside, count));
                at = start + block;
            }
            while (i < pieces.size() && pieces[i].high < at) i++;
        }
    }

    // The node after which `count` more bytes of a character follow.
    int32_t tail(const Pieces &pieces, int count) {
        bool fresh;
        int32_t state = node(count, pieces, fresh);
        if (!fresh) return state;
        if (count > 1) {
            spread(state, pieces, count - 1, 0x80);
        } else {
            for (const Piece &one : pieces) arc(state, 0x80 + one.low, 0x80 + one.high, one.next);
        }
        return state;
    }

    // Adds the arcs of what a JSON string has to escape; returns the other pieces.
    Pieces escape(int32_t from, const Pieces &pieces) {
        Pieces escaped = clip(pieces, 0, 0x1F), raw;
        for (int32_t point : {0x22, 0x5C}) {
            for (const Piece &one : clip(pieces, point, point)) escaped.push_back(one);
        }
        if (!escaped.empty()) arc(from, '\\', '\\', backslash(escaped));
        for (auto [low, high] : {std::pair{0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0x10FFFF}}) {
            for (const Piece &one : clip(pieces, low, high)) raw.push_back(one);
        }
        return raw;
    }

    int32_t backslash(const Pieces &pieces) {
        enum { BACKSLASH = -1 };
        bool fresh;
        int32_t start = node(BACKSLASH, pieces, fresh);
        if (!fresh) return start;
        int32_t hex[2] = {-1, -1};  // after \u000 and \u001
        for (const Piece &one : pieces) {
            for (int32_t point = one.low; point <= one.high; point++) {
                int32_t letter = letter_of(point);
                if (letter) {
                    arc(start, letter, letter, one.next);
                    continue;
                }
                int32_t &before = hex[point >> 4];
                if (before < 0) before = state();
                int32_t digit = point & 15;
                if (digit < 10) {
                    arc(before, '0' + digit, '0' + digit, one.next);
                } else {
                    arc(before, 'a' + digit - 10, 'a' + digit - 10, one.next);
                    arc(before, 'A' + digit - 10, 'A' + digit - 10, one.next);
                }
            }
        }
        if (hex[0] >= 0 || hex[1] >= 0) {
            int32_t u = state(), zero = state(), zeros = state();
            arc(start, 'u', 'u', u), arc(u, '0', '0', zero), arc(zero, '0', '0', zeros);
            for (int high = 0; high < 2; high++) {
                if (hex[high] >= 0) arc(zeros, '0' + high, '0' + high, hex[high]);
            }
        }
        return start;
    }

    static int32_t letter_of(int32_t point) {
        switch (point) {
            case '\b': return 'b';
            case '\f': return 'f';
            case '\n': return 'n';
            case '\r': return 'r';
            case '\t': return 't';
            case '"': case '\\': return point;
            default: return 0;
        }
    }
};

}  // namespace

ByteGraph encode_text(const PointLanguage &language, const Budget &budget) { return Encoder(language, false, budget).run(); }
ByteGraph encode_string(const PointLanguage &language, const Budget &budget) { return Encoder(language, true, budget).run(); }

ByteGraph any_string() {
    enum { START, INSIDE, END, ESCAPE, HEX4, HEX3, HEX2, HEX1, D, HIGH2, HIGH1, PAIR, PAIR_U, PAIR_D, PAIR_C, C1, C2, C3, E0, ED, F0, F4, STATES };
    ByteGraph out;
    out.accepts.assign(STATES, false);
    out.accepts[END] = true;
    auto arc = [&](int32_t from, int low, int high, int32_t next) { out.arcs.push_back({from, uint8_t(low), uint8_t(high), next}); };
    auto hex = [&](int32_t from, int32_t next) { arc(from, '0', '9', next), arc(from, 'a', 'f', next), arc(from, 'A', 'F', next); };
    arc(START, '"', '"', INSIDE), arc(INSIDE, '"', '"', END);
    arc(INSIDE, 0x20, 0x21, INSIDE), arc(INSIDE, 0x23, 0x5B, INSIDE), arc(INSIDE, 0x5D, 0x7F, INSIDE);
    // UTF-8 without overlong forms and surrogates.
    arc(INSIDE, 0xC2, 0xDF, C1), arc(INSIDE, 0xE0, 0xE0, E0), arc(INSIDE, 0xE1, 0xEC, C2), arc(INSIDE, 0xED, 0xED, ED);
    arc(INSIDE, 0xEE, 0xEF, C2), arc(INSIDE, 0xF0, 0xF0, F0), arc(INSIDE, 0xF1, 0xF3, C3), arc(INSIDE, 0xF4, 0xF4, F4);
    arc(C1, 0x80, 0xBF, INSIDE), arc(C2, 0x80, 0xBF, C1), arc(C3, 0x80, 0xBF, C2);
    arc(E0, 0xA0, 0xBF, C1), arc(ED, 0x80, 0x9F, C1), arc(F0, 0x90, 0xBF, C2), arc(F4, 0x80, 0x8F, C2);
    arc(INSIDE, '\\', '\\', ESCAPE), arc(ESCAPE, 'u', 'u', HEX4);
    for (char letter : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'}) arc(ESCAPE, letter, letter, INSIDE);
    // \uD800 to \uDBFF must be followed by \uDC00 to \uDFFF, which stand nowhere else.
    arc(HEX4, '0', '9', HEX3), arc(HEX4, 'a', 'c', HEX3), arc(HEX4, 'e', 'f', HEX3), arc(HEX4, 'A', 'C', HEX3), arc(HEX4, 'E', 'F', HEX3);
    arc(HEX4, 'd', 'd', D), arc(HEX4, 'D', 'D', D), arc(D, '0', '7', HEX2);
    hex(HEX3, HEX2), hex(HEX2, HEX1), hex(HEX1, INSIDE);
    arc(D, '8', '9', HIGH2), arc(D, 'a', 'b', HIGH2), arc(D, 'A', 'B', HIGH2), hex(HIGH2, HIGH1), hex(HIGH1, PAIR);
    arc(PAIR, '\\', '\\', PAIR_U), arc(PAIR_U, 'u', 'u', PAIR_D), arc(PAIR_D, 'd', 'd', PAIR_C), arc(PAIR_D, 'D', 'D', PAIR_C);
    arc(PAIR_C, 'c', 'f', HEX2), arc(PAIR_C, 'C', 'F', HEX2);
    return out;
}
