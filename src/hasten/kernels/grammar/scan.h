// Where a JSON string that is read byte by byte stands, for counting its characters: an escape is one, and so is a pair of surrogates.
#pragma once

#include <cstdint>

struct Scan {
    // Before the opening quotation mark, between characters (or in one of several bytes), in an escape; after the first of a pair of
    // surrogates, and in the second.
    enum { BEFORE, BETWEEN, ESCAPE, U, UD, HEX3, HEX2, HEX1, HIGH2, HIGH1, LOW, LOW_ESCAPE, LOW4, LOW3, LOW2, LOW1 };

    int32_t state;
    bool begins, closes;  // a character, the string

    static Scan step(int32_t state, uint8_t byte) {
        switch (state) {
            case BEFORE:
                return {byte == '"' ? BETWEEN : BEFORE, false, false};
            case ESCAPE:
                return {byte == 'u' ? U : BETWEEN, false, false};
            case U:
                return {byte == 'D' || byte == 'd' ? UD : HEX3, false, false};
            case UD: {  // D8 to DB is the first half of a pair
                bool high = byte == '8' || byte == '9' || (byte | 32) == 'a' || (byte | 32) == 'b';
                return {high ? HIGH2 : HEX2, false, false};
            }
            case HEX1:
            case LOW1:
                return {BETWEEN, false, false};
            case LOW:
                if (byte == '\\') return {LOW_ESCAPE, false, false};
                break;
            case BETWEEN:
                break;
            default:  // one of several digits
                return {state + 1, false, false};
        }
        if (byte == '"') return {BEFORE, false, true};
        if (byte == '\\') return {ESCAPE, true, false};
        return {BETWEEN, (byte & 0xC0) != 0x80, false};
    }
};
