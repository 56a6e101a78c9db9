"""The kept ranking is the naive one: everybody sorted by latest key, arrival and number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasten.engine.kv.base import ReuseKey
from hasten.engine.request import Request
from hasten.engine.scheduling.ranking import Ranking
from hasten.engine.sequence import Sequence


@pytest.mark.parametrize("seed", range(20))
def test_any_changes_leave_the_order_of_a_sort(seed: int) -> None:
    random = np.random.default_rng(seed)
    ranking = Ranking()
    keys: dict[int, float] = {}
    live: dict[int, Sequence] = {}
    due: set[int] = set()
    for step in range(60):
        for _ in range(int(random.integers(0, 30 if step % 10 == 0 else 3))):
            arrival_s = float(random.integers(0, 5))
            new = Sequence(len(keys), Request(id="", prompt=[1]), 0, 0, ReuseKey("", "", "", "", ""), arrival_s)
            live[new.id] = new
            keys[new.id] = math.inf
            ranking.came(new)
            due.add(new.id)
        for id in random.permutation(list(live))[: int(random.integers(0, 3))].tolist():
            ranking.went(id)
            del live[id]
        ranking.touch(10**6)
        for id in random.permutation(list(keys))[: int(random.integers(0, 2 + len(keys) // 2))].tolist():
            ranking.touch(id)
            due.add(id)
        if step % 20 == 19:
            ranking.touch_all()
            due.update(live)
        stale = ranking.stale()
        assert [seq.id for seq in stale] == sorted(due & live.keys())
        due.clear()
        for seq in stale:
            keys[seq.id] = float(random.choice([0.0, 1.0, random.normal(), math.inf]))
        ranking.put([(seq, keys[seq.id]) for seq in stale])
        naive = sorted(live.values(), key=lambda seq: (keys[seq.id], seq.arrival_s, seq.id))
        assert ranking.sequences() == naive
        assert all(ranking.key(id) == keys[id] for id in live)
