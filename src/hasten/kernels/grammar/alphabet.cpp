#include "alphabet.h"

#include <algorithm>

namespace {
constexpr int32_t SURROGATES = 0xD800, AFTER = 0xE000, BEYOND = 0x110000;
}

Alphabet::Alphabet(const std::vector<std::vector<Span>> &sets, const Budget &budget) : lows{0, SURROGATES, AFTER, BEYOND} {
    for (const auto &set : sets) {
        for (const Span &span : set) {
            if (span.low < 0 || span.low > span.high || span.high >= BEYOND) throw Error{"a range that is none"};
            lows.push_back(span.low), lows.push_back(span.high + 1);
        }
    }
    std::sort(lows.begin(), lows.end());
    lows.erase(std::unique(lows.begin(), lows.end()), lows.end());
    // All intervals begin as one class; each set moves those of its intervals that shared a class to a new one.
    std::vector<int32_t> group(lows.size(), 0), moved(1, -1), changed;
    for (const auto &set : sets) {
        budget.check(0);
        for (const Span &span : set) {
            for (size_t i = interval(span.low); lows[i] <= span.high; i++) {
                if (moved[group[i]] < 0) {
                    changed.push_back(group[i]);
                    moved[group[i]] = int32_t(moved.size());
                    moved.push_back(-1);
                    // Spans of one set do not overlap, so what has been moved is not met again.
                }
                group[i] = moved[group[i]];
            }
        }
        for (int32_t one : changed) moved[one] = -1;
        changed.clear();
    }
    label_of.assign(lows.size(), -1);
    std::vector<int32_t> &number = moved;  // all are -1
    for (size_t i = 0; lows[i] < BEYOND; i++) {
        if (lows[i] >= SURROGATES && lows[i] < AFTER) continue;
        if (number[group[i]] < 0) number[group[i]] = classes(), spans.emplace_back();
        label_of[i] = number[group[i]];
        spans[label_of[i]].push_back({lows[i], lows[i + 1] - 1});
    }
}

size_t Alphabet::interval(int32_t point) const { return size_t(std::upper_bound(lows.begin(), lows.end(), point) - lows.begin()) - 1; }

int32_t Alphabet::label(int32_t point) const { return label_of[interval(point)]; }

std::vector<int32_t> Alphabet::labels(const std::vector<Span> &set) const {
    std::vector<int32_t> out;
    for (const Span &span : set) {
        for (size_t i = interval(span.low); lows[i] <= span.high; i++) {
            if (label_of[i] >= 0) out.push_back(label_of[i]);
        }
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}
