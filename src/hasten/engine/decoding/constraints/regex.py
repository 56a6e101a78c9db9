"""Regular expressions of JSON Schema (ECMA-262) as languages.

Where dialects differ: `\\d` and `\\w` are ASCII, `\\s` has the spaces of Unicode, `.` is no line end, `$` is the very end,
escaped punctuation is itself, `{` and `]` may stand for themselves, `[]` is nothing and `[^]` anything. `(?P<name>` is a group.
Refused by name: letters that escape nothing in ECMA-262 (`\\A`, `\\Z`, `\\z`, ...), `[[:alpha:]]`, flags, backreferences,
`\\b`, lookbehind, lookaheads that are repeated, and of Unicode's properties all but general categories.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hasten.engine.decoding.constraints import unicode
from hasten.engine.decoding.constraints.anchored import (
    BEGIN,
    END,
    Unsupported,
    Value,
    ahead,
    alternatives,
    is_plain,
    plain,
    repeated,
    resolve,
    sequence,
)
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import LAST, Expr, Ranges, but, chars, text

DEEPEST = 100
MOST_REPEATS = 1_000_000

_SETS = {"d": unicode.DIGITS, "w": unicode.WORD, "s": unicode.SPACES}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_NO_LINE_END = but(chars(*unicode.LINE_ENDS))
_REPEATS = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_GROUP = re.compile(r"\?(?:P?<[^\W\d]\w*>|:)")
_POSIX = re.compile(r"\[([:.=])[^\[\]]{1,32}\1\]")
_HEX = {"x": re.compile(r"[0-9a-fA-F]{2}"), "u": re.compile(r"[0-9a-fA-F]{4}")}
_LONG_HEX = re.compile(r"\{([0-9a-fA-F]+)\}")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def parse(pattern: str, *, search: bool, limits: Limits | None = None) -> Expr:
    """The texts in which the pattern is found (`search`), or that match it from beginning to end. Raises GrammarError."""
    parser = _Parser(pattern, limits or Limits())
    try:
        return resolve(parser.read(), before=search, after=search)
    except Unsupported as refused:
        raise GrammarError(str(refused), "pattern", parser.where()) from None


class _Parser:
    def __init__(self, pattern: str, limits: Limits) -> None:
        self.pattern, self.limits, self.at, self.depth = pattern, limits, 0, 0

    def where(self) -> str:
        return f"position {self.at} of {self.pattern[:200]!r}"

    def error(self, message: str) -> GrammarError:
        return GrammarError(message, "pattern", self.where())

    def peek(self) -> str:
        return self.pattern[self.at] if self.at < len(self.pattern) else ""

    def take(self, literal: str) -> bool:
        if not self.pattern.startswith(literal, self.at):
            return False
        self.at += len(literal)
        return True

    def match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self.pattern, self.at)
        self.at = found.end() if found else self.at
        return found

    def read(self) -> Value:
        value = self.branches()
        if self.peek():
            raise self.error("')' without a '('")
        return value

    def branches(self) -> Value:
        found = [self.branch()]
        while self.take("|"):
            found.append(self.branch())
        return found[0] if len(found) == 1 else alternatives(found)

    def branch(self) -> Value:
        items: list[Value] = []
        literal: list[str] = []  # characters that have not become an item: together they are one

        def settle() -> None:
            if literal:
                items.append(plain(text("".join(literal))))
                literal.clear()

        while self.peek() not in ("", "|", ")"):
            self.limits.check()
            start = self.at
            atom = self.atom()
            repeats = self.repeats()
            expr = atom[0].segments[0]
            if repeats is None and is_plain(atom) and expr[0] == "words" and len(expr[1]) == 1:
                literal.append(expr[1][0])
                continue
            settle()
            try:
                items.append(atom if repeats is None else repeated(atom, *repeats, self.limits))
            except Unsupported:
                self.at = start
                raise
        settle()
        return sequence(items, self.limits)

    def repeats(self) -> tuple[int, int | None] | None:
        least, most = 0, None
        if self.take("+"):
            least = 1
        elif self.take("?"):
            most = 1
        elif not self.take("*"):
            found = self.match(_REPEATS)
            if found is None:
                return None
            if max(len(found[1]), len(found[3] or "")) > 9 or int(found[1]) > MOST_REPEATS or int(found[3] or 0) > MOST_REPEATS:
                raise self.error(f"more than {MOST_REPEATS:,} repetitions")
            least = int(found[1])
            most = least if found[2] is None else int(found[3]) if found[3] else None
            if most is not None and most < least:
                raise self.error("a repetition whose bounds are the wrong way round")
        self.take("?")  # which of several matches is found first makes no difference
        return least, most

    def atom(self) -> Value:
        letter = self.peek()
        if letter in "*+?" or (letter == "{" and _REPEATS.match(self.pattern, self.at)):
            raise self.error("nothing to repeat")
        self.at += 1
        if letter == "^":
            return BEGIN
        if letter == "$":
            return END
        if letter == ".":
            return plain(_NO_LINE_END)
        if letter == "(":
            return self.group()
        if letter == "[":
            return plain(self.bracket())
        if letter == "\\":
            found = self.escape()
            if isinstance(found, int):
                return plain(text(chr(found)) if not 0xD800 <= found <= 0xDFFF else chars())
            return plain(_set(found))
        return plain(text(letter) if not 0xD800 <= ord(letter) <= 0xDFFF else chars())

    def group(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"groups nested more than {DEEPEST} deep")
        looks, negative = False, False
        if self.peek() == "?" and not self.match(_GROUP):
            if self.take("?<=") or self.take("?<!"):
                raise self.error("lookbehind cannot be enforced")
            looks, negative = True, self.take("?!")
            if not negative and not self.take("?="):
                raise self.error(f"'({self.pattern[self.at : self.at + 2]}' is no group of ECMA-262")
        start = self.at
        value = self.branches()
        if not self.take(")"):
            self.at = start - 1
            raise self.error("'(' without a ')'")
        self.depth -= 1
        return ahead(value, negative) if looks else value

    def escape(self, inside: bool = False) -> int | Ranges:
        """A code point or a set of them. `inside`: brackets."""
        letter = self.peek()
        if not letter:
            raise self.error("a backslash at the end")
        self.at += 1
        if letter.lower() in _SETS:
            found = _SETS[letter.lower()]
            return found if letter.islower() else _inverse(found)
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter in "pP":
            return self.unicode_property(letter == "P")
        if letter == "u" and (long := self.match(_LONG_HEX)):
            if int(long[1], 16) > LAST:
                raise self.error("a code point beyond U+10FFFF")
            return int(long[1], 16)
        if letter in _HEX:
            digits = self.match(_HEX[letter])
            if digits is None:
                raise self.error(f"'\\{letter}' without its hexadecimal digits")
            point = int(digits[0], 16)
            if 0xD800 <= point <= 0xDBFF and (low := self.match(_LOW_SURROGATE)):
                return 0x10000 + (point - 0xD800 << 10) + int(low[1], 16) - 0xDC00
            return point
        if letter == "c":
            control = self.peek()
            if not (control.isascii() and control.isalpha()):
                raise self.error("'\\c' without its letter")
            self.at += 1
            return ord(control) & 31
        if letter == "0" and not self.peek().isdecimal():
            return 0
        if letter == "b" and inside:
            return 8
        if letter in "bB":
            raise self.error(f"'\\{letter}', the word boundary, cannot be enforced")
        if letter.isdecimal() or letter == "k":
            raise self.error(f"'\\{letter}', a backreference, cannot be enforced")
        if letter.isascii() and letter.isalpha():
            raise self.error(f"'\\{letter}' means nothing in ECMA-262")
        return ord(letter)

    def unicode_property(self, negated: bool) -> Ranges:
        end = self.pattern.find("}", self.at)
        if self.peek() != "{" or end < 0:
            raise self.error("'\\p' without its name in braces")
        name = self.pattern[self.at + 1 : end]
        found = unicode.named(name)
        if found is None:
            raise self.error(f"'\\p{{{name}}}': only general categories of Unicode can be enforced")
        self.at = end + 1
        return _inverse(found) if negated else found

    def bracket(self) -> Expr:
        start = self.at - 1
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            self.limits.check()
            if not self.peek():
                self.at = start
                raise self.error("'[' without a ']'")
            if _POSIX.match(self.pattern, self.at):
                raise self.error("POSIX's classes are not in ECMA-262")
            low = self.member()
            # A dash is itself at the end and beside a set.
            if isinstance(low, int) and self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                before = self.at
                self.at += 1
                high = self.member()
                if isinstance(high, int):
                    if high < low:
                        self.at = before
                        raise self.error("a range that ends before it begins")
                    ranges.append((low, high))
                    continue
                ranges.append((ord("-"), ord("-")))
                ranges += high
            ranges += [(low, low)] if isinstance(low, int) else low
        return but(chars(*ranges)) if negated else chars(*ranges)

    def member(self) -> int | Ranges:
        letter = self.peek()
        self.at += 1
        return self.escape(inside=True) if letter == "\\" else ord(letter)


@lru_cache(maxsize=256)
def _set(ranges: Ranges) -> Expr:
    return chars(*ranges)


@lru_cache(maxsize=256)
def _inverse(ranges: Ranges) -> Ranges:
    expr = but(_set(ranges))
    return expr[1] if expr[0] == "chars" else ()
