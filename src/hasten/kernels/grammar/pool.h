// Hash-consed nodes: equal nodes have equal numbers, so persistent stacks, frames and texts are compared in one step, and a fork
// shares all it has. A node's parents have smaller numbers than it, so one pass backwards finds what is live and one forwards
// compacts it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

inline uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
    return hash ^ (hash >> 29);
}

template <class Node> class Pool {  // of structs of int32 without padding
  public:
    Pool() { slots.assign(64, -1); }

    int32_t intern(const Node &node) {
        size_t at = find(node);
        if (slots[at] >= 0) return slots[at];
        nodes.push_back(node);
        slots[at] = int32_t(nodes.size()) - 1;
        if (nodes.size() * 2 > slots.size()) rehash(slots.size() * 2);
        return int32_t(nodes.size()) - 1;
    }
    Node operator[](int32_t number) const { return nodes[number]; }  // a copy: interning moves the nodes
    int32_t size() const { return int32_t(nodes.size()); }
    int64_t bytes() const { return int64_t(nodes.capacity() * sizeof(Node) + slots.capacity() * sizeof(int32_t)); }

    // Keeps what is marked; `move(node)` renumbers what a node refers to, parents first. Returns the new numbers, -1 of what went.
    template <class Move> std::vector<int32_t> compact(const std::vector<uint8_t> &live, Move move) {
        std::vector<Node> old;
        old.swap(nodes);
        slots.assign(64, -1);
        std::vector<int32_t> renumbered(old.size(), -1);
        for (size_t i = 0; i < old.size(); i++) {
            if (!live[i]) continue;
            move(old[i], renumbered);
            renumbered[i] = intern(old[i]);
        }
        return renumbered;
    }

  private:
    std::vector<Node> nodes;
    std::vector<int32_t> slots;  // open addressing, a power of two

    size_t find(const Node &node) const {
        constexpr size_t WORDS = sizeof(Node) / sizeof(uint32_t);
        uint32_t words[WORDS];
        std::memcpy(words, &node, sizeof node);
        uint64_t hash = 0;
        for (uint32_t word : words) hash = mix(hash, word);
        size_t at = hash & (slots.size() - 1);
        while (slots[at] >= 0 && std::memcmp(&nodes[slots[at]], &node, sizeof node)) at = (at + 1) & (slots.size() - 1);
        return at;
    }
    void rehash(size_t size) {
        slots.assign(size, -1);
        for (size_t i = 0; i < nodes.size(); i++) slots[find(nodes[i])] = int32_t(i);
    }
};
