"""Conditions on JSON numbers, as languages of their text.

Values have many texts. The conditions here are sets of the texts without exponent (`DECIMAL`: 1, -0, 1.50, ...), each with all
texts of a value or none; so they can be combined, and negated within `DECIMAL`. A bound on a text with an exponent would be
of no use to a model: any beginning could still become small or large. What a model is offered is a part of that:
`INTEGER` (an integer without fraction), `NUMBER` (exponents too) where nothing is asked of the value, `literal` for one value.
"""

from __future__ import annotations

from decimal import Decimal

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import (
    EMPTY,
    Expr,
    Row,
    automaton,
    cat,
    chars,
    either,
    optional,
    repeat,
    text,
    words,
)

MOST_DIGITS = 1_000
"""Of a bound, so that no exponent in a schema makes a large automaton."""
MOST_MODULUS = 10_000

_DIGIT, _ZERO, _MINUS, _POINT = chars((0x30, 0x39)), text("0"), text("-"), text(".")
_WHOLE = either(_ZERO, cat(chars((0x31, 0x39)), repeat(_DIGIT)))
_UNSIGNED = cat(_WHOLE, optional(cat(_POINT, repeat(_DIGIT, 1))))

INTEGER = cat(optional(_MINUS), _WHOLE)
DECIMAL = cat(optional(_MINUS), _UNSIGNED)
NUMBER = cat(DECIMAL, optional(cat(words("eE"), optional(words("+-")), repeat(_DIGIT, 1))))
INTEGRAL = cat(INTEGER, optional(cat(_POINT, repeat(_ZERO, 1))))
"""All texts of integers, as a condition: 1.0 is one."""

Number = int | Decimal
LESS, EQUAL, GREATER = range(3)


def at_least(bound: Number, exclusive: bool = False) -> Expr:
    """Values >= bound, or > bound."""
    zero = set() if exclusive else {EQUAL}
    if bound > 0:
        return _compared(bound, {GREATER} | zero)
    if bound < 0:
        return either(_UNSIGNED, cat(_MINUS, _compared(bound, {LESS} | zero)))
    return _compared(bound, {GREATER}) if exclusive else either(_UNSIGNED, cat(_MINUS, _compared(bound, zero)))


def at_most(bound: Number, exclusive: bool = False) -> Expr:
    """Values <= bound, or < bound."""
    zero = set() if exclusive else {EQUAL}
    if bound < 0:
        return cat(_MINUS, _compared(bound, {GREATER} | zero))
    if bound > 0:
        return either(cat(_MINUS, _UNSIGNED), _compared(bound, {LESS} | zero))
    return cat(_MINUS, _compared(bound, {GREATER})) if exclusive else either(cat(_MINUS, _UNSIGNED), _compared(bound, zero))


def equal(value: Number) -> Expr:
    """All texts of the value, as a condition (for a negated "const"). Zero has both signs."""
    sign = EMPTY if value > 0 else _MINUS if value < 0 else optional(_MINUS)
    return cat(sign, _compared(value, {EQUAL}))


def literal(value: Number) -> Expr:
    """The texts in which a model may write one value ("enum", "const"): without exponent and useless zeros; of an integer
    that the schema writes with a fraction, such as 1.0, that form too."""
    whole, fraction = _digits(value)
    sign = "-" if value < 0 else ""
    if fraction:
        return text(f"{sign}{whole}.{fraction}")
    return words([sign + whole, f"{sign}{whole}.0"] if isinstance(value, Decimal) else [sign + whole])


def multiple_of(step: Number) -> Expr:
    """Multiples of a positive number, which is p / 10**k. Raises GrammarError for p > MOST_MODULUS."""
    if step <= 0:
        raise GrammarError("it must be above 0", "multipleOf")
    whole, fraction = _digits(step)
    modulus, places = int(whole + fraction), len(fraction)
    if modulus > MOST_MODULUS:
        raise GrammarError(f"{step} has too many digits to be enforced", "multipleOf")
    # States: 0 at the start, 1 after the sign, 2 after a leading zero, then by what was read and its remainder: level 0 digits
    # before the point, level 1 + n the point and n digits (at most `places`), the last level zeros beyond these.
    last = places + 2

    def state(level: int, remainder: int) -> int:
        return 3 + level * modulus + remainder % modulus

    def digits(level: int, remainder: int, least: int = 0) -> Row:
        return tuple((0x30 + one, 0x30 + one, state(level, remainder * 10 + one)) for one in range(least, 10))

    unsigned = (_to("0", 2), *digits(0, 0, 1))
    rows: list[Row] = [(_to("-", 1), *unsigned), unsigned, (_to(".", state(1, 0)),)]
    accepting = [2]
    for level in range(last + 1):
        for remainder in range(modulus):
            if level == 0:
                rows.append((*digits(0, remainder), _to(".", state(1, remainder))))
            elif level <= places:
                rows.append(digits(level + 1, remainder))
            else:
                rows.append(() if remainder else (_to("0", state(last, 0)),))
            missing = max(places - max(level - 1, 0), 0)  # digits that count as zeros
            if level != 1 and remainder * 10**missing % modulus == 0:
                accepting.append(state(level, remainder))
    return automaton(rows, accepting)


def _compared(bound: Number, wanted: set[int]) -> Expr:
    """The unsigned texts whose values compare with |bound| in one of the `wanted` ways."""
    whole, fraction = _digits(bound)

    # States: the part that is being read, how many of its digits (beyond the bound's: one more), and how what was read compares
    # with as many digits of the bound.
    def ended(digits: int, order: int) -> int:  # of the digits before the point
        return order if digits == len(whole) else LESS if digits < len(whole) else GREATER

    def follow(part: str, digits: int, order: int, digit: int) -> tuple[str, int, int]:
        if part == "start":
            return ("zero", 1, ended(1, _order(0, whole[0]))) if digit == 0 else ("whole", 1, _order(digit, whole[0]))
        bounds = whole if part == "whole" else fraction
        if digits < len(bounds):
            order = _order(digit, bounds[digits]) if order == EQUAL else order
            return part if part == "whole" else "fraction", digits + 1, order
        if part == "whole":
            return part, len(whole) + 1, GREATER
        return "fraction", digits, GREATER if order == EQUAL and digit else order

    number = {("start", 0, EQUAL): 0}
    todo, rows, accepting = [("start", 0, EQUAL)], list[Row](), []
    for one in todo:
        part, digits, order = one
        ways: list[tuple[str, tuple[str, int, int]]] = []
        if part != "zero":
            ways = [(str(digit), follow(part, digits, order, digit)) for digit in range(10)]
        if part in ("whole", "zero"):
            order = order if part == "zero" else ended(digits, order)
            ways.append((".", ("point", 0, order)))
        for _, state in ways:
            if state not in number:
                number[state] = len(todo)
                todo.append(state)
        row: list[tuple[int, int, int]] = []
        for letter, state in ways:
            low, high, target = _to(letter, number[state])
            if row and row[-1][1:] == (low - 1, target):
                row[-1] = (row[-1][0], high, target)
            else:
                row.append((low, high, target))
        rows.append(tuple(row))
        if part in ("start", "point"):
            continue
        left = (part != "fraction" and fraction) or digits < len(fraction)  # the bound goes on, and not with zeros only
        if (LESS if order == EQUAL and left else order) in wanted:
            accepting.append(number[one])
    return automaton(rows, accepting)


def _order(digit: int, other: str) -> int:
    return EQUAL if digit == int(other) else LESS if digit < int(other) else GREATER


def _to(letter: str, state: int) -> tuple[int, int, int]:
    return ord(letter), ord(letter), state


def _digits(value: Number) -> tuple[str, str]:
    """Of |value|: those before the point, without leading zeros but one, and those after it, without zeros at the end."""
    _, digits, exponent = Decimal(value).as_tuple()
    if not isinstance(exponent, int):
        raise GrammarError(f"{value} is no number")
    if len(digits) + abs(exponent) > MOST_DIGITS:
        raise GrammarError(f"a number of more than {MOST_DIGITS} digits cannot be enforced")
    figures = "".join(map(str, digits)) + "0" * max(exponent, 0)
    figures = figures.rjust(1 - exponent, "0")
    point = len(figures) + min(exponent, 0)
    return figures[:point].lstrip("0") or "0", figures[point:].rstrip("0")
