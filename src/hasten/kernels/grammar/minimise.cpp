// Minimal automata, by splitting a partition until it is stable (Hopcroft 1971), in the form for partial automata with
// O(edges * log states) of Valmari and Lehtinen (2008): both the states and the edges are kept in partitions, and each splits the other.
#include <algorithm>
#include <numeric>

#include "automaton.h"

namespace {

// Sets of 0 .. count - 1, of which some elements can be marked and then split off.
struct Partition {
    std::vector<int32_t> items, place, set;   // items: grouped by set; of an element: where it lies, its set
    std::vector<int32_t> begin, end, marked;  // of a set: its items, the first `marked` of which are marked
    std::vector<int32_t> touched;

    // `keys`: elements with the same one are together at first.
    explicit Partition(const std::vector<int32_t> &keys, int32_t most_key) : items(keys.size()), place(keys.size()), set(keys.size()) {
        std::vector<int32_t> at(most_key + 2, 0);
        for (int32_t key : keys) at[key + 1]++;
        std::partial_sum(at.begin(), at.end(), at.begin());
        std::vector<int32_t> name(most_key + 1, -1);
        for (int32_t key = 0; key <= most_key; key++) {
            if (at[key] == at[key + 1]) continue;
            name[key] = int32_t(begin.size());
            begin.push_back(at[key]), end.push_back(at[key + 1]), marked.push_back(0);
        }
        for (size_t i = 0; i < keys.size(); i++) {
            place[i] = at[keys[i]]++;
            items[place[i]] = int32_t(i), set[i] = name[keys[i]];
        }
    }

    int32_t sets() const { return int32_t(begin.size()); }

    void mark(int32_t item) {
        int32_t of = set[item], from = place[item], to = begin[of] + marked[of];
        if (from < to) return;  // it is marked
        std::swap(items[from], items[to]);
        place[items[from]] = from, place[items[to]] = to;
        if (marked[of]++ == 0) touched.push_back(of);
    }

    // The smaller part becomes the new set: that bounds how often an element is moved by the logarithm.
    void split() {
        for (int32_t of : touched) {
            int32_t middle = begin[of] + marked[of], fresh = sets();
            marked[of] = 0;
            if (middle == end[of]) continue;
            if (middle - begin[of] <= end[of] - middle) {
                begin.push_back(begin[of]), end.push_back(middle), begin[of] = middle;
            } else {
                begin.push_back(middle), end.push_back(end[of]), end[of] = middle;
            }
            marked.push_back(0);
            for (int32_t i = begin[fresh]; i < end[fresh]; i++) set[items[i]] = fresh;
        }
        touched.clear();
    }
};

// Edges by the state they lead to: of state s, order[first[s] .. first[s + 1]).
struct Incoming {
    std::vector<int32_t> first, order, tail;

    explicit Incoming(const Automaton &of) : first(of.states() + 1, 0), order(of.edges.size()), tail(of.edges.size()) {
        for (const Edge &edge : of.edges) first[edge.next + 1]++;
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<int32_t> at(first.begin(), first.end() - 1);
        for (int32_t state = 0; state < of.states(); state++) {
            for (int32_t e = of.first[state]; e < of.first[state + 1]; e++) tail[e] = state, order[at[of.edges[e].next]++] = e;
        }
    }
};

// Without the states that are never reached or never lead to acceptance.
Automaton trim(const Automaton &from) {
    int32_t states = from.states();
    if (states == 0) return {};
    Incoming incoming(from);
    std::vector<uint8_t> alive(states, 0), reached(states, 0);
    std::vector<int32_t> todo;
    for (int32_t state = 0; state < states; state++) {
        if (from.accepts[state]) alive[state] = 1, todo.push_back(state);
    }
    while (!todo.empty()) {
        int32_t state = todo.back();
        todo.pop_back();
        for (int32_t i = incoming.first[state]; i < incoming.first[state + 1]; i++) {
            int32_t tail = incoming.tail[incoming.order[i]];
            if (!alive[tail]) alive[tail] = 1, todo.push_back(tail);
        }
    }
    if (!alive[0]) return {};
    todo.push_back(0), reached[0] = 1;
    while (!todo.empty()) {
        int32_t state = todo.back();
        todo.pop_back();
        for (int32_t e = from.first[state]; e < from.first[state + 1]; e++) {
            int32_t next = from.edges[e].next;
            if (alive[next] && !reached[next]) reached[next] = 1, todo.push_back(next);
        }
    }
    std::vector<int32_t> number(states, -1);
    int32_t kept = 0;
    for (int32_t state = 0; state < states; state++) {
        if (reached[state]) number[state] = kept++;
    }
    Automaton out;
    for (int32_t state = 0; state < states; state++) {
        if (!reached[state]) continue;
        for (int32_t e = from.first[state]; e < from.first[state + 1]; e++) {
            int32_t next = number[from.edges[e].next];
            if (next >= 0) out.edges.push_back({from.edges[e].label, next});
        }
        out.end_state(from.accepts[state]);
    }
    return out;
}

}  // namespace

Automaton minimise(const Automaton &given, const Budget &budget) {
    Automaton from = trim(given);
    int32_t states = from.states();
    if (states == 0) return from;
    Incoming incoming(from);
    std::vector<int32_t> labels(from.edges.size());
    for (size_t e = 0; e < labels.size(); e++) labels[e] = from.edges[e].label;
    int32_t most = labels.empty() ? 0 : *std::max_element(labels.begin(), labels.end());
    Partition blocks({from.accepts.begin(), from.accepts.end()}, 1);
    Partition cords(labels, most);  // edges of one label into one block
    for (int32_t cord = 0, block = 1; cord < cords.sets(); cord++) {
        budget.check(0);
        for (int32_t i = cords.begin[cord]; i < cords.end[cord]; i++) blocks.mark(incoming.tail[cords.items[i]]);
        blocks.split();
        for (; block < blocks.sets(); block++) {
            for (int32_t i = blocks.begin[block]; i < blocks.end[block]; i++) {
                int32_t state = blocks.items[i];
                for (int32_t k = incoming.first[state]; k < incoming.first[state + 1]; k++) cords.mark(incoming.order[k]);
            }
            cords.split();
        }
    }
    Automaton out;
    std::vector<int32_t> number(blocks.sets(), -1), order{blocks.set[0]};
    number[blocks.set[0]] = 0;
    for (size_t i = 0; i < order.size(); i++) {
        int32_t state = blocks.items[blocks.begin[order[i]]];  // any of them will do
        for (int32_t e = from.first[state]; e < from.first[state + 1]; e++) {
            int32_t block = blocks.set[from.edges[e].next];
            if (number[block] < 0) number[block] = int32_t(order.size()), order.push_back(block);
            out.edges.push_back({from.edges[e].label, number[block]});
        }
        out.end_state(from.accepts[state]);
    }
    return out;
}
