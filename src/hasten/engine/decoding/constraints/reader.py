"""Reading the text of a grammar: tokens, and faults with their line and column."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import SURROGATE

MOST_NESTING = 100
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "0": "\0", "\\": "\\"}
_HEX = {"x": 2, "u": 4, "U": 8}
MOST_DIGITS = 9
"""Of a number in a grammar."""


@dataclass(frozen=True, slots=True)
class Token:
    """`kind`: the name of the group of the pattern that matched; `at`: where, in characters from the beginning."""

    kind: str
    text: str
    at: int


class Reader:
    """The tokens of `source`, taken one after the other. `pattern` has one named group a kind of token; "skip" is dropped. The
    last token is of kind "end"."""

    def __init__(self, source: str, pattern: re.Pattern[str], limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.tokens: list[Token] = []
        if (lone := SURROGATE.search(source)) is not None:
            raise self.fault("half of a surrogate pair is no character", lone.start())
        at = 0
        while at < len(source):
            limits.check()
            found = pattern.match(source, at)
            if found is None:
                raise self.fault(f"{source[at]!r} is not expected here", at)
            if found.lastgroup != "skip":
                self.tokens.append(Token(found.lastgroup or "", found[0], at))
            at = found.end()
        self.tokens.append(Token("end", "", at))
        self._next = 0
        self._depth = 0

    def fault(self, message: str, at: int, part: str = "") -> GrammarError:
        line = self.source.count("\n", 0, at) + 1
        return GrammarError(message, part, f"line {line}, column {at - self.source.rfind(chr(10), 0, at)}")

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self._next + ahead, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.peek()
        self._next += 1
        return token

    def skip(self, *texts: str) -> Token | None:
        """Take the next token if it is one of `texts`."""
        return self.take() if self.peek().kind != "end" and self.peek().text in texts else None

    def expect(self, text: str = "", kind: str = "", what: str = "") -> Token:
        token = self.take()
        if (text and token.text != text) or (kind and token.kind != kind):
            seen = "the end" if token.kind == "end" else repr(token.text)
            raise self.fault(f"{what or repr(text)} is expected here, not {seen}", token.at)
        return token

    def number(self, text: str, at: int) -> int:
        """Of the digits that stand at `at`."""
        if len(text) > MOST_DIGITS:
            raise self.fault(f"a number of more than {MOST_DIGITS} digits", at)
        return int(text)

    def enter(self, token: Token) -> None:
        """An opening bracket; grammars nested without end must not exhaust Python's stack."""
        self._depth += 1
        if self._depth > MOST_NESTING:
            raise self.fault(f"nested more than {MOST_NESTING} deep", token.at)

    def leave(self) -> None:
        self._depth -= 1

    def unescape(self, text: str, at: int) -> str:
        """The characters that `text`, which starts at `at` in the source, means. A backslash before a character without a
        meaning of its own stands for that character if it is punctuation, and for itself otherwise."""
        out, place = [], 0
        while place < len(text):
            sign = text[place]
            if sign != "\\" or place + 1 == len(text):
                out.append(sign)
                place += 1
                continue
            sign, length = text[place + 1], _HEX.get(text[place + 1], 0)
            if length:
                digits = text[place + 2 : place + 2 + length]
                if not re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", digits) or not _character(int(digits, 16)):
                    raise self.fault(f"\\{sign}{digits} is no character", at + place)
                out.append(chr(int(digits, 16)))
            elif sign in _SIMPLE:
                out.append(_SIMPLE[sign])
            else:
                out.append("\\" + sign if sign.isalnum() else sign)
            place += 2 + length
        return "".join(out)


def _character(point: int) -> bool:
    return point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF
