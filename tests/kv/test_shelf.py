"""Shelves: budgets are kept, prefixes outlive what follows them, and each retention gives up what it says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.kv.blockfile import Head, Plane, name_after
from hasten.engine.kv.retention import ADMISSIONS, LRU, RETENTIONS, CostAware, Facts, Retention
from hasten.engine.kv.shelf import Entry, Shelf

PLANE = Plane(0, "kv", (4,), "float32")


def head(parent: Head | None, number: int) -> Head:
    before = parent.name if parent is not None else bytes(32)
    tokens = np.full(8, number, dtype=np.int32)
    start = parent.start + 8 if parent is not None else 0
    return Head(name_after(before, tokens), before, bytes(32), start, tokens, 8, (PLANE,), "raw")


def put(shelf: Shelf, one: Head, nbytes: int = 10, seconds: float = 1.0) -> Entry | None:
    shelf.tick()
    entry, _ = shelf.add(one, Facts(one.start, nbytes, seconds))
    if entry is not None:
        entry.ready = True
        shelf.unpin(entry)
    return entry


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(RETENTIONS)),
    st.integers(20, 90),
    st.lists(
        st.tuples(
            st.sampled_from(["add", "use", "pin", "unpin", "remove"]), st.integers(0, 9), st.integers(0, 4), st.integers(1, 30)
        ),
        max_size=120,
    ),
)
def test_any_history_keeps_the_budget_and_the_pinned(name: str, budget: int, history: list) -> None:
    shelf = Shelf(budget, RETENTIONS[name]())
    heads: list[Head] = []
    pinned: list[Entry] = []
    for what, which, number, nbytes in history:
        if what == "add":
            parent = heads[which % len(heads)] if heads and which else None
            one = head(parent, number)
            if one.name in shelf:
                continue
            before = {n: e.parent for n, e in shelf.entries.items()}
            held = {entry.name for entry in pinned if shelf.get(entry.name) is entry}
            entry = put(shelf, one, nbytes, seconds=which + 1.0)
            gone = before.keys() - shelf.entries.keys()
            assert not gone & held, "something was given up that is in use"
            for lost in gone:
                assert all(p != lost for n, p in before.items() if n not in gone), "a chunk went before what follows it"
            heads.append(one)
            assert entry is not None or shelf.used + nbytes > budget
        elif shelf.entries:
            entry = list(shelf.entries.values())[which % len(shelf.entries)]
            if what == "use":
                shelf.used_again(entry, shelf.tick(), found=True)
            elif what == "pin":
                shelf.pin(entry)
                pinned.append(entry)
            elif what == "unpin" and pinned:
                shelf.unpin(pinned.pop(which % len(pinned)))
            elif what == "remove":
                shelf.remove(entry)
        shelf.audit()
    for entry in pinned:
        shelf.unpin(entry)
    shelf.make_room(budget)
    assert not shelf.entries and shelf.used == 0


def survivors(retention: Retention, seconds: list[float], uses: list[int]) -> set[int]:
    """Which of four unrelated chunks, first put first, two of which fit, are left when all have come and been used."""
    shelf = Shelf(20, retention)
    entries = {}
    for i, (cost, count) in enumerate(zip(seconds, uses, strict=True)):
        entries[i] = put(shelf, head(None, i), 10, cost)
        for _ in range(count):
            shelf.used_again(entries[i], shelf.tick(), found=True)
    return {i for i, entry in entries.items() if shelf.get(entry.name) is entry}


def test_lru_keeps_the_latest_and_cost_aware_what_saves_most() -> None:
    assert survivors(LRU(), [9.0, 1.0, 1.0, 1.0], [0, 0, 0, 0]) == {2, 3}
    assert 0 in survivors(CostAware(), [9.0, 1.0, 1.0, 1.0], [0, 0, 0, 0])
    assert 0 in survivors(CostAware(), [1.0, 1.0, 1.0, 1.0], [5, 0, 0, 0])
    assert survivors(LRU(), [1.0, 1.0, 1.0, 1.0], [5, 0, 0, 0]) == {2, 3}


def test_what_is_never_used_again_ages_however_dear_it_was() -> None:
    shelf = Shelf(20, CostAware())
    dear = put(shelf, head(None, 99), 10, 5.0)
    assert dear is not None
    for i in range(40):
        put(shelf, head(None, i), 10, 1.0)
        if shelf.get(dear.name) is None:
            break
    assert 3 < i < 39, "it outlives several cheap ones, and not all"


def test_admission() -> None:
    fresh, found = Facts(0, 1, 1.0), Facts(0, 1, 1.0, hits=1)
    assert ADMISSIONS["all"](fresh) and ADMISSIONS["reused"](found) and not ADMISSIONS["reused"](fresh)


def test_what_turned_out_smaller_is_worth_more_by_the_byte() -> None:
    """As written by a codec, whose bytes are known afterwards."""
    shelf = Shelf(100, CostAware())
    small, large = shelf.add(head(None, 1), Facts(0, 60, 2.0))[0], put(shelf, head(None, 2), 10, 1.0)
    assert small is not None and large is not None
    shelf.resize(small, 10)
    small.ready = True
    shelf.unpin(small)
    shelf.audit()
    assert shelf.make_room(90) == [large]
