#include "edges.h"

void Edges::shift(int32_t stack, int32_t t, std::vector<int32_t> &out) {
    auto [root, fresh] = roots.emplace(uint64_t(uint32_t(top(stack))) << 32 | uint32_t(t), int32_t(trie.size()));
    if (fresh) trie.emplace_back();
    int32_t branch = root->second;
    for (int32_t below = stack; !trie[branch].leaf;) {
        below = stacks[below].parent;
        const auto &next = trie[branch].next;
        int32_t state = below < 0 ? -1 : top(below);
        auto found = std::find_if(next.begin(), next.end(), [&](const auto &one) { return one.first == state; });
        if (below < 0 || found == next.end()) {
            std::vector<int32_t> looked_at;
            std::vector<Outcome> outcomes = act(stack, t, looked_at);
            for (const Outcome &one : outcomes) out.push_back(apply(stack, one));
            if (looked_at.size() <= DEEPEST) insert(root->second, looked_at, std::move(outcomes));
            return;
        }
        branch = found->second;
    }
    for (const Outcome &one : trie[branch].outcomes) out.push_back(apply(stack, one));
}

// The plain LR actions, on the stack without its top `pops` states and with `pushes` in their place.
std::vector<Edges::Outcome> Edges::act(int32_t stack, int32_t t, std::vector<int32_t> &looked_at) {
    std::vector<int32_t> below{stack};  // by depth, as far as was looked
    looked_at.assign(1, top(stack));
    auto state_of = [&](const Outcome &at) {
        if (!at.pushes.empty()) return at.pushes.back();
        while (int32_t(below.size()) <= at.pops) {
            below.push_back(stacks[below.back()].parent);
            looked_at.push_back(top(below.back()));
        }
        return looked_at[at.pops];
    };
    std::vector<Outcome> shifted, reached{{0, {}}};
    for (size_t i = 0; i < reached.size(); i++) {
        work.spend(1 + int64_t(i));  // each is compared with those before it
        int32_t state = state_of(reached[i]);
        if (int32_t next = lr.go(state, t); next >= 0) {
            shifted.push_back(reached[i]);
            shifted.back().pushes.push_back(next);
        }
        std::vector<Lr::Item> finished = lr[state].finished;
        for (const Lr::Item &item : finished) {
            if (!lr.reduces(item, t)) continue;
            const Production &production = lr.production(item.production);
            Outcome reduced = reached[i];
            int32_t length = int32_t(production.right.size()), pushed = std::min(length, int32_t(reduced.pushes.size()));
            reduced.pushes.resize(reduced.pushes.size() - pushed);
            reduced.pops += length - pushed;
            reduced.pushes.push_back(lr.go(state_of(reduced), -1 - production.left));
            // Unit productions in a circle come back to where they were.
            if (std::find(reached.begin(), reached.end(), reduced) == reached.end()) reached.push_back(std::move(reduced));
        }
    }
    return shifted;
}

void Edges::insert(int32_t root, const std::vector<int32_t> &looked_at, std::vector<Outcome> outcomes) {
    int32_t branch = root;
    for (size_t depth = 1; depth < looked_at.size(); depth++) {
        auto &next = trie[branch].next;
        auto found = std::find_if(next.begin(), next.end(), [&](const auto &one) { return one.first == looked_at[depth]; });
        if (found != next.end()) {
            branch = found->second;
            continue;
        }
        int32_t fresh = int32_t(trie.size());
        next.emplace_back(looked_at[depth], fresh);
        trie.emplace_back();
        branch = fresh;
        allocated += 16;
    }
    for (const Outcome &one : outcomes) allocated += int64_t(sizeof(Outcome) + one.pushes.size() * 4);
    trie[branch].leaf = true;
    trie[branch].outcomes = std::move(outcomes);
    edges++;
}

int32_t Edges::apply(int32_t stack, const Outcome &outcome) {
    for (int32_t i = 0; i < outcome.pops; i++) stack = stacks[stack].parent;
    for (int32_t state : outcome.pushes) stack = push(stack, state);
    return stack;
}

void Edges::clear() {
    roots.clear();
    trie.clear();
    edges = allocated = 0;
}
