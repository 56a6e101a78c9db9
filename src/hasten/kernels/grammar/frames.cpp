#include "frames.h"

namespace {

bool contains(const std::vector<int32_t> &bits, int32_t bit) { return std::binary_search(bits.begin(), bits.end(), bit); }

bool can_be_empty(const Plan &plan) {
    return !plan.witnesses && std::any_of(plan.rows.begin(), plan.rows.end(), [](const Row &row) { return row.required.empty() && !row.least; });
}

}  // namespace

// ---------------------------------------------------------------- what an action does

int32_t Frames::apply(int32_t number, int32_t t, int32_t text) {
    const Terminal &terminal = grammar.terminals[t];
    if (terminal.act == TOKEN) return number;
    look_at(number);
    if (terminal.act == OPEN) {
        const Plan &plan = grammar.plans[terminal.argument];
        int32_t watched = plan.unique || (number >= 0 && frames[number].watched);
        Frame fresh{terminal.argument, number, plan.array && plan.enough, watched, -1, -1, depth(number) + 1, 0, {0, 0}, {0, 0}};
        if (plan.array && terminal.witness >= 0) set(fresh, plan, plan.bits + terminal.witness);
        return keep(fresh);
    }
    if (number < 0) return number;
    Frame frame = frames[number];
    const Plan &plan = grammar.plans[frame.plan];
    Digest value;
    switch (terminal.act) {
        case NONE:
            return frame.watched && scalar_digest(text_of(text), value) ? finish_value(number, value, text) : number;
        case CLOSE:
            return frame.watched ? finish_value(frame.parent, combine(frame.value, {plan.array, 1}), -1) : frame.parent;
        case EMPTY:
            return frame.watched ? finish_value(frame.parent, combine({0, 0}, {plan.array, 1}), -1) : frame.parent;
        case KEY:
            if (terminal.argument >= 0) set(frame, plan, terminal.argument);
            else if (plan.ordered) set(frame, plan, plan.bits + plan.witnesses);
            if (watches(number, t)) frame.key = digest('k', decode_string(text_of(text)));
            if (terminal.distinct) {
                if (number != trusted && in_list(frame.list, frame.key)) return REFUSED;
                frame.list = cells.intern({frame.key.a, frame.key.b, frame.list, text});
            }
            if (!frame.watched) frame.key = {0, 0};
    }
    if (terminal.act == KEY || plan.array) {
        frame.count = std::min(frame.count + 1, plan.enough);
        if (terminal.witness >= 0) set(frame, plan, plan.bits + terminal.witness);
    }
    return keep(frame);
}

int32_t Frames::keep(Frame &frame) {
    frame.shape = shapes.intern({frame.plan, frame.count, frame.watched, frame.seen, frame.list >= 0});
    return frames.intern(frame);
}

// The frame in which a value has ended.
int32_t Frames::finish_value(int32_t number, const Digest &value, int32_t text) {
    look_at(number);
    if (number < 0 || !frames[number].watched) return number;
    Frame frame = frames[number];
    const Plan &plan = grammar.plans[frame.plan];
    frame.value = plan.array ? combine(frame.value, value) : add(frame.value, combine(frame.key, value));
    frame.key = {0, 0};
    if (plan.unique) {
        if (!(number == trusted && text >= 0) && in_list(frame.list, value)) return REFUSED;
        frame.list = cells.intern({value.a, value.b, frame.list, text});
    }
    return keep(frame);
}

bool Frames::in_list(int32_t list, const Digest &one) {
    consulted |= list >= 0;
    for (int32_t at = list; at >= 0; at = cells[at].parent)
        if (cells[at].a == one.a && cells[at].b == one.b) return true;
    return false;
}

void Frames::set(Frame &frame, const Plan &plan, int32_t bit) {
    std::vector<uint64_t> words(plan.words());
    int32_t cell = frame.seen;
    for (size_t i = words.size(); i-- > 0 && cell >= 0; cell = cells[cell].parent) words[i] = cells[cell].a;
    words[bit / 64] |= uint64_t(1) << (bit % 64);
    frame.seen = -1;
    for (uint64_t word : words) frame.seen = cells.intern({word, 0, frame.seen, -1});
}

std::string Frames::text_of(int32_t text) const {
    std::string bytes;
    for (int32_t at = text; cells[at].parent >= 0; at = cells[at].parent) bytes += char(cells[at].a);
    return {bytes.rbegin(), bytes.rend()};
}

void Frames::compact(std::vector<uint8_t> &opened, std::vector<uint8_t> &marked, std::vector<int32_t> &frame_of, std::vector<int32_t> &cell_of) {
    auto mark = [](std::vector<uint8_t> &marks, int32_t at) {
        if (at >= 0) marks[at] = 1;
    };
    auto renumber = [](const std::vector<int32_t> &numbers, int32_t &at) {
        if (at >= 0) at = numbers[at];
    };
    for (int32_t i = frames.size(); i-- > 0;)
        if (opened[i]) mark(opened, frames[i].parent), mark(marked, frames[i].seen), mark(marked, frames[i].list);
    for (int32_t i = cells.size(); i-- > 0;)
        if (marked[i]) mark(marked, cells[i].parent), mark(marked, cells[i].text);
    cell_of = cells.compact(marked, [&](Cell &one, const auto &now) { renumber(now, one.parent), renumber(now, one.text); });
    shapes = {};
    frame_of = frames.compact(opened, [&](Frame &one, const auto &now) {
        renumber(now, one.parent), renumber(cell_of, one.seen), renumber(cell_of, one.list);
        one.shape = shapes.intern({one.plan, one.count, one.watched, one.seen, one.list >= 0});
    });
}

// ---------------------------------------------------------------- what is enabled

View::View(const Grammar &grammar, const Frames &frames, int32_t number) : grammar(grammar) {
    if (number < 0) return;
    Frame frame = frames.frames[number];
    plan = &grammar.plans[frame.plan];
    count = frame.count;
    seen.resize(plan->words());
    int32_t cell = frame.seen;
    for (size_t i = seen.size(); i-- > 0 && cell >= 0; cell = frames.cells[cell].parent) seen[i] = frames.cells[cell].a;
    for (int32_t i = 0; i < plan->witnesses; i++) witnesses_missing += !has(plan->bits + i);
    for (highest = plan->bits - 1; highest >= 0 && !has(highest);) highest--;
    for (const Row &row : plan->rows) {
        Left left{&row, 0, INT32_MAX};
        for (int32_t bit : row.required)
            if (!has(bit)) left.missing++, left.first = std::min(left.first, bit);
        if (std::none_of(row.forbidden.begin(), row.forbidden.end(), [&](int32_t bit) { return has(bit); })) rows.push_back(left);
    }
}

bool View::enabled(const Terminal &terminal) const {
    if (terminal.act == NONE || terminal.act == TOKEN || terminal.act == OPEN) {
        // An array that may have no item has begun one with its bracket all the same.
        if (plan && plan->array && !array_goes_on(*plan, count, witnesses_missing)) return false;
        return terminal.act != OPEN || opens(terminal);
    }
    if (!plan) return false;
    bool witnesses = terminal.witness >= 0 && (terminal.act == KEY || (terminal.act == COMMA && plan->array));
    if (witnesses && terminal.witness >= plan->witnesses) return false;
    switch (terminal.act) {
        case KEY:
            return !plan->array &&
                   takes_key(terminal.argument, witnesses_missing - (witnesses && !has(plan->bits + terminal.witness)));
        case COMMA:
            if (!plan->array) return true;
            return array_goes_on(*plan, count + 1, witnesses_missing - (witnesses && !has(plan->bits + terminal.witness)));
        case CLOSE:
            return !witnesses_missing && closes(count);
        default:
            return can_be_empty(*plan);
    }
}

// Whether an array whose item number `count` begins can be completed: each further item can serve one witness.
bool View::array_goes_on(const Plan &array, int32_t count, int32_t witnesses_missing) const {
    return std::any_of(array.rows.begin(), array.rows.end(), [&](const Row &row) {
        return row.most < 0 || int64_t(count) + witnesses_missing <= row.most;
    });
}

bool View::opens(const Terminal &terminal) const {
    const Plan &opened = grammar.plans[terminal.argument];
    if (!opened.array) return terminal.witness < 0;
    if (terminal.witness >= opened.witnesses) return false;
    return can_be_empty(opened) || array_goes_on(opened, 1, opened.witnesses - (terminal.witness >= 0));
}

bool View::takes_key(int32_t bit, int32_t witnesses_missing) const {
    if (bit >= plan->bits || (bit >= 0 && has(bit))) return false;
    if (plan->ordered && bit >= 0 && (highest > bit || has(plan->bits + plan->witnesses))) return false;
    return std::any_of(rows.begin(), rows.end(), [&](const Left &one) {
        auto [row, missing, first] = one;
        if (bit >= 0 && contains(row->forbidden, bit)) return false;
        if (plan->ordered && missing && (bit < 0 || first < bit)) return false;
        bool serves = bit >= 0 && contains(row->required, bit);
        return row->most < 0 || int64_t(count) + 1 + missing - serves + witnesses_missing <= row->most;
    });
}

bool View::closes(int32_t count) const {
    return std::any_of(rows.begin(), rows.end(), [&](const Left &one) {
        auto [row, missing, first] = one;
        return !missing && count >= row->least && (row->most < 0 || count <= row->most);
    });
}
