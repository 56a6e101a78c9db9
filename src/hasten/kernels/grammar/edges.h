// The prefix-conditioned edges of Pre^3: what shifting a terminal does to the stack, all reductions before it included.
//
// For a pair (top state, terminal) a trie over the states further down the stack, as far as the reductions look at them, holds what is
// to pop and to push; walking the real stack down it finds the one edge that fits. It has the stacks that really occur: where none
// fits, the plain actions run on the stack and what they looked at becomes the condition of a new edge.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "lr.h"
#include "pool.h"

struct StackNode {
    int32_t state, parent, depth;
};

class Edges {
  public:
    Edges(Lr &lr, Work &work) : lr(lr), work(work) {}

    Pool<StackNode> stacks;

    // The depth of the deepest node whose state was looked at since it was set: what lies below had no influence.
    int32_t lowest = 0;

    int32_t bottom() { return stacks.intern({Lr::START, -1, 0}); }
    int32_t push(int32_t stack, int32_t state) { return stacks.intern({state, stack, stacks[stack].depth + 1}); }
    int32_t top(int32_t stack) {
        StackNode node = stacks[stack];
        lowest = std::min(lowest, node.depth);
        return node.state;
    }
    // The stacks after terminal `t`: none where it has no action, several where the grammar has conflicts.
    void shift(int32_t stack, int32_t t, std::vector<int32_t> &out);
    int64_t count() const { return edges; }
    int64_t bytes() const { return stacks.bytes() + int64_t(trie.size() * sizeof(Branch) + roots.size() * 40) + allocated; }
    void clear();

  private:
    static constexpr int32_t DEEPEST = 32;  // conditions that are longer are not kept: the stacks of right recursion

    struct Outcome {
        int32_t pops;
        std::vector<int32_t> pushes;
        bool operator==(const Outcome &other) const { return pops == other.pops && pushes == other.pushes; }
    };
    struct Branch {
        bool leaf = false;
        std::vector<std::pair<int32_t, int32_t>> next;  // (state one deeper, branch)
        std::vector<Outcome> outcomes;
    };
    Lr &lr;
    Work &work;
    std::unordered_map<uint64_t, int32_t> roots;
    std::vector<Branch> trie;
    int64_t edges = 0, allocated = 0;

    std::vector<Outcome> act(int32_t stack, int32_t t, std::vector<int32_t> &looked_at);
    void insert(int32_t root, const std::vector<int32_t> &looked_at, std::vector<Outcome> outcomes);
    int32_t apply(int32_t stack, const Outcome &outcome);
};
