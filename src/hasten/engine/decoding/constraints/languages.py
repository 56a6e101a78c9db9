"""Regular languages over Unicode code points, as expressions that the native library compiles to automata of bytes.

An expression is a nested tuple, made with the functions below; equal expressions are equal tuples. Surrogates are no code
points. The library is sent `program(expression)`: postfix operations, each a byte with int32 arguments (little-endian).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from struct import pack
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError

Expr = tuple[Any, ...]
Ranges = tuple[tuple[int, int], ...]
LAST = 0x10FFFF
MOST_NUMBERS = 1 << 22
"""Of a program."""

SURROGATE = re.compile("[\ud800-\udfff]")

NOTHING: Expr = ("none",)
"""No text at all."""
EMPTY: Expr = ("empty",)
"""The empty text only."""


def chars(*ranges: tuple[int, int]) -> Expr:
    """One code point out of inclusive ranges; overlapping and adjacent ones are merged, surrogates left out."""
    parts: list[list[int]] = []
    for low, high in sorted(ranges):
        for first, last in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
            if first > last:
                continue
            if parts and first <= parts[-1][1] + 1:
                parts[-1][1] = max(parts[-1][1], last)
            else:
                parts.append([first, last])
    return ("chars", tuple((low, high) for low, high in parts)) if parts else NOTHING


ANY = chars((0, LAST))
"""Any one code point."""


def but(expr: Expr) -> Expr:
    """One code point that `expr`, a `chars`, does not have."""
    if expr == NOTHING:
        return ANY
    gaps, at = [], 0
    for low, high in expr[1]:
        gaps.append((at, low - 1))
        at = high + 1
    return chars(*[gap for gap in [*gaps, (at, LAST)] if gap[0] <= gap[1]])


def text(string: str) -> Expr:
    return words([string])


def words(strings: Iterable[str]) -> Expr:
    """One of the strings."""
    found = tuple(sorted(set(strings)))
    if not found:
        return NOTHING
    return EMPTY if found == ("",) else ("words", found)


def cat(*parts: Expr) -> Expr:
    """One after the other."""
    flat: list[Expr] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        if part != EMPTY:
            flat.extend(part[1] if part[0] == "cat" else (part,))
    return EMPTY if not flat else flat[0] if len(flat) == 1 else ("cat", tuple(flat))


def either(*parts: Expr) -> Expr:
    """In at least one of them. Words by the thousand are one tree; as alternatives they would be as many automata."""
    flat = dict.fromkeys(one for part in parts for one in (part[1] if part[0] == "either" else (part,)) if one != NOTHING)
    lists = [one for one in flat if one[0] == "words"]
    if len(lists) > 1:
        joined = words(word for one in lists for word in one[1])
        flat = dict.fromkeys([joined, *(one for one in flat if one[0] != "words")])
    return NOTHING if not flat else next(iter(flat)) if len(flat) == 1 else ("either", tuple(flat))


def both(*parts: Expr) -> Expr:
    """In all of them; of none: any text."""
    flat = dict.fromkeys(one for part in parts for one in (part[1] if part[0] == "both" else (part,)))
    if NOTHING in flat:
        return NOTHING
    kept = [one for one in flat if one != EVERYTHING]
    return EVERYTHING if not kept else kept[0] if len(kept) == 1 else ("both", tuple(kept))


def without(expr: Expr) -> Expr:
    """Every text that is not in it."""
    return expr[1] if expr[0] == "without" else ("without", expr)


def repeat(expr: Expr, least: int = 0, most: int | None = None) -> Expr:
    if most == 0 or expr == EMPTY:
        return EMPTY
    if expr == NOTHING:
        return EMPTY if least == 0 else NOTHING
    return expr if (least, most) == (1, 1) else ("repeat", expr, least, most)


def optional(expr: Expr) -> Expr:
    return repeat(expr, 0, 1)


EVERYTHING: Expr = ("repeat", ANY, 0, None)
"""Any text."""


def nullable(expr: Expr) -> bool:
    """Whether the empty text is in it."""
    kind = expr[0]
    if kind in ("none", "chars"):
        return False
    if kind == "words":
        return "" in expr[1]
    if kind in ("cat", "both"):
        return all(map(nullable, expr[1]))
    if kind == "either":
        return any(map(nullable, expr[1]))
    if kind == "without":
        return not nullable(expr[1])
    if kind == "repeat":
        return expr[2] == 0 or nullable(expr[1])
    if kind == "automaton":
        return start_of(expr) in expr[2]
    return True


Row = tuple[tuple[int, int, int], ...]


def automaton(rows: Sequence[Row], accepting: Iterable[int]) -> Expr:
    """The texts that a deterministic automaton accepts from state 0: `rows[state]` holds (low, high, next state)."""
    return ("automaton", tuple(rows), tuple(sorted(accepting)))


def start_of(expr: Expr) -> int:
    """Of an automaton: the state it starts from. Only derivatives (`derivatives.py`) start elsewhere than at 0."""
    state: int = expr[3] if len(expr) == 4 else 0
    return state


_CODES = {name: code for code, name in enumerate(
    ("none", "empty", "chars", "words", "cat", "either", "both", "without", "repeat", "automaton")
)}  # fmt: skip


def program(expr: Expr) -> bytes:
    """Postfix, arguments after the operation's byte: none and empty have none; chars n, then n pairs; words n, then each one's
    length in code points and these; cat, either and both the number of operands; without none; repeat least and most (-1:
    without end); automaton states, then for each row its length and triples, then the number of accepting states and these.
    Raises GrammarError where that is more than MOST_NUMBERS numbers."""
    out = bytearray()
    # Not recursive: a pattern may be nested as deep as its writer likes.
    todo: list[tuple[Expr, bool]] = [(expr, False)]
    while todo:
        node, done = todo.pop()
        kind = node[0]
        if not done and kind in ("cat", "either", "both", "without", "repeat"):
            todo.append((node, True))
            todo += [(part, False) for part in reversed(node[1] if kind in ("cat", "either", "both") else (node[1],))]
            continue
        out.append(_CODES[kind])
        numbers: list[int] = []
        if kind == "chars":
            numbers = [len(node[1]), *(point for ends in node[1] for point in ends)]
        elif kind == "words":
            numbers = [len(node[1])]
            for word in node[1]:
                numbers += [len(word), *map(ord, word)]
                if len(numbers) > MOST_NUMBERS:
                    break  # which is refused below
        elif kind in ("cat", "either", "both"):
            numbers = [len(node[1])]
        elif kind == "repeat":
            numbers = [node[2], -1 if node[3] is None else node[3]]
        elif kind == "automaton":
            numbers = [len(node[1])]
            for row in node[1]:
                numbers += [len(row), *(number for edge in row for number in edge)]
            numbers += [len(node[2]), *node[2]]
        out += pack(f"<{len(numbers)}i", *numbers)
        if len(out) > 4 * MOST_NUMBERS:
            raise GrammarError("its patterns and words are too large")
    return bytes(out)
