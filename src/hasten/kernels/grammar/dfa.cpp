#include "dfa.h"

#include <algorithm>
#include <unordered_map>

#include "encode.h"

namespace {

// `label_of`: of a byte, the number of its interval between the bounds that occur.
Automaton with_labels(ByteGraph graph, const std::vector<int> &label_of) {
    std::sort(graph.arcs.begin(), graph.arcs.end(), [](const Arc &a, const Arc &b) { return a.state != b.state ? a.state < b.state : a.low < b.low; });
    Automaton out;
    size_t at = 0;
    for (size_t state = 0; state < graph.accepts.size(); state++) {
        for (; at < graph.arcs.size() && graph.arcs[at].state == int32_t(state); at++) {
            for (int label = label_of[graph.arcs[at].low]; label <= label_of[graph.arcs[at].high]; label++) {
                out.edges.push_back({label, graph.arcs[at].next});
            }
        }
        out.end_state(graph.accepts[state]);
    }
    return out;
}

std::vector<int> number_bytes(const ByteGraph &graph) {
    bool begins[257] = {};
    for (const Arc &arc : graph.arcs) begins[arc.low] = begins[arc.high + 1] = true;
    std::vector<int> label_of(256);
    for (int byte = 0, label = 0; byte < 256; byte++) label_of[byte] = label += begins[byte] && byte > 0;
    return label_of;
}

Dfa build(ByteGraph graph, const Budget &budget) {
    Dfa out;
    std::vector<int> label_of = number_bytes(graph);
    Automaton automaton = minimise(with_labels(std::move(graph), label_of), budget);
    budget.check(automaton.states());
    out.states = automaton.states();
    out.accepts = automaton.accepts;
    // Labels that lead to the same states from all states become one class.
    int labels = label_of[255] + 1;
    std::vector<std::vector<int32_t>> column(labels);  // (state, next) of the edges
    for (int32_t state = 0; state < out.states; state++) {
        for (int32_t e = automaton.first[state]; e < automaton.first[state + 1]; e++) {
            std::vector<int32_t> &of = column[automaton.edges[e].label];
            of.push_back(state), of.push_back(automaton.edges[e].next);
        }
    }
    std::unordered_map<std::vector<int32_t>, int32_t, Hash> known;
    std::vector<int32_t> class_of(labels);
    for (int label = 0; label < labels; label++) {
        class_of[label] = known.try_emplace(std::move(column[label]), int32_t(known.size())).first->second;
    }
    out.classes = int32_t(known.size());
    out.next.assign(size_t(out.states) * out.classes, -1);
    for (const auto &[edges, number] : known) {
        for (size_t i = 0; i < edges.size(); i += 2) out.next[size_t(edges[i]) * out.classes + number] = edges[i + 1];
    }
    for (int byte = 0; byte < 256; byte++) out.class_of[byte] = uint8_t(class_of[label_of[byte]]);
    return out;
}

}  // namespace

Dfa compile_language(const uint8_t *program, size_t size, int form, const Budget &budget) {
    if (form == ANY_STRING) {
        static const Dfa shared = build(any_string(), {now_s() + 60, 1000});
        return shared;
    }
    if (form != TEXT && form != STRING) throw Error{"a language has an unknown form"};
    PointLanguage language = read_program(program, size, budget);
    return build(form == TEXT ? encode_text(language, budget) : encode_string(language, budget), budget);
}
