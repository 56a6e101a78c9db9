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

    Vocabulary(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count);
    // Of tokens that are legal by their text: not empty, and no end.
    std::string_view text(int32_t token) const {
        return {(const char *)bytes.data() + offsets[token], size_t(offsets[token + 1] - offsets[token])};
    }
    bool is_end(int32_t token) const;
    // The tree of some of the tokens, no two of them of equal bytes.
    static Trie tree(Pieces pieces);
    void set(int32_t *mask, int32_t token) const {
        for (; token >= 0; token = equal[token]) mask[token >> 5] |= int32_t(1u << (token & 31));
    }
};
