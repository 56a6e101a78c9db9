#include "likeness.h"

#include <algorithm>
#include <unordered_map>

#include "automaton.h"
#include "dfa.h"

namespace {

constexpr int32_t FEWEST = 16;               // states for which it may pay
constexpr size_t MOST_LOOKED_AT = 1 << 20;  // edges: some 5 ms
constexpr int32_t MOST_ROUNDS = 512;         // longer than tokens are

}  // namespace

// Moore's partition, round by round: after round n, states of one class are alike for n bytes. Only states that lead to one which has
// just got a class of its own can be told apart from those they were with.
class Splitting {
  public:
    Splitting(const Dfa &dfa, Likeness &out) : dfa(dfa), out(out), sizes(3), dirty_in(3), before(dfa.states) {
        out.classes.assign(3, {-1, 0});
        for (int32_t state = 0; state < dfa.states; state++) {
            out.of.push_back(dfa.accepts[state] ? 1 + dfa.is_complete(state) : 0);
            sizes[out.of[state]]++;
            dirty.push_back(state);
            for (int32_t c = 0; c < dfa.classes; c++)
                if (int32_t to = dfa.next[size_t(state) * dfa.classes + c]; to >= 0) before[to].push_back(state);
        }
    }

    void run() {
        for (out.rounds = 0; !dirty.empty() && out.rounds < MOST_ROUNDS; out.rounds++) {
            looked_at += dirty.size() * size_t(dfa.classes);
            if (looked_at > MOST_LOOKED_AT) return;
            split();
        }
        if (dirty.empty()) out.rounds = INT32_MAX;
    }

  private:
    const Dfa &dfa;
    Likeness &out;
    std::vector<int32_t> sizes, dirty_in;  // of classes: states, those of them that are dirty
    std::vector<std::vector<int32_t>> before;
    std::vector<int32_t> dirty;
    size_t looked_at = 0;

    void split() {
        std::unordered_map<std::vector<int32_t>, std::vector<int32_t>, Hash> groups;  // by class and those it leads to
        std::vector<int32_t> key;
        for (int32_t state : dirty) {
            key.assign(1, out.of[state]);
            for (int32_t c = 0; c < dfa.classes; c++) {
                int32_t to = dfa.next[size_t(state) * dfa.classes + c];
                key.push_back(to < 0 ? -1 : out.of[to]);
            }
            groups[key].push_back(state);
            dirty_in[out.of[state]]++;
        }
        std::unordered_map<int32_t, const std::vector<int32_t> *> largest;  // of classes all of which is dirty: it stays
        for (const auto &[with, states] : groups) {
            if (dirty_in[with[0]] < sizes[with[0]]) continue;
            const std::vector<int32_t> *&known = largest[with[0]];
            if (!known || known->size() < states.size()) known = &states;
        }
        std::vector<int32_t> moved;
        for (const auto &[with, states] : groups) {
            auto stays = largest.find(with[0]);
            if (stays != largest.end() && stays->second == &states) continue;
            moved.insert(moved.end(), states.begin(), states.end());
            sizes[with[0]] -= int32_t(states.size());
            for (int32_t state : states) out.of[state] = int32_t(sizes.size());
            sizes.push_back(int32_t(states.size()));
            out.classes.push_back({with[0], out.rounds + 1});
        }
        dirty_in.assign(sizes.size(), 0);
        dirty.clear();
        for (int32_t state : moved) dirty.insert(dirty.end(), before[state].begin(), before[state].end());
        std::sort(dirty.begin(), dirty.end());
        dirty.erase(std::unique(dirty.begin(), dirty.end()), dirty.end());
    }
};

Likeness::Likeness(const Dfa &dfa) {
    if (dfa.states >= FEWEST && dfa.next.size() <= MOST_LOOKED_AT) Splitting(dfa, *this).run();
}
