// Masks where a key or an item must differ from those before. Most tokens do not complete it, or complete another one: instead of
// trying all that may, the mask without duplicates in mind is taken, and the few tokens that would repeat one are tried.
#include "masks.h"

namespace {

enum Chance { NEVER, PERHAPS, UNKNOWN };

// Whether a text that begins with `raw` may mean the scalar `listed`. PERHAPS: `rest` is what must follow if no escape does.
Chance may_become(const std::string &raw, const std::string &listed, std::string &rest) {
    bool string = listed[0] == '"';
    if (!raw.empty() && raw[0] != '"') {
        bool scalar = std::string("-0123456789tfn").find(raw[0]) != std::string::npos;
        return scalar && string ? NEVER : UNKNOWN;
    }
    if (!string) return raw.empty() ? UNKNOWN : NEVER;
    int32_t scan = 0;
    for (uint8_t byte : raw) scan = Scan::step(scan, byte).state;
    if (!raw.empty() && scan != Scan::BETWEEN) return UNKNOWN;
    std::string meant = decode_string(listed), begun = raw.empty() ? "" : decode_string(raw + '"');
    if (meant.compare(0, begun.size(), begun)) return NEVER;
    rest = (raw.empty() ? "\"" : "") + meant.substr(begun.size()) + '"';
    return PERHAPS;
}

}  // namespace

bool Masks::trust(const Thread &thread) {
    if (thread.frame < 0) return false;
    int32_t list = machine.frames.frames[thread.frame].list;
    if (list < 0) return false;
    std::string raw = machine.frames.text_of(thread.text), rest;
    if (raw.empty()) {
        // After a comma an item of the same frame may follow within the token.
        for (const Pair &pair : machine.lexer[thread.lexer].pairs)
            if (machine.grammar.terminals[pair.terminal].act == COMMA) return false;
    }
    bool perhaps = false;
    for (; list >= 0; list = machine.frames.cells[list].parent) {
        int32_t listed = machine.frames.cells[list].text;  // -1: a container, which no scalar equals
        machine.work.spend(8);
        if (listed < 0) continue;
        Chance chance = may_become(raw, machine.frames.text_of(listed), rest);
        if (chance == UNKNOWN) return suspects.clear(), false;
        if (chance == NEVER) continue;
        perhaps = true;
        vocabulary.beginning_with(rest, suspects);
    }
    if (perhaps) suspects.insert(suspects.end(), vocabulary.escaping.begin(), vocabulary.escaping.end());
    return true;
}

bool Masks::allows(const Part &part, int32_t token) {
    Threads reached;
    machine.enter(part, vocabulary.text(token), reached);
    return !reached.empty();
}
