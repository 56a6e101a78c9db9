#include "lr.h"

Lr::Lr(const Grammar &grammar, const std::vector<uint8_t> &usable, Work &work) : work(work), end(int32_t(grammar.terminals.size())) {
    keep_productive(grammar, usable);
    of.resize(grammar.names.size() + 1);
    for (size_t p = 0; p < productions.size(); p++) of[productions[p].left].push_back(int32_t(p));
    if (of[grammar.start].empty()) throw Error{"the grammar allows no text"};
    find_first();
    // What is accepted is one more nonterminal, which becomes the start symbol.
    productions.push_back({int32_t(grammar.names.size()), {-1 - grammar.start}});
    state_of({{int32_t(productions.size()) - 1, 0, sets.intern({end})}});
}

void Lr::keep_productive(const Grammar &grammar, const std::vector<uint8_t> &usable) {
    std::vector<int32_t> waiting(grammar.productions.size());  // occurrences of symbols not yet known to be productive
    std::vector<std::vector<int32_t>> users(grammar.names.size());
    std::vector<uint8_t> productive(grammar.names.size());
    std::vector<int32_t> todo;
    auto found = [&](int32_t nonterminal) {
        if (!productive[nonterminal]) productive[nonterminal] = 1, todo.push_back(nonterminal);
    };
    for (size_t p = 0; p < grammar.productions.size(); p++) {
        for (int32_t symbol : grammar.productions[p].right) {
            if (symbol < 0) users[-1 - symbol].push_back(int32_t(p));
            if (symbol < 0 || !usable[symbol]) waiting[p]++;
        }
        if (!waiting[p]) found(grammar.productions[p].left);
    }
    while (!todo.empty()) {
        int32_t nonterminal = todo.back();
        todo.pop_back();
        for (int32_t p : users[nonterminal])
            if (!--waiting[p]) found(grammar.productions[p].left);
    }
    for (size_t p = 0; p < grammar.productions.size(); p++)
        if (!waiting[p]) productions.push_back(grammar.productions[p]);
}

// In bits, and only what is found is interned: sets on the way there would be as many as productions, each as large as the last.
void Lr::find_first() {
    size_t words = size_t(end) / 64 + 1;
    work.spend(int64_t(of.size() * words) / 16);
    std::vector<std::vector<uint64_t>> bits(of.size(), std::vector<uint64_t>(words));
    std::vector<int32_t> order = by_beginnings();
    for (bool changed = true; changed;) {
        changed = false;
        for (int32_t nonterminal : order) {
            std::vector<uint64_t> &own = bits[nonterminal];
            for (int32_t p : of[nonterminal]) {
                int32_t begins = productions[p].right[0];
                if (begins >= 0) {
                    uint64_t bit = uint64_t(1) << (begins % 64);
                    changed |= !(own[begins / 64] & bit);
                    own[begins / 64] |= bit;
                    continue;
                }
                work.spend(1 + int64_t(words) / 16);
                for (size_t i = 0; i < words; i++) {
                    uint64_t more = bits[-1 - begins][i] & ~own[i];
                    changed |= more != 0;
                    own[i] |= more;
                }
            }
        }
    }
    std::vector<int32_t> terminals;
    for (const auto &own : bits) {
        terminals.clear();
        for (size_t i = 0; i < words; i++)
            for (uint64_t word = own[i]; word; word &= word - 1) terminals.push_back(int32_t(i * 64) + __builtin_ctzll(word));
        first.push_back(sets.intern(terminals));
        if (bytes() > MOST_BYTES) throw Error{"what its rules begin with takes too much memory"};
    }
}

// Nonterminals, those that others begin with before them: without left recursion one pass in this order finds all.
std::vector<int32_t> Lr::by_beginnings() const {
    std::vector<int32_t> order;
    std::vector<uint8_t> seen(of.size());
    std::vector<std::pair<int32_t, size_t>> path;  // nonterminal, how many of its productions were looked at
    for (size_t root = 0; root < of.size(); root++) {
        if (!seen[root]) seen[root] = 1, path.emplace_back(int32_t(root), 0);
        while (!path.empty()) {
            auto &[nonterminal, next] = path.back();
            if (next == of[nonterminal].size()) {
                order.push_back(nonterminal);
                path.pop_back();
                continue;
            }
            int32_t begins = productions[of[nonterminal][next++]].right[0];
            if (begins < 0 && !seen[-1 - begins]) seen[-1 - begins] = 1, path.emplace_back(-1 - begins, 0);
        }
    }
    return order;
}

int32_t Lr::go(int32_t state, int32_t symbol) {
    uint64_t key = uint64_t(uint32_t(state)) << 32 | uint32_t(symbol);
    if (auto found = gotos.find(key); found != gotos.end()) return found->second;
    std::vector<Item> kernel;
    const auto &moves = states[state].moves;
    auto move = std::lower_bound(moves.begin(), moves.end(), symbol, [](const auto &one, int32_t wanted) { return one.first < wanted; });
    for (; move != moves.end() && move->first == symbol; ++move)
        kernel.push_back({move->second.production, move->second.dot + 1, move->second.ahead});
    int32_t next = kernel.empty() ? -1 : state_of(std::move(kernel));
    return gotos[key] = next;
}

int32_t Lr::state_of(std::vector<Item> kernel) {
    std::sort(kernel.begin(), kernel.end());
    if (auto found = kernels.find(kernel); found != kernels.end()) return found->second;
    if (bytes() > MOST_BYTES) throw Error{"its LR(1) automaton takes more than " + std::to_string(MOST_BYTES >> 20) + " MiB"};
    State state = close(kernel);
    count_conflicts(state);
    allocated += int64_t(sizeof(State) + (kernel.size() + state.finished.size()) * sizeof(Item) + state.moves.size() * sizeof(state.moves[0]) + 128);
    states.push_back(std::move(state));
    return kernels.emplace(std::move(kernel), size() - 1).first->second;
}

Lr::State Lr::close(const std::vector<Item> &kernel) {
    State state{{}, {}, 0, false};
    std::map<int32_t, int32_t> ahead;  // nonterminal that may begin here -> what may follow it
    std::vector<int32_t> todo;
    auto visit = [&](const Item &item) {
        const std::vector<int32_t> &right = productions[item.production].right;
        if (size_t(item.dot) == right.size() || right[item.dot] >= 0) return;
        int32_t nonterminal = -1 - right[item.dot];
        int32_t follows = size_t(item.dot) + 1 == right.size() ? item.ahead : first_of(right[item.dot + 1]);
        auto [at, fresh] = ahead.emplace(nonterminal, follows);
        int32_t more = fresh ? follows : unite(at->second, follows);
        if (fresh || more != at->second) at->second = more, todo.push_back(nonterminal);
    };
    for (const Item &item : kernel) visit(item);
    while (!todo.empty()) {
        int32_t nonterminal = todo.back();
        todo.pop_back();
        work.spend(int64_t(of[nonterminal].size()));
        for (int32_t p : of[nonterminal]) visit({p, 0, ahead[nonterminal]});
    }
    auto add = [&](const Item &item) {
        const std::vector<int32_t> &right = productions[item.production].right;
        if (size_t(item.dot) == right.size()) state.finished.push_back(item);
        else state.moves.emplace_back(right[item.dot], item);
    };
    for (const Item &item : kernel) add(item);
    for (auto [nonterminal, follows] : ahead)
        for (int32_t p : of[nonterminal]) add({p, 0, follows});
    std::sort(state.moves.begin(), state.moves.end());

    std::vector<int32_t> terminals;
    for (const auto &[symbol, item] : state.moves)
        if (symbol >= 0) terminals.push_back(symbol);
    for (const Item &item : state.finished) terminals.insert(terminals.end(), sets[item.ahead].begin(), sets[item.ahead].end());
    std::sort(terminals.begin(), terminals.end());
    terminals.erase(std::unique(terminals.begin(), terminals.end()), terminals.end());
    state.ends = !terminals.empty() && terminals.back() == end;
    if (state.ends) terminals.pop_back();
    state.terminals = sets.intern(terminals);
    return state;
}

// Terminals for which a state has more than one action.
void Lr::count_conflicts(const State &state) {
    if (state.finished.empty()) return;
    std::vector<int32_t> actions;
    for (size_t i = 0; i < state.moves.size(); i++)
        if (state.moves[i].first >= 0 && (!i || state.moves[i - 1].first != state.moves[i].first)) actions.push_back(state.moves[i].first);
    for (const Item &item : state.finished) actions.insert(actions.end(), sets[item.ahead].begin(), sets[item.ahead].end());
    std::sort(actions.begin(), actions.end());
    for (size_t i = 1; i < actions.size(); i++) conflicting += actions[i] == actions[i - 1] && (i < 2 || actions[i - 2] != actions[i]);
}
