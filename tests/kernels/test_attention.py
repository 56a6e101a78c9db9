"""Attention against a naive softmax, and its promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.worlds import build_index, make_world, naive_attention, poisoned, run

from hasten.kernels import ReferenceKernels, ViewIndex

TOLERANCE = {torch.float32: dict(atol=3e-5, rtol=3e-5), torch.bfloat16: dict(atol=2e-2, rtol=2e-2)}
FEW = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

worlds = st.fixed_dictionaries(
    dict(
        kv_heads=st.sampled_from([1, 2, 3]),
        group=st.sampled_from([1, 2, 3, 4, 7, 8]),
        dim=st.sampled_from([8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 136, 256]),
        block_size=st.sampled_from([8, 16, 32, 40]),
        spans=st.integers(1, 4),
        longest=st.sampled_from([0, 3, 40, 300, 700]),
        widest=st.sampled_from([1, 5, 20, 70]),
        per_head=st.booleans(),
        window=st.sampled_from([None, None, 1, 7, 100]),
        weighted=st.booleans(),
        trees=st.booleans(),
    )
)


@FEW
@given(shape=worlds, seed=st.integers(0, 10**6), deterministic=st.booleans())
def test_reference_is_a_softmax(shape, seed, deterministic, dtype):
    world = make_world(np.random.default_rng(seed), dtype, **shape)
    expected, expected_lse = naive_attention(world)
    out, lse = run(ReferenceKernels(), world, deterministic=deterministic)
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)


@settings(FEW, max_examples=16)
@given(shape=worlds, seed=st.integers(0, 10**6))
def test_native_is_the_reference(shape, seed, dtype, native_kernels):
    world = make_world(np.random.default_rng(seed), dtype, **shape)
    expected, expected_lse = run(ReferenceKernels(), world)
    out, lse = run(native_kernels, world)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)


def test_long_prompt_and_long_context(native_kernels, dtype):
    rng = np.random.default_rng(0)
    world = make_world(rng, dtype, kv_heads=1, group=4, dim=64, spans=2, longest=3000, widest=600, scattered=False)
    expected, expected_lse = run(ReferenceKernels(), world)
    out, lse = run(native_kernels, world)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)


def test_rows_that_see_nothing(kernels, dtype):
    cache = torch.randn(2, 1, 8, 16).to(dtype)
    q = torch.randn(3, 2, 16).to(dtype)
    index = ViewIndex.from_numpy([0, 1, 3], [5, 1, 2], [[1, 0, 3, 2]], [0, 0, 1])  # an empty view; keys at 2, 3, 4
    for deterministic in (False, True):
        out, lse = poisoned(3, 2, 16, dtype=dtype), poisoned(3, 2, dtype=torch.float32)
        kernels.attention(q, cache, cache, index, 1.0, out, lse, deterministic=deterministic)
        assert (out[:2] == 0).all() and (lse[:2] == -torch.inf).all()
        torch.testing.assert_close(out[2], cache[1, 0, 0].expand(2, 16))


def test_parts_merge_to_the_whole(kernels, dtype):
    rng = np.random.default_rng(3)
    world = make_world(rng, dtype, spans=3, longest=200, scattered=False)
    whole, whole_lse = run(kernels, world)
    parts = []
    for part in range(3):  # every third entry of each view, and a part that holds nothing at all
        views = [view[part::2] if part < 2 else [] for view in world.views]
        host = world.index.on_host()
        spans = np.split(host.positions, host.span_offsets[1:-1])
        parts.append(run(kernels, world, index=build_index(spans, views, rng)))
    outs, lses = torch.stack([o for o, _ in parts]), torch.stack([n for _, n in parts])
    outs[2] = float("nan")
    merged, merged_lse = kernels.merge(outs, lses)
    torch.testing.assert_close(merged, whole, **TOLERANCE[dtype])
    torch.testing.assert_close(merged_lse, whole_lse, atol=1e-4, rtol=1e-4)
    empty, empty_lse = kernels.merge(outs[2:], lses[2:])
    assert (empty == 0).all() and (empty_lse == -torch.inf).all()


@pytest.mark.parametrize("window", [None, 90])
def test_bits_do_not_depend_on_the_batch(kernels, dtype, window, threads):
    """One long sequence, computed whole; then in chunks, token by token, with other runs and blocks, threads and company."""
    rng = np.random.default_rng(7)
    length, block_size, kv_heads, group, dim = (600, 16, 2, 3, 40) if kernels.name != "reference" else (30, 16, 1, 2, 16)
    blocks = length // block_size + 1
    q = torch.randn(length, kv_heads * group, dim).to(dtype)
    k, v = (torch.randn(length, kv_heads, dim).to(dtype) for _ in range(2))

    def stored(order: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]:
        caches = [torch.zeros(blocks + 20, kv_heads, block_size, dim, dtype=dtype) for _ in range(2)]
        entries = [(int(order[i // block_size]), i % block_size, i) for i in range(length)]
        for cache, rows in zip(caches, (k, v), strict=True):
            for i, (block, slot, _) in enumerate(entries):
                cache[block, :, slot] = rows[i]
        return *caches, entries

    def attend(pieces, order, split) -> torch.Tensor:
        """pieces: lists of (first, end) rows computed together, each as a span of one call."""
        k_cache, v_cache, entries = stored(order)
        result = poisoned(length, kv_heads * group, dim, dtype=dtype)
        norms = poisoned(length, kv_heads * group, dtype=torch.float32)
        for spans in pieces:
            rows = torch.cat([torch.arange(a, b) for a, b in spans])
            index = build_index([np.arange(a, b) for a, b in spans], [entries[:b] for _, b in spans], rng, split)
            out, lse = poisoned(len(rows), *q.shape[1:], dtype=dtype), poisoned(len(rows), q.shape[1], dtype=torch.float32)
            kernels.attention(q[rows], k_cache, v_cache, index, 0.2, out, lse, window=window, deterministic=True)
            result[rows], norms[rows] = out, lse
        return torch.cat([result.float(), norms[..., None]], -1)

    plain = attend([[(0, length)]], np.arange(blocks), 0.0)
    assert plain.isfinite().all()
    cuts = [0, *sorted(rng.choice(np.arange(1, length), 9, replace=False)), length]
    chunks = list(itertools.pairwise(cuts))
    shuffled = rng.permutation(blocks + 20)
    singles = [(i, i + 1) for i in range(0, length)]
    assert torch.equal(plain, attend([[c] for c in chunks], shuffled, 0.3))
    assert torch.equal(plain, attend([chunks[::-1]], shuffled, 0.0))
    assert torch.equal(plain, attend([singles], shuffled, 0.5))
    few = [s for s in singles if s[0] % 97 in (0, 5, 31)]
    threads(1)
    alone_one = attend([[s] for s in few], shuffled, 0.1)
    threads(5)  # a single row's tiles are then shared out and joined
    alone_five = attend([[s] for s in few], shuffled, 0.1)
    for first, _ in few:
        assert torch.equal(plain[first], alone_one[first]) and torch.equal(plain[first], alone_five[first])


def test_malformed_calls_are_refused(native_kernels):
    cache = torch.zeros(4, 2, 8, 16)
    q = torch.zeros(1, 4, 16)
    index = ViewIndex.from_numpy([0, 1], [3], [[0, 0, 4, 0]], [0, 1])
    native_kernels.attention(q, cache, cache, index, 1.0, torch.empty_like(q))
    for wrong in (q.double(), q[:, :3], q[..., :8], q.transpose(0, 1), q.bfloat16()):
        with pytest.raises(ValueError, match="attention needs"):
            native_kernels.attention(wrong, cache, cache, index, 1.0, torch.empty_like(wrong))
    with pytest.raises(ValueError, match="index is for 1 tokens"):
        native_kernels.attention(torch.zeros(2, 4, 16), cache, cache, index, 1.0, torch.zeros(2, 4, 16))
    for runs in ([[4, 0, 4, 0]], [[0, 5, 4, 0]]):
        outside = ViewIndex.from_numpy([0, 1], [3], runs, [0, 1])
        with pytest.raises(IndexError, match="runs reach"):
            native_kernels.attention(q, cache, cache, outside, 1.0, torch.empty_like(q))
    with pytest.raises(IndexError, match="negative"):
        native_kernels.attention(
            q, cache, cache, ViewIndex.from_numpy([0, 1], [3], [[-1, 0, 4, 0]], [0, 1]), 1.0, torch.empty_like(q)
        )
    with pytest.raises(ValueError, match="window"):
        native_kernels.attention(q, cache, cache, index, 1.0, torch.empty_like(q), window=0)
