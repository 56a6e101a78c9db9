#include "nfa.h"

#include <algorithm>

namespace {
constexpr size_t MOST_STATES = 1 << 20;  // with their edges some 30 MB
constexpr size_t MOST_MEMBERS = 1 << 23;  // of all subsets: 32 MB, twice
constexpr size_t MOST_LINKS = 1 << 22;
}  // namespace

int32_t Nfa::state() {
    if (head.size() >= MOST_STATES) throw Error{"it repeats too much"};
    head.push_back(-1);
    return int32_t(head.size()) - 1;
}

void Nfa::link(int32_t from, int32_t set, int32_t to) {
    if (links.size() >= MOST_LINKS) throw Error{"it repeats too much"};
    links.push_back({set, to, head[from]});
    head[from] = int32_t(links.size()) - 1;
}

void Nfa::read(int32_t from, const std::vector<int32_t> &labels, int32_t to) {
    auto [found, fresh] = number.try_emplace(labels, int32_t(sets.size()));
    if (fresh) sets.push_back(labels), labels_kept += labels.size();
    if (labels_kept > MOST_MEMBERS) throw Error{"its sets of characters are too many and too large"};
    link(from, found->second, to);
}

Fragment Nfa::copy(Fragment fragment, Mark from, Mark to) {
    if (head.size() + (to.states - from.states) > MOST_STATES || links.size() + (to.links - from.links) > MOST_LINKS) {
        throw Error{"it repeats too much"};
    }
    int32_t states = int32_t(head.size()) - from.states, shift = int32_t(links.size()) - from.links;
    for (int32_t s = from.states; s < to.states; s++) head.push_back(head[s] < 0 ? -1 : head[s] + shift);
    for (int32_t e = from.links; e < to.links; e++) {
        Link one = links[e];
        links.push_back({one.set, one.to + states, one.more < 0 ? -1 : one.more + shift});
    }
    return {fragment.start + states, fragment.end + states};
}

Fragment Nfa::embed(const Automaton &automaton, const Budget &budget) {
    int32_t base = int32_t(head.size());
    for (int32_t s = 0; s < automaton.states(); s++) state();
    int32_t end = state();
    if (automaton.states() == 0) return {state(), end};
    std::vector<Edge> sorted;
    std::vector<int32_t> labels;
    for (int32_t s = 0; s < automaton.states(); s++) {
        if (s % 256 == 0) budget.check(0);
        sorted.assign(automaton.edges.begin() + automaton.first[s], automaton.edges.begin() + automaton.first[s + 1]);
        std::stable_sort(sorted.begin(), sorted.end(), [](const Edge &a, const Edge &b) { return a.next < b.next; });
        for (size_t i = 0; i < sorted.size();) {
            int32_t next = sorted[i].next;
            labels.clear();
            for (; i < sorted.size() && sorted[i].next == next; i++) labels.push_back(sorted[i].label);
            read(base + s, labels, base + next);
        }
        if (automaton.accepts[s]) join(base + s, end);
    }
    return {base, end};
}

// States of the deterministic automaton are sets of states of the other: those among them that read something, and the end.
class Subsets {
  public:
    Subsets(const Nfa &nfa, Fragment fragment, int32_t base, int32_t labels)
        : nfa(nfa), fragment(fragment), base(base), seen(nfa.head.size() - base, 0), targets(labels) {}

    Automaton run(const Budget &budget) {
        std::vector<int32_t> used, ahead{fragment.start};
        state_of(ahead);
        Automaton out;
        for (size_t i = 0; i < members.size(); i++) {
            budget.check(int64_t(members.size()));
            bool accepting = false;
            size_t reached = 0;
            for (int32_t member : *members[i]) {
                if (reached > MOST_MEMBERS) throw Error{"it is too ambiguous"};
                accepting |= member == fragment.end;
                for (int32_t e = nfa.head[member]; e >= 0; e = nfa.links[e].more) {
                    if (nfa.links[e].set < 0) continue;
                    reached += nfa.sets[nfa.links[e].set].size();
                    for (int32_t label : nfa.sets[nfa.links[e].set]) {
                        if (targets[label].empty()) used.push_back(label);
                        targets[label].push_back(nfa.links[e].to);
                    }
                }
            }
            std::sort(used.begin(), used.end());
            for (int32_t label : used) {
                out.edges.push_back({label, state_of(targets[label])});
                targets[label].clear();
            }
            used.clear();
            out.end_state(accepting);
        }
        return out;
    }

  private:
    const Nfa &nfa;
    Fragment fragment;
    int32_t base;
    std::vector<uint32_t> seen;  // by state of the fragment: the last walk that came by
    std::vector<std::vector<int32_t>> targets;  // by label
    std::unordered_map<std::vector<int32_t>, int32_t, Hash> by_targets, by_members;
    std::vector<const std::vector<int32_t> *> members;  // keys of by_members, which stay where they are
    size_t stored = 0;
    uint32_t walk = 0;
    std::vector<int32_t> todo, found;

    // Most labels lead to targets that were seen before: what they reach is not collected again.
    int32_t state_of(std::vector<int32_t> &ahead) {
        if (ahead.size() > 1) {
            std::sort(ahead.begin(), ahead.end());
            ahead.erase(std::unique(ahead.begin(), ahead.end()), ahead.end());
        }
        auto known = by_targets.find(ahead);
        if (known != by_targets.end()) return known->second;
        reach(ahead);
        auto [entry, fresh] = by_members.try_emplace(found, int32_t(members.size()));
        if (fresh) members.push_back(&entry->first), stored += found.size();
        stored += ahead.size();
        if (stored > MOST_MEMBERS) throw Error{"it is too ambiguous"};
        by_targets.emplace(ahead, entry->second);
        return entry->second;
    }

    void reach(const std::vector<int32_t> &ahead) {
        walk++;
        found.clear();
        todo = ahead;
        for (int32_t state : ahead) seen[state - base] = walk;
        while (!todo.empty()) {
            int32_t state = todo.back();
            todo.pop_back();
            bool reads = state == fragment.end;
            for (int32_t e = nfa.head[state]; e >= 0; e = nfa.links[e].more) {
                if (nfa.links[e].set >= 0) {
                    reads = true;
                } else if (seen[nfa.links[e].to - base] != walk) {
                    seen[nfa.links[e].to - base] = walk;
                    todo.push_back(nfa.links[e].to);
                }
            }
            if (reads) found.push_back(state);
        }
        std::sort(found.begin(), found.end());
    }
};

Automaton Nfa::determinise(Fragment fragment, Mark since, int32_t labels, const Budget &budget) const {
    return Subsets(*this, fragment, since.states, labels).run(budget);
}
