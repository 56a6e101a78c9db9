"""What rules derive, by trying everything: the naive reference of parsers."""

from __future__ import annotations

from hasten.engine.decoding.constraints.rules import Either, Node, Ref, Repeat, Seq, Text

Texts = frozenset[tuple[str, ...]]
"""Names of terminals, one after the other."""


def derived(rules: dict[str, Node], start: str, most: int) -> Texts:
    """All texts of at most `most` terminals, the empty one perhaps among them."""
    found: dict[str, Texts] = dict.fromkeys(rules, frozenset())
    while True:
        after = {name: _of(node, found, most) for name, node in rules.items()}
        if after == found:
            return found[start]
        found = after


def _of(node: Node, known: dict[str, Texts], most: int) -> Texts:
    match node:
        case Text(_, _, name):
            return frozenset({(name,)})
        case Ref(name):
            return known[name]
        case Either(options):
            return frozenset().union(*(_of(option, known, most) for option in options))
        case Seq(parts):
            texts: Texts = frozenset({()})
            for part in parts:
                texts = _cross(texts, _of(part, known, most), most)
            return texts
        case Repeat(part, least, last):
            inner = _of(part, known, most)
            texts = frozenset({()})
            for _ in range(least):
                texts = _cross(texts, inner, most)
            # A repeat adds a terminal or adds nothing.
            for _ in range(most if last is None else min(last - least, most)):
                texts |= _cross(texts, inner, most)
            return texts


def _cross(left: Texts, right: Texts, most: int) -> Texts:
    return frozenset(one + two for one in left for two in right if len(one) + len(two) <= most)
