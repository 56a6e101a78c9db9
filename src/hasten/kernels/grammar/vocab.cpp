#include "vocab.h"

#include <algorithm>

#include "error.h"
#include "scan.h"
#include "utf8.h"

namespace {

bool is_utf8(std::string_view text) {
    Utf8 state;
    for (uint8_t byte : text)
        if (!state.step(byte)) return false;
    return state.at == Utf8::BETWEEN;
}

}  // namespace

Vocabulary::Vocabulary(const uint8_t *bytes, const int64_t *offsets, int32_t tokens, const int32_t *ends, int32_t end_count)
    : tokens(tokens), words((tokens + 31) / 32), ends(ends, ends + end_count) {
    if (tokens < 1) throw Error{"a vocabulary needs a token"};
    for (int32_t i = 0; i < tokens; i++)
        if (offsets[i] > offsets[i + 1] || offsets[0] != 0) throw Error{"offsets of tokens must start at 0 and not decrease"};
    this->bytes.assign(bytes, bytes + offsets[tokens]);
    this->offsets.assign(offsets, offsets + tokens + 1);
    std::sort(this->ends.begin(), this->ends.end());
    if (end_count && (this->ends.front() < 0 || this->ends.back() >= tokens)) throw Error{"an end is no token of the vocabulary"};

    Pieces pieces;
    for (int32_t i = 0; i < tokens; i++)
        if (!text(i).empty() && !is_end(i)) pieces.emplace_back(text(i), i);
    std::sort(pieces.begin(), pieces.end());
    // Of equal pieces the first stands for all in every tree.
    equal.assign(tokens, -1);
    Pieces kept;
    for (size_t i = 0; i < pieces.size(); i++) {
        if (i && pieces[i].first == pieces[i - 1].first) equal[pieces[i - 1].second] = pieces[i].second;
        else kept.push_back(pieces[i]);
    }
    trie = tree(kept);
    deepest = 0;
    for (const Node &node : trie) deepest = std::max<int32_t>(deepest, node.depth);
    sign(kept);
    count_characters(kept);
}

bool Vocabulary::is_end(int32_t token) const { return std::binary_search(ends.begin(), ends.end(), token); }

void Vocabulary::beginning_with(std::string_view text, std::vector<int32_t> &out) const {
    int32_t at = 0, end = int32_t(trie.size());  // children of the node that was reached
    for (uint8_t byte : text) {
        while (at < end && trie[at].byte != byte) at = trie[at].skip;
        if (at == end) return;
        end = trie[at++].skip;
    }
    for (at = text.empty() ? at : at - 1; at < end; at++)
        if (trie[at].token >= 0) out.push_back(trie[at].token);
}

void Vocabulary::sign(const Pieces &pieces) {
    whole.assign(words, 0);
    containing.resize(129);
    for (auto [piece, token] : pieces) {
        if (is_utf8(piece)) set(whole.data(), token);
        Signature own{};
        for (uint8_t byte : piece) own.add(byte);
        for (int32_t byte = 0; byte < 128; byte++)
            if (own.ascii[byte / 64] >> (byte % 64) & 1) containing[byte].push_back(token);
        if (own.other) containing[128].push_back(token);
        if (piece.find('"') != std::string_view::npos && piece.find('\\') != std::string_view::npos) escaping.push_back(token);
    }
    signatures.assign(trie.size(), {});
    heights.assign(trie.size(), 0);
    for (size_t i = trie.size(); i-- > 0;) {
        const Node &node = trie[i];
        signatures[i].add(node.byte);
        if (node.token >= 0 && !(whole[node.token >> 5] >> (node.token & 31) & 1)) signatures[i].broken = true;
        for (int32_t child = int32_t(i) + 1; child < node.skip; child = trie[child].skip) {
            signatures[i].add(signatures[child]);
            heights[i] = std::max<uint16_t>(heights[i], heights[child] + 1);
        }
    }
}

void Vocabulary::count_characters(const Pieces &pieces) {
    std::vector<std::vector<int32_t>> beginning;  // [n]: tokens that begin n characters
    for (auto [piece, token] : pieces) {
        Scan scan{Scan::BETWEEN, false, false};
        size_t count = 0;
        for (size_t i = 0; i < piece.size() && !scan.closes; i++) {
            scan = Scan::step(scan.state, uint8_t(piece[i]));
            count += scan.begins;
        }
        if (scan.closes) closers.emplace_back(token, int32_t(count));
        if (beginning.size() <= count) beginning.resize(count + 1);
        beginning[count].push_back(token);
    }
    longer.assign(beginning.size(), {});
    std::vector<int32_t> mask(words);
    for (size_t n = beginning.size(); n-- > 0;) {
        longer[n] = mask;
        for (int32_t token : beginning[n]) set(mask.data(), token);
    }
}

Trie Vocabulary::tree(const Pieces &pieces) {
    Trie trie;
    std::vector<int32_t> path;  // nodes of the piece before
    std::string_view before;
    auto leave = [&](size_t depth) {
        for (; path.size() > depth; path.pop_back()) trie[path.back()].skip = int32_t(trie.size());
    };
    for (auto [piece, token] : pieces) {
        if (piece.size() > UINT16_MAX) throw Error{"a token is longer than 65,535 bytes"};
        size_t shared = 0;
        while (shared < before.size() && shared < piece.size() && before[shared] == piece[shared]) shared++;
        leave(shared);
        for (size_t i = shared; i < piece.size(); i++) {
            path.push_back(int32_t(trie.size()));
            trie.push_back({0, -1, uint16_t(i + 1), uint8_t(piece[i])});
        }
        trie[path.back()].token = token;
        before = piece;
    }
    leave(0);
    return trie;
}
