// What masks were found before: by what was looked at, each kept once.
#include "masks.h"

// Steps down from where a thread stands, one answer at a time.
struct Masks::Looker {
    Machine &machine;
    int32_t stack, frame;

    int32_t answer(Question::Kind kind) {
        if (kind == Question::STATE) {
            if (stack < 0) return -1;
            StackNode node = machine.edges.stacks[stack];
            stack = node.parent;
            return node.state;
        }
        if (frame < 0) return -1;
        Frame one = machine.frames.frames[frame];
        frame = one.parent;
        return one.shape;
    }
};

const Masks::Leaf &Masks::leaf_of(const Part &part, bool trusted) {
    const Thread &thread = part.thread;
    Root root{thread.lexer, part.barred, thread.scan, thread.characters, trusted};
    auto [at, fresh] = roots.emplace(root, int32_t(questions.size()));
    if (fresh) questions.emplace_back();
    int32_t question = at->second, states = 0, frames = 0;
    Looker looker{machine, thread.stack, thread.frame};
    while (questions[question].kind > Question::LEAF) {
        Question::Kind kind = questions[question].kind;
        (kind == Question::STATE ? states : frames)++;
        question = next_question(question, looker.answer(kind));
    }
    if (questions[question].kind == Question::LEAF) return kept[questions[question].leaf];

    machine.edges.lowest = machine.frames.lowest = INT32_MAX;
    Leaf leaf = resolve(part, trusted);
    auto levels_above = [](int32_t lowest, int32_t depth) { return lowest > depth ? 0 : depth + 1 - lowest; };
    int32_t states_seen = levels_above(machine.edges.lowest, machine.edges.stacks[thread.stack].depth);
    int32_t frames_seen = levels_above(machine.frames.lowest, machine.frames.depth(thread.frame));
    // Ask for the rest of what it depends on.
    while (states < states_seen || frames < frames_seen) {
        Question::Kind kind = states < states_seen ? Question::STATE : Question::FRAME;
        (kind == Question::STATE ? states : frames)++;
        questions[question].kind = kind;
        question = next_question(question, looker.answer(kind));
    }
    questions[question].kind = Question::LEAF;
    questions[question].leaf = int32_t(kept.size());
    allocated += int64_t(sizeof(Leaf) + (leaf.add.size() + leaf.remove.size()) * 4 + leaf.recheck.size() * sizeof(Node));
    if (leaf.base && bases.insert(leaf.base.get()).second) allocated += int64_t(leaf.base->size() * 4);
    kept.push_back(std::move(leaf));
    return kept.back();
}

// So that a counted pattern has one leaf, not one for each count.
int32_t Masks::representative(int32_t lexer) {
    if (representatives.size() <= size_t(lexer)) representatives.resize(lexer + 1, -1);
    if (representatives[lexer] >= 0) return representatives[lexer];
    std::vector<Pair> pairs = machine.lexer[lexer].pairs;
    bool other = false;
    for (Pair &pair : pairs) {
        const Terminal &terminal = machine.grammar.terminals[pair.terminal];
        if (terminal.act == TOKEN) continue;
        int32_t state = rows.representative(*automata[terminal.language], pair.state);
        other |= state != pair.state;
        pair.state = state;
    }
    return representatives[lexer] = other ? machine.lexer.intern(std::move(pairs), machine.lexer[lexer].start) : lexer;
}

int32_t Masks::next_question(int32_t question, int32_t answer) {
    auto &answers = questions[question].answers;
    auto at = std::lower_bound(answers.begin(), answers.end(), std::make_pair(answer, INT32_MIN));
    if (at != answers.end() && at->first == answer) return at->second;
    int32_t fresh = int32_t(questions.size());
    answers.insert(at, {answer, fresh});
    questions.emplace_back();
    allocated += 16;
    return fresh;
}

void Masks::clear() {
    roots.clear();
    questions.clear();
    kept.clear();
    bases.clear();
    representatives.clear();
    allocated = 0;
}
