"""Regular expressions with anchors and lookahead, as languages.

What a part of a pattern matches is a list of alternatives (`Part`). Each says whether its text must begin where the subject
begins and end where it ends; that is all that `^` and `$` mean, wherever they stand. A lookahead says that all that follows it
in the subject, not only in the part, belongs to some language; so a part is cut there, and the languages are
intersected when it is known what follows (`resolve`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.languages import (
    EMPTY,
    EVERYTHING,
    NOTHING,
    Expr,
    both,
    cat,
    either,
    nullable,
    repeat,
    without,
)

MOST_PARTS = 64
MOST_UNROLLED = 64
MOST_SIZE = 100_000
"""Of what has anchors or lookaheads, written out: putting such parts together takes copies of them."""


class Unsupported(Exception):
    """What cannot be expressed; the text is for a GrammarError."""


@dataclass(frozen=True, slots=True)
class Part:
    """The text is a text of each of `segments`, one after the other; what begins with segment i + 1 and goes on to the end of
    the subject is in `looks[i]`."""

    segments: tuple[Expr, ...]
    looks: tuple[Expr, ...] = ()
    begins: bool = False
    ends: bool = False

    def emptied(self) -> Part | None:
        """With the empty text only; None: it does not match that."""
        if not all(map(nullable, self.segments)):
            return None
        return Part((EMPTY,) * len(self.segments), self.looks, self.begins, self.ends)


Value = list[Part]

BEGIN: Value = [Part((EMPTY,), begins=True)]
END: Value = [Part((EMPTY,), ends=True)]


def plain(expr: Expr) -> Value:
    return [Part((expr,))]


def is_plain(value: Value) -> bool:
    return len(value) == 1 and not (value[0].looks or value[0].begins or value[0].ends)


def _bounded(value: Value, copies: int = 1) -> Value:
    size, todo = 0, [expr for part in value for expr in (*part.segments, *part.looks)]
    while todo:
        expr = todo.pop()
        size += 1
        if size * copies > MOST_SIZE:
            raise Unsupported("its anchors and lookaheads have too many combinations")
        if expr[0] in ("cat", "either", "both"):
            todo += expr[1]
        elif expr[0] in ("without", "repeat"):
            todo.append(expr[1])
    return value


def alternatives(values: Iterable[Value]) -> Value:
    """One of them. Those without lookahead become one for each pair of anchors."""
    merged: dict[tuple[bool, bool], list[Expr]] = {}
    rest: Value = []
    for value in values:
        for part in value:
            if part.looks:
                rest.append(part)
            else:
                merged.setdefault((part.begins, part.ends), []).append(part.segments[0])
    out = [Part((either(*exprs),), (), *anchors) for anchors, exprs in merged.items()]
    out = [part for part in out if part.segments != (NOTHING,)] + rest
    if len(out) > MOST_PARTS:
        raise Unsupported(f"lookaheads in more than {MOST_PARTS} combinations of alternatives")
    return out or plain(NOTHING)


def sequence(values: list[Value], limits: Limits) -> Value:
    """One after the other."""
    out: Value = plain(EMPTY)
    run: list[Expr] = []
    for value in values:
        if is_plain(value):
            run.append(value[0].segments[0])
            continue
        limits.check()
        out = _bounded(_follow(_follow(out, plain(cat(*run))), value))
        run = []
    return _follow(out, plain(cat(*run)))


def _follow(left: Value, right: Value) -> Value:
    found = []
    for one in left:
        for other in right:
            # What begins at the beginning follows the empty text only; what ends at the end is followed by that only.
            first = one.emptied() if other.begins else one
            second = other.emptied() if one.ends else other
            if first is None or second is None:
                continue
            joint = cat(first.segments[-1], second.segments[0])
            segments = (*first.segments[:-1], joint, *second.segments[1:])
            found.append(Part(segments, first.looks + second.looks, one.begins or other.begins, one.ends or other.ends))
    return alternatives([found])


def repeated(value: Value, least: int, most: int | None, limits: Limits) -> Value:
    """`least` to `most` times (None: any number)."""
    if is_plain(value):
        return plain(repeat(value[0].segments[0], least, most))
    if (least, most) == (1, 1):
        return value
    if most == 0:
        return plain(EMPTY)
    if (least, most) == (0, 1):
        return alternatives([value, plain(EMPTY)])
    if any(part.looks for part in value):
        raise Unsupported("a lookahead that is repeated")
    if least > MOST_UNROLLED:
        raise Unsupported(f"an anchor that is repeated more than {MOST_UNROLLED} times")
    _bounded(value, least + 4)  # `_up_to` has four
    rest = None if most is None else most - least
    return sequence([value] * least + ([] if rest == 0 else [_up_to(value, rest)]), limits)


def _up_to(value: Value, most: int | None) -> Value:
    """Repetitions of which none must be: empty ones can be left out, so only the first has something of its own to say of the
    beginning, and only the last of the end."""
    first, last, whole, inner = (
        either(*(part.segments[0] for part in value if (part.begins, part.ends) == anchors))
        for anchors in ((True, False), (False, True), (True, True), (False, False))
    )

    def times(others: int) -> Expr:
        if most is None:
            return repeat(inner)
        return repeat(inner, 0, most - others) if most >= others else NOTHING

    return alternatives(
        [
            plain(times(0)),
            [Part((cat(first, times(1)),), begins=True), Part((cat(times(1), last),), ends=True)],
            [Part((either(whole, cat(first, times(2), last)),), begins=True, ends=True)],
        ]
    )


def ahead(value: Value, negative: bool) -> Value:
    """A lookahead of it."""
    _bounded(value)
    free = [part for part in value if not part.begins]
    bound = [part for part in value if part.begins]
    if negative:
        if bound:
            raise Unsupported("an anchor ^ in a negative lookahead")
        return [Part((EMPTY, EMPTY), (without(resolve(free, before=False, after=True)),))]
    looks = [(resolve(parts, before=False, after=True), begins) for parts, begins in ((free, False), (bound, True)) if parts]
    return [Part((EMPTY, EMPTY), (look,), begins) for look, begins in looks]


def resolve(value: Value, before: bool, after: bool) -> Expr:
    """The subjects in which it is found: with any text before or after it, where no anchor forbids that."""
    free: list[Expr] = []
    bound: list[Expr] = []
    for part in value:
        text = part.segments[-1] if part.ends or not after else cat(part.segments[-1], EVERYTHING)
        for segment, look in zip(reversed(part.segments[:-1]), reversed(part.looks), strict=True):
            text = cat(segment, both(text, look))
        (bound if part.begins or not before else free).append(text)
    return either(cat(EVERYTHING, either(*free)), *bound)
