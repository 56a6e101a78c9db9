"""Rules whose texts are a regular language: their expressions, and the merging of such parts of a grammar into terminals."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import EMPTY, NOTHING, Expr, cat, either, repeat
from hasten.engine.decoding.constraints.rules import (
    Either,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    choice,
    parts_of,
    refs,
    sequence,
    show,
    text,
)

MOST_SIZE = 5_000
"""Of a merged expression written out, repeats and all. Larger ones stay rules."""

Known = dict[str, tuple[Expr, int]]
"""Rules that are regular, with the sizes of their expressions."""


def expression(node: Node, known: Known) -> tuple[Expr, int] | None:
    """The language of a node and its size; None if it mentions a rule that is not known, or is too large."""
    if isinstance(node, Text):
        return node.language, _leaves(node.language)
    if isinstance(node, Ref):
        return known.get(node.name)
    found = [expression(part, known) for part in parts_of(node)]
    inner = [one for one in found if one is not None]
    if len(inner) < len(found):
        return None
    size = sum(size for _, size in inner)
    match node:
        case Seq():
            language = cat(*(one for one, _ in inner))
        case Either():
            language = either(*(one for one, _ in inner))
        case Repeat(_, least, most):
            language = repeat(inner[0][0], least, most)
            size *= max(least, most or 1, 1)
    return (language, size) if size <= MOST_SIZE else None


def _leaves(expr: Expr) -> int:
    """Roughly the states that an expression needs."""
    size, todo = 0, [(expr, 1)]
    while todo and size <= MOST_SIZE:
        one, times = todo.pop()
        kind = one[0]
        if kind in ("cat", "either", "both"):
            todo += [(part, times) for part in one[1]]
        elif kind in ("without", "repeat"):
            times *= max(one[2], one[3] or 1, 1) if kind == "repeat" else 1
            todo.append((one[1], times))
        else:
            size += times * (sum(map(len, one[1])) if kind in ("words", "automaton") else 1)
    return size


def ordered(rules: dict[str, Node]) -> list[str]:
    """Names such that each comes after those it mentions; GrammarError if some mention themselves."""
    try:
        return list(TopologicalSorter({name: refs(node) for name, node in rules.items()}).static_order())
    except CycleError as fault:
        raise GrammarError(f"terminals that mention themselves: {' -> '.join(reversed(fault.args[1]))}") from None


def merge(rules: dict[str, Node], limits: Limits) -> dict[str, Node]:
    """The same texts with as few and as large terminals as may be: for grammars whose terminals may end wherever they can."""
    known: Known = {}
    wanted = {name: refs(node) - {name} for name, node in rules.items()}
    users: dict[str, list[str]] = {}
    for name, others in wanted.items():
        for other in others:
            users.setdefault(other, []).append(name)
    todo = [name for name, others in wanted.items() if not others]
    for name in todo:
        limits.check(len(todo))
        found = _regular(name, rules[name], known)
        if found is not None and found[0] != NOTHING:
            known[name] = found
            for user in users.get(name, ()):
                wanted[user].discard(name)
                if not wanted[user]:
                    todo.append(user)
    return {name: _merged(node, known, limits) for name, node in rules.items()}


def _regular(name: str, node: Node, known: Known) -> tuple[Expr, int] | None:
    if name not in refs(node):
        return expression(node, known)
    for end in (-1, 0):
        if (split := _loop(node, name, known, end)) is not None:
            loop, rest, size = split
            if size > MOST_SIZE:
                return None
            again = repeat(loop)
            return (cat(again, rest) if end else cat(rest, again)), size
    return None


def _loop(node: Node, name: str, known: Known, end: int) -> tuple[Expr, Expr, int] | None:
    """Of a rule `name` that mentions itself only at the end (-1; 0: the beginning) of alternatives: what comes before itself,
    the texts without it, and their size. X = loop X | rest is loop* rest (Arden's rule)."""
    if (whole := expression(node, known)) is not None:
        return NOTHING, *whole
    match node:
        case Ref(other):
            return (EMPTY, NOTHING, 1) if other == name else None
        case Seq(parts):
            inner = _loop(parts[end], name, known, end)
            others = expression(Seq(parts[:-1] if end else parts[1:]), known)
            if inner is None or others is None:
                return None
            loop, rest = ((cat(others[0], one) if end else cat(one, others[0])) for one in inner[:2])
            return loop, rest, inner[2] + others[1]
        case Either(options):
            found = [_loop(option, name, known, end) for option in options]
            good = [one for one in found if one is not None]
            if len(good) < len(found):
                return None
            return either(*(one[0] for one in good)), either(*(one[1] for one in good)), sum(one[2] for one in good)
        case Repeat(part, 0, 1):
            inner = _loop(part, name, known, end)
            return None if inner is None else (inner[0], either(inner[1], EMPTY), inner[2])
    return None


def _merged(node: Node, known: Known, limits: Limits) -> Node:
    limits.check()
    if (whole := expression(node, known)) is not None:
        return text(whole[0], show(node))
    match node:
        case Repeat(part, least, most):
            return Repeat(_merged(part, known, limits), least, most)
        case Either(options):
            sizes = [expression(option, known) for option in options]
            regular = [option for option, size in zip(options, sizes, strict=True) if size is not None]
            rest = [option for option, size in zip(options, sizes, strict=True) if size is None]
            together = [choice(run) for run in _runs(regular, known)]
            return choice([_merged(one, known, limits) for one in [*together, *rest]])
        case Seq(parts):
            return sequence([_merged(sequence(run), known, limits) for run in _runs(parts, known)])
    return node


def _runs(nodes: Iterable[Node], known: Known) -> list[list[Node]]:
    """Neighbours that are regular and together not too large; each of the others alone."""
    out: list[list[Node]] = []
    room = -1  # no empty text joins an irregular one
    for node in nodes:
        found = expression(node, known)
        if found is not None and found[1] <= room:
            out[-1].append(node)
            room -= found[1]
        else:
            out.append([node])
            room = -1 if found is None else MOST_SIZE - found[1]
    return out
