#include "safe.h"

#include <utility>
#include <vector>

#include "utf8.h"

namespace {

constexpr size_t MOST_CLOSURE = 4096;

// All states that safe bytes lead to must be alive on safe bytes. A byte that a state is dead on leaves the set, and so does one that
// leads to a state which is dead on most of the others, such as the end of a string.
class SafeFinder {
  public:
    SafeFinder(const Dfa &dfa, int32_t start) : dfa(dfa), start(start), classes(dfa.classes) {
        for (int32_t byte = 0; byte < 128; byte++) classes[dfa.class_of[byte]].add(byte);
    }

    Safe find() {
        Safe safe;
        return search(true, safe) || search(false, safe) ? safe : Safe{};
    }

  private:
    const Dfa &dfa;
    const int32_t start;
    std::vector<Ascii> classes;
    std::vector<uint8_t> seen;
    std::vector<std::pair<int32_t, Utf8::At>> reached;

    Ascii alive(int32_t state) const {
        Ascii out;
        for (int32_t c = 0; c < dfa.classes; c++)
            if (dfa.next[size_t(state) * dfa.classes + c] >= 0)
                out.half[0] |= classes[c].half[0], out.half[1] |= classes[c].half[1];
        return out;
    }
    bool reach(int32_t state, Utf8::At at) {
        uint8_t &known = seen[size_t(state) * Utf8::COUNT + at];
        if (!known) reached.emplace_back(state, at);
        return std::exchange(known, 1);
    }
    bool is_trap(int32_t state, const Ascii &safe) const {
        return !seen[size_t(state) * Utf8::COUNT] && (safe - alive(state)).size() * 2 > safe.size();
    }

    bool search(bool with_other, Safe &safe) {
        safe = {alive(start), with_other};
        seen.assign(size_t(dfa.states) * Utf8::COUNT, 0);
        reached.clear();
        reach(start, Utf8::BETWEEN);
        for (size_t i = 0; i < reached.size(); i++) {
            if (reached.size() > MOST_CLOSURE) return false;
            auto [state, at] = reached[i];
            for (int32_t c = 0; at == Utf8::BETWEEN && c < dfa.classes; c++) {
                if (!(safe.ascii & classes[c]).size()) continue;
                int32_t to = dfa.next[size_t(state) * dfa.classes + c];
                if (to < 0 || is_trap(to, safe.ascii)) safe.ascii = safe.ascii - classes[c];
                else reach(to, Utf8::BETWEEN);
            }
            for (int32_t byte = 128; with_other && byte < 256; byte++) {
                Utf8 next{at};
                if (!next.step(uint8_t(byte))) continue;
                int32_t to = dfa.step(state, uint8_t(byte));
                if (to < 0 || (next.at == Utf8::BETWEEN && is_trap(to, safe.ascii))) return false;
                reach(to, next.at);
            }
        }
        return true;
    }
};

}  // namespace

Safe find_safe(const Dfa &dfa, int32_t start) { return SafeFinder(dfa, start).find(); }
