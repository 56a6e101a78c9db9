"""The KV books against a naive model: every view is a plain list of (value, position), every slot a cell of a list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.kv.base import NoBlocks, ReuseKey
from hasten.engine.kv.books import Books
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.prefix_tree import PrefixTree
from hasten.engine.kv.view import View

SIZE = 8
KEY = ReuseKey("weights")


class World:
    """Books beside the truth."""

    def __init__(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, SIZE)
        self.tree = PrefixTree(self.pool)
        self.books = Books(self.pool, self.tree)
        self.cells = [-1] * (blocks * SIZE)
        self.views: list[View] = []
        self.truth: list[list[tuple[int, int]]] = []
        self.next = 0

    def write(self, slots: np.ndarray, values: list[int]) -> None:
        for old, new in self.books.take_copies():
            self.cells[new * SIZE : (new + 1) * SIZE] = self.cells[old * SIZE : (old + 1) * SIZE]
        for slot, value in zip(slots.tolist(), values, strict=True):
            self.cells[slot] = value

    def fresh(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    def append(self, which: int, count: int, gap: int) -> None:
        truth = self.truth[which]
        start = (truth[-1][1] + 1 if truth else 0) + gap
        positions = np.arange(start, start + count, dtype=np.int32)
        if gap > 1 and count > 2:
            positions[count // 2 :] -= 2  # positions may step back (a tree of drafts)
        if gap == 0:
            need, before = self.books.blocks_needed(self.views[which], count), self.pool.available
        slots = self.books.append(self.views[which], positions)
        if gap == 0:
            assert before - self.pool.available <= need
        values = self.fresh(count)
        self.write(slots, values)
        truth += list(zip(values, positions.tolist(), strict=True))

    def check(self) -> None:
        held = [0] * self.pool.blocks
        for view, truth in zip(self.views, self.truth, strict=True):
            slots = view.slots(np.arange(view.length), SIZE).tolist()
            assert [self.cells[slot] for slot in slots] == [value for value, _ in truth]
            assert view.positions().tolist() == [position for _, position in truth]
            assert set(view.blocks) == {slot // SIZE for slot in slots}
            for block in view.blocks:
                held[block] += 1
        refs = [h + self.pool.is_cached(b) for b, h in enumerate(held)]
        assert refs == self.pool.refs
        assert self.pool.free == refs.count(0)
        assert self.pool.evictable == sum(self.pool.is_cached(b) and refs[b] == 1 for b in range(len(refs)))


actions = st.tuples(
    st.sampled_from(["append", "append", "append", "fork", "truncate", "close", "rewrite", "join", "cache", "reuse"]),
    st.integers(0, 99),
    st.integers(1, 20),
    st.sampled_from([0, 0, 0, 0, 1, 5]),
)


@settings(max_examples=150)
@given(st.integers(4, 14), st.lists(actions, max_size=40))
def test_books_keep_every_view_intact(blocks: int, script: list[tuple[str, int, int, int]]) -> None:
    world = World(blocks)
    books = world.books
    for name, pick, count, gap in script:
        if not world.views or (name == "append" and pick % 5 == 0):
            world.views.append(View())
            world.truth.append([])
        which = pick % len(world.views)
        view, truth = world.views[which], world.truth[which]
        try:
            if name == "append":
                world.append(which, count, gap)
            elif name == "fork":
                world.views.append(books.fork(view))
                world.truth.append(list(truth))
            elif name == "truncate":
                keep = min(view.length, count)
                books.truncate(view, keep)
                del truth[keep:]
            elif name == "close":
                books.close(view)
                del world.views[which], world.truth[which]
            elif name == "rewrite" and view.length:
                entries = np.unique(np.random.default_rng(pick).integers(0, view.length, count))
                values = world.fresh(len(entries))
                world.write(books.rewrite(view, entries), values)
                for entry, value in zip(entries.tolist(), values, strict=True):
                    truth[entry] = (value, truth[entry][1])
            elif name == "join":
                other = (pick // 7) % len(world.views)
                skip = min(count, world.views[other].length)
                mine, theirs = (v.slots(np.arange(v.length), SIZE) for v in (view, world.views[other]))
                if np.intersect1d(mine, theirs[skip:]).size:
                    continue  # the caller skips what two views share, so that no slot is read twice
                world.views.append(books.join([view, world.views[other]], [0, skip]))
                world.truth.append(truth + world.truth[other][skip:])
            elif name == "cache":
                world.tree.insert(KEY, np.array([v for v, _ in truth], dtype=np.int32), view)
            elif name == "reuse" and truth:
                tokens = np.array([v for v, _ in truth], dtype=np.int32)
                plain = [p for _, p in truth] == list(range(len(truth)))
                found = world.tree.match(KEY, tokens, len(tokens)) if plain else []
                linked = View()
                for span in found:
                    books.link(linked, span.runs)
                world.views.append(linked)
                world.truth.append(truth[: linked.length])
        except NoBlocks:
            assert not books.copies
        world.check()
    for view in world.views:
        books.close(view)
    assert world.pool.available == blocks
    world.tree.clear()
    assert world.pool.free == blocks and world.tree.nodes == 0


def test_least_recently_used_leaves_go_first() -> None:
    pool = BlockPool(4, SIZE)
    tree = PrefixTree(pool)
    books = Books(pool, tree)
    for start in (0, 100):
        view = View()
        books.append(view, np.arange(2 * SIZE, dtype=np.int32))
        tree.insert(KEY, np.arange(start, start + 2 * SIZE, dtype=np.int32), view)
        books.close(view)
    hit = tree.match(KEY, np.arange(0, 3 * SIZE, dtype=np.int32), 99)
    assert hit[0].stop == 2 * SIZE
    pool.drop(hit[0].runs[:, 0].tolist())
    assert tree.evict(1) == 1
    assert tree.match(KEY, np.arange(100, 100 + 3 * SIZE, dtype=np.int32), 99)[0].stop == SIZE, "the leaf went, not its parent"
    assert not tree.match(ReuseKey("weights", salt="other"), np.arange(0, 3 * SIZE, dtype=np.int32), 99)


def test_the_pool_refuses_what_it_does_not_have() -> None:
    pool = BlockPool(2, SIZE)
    with pytest.raises(NoBlocks):
        pool.take(3)
    taken = pool.take(2)
    pool.drop(taken)
    with pytest.raises(AssertionError, match="more often"):
        pool.drop(taken)
