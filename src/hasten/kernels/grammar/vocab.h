// A model's tokens as bytes, in a prefix tree that is laid out depth first.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

struct Node {
    int32_t skip;   // the node after this one's descendants
    int32_t token;  // that ends here, -1: none; more tokens of the same bytes are chained in Vocabulary::equal
    uint16_t depth;  // of the first byte: 1
    uint8_t byte;
};
using Trie = std::vector<Node>;

// The bytes below a node, itself included: what a language must allow for all of its tokens to be legal.
struct Signature {
    uint64_t ascii[2];
    bool other;   // bytes beyond ASCII
    bool broken;  // some token is not UTF-8 of its own
    void add(uint8_t byte) {
        if (byte < 128) ascii[byte / 64] |= uint64_t(1) << (byte % 64);
        else other = true;
    }
    void add(const Signature &more) {
        ascii[0] |= more.ascii[0], ascii[1] |= more.ascii[1];
        other |= more.other, broken |= more.broken;
    }
};

// A piece and the token it belongs to.
using Pieces = std::vector<std::pair<std::string_view, int32_t>>;

struct Vocabulary {
    int32_t tokens;
    int32_t words;  // of a mask
    std::vector<uint8_t> bytes;
    std::vector<int64_t> offsets;
    std::vector<int32_t> ends;     // tokens that end a text
    std::vector<int32_t> equal;    // the next token of the same bytes, -1: none
    Trie trie;
    int32_t deepest;  // bytes of the longest token
    // For finding out which tokens a language allows (rows.cpp), over the tokens in the tree:
    std::vector<Signature> signatures;             // of nodes
    std::vector<uint16_t> heights;                 // of nodes: bytes of the longest token that goes on below, from there
    std::vector<int32_t> whole;                    // a mask: tokens that are UTF-8 of their own
    std::vector<std::vector<int32_t>> containing;  // byte below 128, or 128 for all others -> tokens that contain it
    std::vector<int32_t> escaping;                 // tokens with a quotation mark and a backslash
    // Read inside a JSON string, between two characters:
    std::vector<std::vector<int32_t>> longer;          // [n], masks: tokens that begin more than n characters of it
    std::vector<std::pair<int32_t, int32_t>> closers;  // tokens that close it, and how many characters they begin before

    Vocabulary(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count);
    // Of tokens that are legal by their text: not empty, and no end.
    std::string_view text(int32_t token) const {
        return {(const char *)bytes.data() + offsets[token], size_t(offsets[token + 1] - offsets[token])};
    }
    bool is_end(int32_t token) const;
    // The tokens in the tree that begin with a text.
    void beginning_with(std::string_view text, std::vector<int32_t> &out) const;
    // The tree of some of the tokens, sorted, no two of equal bytes.
    static Trie tree(const Pieces &pieces);
    void set(int32_t *mask, int32_t token) const {
        for (; token >= 0; token = equal[token]) mask[token >> 5] |= int32_t(1u << (token & 31));
    }
    void clear(int32_t *mask, int32_t token) const {
        for (; token >= 0; token = equal[token]) mask[token >> 5] &= int32_t(~(1u << (token & 31)));
    }

  private:
    void sign(const Pieces &pieces);
    void count_characters(const Pieces &pieces);
};
