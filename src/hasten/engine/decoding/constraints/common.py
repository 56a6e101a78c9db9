"""Terminals of Lark's library `common`, and languages in any case."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from functools import cache

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.languages import (
    Expr,
    but,
    cat,
    chars,
    either,
    optional,
    repeat,
    text,
    words,
)


def _of(signs: str) -> Expr:
    return chars(*((ord(sign), ord(sign)) for sign in signs))


_LOWER, _UPPER, _DIGIT = chars((97, 122)), chars((65, 90)), chars((48, 57))
_LETTER = chars((65, 90), (97, 122))
_INT = repeat(_DIGIT, 1)
_SIGN = optional(_of("+-"))
_DECIMAL = either(cat(_INT, text("."), optional(_INT)), cat(text("."), _INT))
_EXPONENT = cat(_of("eE"), _SIGN, _INT)
_FLOAT = either(cat(_INT, _EXPONENT), cat(_DECIMAL, optional(_EXPONENT)))
_NUMBER = either(_FLOAT, _INT)
_LINE = repeat(but(_of("\n")))
_BLANKS = _of(" \t\f\r\n")

COMMON: dict[str, Expr] = {
    "DIGIT": _DIGIT,
    "HEXDIGIT": chars((48, 57), (65, 70), (97, 102)),
    "INT": _INT,
    "SIGNED_INT": cat(_SIGN, _INT),
    "DECIMAL": _DECIMAL,
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": cat(_SIGN, _FLOAT),
    "NUMBER": _NUMBER,
    "SIGNED_NUMBER": cat(_SIGN, _NUMBER),
    "ESCAPED_STRING": cat(text('"'), repeat(either(but(_of('"\\\n')), cat(text("\\"), but(_of("\n"))))), text('"')),
    "LCASE_LETTER": _LOWER,
    "UCASE_LETTER": _UPPER,
    "LETTER": _LETTER,
    "WORD": repeat(_LETTER, 1),
    "CNAME": cat(chars((65, 90), (95, 95), (97, 122)), repeat(chars((48, 57), (65, 90), (95, 95), (97, 122)))),
    "WS_INLINE": repeat(_of(" \t"), 1),
    "WS": repeat(_BLANKS, 1),
    "CR": text("\r"),
    "LF": text("\n"),
    "NEWLINE": repeat(words(["\n", "\r\n"]), 1),
    "SH_COMMENT": cat(text("#"), _LINE),
    "CPP_COMMENT": cat(text("//"), _LINE),
    "SQL_COMMENT": cat(text("--"), _LINE),
    # Up to the first end: stars that no slash follows, and what is no star.
    "C_COMMENT": cat(
        text("/*"), repeat(either(but(_of("*")), cat(repeat(text("*"), 1), but(_of("*/"))))), repeat(text("*"), 1), text("/")
    ),
}


@cache
def _cases() -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Code points, ascending, and the ranges of those that differ from each in case only."""
    found: dict[int, list[tuple[int, int]]] = {}
    for point in range(sys.maxunicode + 1):
        sign = chr(point)
        others = {one for one in (sign.lower(), sign.upper()) if len(one) == 1 and one != sign}
        if others:
            found[point] = [(ord(one), ord(one)) for one in others]
    return list(found), list(found.values())


def any_case(expr: Expr, limits: Limits) -> Expr:
    """The language with each character in either case."""
    limits.check()
    kind = expr[0]
    if kind == "chars":
        points, cases = _cases()
        ranges = list(expr[1])
        for low, high in expr[1]:
            for others in cases[bisect_left(points, low) : bisect_right(points, high)]:
                ranges += others
        return chars(*ranges)
    if kind == "words":
        signs = {sign: any_case(_of(sign), limits) for sign in set().union(*expr[1])}
        return either(*(cat(*(signs[sign] for sign in word)) for word in expr[1]))
    if kind in ("cat", "either", "both"):
        return (kind, tuple(any_case(part, limits) for part in expr[1]))
    if kind in ("without", "repeat"):
        return (kind, any_case(expr[1], limits), *expr[2:])
    return expr
