"""Attention by a forest: what attention without it gives, whatever is shared and however it is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.forests import Free, make_forest_world
from tests.kernels.worlds import World, naive_attention, poisoned, run

from hasten.engine.attention.forest_planner import ForestPlanner
from hasten.kernels import ReferenceKernels, ViewIndex
from hasten.kernels.cpu.costs import AttentionCosts
from hasten.kernels.forest import REST, TILE

TOLERANCE = {torch.float32: dict(atol=3e-5, rtol=3e-5), torch.bfloat16: dict(atol=2e-2, rtol=2e-2)}
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

worlds = st.fixed_dictionaries(
    dict(
        kv_heads=st.sampled_from([1, 2, 3]),
        group=st.sampled_from([1, 2, 3, 7]),
        dim=st.sampled_from([8, 24, 64, 80, 128]),
        block_size=st.sampled_from([8, 16, 40]),
        spans=st.integers(2, 9),
        levels=st.integers(1, 4),
        longest=st.sampled_from([3, 40, 300, 700]),
        widest=st.sampled_from([1, 4, 20]),
        window=st.sampled_from([None, None, 7, 100]),
        weighted=st.booleans(),
        trees=st.booleans(),
    )
)


def with_forest(world: World, workers: int = 3) -> World:
    """The same world with its forest, on a fresh index."""
    index = dataclasses.replace(world.index, cache={}, forest=None)
    kv_heads = world.k_cache.shape[1]
    index.forest = ForestPlanner(Free(), world.q.shape[1], kv_heads, workers).plan(index.on_host())
    return dataclasses.replace(world, index=index)


@FEW
@given(shape=worlds, seed=st.integers(0, 10**6))
def test_reference_is_a_softmax(shape, seed, dtype):
    world = with_forest(make_forest_world(np.random.default_rng(seed), dtype, **shape))
    expected, expected_lse = naive_attention(world)
    out, lse = run(ReferenceKernels(), world)
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)


@settings(FEW, max_examples=25)
@given(shape=worlds, seed=st.integers(0, 10**6), workers=st.sampled_from([1, 2, 5]))
def test_native_is_the_reference(shape, seed, workers, dtype, native_kernels, threads):
    threads(workers)
    plain = make_forest_world(np.random.default_rng(seed), dtype, **shape)
    expected, expected_lse = run(ReferenceKernels(), plain)
    out, lse = run(native_kernels, with_forest(plain, workers))
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)


def shared_world(rng: np.random.Generator, dtype: torch.dtype, spans: int = 6, shared: int = 1024) -> World:
    """One long prefix under all spans of one token, nothing else shared."""
    size, blocks = 16, shared // 16 + spans
    runs = [[block, 0, size, size * block] for block in range(shared // size)]
    views = [[*runs, [shared // size + span, 0, 1, shared]] for span in range(spans)]
    index = ViewIndex.from_numpy(
        np.arange(spans + 1), np.full(spans, shared), np.array(views), np.arange(spans + 1) * len(views[0])
    )
    q, k, v = (
        torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)
        for shape in ((spans, 4, 64), *((blocks, 2, size, 64),) * 2)
    )
    return World(q, k, v, index, 0.1, None, None, [], [])


def test_shared_keys_are_read_once(native_kernels, dtype, threads):
    threads(2)
    world = shared_world(np.random.default_rng(0), dtype)
    spans, entry = 6, 2 * 2 * 64 * dtype.itemsize

    def read(of: World) -> int:
        before = native_kernels.kv_bytes()
        run(native_kernels, of)
        return native_kernels.kv_bytes() - before

    assert read(world) == spans * 1025 * entry
    assert read(with_forest(world)) == (1024 + spans) * entry
    assert read(dataclasses.replace(world, window=300)) < 0.5 * read(world)


def test_deterministic_calls_do_without(native_kernels, dtype):
    world = shared_world(np.random.default_rng(1), dtype)
    plain, _ = run(native_kernels, world, deterministic=True)
    assert torch.equal(plain, run(native_kernels, with_forest(world), deterministic=True)[0])


def test_a_forest_outlives_its_leaves_growth(native_kernels, dtype):
    """The forest of one step fits the next, whose views are longer."""
    rng = np.random.default_rng(5)
    world = shared_world(rng, dtype)
    forest = with_forest(world).index.forest
    assert forest is not None and forest.shared == 1
    host = world.index.on_host()
    runs = host.runs.copy()
    runs[host.run_offsets[1:] - 1, 2] = 9
    index = ViewIndex.from_numpy(host.span_offsets, host.positions + 8, runs, host.run_offsets)
    expected, _ = run(ReferenceKernels(), world, index=index)
    grown = dataclasses.replace(index, cache={}, forest=forest)
    torch.testing.assert_close(run(native_kernels, world, index=grown)[0], expected, **TOLERANCE[dtype])


def test_forests_that_do_not_fit_are_refused(native_kernels):
    world = with_forest(shared_world(np.random.default_rng(2), torch.float32))
    forest = world.index.forest
    assert forest is not None

    def refused(match: str, **changes: np.ndarray) -> None:
        wrong = dataclasses.replace(world.index, cache={}, forest=dataclasses.replace(forest, **changes))
        with pytest.raises(ValueError, match=match):
            native_kernels.attention(world.q, world.k_cache, world.v_cache, wrong, 0.1, poisoned(6, 4, 64, dtype=torch.float32))

    def changed(array: np.ndarray, *at: int, to: int) -> np.ndarray:
        other = array.copy()
        other[at] = to
        return other

    for column, value in ((0, 6), (1, 70), (2, 66), (3, 1), (4, 1000), (6, 99)):
        refused("node", nodes=changed(forest.nodes, 0, column, to=value))
    refused("node", rows=changed(forest.rows, 0, to=6))
    refused("tasks", tasks=forest.tasks[1:])
    refused("tasks", tasks=changed(forest.tasks, 0, 0, to=99))
    refused("path", paths=changed(forest.paths, 0, 0, to=99))
    refused("path", paths=changed(forest.paths, 0, 1, to=5))
    refused("path", path_offsets=changed(forest.path_offsets, 1, to=1))
    refused("contiguous int32", tasks=forest.tasks.astype(np.int64))


def test_costs_are_measured_and_interpolated(native_kernels):
    costs = AttentionCosts(native_kernels, torch.float32, 32, 16)
    rows, keys = np.meshgrid([1, 3, 16, 100, 600], [1, 100, 256, 3000], indexing="ij")
    table = costs.seconds(rows, keys)
    assert (table > 0).all() and (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    assert table[-1, -1] > 3 * table[0, -1], "600 rows take longer than one"
    assert float(costs.seconds(4, 4096)) == pytest.approx(2 * float(costs.seconds(4, 2048)))
    assert costs.merge > 0


def test_tasks_are_whole_tiles(native_kernels):
    forest = with_forest(shared_world(np.random.default_rng(3), torch.float32)).index.forest
    assert forest is not None
    pieces = sorted(task[1:] for task in forest.tasks.tolist() if task[0] == 0)
    assert len(pieces) > 1 and pieces[0][0] == 0 and pieces[-1][1] == REST
    assert [end for _, end in pieces[:-1]] == [begin for begin, _ in pieces[1:]]
    assert pieces[-1][0] * TILE < 1024
