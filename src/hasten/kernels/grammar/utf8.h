// Well-formed UTF-8, byte by byte.
#pragma once

#include <cstdint>

struct Utf8 {
    enum At : uint8_t { BETWEEN, ONE, TWO, THREE, E0, ED, F0, F4, COUNT };  // ONE to THREE: so many bytes are missing
    At at = BETWEEN;

    bool step(uint8_t byte) {  // false: not well-formed
        if (at == BETWEEN) {
            if (byte < 0x80) return true;
            if (byte < 0xC2 || byte > 0xF4) return false;
            at = byte < 0xE0 ? ONE : byte == 0xE0 ? E0 : byte == 0xED ? ED : byte < 0xF0 ? TWO : byte == 0xF0 ? F0 : byte == 0xF4 ? F4 : THREE;
            return true;
        }
        uint8_t low = at == E0 ? 0xA0 : at == F0 ? 0x90 : 0x80, high = at == ED ? 0x9F : at == F4 ? 0x8F : 0xBF;
        if (byte < low || byte > high) return false;
        at = at == ONE ? BETWEEN : at == TWO || at == E0 || at == ED ? ONE : TWO;
        return true;
    }
};
