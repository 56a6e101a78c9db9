// Lists of words: a tree of their beginnings, whose equal branches become one.
#include <unordered_map>

#include "expression.h"

namespace {

struct Node {
    std::vector<Edge> edges;
    bool accepts = false;
};

constexpr size_t MOST_NODES = 1 << 20;

std::vector<Node> tree(const std::vector<std::vector<int32_t>> &words, const Budget &budget) {
    std::vector<Node> nodes(1);
    std::vector<int32_t> path{0};  // of the last word
    const std::vector<int32_t> *last = nullptr;
    for (const auto &word : words) {
        budget.check(0);
        size_t same = 0;
        while (last && same < last->size() && same < word.size() && (*last)[same] == word[same]) same++;
        path.resize(same + 1);
        for (size_t i = same; i < word.size(); i++) {
            if (nodes.size() >= MOST_NODES) throw Error{"its words are too many"};
            int32_t fresh = int32_t(nodes.size());
            nodes[path.back()].edges.push_back({word[i], fresh});
            nodes.emplace_back();
            path.push_back(fresh);
        }
        nodes[path.back()].accepts = true;
        last = &word;
    }
    return nodes;
}

}  // namespace

Automaton any_word(const std::vector<std::vector<int32_t>> &words, const Budget &budget) {
    if (words.empty()) return {};
    std::vector<Node> nodes = tree(words, budget);
    // Branches lie behind their root: from the last node to the first, what a node leads to is known.
    std::vector<int32_t> same(nodes.size()), kept;
    std::unordered_map<std::vector<int32_t>, int32_t, Hash> known;
    std::vector<int32_t> key;
    for (size_t i = nodes.size(); i-- > 0;) {
        if (i % 1024 == 0) budget.check(int64_t(kept.size()));
        key.assign(1, nodes[i].accepts);
        for (Edge &edge : nodes[i].edges) {
            edge.next = same[edge.next];
            key.push_back(edge.label), key.push_back(edge.next);
        }
        auto [found, fresh] = known.try_emplace(key, int32_t(kept.size()));
        if (fresh) kept.push_back(int32_t(i));
        same[i] = found->second;
    }
    Automaton out;
    int32_t last = int32_t(kept.size()) - 1;  // the root was the last one: it becomes state 0
    for (int32_t state = last; state >= 0; state--) {
        for (const Edge &edge : nodes[kept[state]].edges) out.edges.push_back({edge.label, last - edge.next});
        out.end_state(nodes[kept[state]].accepts);
    }
    return out;
}
