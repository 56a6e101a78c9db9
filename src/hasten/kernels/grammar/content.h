// JSON values by content: equal values have equal digests, whatever was written (1 and 1.0, "a" and its escape, other order of keys).
#pragma once

#include <cstdint>
#include <string>

// 128 bits of hash: that two different values share them is not to be expected.
struct Digest {
    uint64_t a, b;
    bool operator==(const Digest &other) const { return a == other.a && b == other.b; }
};

Digest digest(uint8_t kind, const std::string &data);
Digest combine(const Digest &first, const Digest &second);  // order matters
inline Digest add(const Digest &first, const Digest &second) { return {first.a + second.a, first.b + second.b}; }

// What the scalar at the end of a lexeme (blanks around it are possible) means; false: it is none, but a sign.
bool scalar_digest(const std::string &lexeme, Digest &out);
// Of a string in quotes.
std::string decode_string(const std::string &quoted);
