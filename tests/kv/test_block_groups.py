"""Block groups against a naive model: a set of free blocks, and who holds the others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.kv.block_groups import BlockGroups, Options
from hasten.engine.kv.host import runs_of
from hasten.engine.kv.pool import longest_runs


def check(groups: BlockGroups, free: set[int]) -> None:
    opened, kept = groups.runs()
    listed = [block for start, length in opened + kept for block in range(start, start + length)]
    assert len(listed) == len(set(listed)) and set(listed) == free
    assert groups.free == len(free)
    ends = [start + length for start, length in opened]
    assert not set(ends) & {start for start, _ in opened}, "two open runs touch and were not merged"
    for start, _ in kept:
        assert start - 1 not in free, "a tail is kept for somebody who is gone"


@settings(max_examples=200)
@given(
    st.integers(1, 120),
    st.integers(1, 16),
    st.lists(st.tuples(st.sampled_from(["new", "grow", "grow", "end", "cut"]), st.integers(0, 99), st.integers(1, 20))),
)
def test_every_free_block_is_given_once(blocks: int, group: int, script: list[tuple[str, int, int]]) -> None:
    groups = BlockGroups(blocks, Options(group=group))
    free = set(range(blocks))
    tables: list[list[int]] = []
    for what, pick, count in script:
        count = min(count, len(free))
        if what == "new" or not tables:
            tables.append([])
            what = "grow"
        table = tables[pick % len(tables)]
        if what == "grow":
            near = table[-1] if table else -1
            beside = near >= 0 and near + 1 in free
            taken = groups.take(count, near)
            assert len(taken) == count and len(set(taken)) == count and set(taken) <= free
            if beside and count:
                assert taken[0] == near + 1, "the block behind the last one was free"
            free -= set(taken)
            table += taken
        else:
            gone = table if what == "end" else table[-count:] if count else []
            groups.give(gone)
            free |= set(gone)
            if what == "end":
                tables.remove(table)
            else:
                del table[len(table) - len(gone) :]
        check(groups, free)
    for table in tables:
        groups.give(table)
    assert groups.runs() == ([(0, blocks)], []), "all is one run again"


def test_sequences_that_grow_in_turns_stay_contiguous() -> None:
    groups = BlockGroups(100, Options(group=10))
    tables: list[list[int]] = [[] for _ in range(5)]
    for _ in range(20):
        for table in tables:
            table += groups.take(1, table[-1] if table else -1)
    # 20 blocks in groups of 10; the free list would give 20 runs each.
    assert all(len(runs_of(table, range(20))) <= 2 for table in tables)


def test_without_a_free_run_the_longest_tail_is_split_and_its_owner_keeps_the_near_part() -> None:
    groups = BlockGroups(16, Options(group=16))
    first = groups.take(2)
    assert groups.runs() == ([], [(2, 14)])
    second = groups.take(3)
    assert second == [9, 10, 11]
    assert groups.runs() == ([], [(2, 7), (12, 4)])
    assert groups.take(7, first[-1]) == [2, 3, 4, 5, 6, 7, 8]
    assert groups.take(4, second[-1]) == [12, 13, 14, 15]
    groups.give(second)
    assert groups.runs() == ([(9, 3)], [])


def test_bad_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="group must be at least 1"):
        BlockGroups(4, Options(group=0))


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_the_fewest_runs_that_hold_enough(blocks: set[int], count: int) -> None:
    count = min(count, len(blocks))
    taken = longest_runs(blocks, count)
    assert len(taken) == len(set(taken)) == count and set(taken) <= blocks
    lengths = sorted((length for _, _, length in runs_of(sorted(blocks), sorted(blocks))), reverse=True)
    needed = next((i for i in range(len(lengths) + 1) if sum(lengths[:i]) >= count), 0)
    assert len(runs_of(taken, taken)) <= needed


def test_runs_pair_blocks_off_in_order() -> None:
    assert runs_of([], []) == []
    assert runs_of([3, 4, 5, 9], [7, 8, 9, 10]) == [(3, 7, 3), (9, 10, 1)]
    assert runs_of([3, 4, 5], [7, 9, 10]) == [(3, 7, 1), (4, 9, 2)]
    assert runs_of([5, 4], [1, 0]) == [(5, 1, 1), (4, 0, 1)]
