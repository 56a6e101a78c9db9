// Bytes that a language always goes on with, so that tokens of them need no walk.
#pragma once

#include <cstdint>

#include "dfa.h"
#include "vocab.h"

struct Ascii {
    uint64_t half[2] = {0, 0};

    bool has(int32_t byte) const { return half[byte / 64] >> (byte % 64) & 1; }
    void add(int32_t byte) { half[byte / 64] |= uint64_t(1) << (byte % 64); }
    Ascii operator&(const Ascii &other) const { return {{half[0] & other.half[0], half[1] & other.half[1]}}; }
    Ascii operator-(const Ascii &other) const { return {{half[0] & ~other.half[0], half[1] & ~other.half[1]}}; }
    int32_t size() const { return __builtin_popcountll(half[0]) + __builtin_popcountll(half[1]); }
};

// Bytes of which any sequence keeps the language alive from a state on: ASCII ones, and all well-formed others.
struct Safe {
    Ascii ascii;
    bool other = false;

    bool has(uint8_t byte) const { return byte < 128 ? ascii.has(byte) : other; }
    bool covers(const Signature &signature) const {
        return !signature.broken && !(Ascii{{signature.ascii[0], signature.ascii[1]}} - ascii).size() && (other || !signature.other);
    }
};

Safe find_safe(const Dfa &dfa, int32_t start);
