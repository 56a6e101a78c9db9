"""Witnesses: the items or properties that conditions of the kind "some item", "some key" ask for.

Several of them may be the same item or property: one alternative for each way to share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import both
from hasten.engine.decoding.constraints.schema.conditions import Alternative, Condition, in_order
from hasten.engine.decoding.constraints.schema.normal import MOST, Normal

KINDS = {"array": "some item", "object": "some key"}
Places = Callable[[Alternative, Condition], Iterable[Alternative]]
"""The ways in which a witness is an item with a position, or a property with a name."""


def spread(alternative: Alternative, type_: str, places: Places, normal: Normal) -> Iterator[Alternative]:
    """The alternative with every witness either in one of its places or anywhere else, shared or not."""
    witnesses = [one for one in in_order(alternative) if one.kind == KINDS[type_]]
    if not witnesses:
        yield alternative
        return
    found: list[tuple[Alternative, tuple[Condition, ...]]] = [(alternative - set(witnesses), ())]
    for witness in witnesses:
        ways = list(places(alternative, witness))
        found = [(one | way, open_) for one, open_ in found for way in ways] + [
            (one, (*open_, witness)) for one, open_ in found
        ]
        if len(found) > MOST:
            raise GrammarError(f"more than {MOST} ways to satisfy it", "contains" if type_ == "array" else "not")
    for one, open_ in found:
        for blocks in _partitions(list(open_)):
            shared = one.union(_shared(block, normal) for block in blocks)
            if normal.possible(shared, type_):
                yield shared


def _shared(block: list[Condition], normal: Normal) -> Condition:
    """One witness that serves as all of these."""
    if len(block) == 1:
        return block[0]
    wanted = normal.formulas.all([one.data[-1] for one in block])
    if block[0].kind == "some item":
        return normal.conditions.condition("some item", max(one.data[0] for one in block), wanted)
    language, but = both(*(one.data[0] for one in block)), frozenset().union(*(one.data[1] for one in block))
    return normal.conditions.condition("some key", language, but, wanted)


def _partitions(items: list[Condition]) -> Iterator[list[list[Condition]]]:
    if len(items) > 5:
        raise GrammarError("more than 5 conditions that some item or property must satisfy", "contains")
    if not items:
        yield []
        return
    for rest in _partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, block in enumerate(rest):
            yield [*rest[:at], [items[0], *block], *rest[at + 1 :]]
