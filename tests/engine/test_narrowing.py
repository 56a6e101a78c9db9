"""Rows that leave a step: for those that stay it is as if they had been alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny

from hasten import kernels
from hasten.engine.batch import Batch
from hasten.engine.executors.narrowing import index_of, narrow
from hasten.engine.executors.step import Site, Step
from hasten.engine.request import Request, SamplingParams
from hasten.kernels import Kernels, ReferenceKernels

SIZE = 8
KERNELS: dict[str, Kernels] = {"reference": ReferenceKernels(), "cpu": kernels.load("cpu")}


def make(rng: np.random.Generator, spans: int) -> Batch:
    """Spans of 1 to 30 tokens, each behind 0 to 20 others; every third a tree."""
    blocks = rng.permutation(spans * 7).tolist()
    counts, lengths, runs, run_counts, positions, trees = [], [], [], [], [], []
    for number in range(spans):
        count, before = int(rng.integers(1, 31)), int(rng.integers(0, 21))
        length = before + count
        counts.append(count)
        lengths.append(length)
        trees.append(number % 3 == 2)
        positions.append(np.arange(before, length))
        starts = range(0, length, SIZE)
        runs += [[blocks.pop(), 0, min(SIZE, length - start), start] for start in starts]
        run_counts.append(len(starts))
    total = sum(counts)
    bits = rng.integers(0, 1 << 30, (total, 1), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    for first, count in zip(offsets, counts, strict=False):
        bits[first : first + count, 0] |= 1 << np.arange(count)  # each sees itself
    return Batch(
        [SimpleNamespace(number=i) for i in range(spans)],  # type: ignore[misc]
        rng.integers(0, 99, total),
        np.concatenate(positions).astype(np.int32),
        rng.integers(0, 9, total).astype(np.int32),
        np.full(total, -1),
        offsets,
        np.array(runs, dtype=np.int32),
        np.concatenate([[0], np.cumsum(run_counts)]).astype(np.int32),
        offsets[1:].astype(np.int64)[rng.random(spans) < 0.3] - 1,
        bits,
        np.array(trees, dtype=np.uint8),
        rng.integers(0, 3, spans).astype(np.int32),
    )


class Policy:
    native = False
    plans = 0

    def before_step(self, index: Any) -> None:
        self.plans += 1


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), spans=st.integers(1, 7), part=st.floats(0.1, 0.9), times=st.integers(1, 3))
def test_what_stays_sees_what_it_saw(name: str, seed: int, spans: int, part: float, times: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch = make(rng, spans)
    total, kind = batch.size, KERNELS[name]
    k, v = torch.randn(2, spans * 7, 2, SIZE, 16)
    q = torch.randn(total, 4, 16)
    whole = torch.empty_like(q)
    kind.attention(q, k, v, index_of(batch, torch.device("cpu")), 0.3, whole)
    x, delta = torch.randn(total, 3), torch.randn(total, 3)
    policy: Any = Policy()
    step = Step(batch, index_of(batch, torch.device("cpu")), torch.arange(total), kind, policy, False, x, q, delta)
    there = np.arange(total)
    kept_whole = np.zeros(total, dtype=bool)  # what may not be parted
    kept_whole[batch.logits_rows] = True
    span_of = np.repeat(np.arange(spans), np.diff(batch.span_offsets))
    for _ in range(times):
        gone = rng.random(total) < part
        gone[rng.random(spans)[span_of] < 0.2] = True  # some spans leave altogether
        for tree in np.flatnonzero(batch.is_tree):  # type: ignore[arg-type]
            mine = span_of == tree
            gone[mine] = gone[mine].all() and not kept_whole[mine].any()
        gone[kept_whole] = False
        gone[there[0]] = False
        if (span_of == span_of[there[0]])[gone].any() and batch.is_tree[span_of[there[0]]]:  # type: ignore[index]
            gone[span_of == span_of[there[0]]] = False
        leaving = np.intersect1d(there, np.flatnonzero(gone))
        for half in np.array_split(leaving, 2):
            step.leave(half)
        assert narrow(step) == len(leaving) and not step.leaving
        there = np.setdiff1d(there, leaving)
    now = step.batch
    assert policy.plans <= times and (policy.plans > 0) == (len(there) < total)
    assert torch.equal(step.x, x[there]) and torch.equal(step.h, q[there]) and torch.equal(step.slots, torch.from_numpy(there))
    assert step.delta is not None and torch.equal(step.delta, delta[there])
    assert step.at(torch.from_numpy(there)).tolist() == list(range(len(there)))
    for field in ("tokens", "positions", "segments"):
        assert (getattr(now, field) == getattr(batch, field)[there]).all()
    assert (there[now.logits_rows] == batch.logits_rows).all()
    assert [span.number for span in now.spans] == sorted(set(span_of[there].tolist()))  # type: ignore[attr-defined]
    assert (now.contexts == batch.contexts[sorted(set(span_of[there].tolist()))]).all()  # type: ignore[index]
    out = torch.empty_like(step.h)
    kind.attention(step.h, k, v, step.index, 0.3, out)
    assert (out - whole[there]).abs().max() <= 1e-5
    left = np.setdiff1d(np.arange(total), there)
    if len(left):
        with pytest.raises(IndexError):
            torch.zeros(len(there))[step.at(torch.from_numpy(left[:1]))]


def test_what_may_not_leave_stays() -> None:
    rng = np.random.default_rng(2)
    batch = make(rng, 3)
    batch.logits_rows = np.array([batch.size - 1])
    first, tree = np.arange(batch.span_offsets[1]), np.arange(*batch.span_offsets[2:4])
    assert len(tree) > 1 and len(batch.keep(np.setdiff1d(np.arange(batch.size), first)).spans) == 2
    for gone, why in ((tree[:1], "part of a tree"), (tree[-1:], "logits"), (np.arange(batch.size), "no row")):
        with pytest.raises(ValueError, match=why):
            batch.keep(np.setdiff1d(np.arange(batch.size), gone))
    x = torch.randn(batch.size, 4)
    step = Step(batch, index_of(batch, torch.device("cpu")), torch.arange(batch.size), KERNELS["cpu"], None, False, x, x)  # type: ignore[arg-type]
    step.leave(tree[:1])
    with pytest.raises(ValueError, match="tree"):
        narrow(step)
    assert step.x is x and step.batch is batch and step.place is None and not step.leaving


class Leaver:
    """An op that has rows of one request leave: all but those whose logits are wanted, or every second of these."""

    name = "leaver"
    kind = "other"

    def __init__(self, id: str, whole: bool) -> None:
        self._id, self._whole, self.times = id, whole, 0

    def __call__(self, step: Step, site: Site) -> None:
        first = 0
        for span in step.batch.spans:
            rows = np.setdiff1d(first + np.arange(span.count), step.batch.logits_rows)
            if span.sequence.request.id == self._id and len(rows) > 1:
                self.times += 1
                step.leave(rows if self._whole else rows[::2])
            first += span.count


@pytest.mark.parametrize("whole", [True, False])
def test_other_requests_are_unharmed(tmp_path: Path, whole: bool) -> None:
    """One prompt's rows leave after the first layer's attention; answers that share a prompt go on beside it, in forests."""
    path = tiny.folder(tmp_path, num_hidden_layers=4)
    rng = np.random.default_rng(1)

    def request(id: str, length: int, **sampling: Any) -> Request:
        given = {"max_tokens": 12, "temperature": 0.8, "seed": 3, "ignore_eos": True, **sampling}
        return Request(id=id, prompt=rng.integers(1, 256, length), sampling=SamplingParams(**given))

    asked = [request("shared", 90, n=4), request("other", 33), request("leaves", 300, max_tokens=1)]
    plain = tiny.engine(path, kv__reuse=None)
    want = tiny.run(plain, asked[:2])
    built = tiny.engine(path, kv__reuse=None, scheduling__max_tokens=150)
    leaver = Leaver("leaves", whole)
    built.parts.model.blocks[0].insert("attend", leaver)
    for site in built.parts.model.sites:
        for plane in site.planes:
            plane.zero_()  # later layers read what rows that left never wrote: whatever lies there, it must be finite
    got = tiny.run(built, asked)
    assert leaver.times > 1 and built.engine.skipped > 0 and built.engine.skipped % 3 == 0
    for key, deltas in want.items():
        assert tiny.tokens(got[key]) == tiny.tokens(deltas)
