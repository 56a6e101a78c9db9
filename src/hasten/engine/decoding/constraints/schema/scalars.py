"""Conditions of strings and numbers as languages, and as questions to single values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

from hasten.engine.decoding.constraints import numbers
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Form
from hasten.engine.decoding.constraints.languages import ANY, EVERYTHING, NOTHING, Expr, both, either, repeat, without, words
from hasten.engine.decoding.constraints.native import Language
from hasten.engine.decoding.constraints.schema.conditions import Alternative, Condition, Conditions, in_order

_COUNTED = 4
"""Shortest length up to which a language counts characters by itself, where nothing else is said of the string."""
_PRODUCT = 20_000
"""States of a pattern times characters, up to which a language counts them by itself."""

_REMAINDERS = 200_000
"""States of the automata of all factors: some 100 MB."""

_QUICK = 1_000
_QUICK_S = 0.05
"""States, and time, in which two patterns are seen to have nothing in common, or not at all."""

Span = tuple[int, int | None]
"""Least and most code points."""


class Scalars:
    def __init__(self, conditions: Conditions, limits: Limits) -> None:
        self._conditions, self._limits = conditions, limits
        self._languages: dict[Expr, Language] = {}
        self._empty: dict[Expr, bool] = {}
        self._multiples: dict[numbers.Number, Expr] = {}
        self._remainders = 0

    def language(self, expr: Expr) -> Language:
        found = self._languages.get(expr)
        if found is None:
            try:
                found = self._languages[expr] = Language(expr, Form.TEXT, self._limits)
            except GrammarError as error:
                message = str(error).removeprefix("language: ")
                raise GrammarError(f"what is asked of a string or number cannot be enforced: {message}", "pattern") from None
        return found

    def matches(self, expr: Expr, text: str) -> bool:
        return expr == EVERYTHING or self.language(expr).match(text.encode(errors="surrogatepass"))[1]

    def empty(self, expr: Expr) -> bool:
        """Whether no text is in the language."""
        found = self._empty.get(expr)
        if found is None:
            found = self._empty[expr] = not _inhabited(expr) and self.language(expr).states == 0
        return found

    # Single values.

    def holds(self, alternative: Iterable[Condition], value: Any) -> bool:
        """`value`: of the type that the conditions are about."""
        return all(self._holds(one, value) for one in alternative)

    def _holds(self, condition: Condition, value: Any) -> bool:
        kind, data = condition.kind, condition.data
        if kind == "among":
            return value in data[0]
        if kind == "except":
            return value not in data[0]
        if kind == "union":
            return any(self.holds(one, value) for one in data[0])
        if kind == "text":
            return self.matches(data[0], value)
        if kind == "length":
            return data[0] <= len(value) and (data[1] is None or len(value) <= data[1])
        if kind == "integer":
            return (Fraction(value).denominator == 1) is data[0]
        if kind == "low":
            return bool(value > data[0] if data[1] else value >= data[0])
        if kind == "high":
            return bool(value < data[0] if data[1] else value <= data[0])
        assert kind == "multiple", kind
        return (Fraction(value) % Fraction(data[0]) == 0) is data[1]

    def values(self, alternative: Alternative, type_: str) -> frozenset[Any] | None:
        """All values of the alternative, where its conditions list them."""
        if type_ == "null":
            return frozenset((None,))
        listed = [one.data[0] for one in alternative if one.kind == "among"]
        if type_ == "boolean":
            listed.append(frozenset((True, False)))
        if not listed:
            return None
        return frozenset(value for value in frozenset.intersection(*listed) if self.holds(alternative, value))

    def possible(self, alternative: Alternative, type_: str) -> bool:
        """False only if no value is of the alternative."""
        values = self.values(alternative, type_)
        if values is not None:
            return bool(values)
        if type_ == "string":
            texts = [one.data[0] for one in in_order(alternative) if one.kind == "text"]
            least, most = _span(alternative)
            return (most is None or least <= most) and (len(texts) < 2 or not self._apart(texts))
        low, high = _interval(alternative)
        asked = {one.data for one in alternative if one.kind in ("integer", "multiple")}
        if low and high:
            if (True,) in asked:
                low = (floor(low[0]) + 1 if low[1] else ceil(low[0]), False)
                high = (ceil(high[0]) - 1 if high[1] else floor(high[0]), False)
            if low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1])):
                return False
        return not any((*rest, not wanted) in asked for *rest, wanted in asked)

    def _apart(self, texts: list[Expr]) -> bool:
        """Whether it is quickly seen that no string is in all of the languages."""
        if any(without(text) in texts for text in texts):
            return True
        try:
            return Language(both(*texts), Form.TEXT, Limits(seconds=_QUICK_S, nodes=_QUICK)).states == 0
        except GrammarError:
            return False

    def joined(self, alternatives: Sequence[Alternative]) -> list[Alternative]:
        """As one alternative, but for those whose characters are better counted apart."""
        joined = [one for one in alternatives if not any(part.kind == "length" and _long(part.data) for part in one)]
        apart = [one for one in alternatives if any(part.kind == "length" and _long(part.data) for part in one)]
        joined.sort(key=lambda one: sorted(part.number for part in one))
        return [self._conditions.alternative("union", tuple(joined)), *apart] if len(joined) > 1 else [*joined, *apart]

    # Languages.

    def text(self, alternative: Alternative) -> Expr:
        """The strings of the alternative."""
        expr, span = self._text(alternative)
        return both(expr, repeat(ANY, *span)) if span != (0, None) else expr

    def _text(self, alternative: Alternative) -> tuple[Expr, Span]:
        """But for their lengths."""
        values = self.values(alternative, "string")
        if values is not None:
            return words(values), (0, None)
        parts = []
        for one in in_order(alternative):
            if one.kind == "text":
                parts.append(one.data[0])
            elif one.kind == "except":
                parts.append(without(words(one.data[0])))
            elif one.kind == "union":
                parts.append(either(*map(self.text, one.data[0])))
        return both(*parts), _span(alternative)

    def texts(self, alternatives: Iterable[Alternative]) -> dict[Span, Expr]:
        """The strings of all the alternatives: languages by the lengths that are counted beside them."""
        found: dict[Span, list[Expr]] = {}
        for one in alternatives:
            expr, span = self._text(one)
            expr, span = self._counting(expr, *span)
            if not self.empty(expr):
                found.setdefault(span, []).append(expr)
        return {span: either(*parts) for span, parts in found.items()}

    def _counting(self, expr: Expr, least: int, most: int | None) -> tuple[Expr, Span]:
        """With the bounds that the language can count by itself put into it."""
        if (least, most) == (0, None):
            return expr, (0, None)
        if expr == EVERYTHING:
            return (repeat(ANY, least), (0, None)) if most is None and least <= _COUNTED else (expr, (least, most))
        states = self.language(expr).states
        if states * ((least if most is None else most) + 1) <= _PRODUCT:
            return both(expr, repeat(ANY, least, most)), (0, None)
        if states * (least + 1) <= _PRODUCT:
            return both(expr, repeat(ANY, least)), (0, most)
        return expr, (least, most)

    def others(self, language: Expr, named: Collection[str]) -> Expr:
        """The texts of the language that are not among `named`; NOTHING if there are none."""
        if not named:
            return language
        left = both(language, without(words(named)))
        if _inhabited(language) and _endless(language):
            return left
        # Mostly one of these, longer than all the names, is left, which is seen sooner than that the language is not empty.
        length = max(map(len, named)) + 1
        likely = any(self.matches(language, character * length) for character in "\0~_a0")
        return NOTHING if not likely and self.empty(left) else left

    def numerals(self, alternatives: Iterable[Alternative]) -> Expr:
        """The texts of the numbers of all the alternatives."""
        found = []
        for one in alternatives:
            self._limits.check()
            expr = self._numeral(one) if one else numbers.NUMBER
            # Between bounds that `possible` has compared there is a number.
            if all(part.kind in ("low", "high", "among") or part.data == (True,) for part in one) or not self.empty(expr):
                found.append(expr)
        return either(*found)

    def _numeral(self, alternative: Alternative) -> Expr:
        values = self.values(alternative, "number")
        if values is not None:
            return either(*map(self._checked(numbers.literal), sorted(values)))
        low, high = _interval(alternative)
        parts = [numbers.at_least(*low)] if low else []
        parts += [numbers.at_most(*high)] if high else []
        for one in in_order(alternative):
            self._limits.check()
            if one.kind == "integer":
                parts.append(numbers.INTEGER if one.data[0] else without(numbers.INTEGRAL))
            elif one.kind == "multiple":
                multiple = self._multiple(one.data[0])
                parts.append(multiple if one.data[1] else without(multiple))
            elif one.kind == "except":
                parts.append(without(either(*map(self._checked(numbers.equal), sorted(one.data[0])))))
            elif one.kind == "union":
                parts.append(either(*map(self._numeral, one.data[0])))
        # What is not asked for may be any text at all, unless something else says that it is a number.
        return both(*parts) if any(part[0] != "without" for part in parts) else both(numbers.DECIMAL, *parts)

    def _multiple(self, factor: numbers.Number) -> Expr:
        found = self._multiples.get(factor)
        if found is None:
            found = self._multiples[factor] = numbers.multiple_of(factor)
            self._remainders += len(found[1])
            if self._remainders > _REMAINDERS:
                raise GrammarError("its factors have too many digits, all together, to be enforced", "multipleOf")
        return found

    def _checked(self, make: Callable[[numbers.Number], Expr]) -> Callable[[numbers.Number], Expr]:
        def checked(value: numbers.Number) -> Expr:
            self._limits.check()
            return make(value)

        return checked


def _long(span: Span) -> bool:
    return max(span[0], span[1] or 0) > 64


def _span(alternative: Alternative) -> Span:
    least, most = 0, None
    for one in alternative:
        if one.kind == "length":
            least = max(least, one.data[0])
            if one.data[1] is not None:
                most = one.data[1] if most is None else min(most, one.data[1])
    return least, most


Bound = tuple[int | Decimal, bool]


def _interval(alternative: Alternative) -> tuple[Bound | None, Bound | None]:
    """The tightest bounds, each with whether it is open."""
    lows = [one.data for one in alternative if one.kind == "low"]
    highs = [one.data for one in alternative if one.kind == "high"]
    low = max(lows, key=lambda bound: (bound[0], bound[1]), default=None)
    high = min(highs, key=lambda bound: (bound[0], not bound[1]), default=None)
    return low, high


def _inhabited(expr: Expr) -> bool:
    """Whether it is plain that some text is in the language."""
    todo = [expr]
    while todo:
        kind, *rest = todo.pop()
        if kind == "without" and rest[0][0] in ("words", "empty"):
            continue  # there are endless others
        if kind in ("both", "without", "none", "automaton"):
            return False
        if kind in ("cat", "either"):
            todo += rest[0]
        elif kind == "repeat" and rest[1]:
            todo.append(rest[0])
    return True


def _endless(expr: Expr) -> bool:
    """Of an expression that `_inhabited` is sure of: whether it is plain that there is no longest text."""
    todo = [expr]
    while todo:
        kind, *rest = todo.pop()
        if kind == "repeat" and rest[2] is None:
            return True
        if kind in ("cat", "either"):
            todo += rest[0]
    return False
