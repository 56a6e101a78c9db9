#include "content.h"

#include <algorithm>
#include <cstdlib>

#include "pool.h"

namespace {

void append_utf8(std::string &out, uint32_t point) {
    if (point < 0x80) {
        out += char(point);
    } else if (point < 0x800) {
        out += char(0xC0 | point >> 6), out += char(0x80 | (point & 63));
    } else if (point < 0x10000) {
        out += char(0xE0 | point >> 12), out += char(0x80 | (point >> 6 & 63)), out += char(0x80 | (point & 63));
    } else {
        out += char(0xF0 | point >> 18), out += char(0x80 | (point >> 12 & 63)), out += char(0x80 | (point >> 6 & 63));
        out += char(0x80 | (point & 63));
    }
}

// Digits without zeros at either end, and the power of ten of the last one.
std::string canonical_number(const std::string &text) {
    size_t i = 0;
    bool negative = text[i] == '-';
    i += negative;
    std::string digits;
    int64_t power = 0;
    for (bool fraction = false; i < text.size() && text[i] != 'e' && text[i] != 'E'; i++) {
        if (text[i] == '.') fraction = true;
        else digits += text[i], power -= fraction;
    }
    // Exponents beyond 10^17 are all alike.
    constexpr long long FAR = 100'000'000'000'000'000;
    if (i < text.size()) power += std::min(std::max(std::strtoll(text.c_str() + i + 1, nullptr, 10), -FAR), FAR);
    size_t first = digits.find_first_not_of('0');
    if (first == std::string::npos) return "0";
    size_t last = digits.find_last_not_of('0');
    power += int64_t(digits.size() - 1 - last);
    return (negative ? "-" : "") + digits.substr(first, last + 1 - first) + "e" + std::to_string(power);
}

}  // namespace

Digest digest(uint8_t kind, const std::string &data) {
    Digest out{kind * 0x9E3779B97F4A7C15ull, kind + 0xD6E8FEB86659FD93ull};
    for (uint8_t byte : data) {
        out.a = mix(out.a, byte + 1);
        out.b = mix(out.b + 0xA0761D6478BD642Full, ~uint64_t(byte));
    }
    return combine(out, {data.size(), kind});
}

Digest combine(const Digest &first, const Digest &second) {
    uint64_t a = mix(mix(first.a, second.a), second.b), b = mix(mix(first.b ^ 0xE7037ED1A0B428DBull, second.b), second.a);
    return {a ^ (a >> 32), b ^ (b >> 31)};
}

std::string decode_string(const std::string &quoted) {
    std::string out;
    auto hex = [&](size_t at) { return uint32_t(std::strtoul(quoted.substr(at, 4).c_str(), nullptr, 16)); };
    for (size_t i = 1; i + 1 < quoted.size(); i++) {
        if (quoted[i] != '\\') {
            out += quoted[i];
            continue;
        }
        char escape = quoted[++i];
        static const std::string SHORT = "bfnrt", MEANT = "\b\f\n\r\t";
        if (size_t which = SHORT.find(escape); which != std::string::npos) out += MEANT[which];
        else if (escape != 'u') out += escape;
        else {
            uint32_t point = hex(i + 1);
            i += 4;
            if (point >= 0xD800 && point < 0xDC00 && i + 6 < quoted.size() && quoted[i + 1] == '\\' && quoted[i + 2] == 'u') {
                point = 0x10000 + ((point - 0xD800) << 10) + (hex(i + 3) - 0xDC00);
                i += 6;
            }
            append_utf8(out, point);
        }
    }
    return out;
}

bool scalar_digest(const std::string &lexeme, Digest &out) {
    size_t first = lexeme.find_first_not_of(" \t\n\r"), last = lexeme.find_last_not_of(" \t\n\r");
    if (first == std::string::npos) return false;
    std::string text = lexeme.substr(first, last + 1 - first);
    if (text[0] == '"') out = digest('s', decode_string(text));
    else if (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) out = digest('n', canonical_number(text));
    else if (text == "true" || text == "false" || text == "null") out = digest('w', text);
    else return false;
    return true;
}
