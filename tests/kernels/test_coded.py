"""Keys and values of 8 and 4 bits: the codes, the store and attention over them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.worlds import World, build_index, make_world, naive_attention, poisoned

from hasten.kernels import Kernels, ReferenceKernels, ViewIndex
from hasten.kernels.coded import CodedCache, decode, encode, read, shapes, write

TOLERANCE = {torch.float32: dict(atol=5e-4, rtol=5e-4), torch.bfloat16: dict(atol=2e-2, rtol=2e-2)}
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

worlds = st.fixed_dictionaries(
    dict(
        kv_heads=st.sampled_from([1, 2, 3]),
        group=st.sampled_from([1, 2, 3, 4, 7, 8]),
        dim=st.sampled_from([32, 64, 96, 128, 256, 512]),
        block_size=st.sampled_from([16, 32, 48]),
        spans=st.integers(1, 4),
        longest=st.sampled_from([0, 3, 40, 300, 700]),
        widest=st.sampled_from([1, 5, 20, 70]),
        per_head=st.booleans(),
        window=st.sampled_from([None, None, 1, 7, 100]),
        weighted=st.booleans(),
        trees=st.booleans(),
    )
)
bits = pytest.mark.parametrize("bits", [8, 4])


def empty_cache(blocks: int, kv_heads: int, dim: int, block_size: int, bits: int) -> CodedCache:
    """Scales that are no numbers, and codes that would show."""
    planes = shapes(kv_heads, dim, block_size, bits)
    codes = {n: torch.full((blocks, *s), 0xA5, dtype=torch.uint8) for n, s in planes.items() if n.endswith("codes")}
    params = {n: torch.full((blocks, *s), -16, dtype=torch.int16) for n, s in planes.items() if n.endswith("params")}
    return CodedCache(bits=bits, **codes, **params)


def coded(world: World, bits: int) -> tuple[CodedCache, World]:
    """The world's keys and values as codes, and the world whose keys and values are what the codes mean."""
    blocks, kv_heads, block_size, dim = world.k_cache.shape
    cache = empty_cache(blocks, kv_heads, dim, block_size, bits)
    used = torch.tensor(sorted({b * block_size + s for view in world.views for b, s, _ in view}), dtype=torch.int64)
    rows = [t[used // block_size, :, used % block_size] for t in (world.k_cache, world.v_cache)]
    held = [part for t in rows for part in encode(t, bits)]
    write(cache, used, tuple(held))
    means = [torch.full_like(t, float("nan"), dtype=torch.float64) for t in (world.k_cache, world.v_cache)]
    for mean, codes, params in zip(means, held[::2], held[1::2], strict=True):
        mean[used // block_size, :, used % block_size] = decode(codes, params, bits).double()
    return cache, World(world.q, *means, world.index, world.scale, world.window, world.log_weight, world.views, world.masks)


def run(kernels: Kernels, world: World, cache: CodedCache, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    out = poisoned(*world.q.shape, dtype=world.q.dtype)
    lse = poisoned(*world.q.shape[:2], dtype=torch.float32)
    given = dict(window=world.window, log_weight=world.log_weight) | changes
    kernels.coded_attention(world.q, cache, world.index, world.scale, out, lse, **given)
    return out, lse


@bits
def test_codes_are_the_nearest_of_their_range(bits):
    torch.manual_seed(bits)
    x = torch.randn(200, 3, 64) * torch.exp(2 * torch.randn(200, 3, 1)) + torch.randn(200, 3, 1)
    codes, params = encode(x, bits)
    assert int(codes.max()) < 1 << bits and params.shape == (200, 3, 2)
    error = (decode(codes, params, bits) - x).abs()
    if bits == 8:  # half a step, more only where bfloat16 moved the lower end
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        assert (error <= 0.51 * (high - low) / 255 + low.abs() / 256).all()
    else:  # half a step; the ends of a range lose a scale's rounding and a zero point's
        groups = x.unflatten(-1, (2, 32))
        step = (groups.amax(-1, keepdim=True).clamp(min=0) - groups.amin(-1, keepdim=True).clamp(max=0)) / 15
        inner = error.unflatten(-1, (2, 32)) / step
        assert inner.max() < 1.1 and (inner < 0.53).float().mean() > 0.97


@bits
@pytest.mark.parametrize("value", [0.0, 1e-38, 1.0, -3.0, 1e30])
def test_ranges_of_one_value(bits, value):
    codes, params = encode(torch.full((1, 1, 32), value), bits)
    assert decode(codes, params, bits).sub(value).abs().max() <= abs(value) / (256 if bits == 8 else 30) + 1e-30


@bits
def test_slots_hold_what_was_written(bits):
    torch.manual_seed(0)
    cache = empty_cache(3, 2, 96, 48, bits)
    every = torch.arange(3 * 48)
    before = read(cache, every)
    some = every[torch.randperm(len(every))[:40]]
    held = tuple(part for x in torch.randn(2, 40, 2, 96) for part in encode(x, bits))
    write(cache, some, held)
    for part, was, now in zip(held, before, read(cache, every), strict=True):
        assert now[some].equal(part)
        others = torch.ones(len(every), dtype=torch.bool).index_fill_(0, some, False)
        assert now[others].equal(was[others])


@bits
@FEW
@given(shape=worlds, seed=st.integers(0, 10**6), deterministic=st.booleans())
def test_reference_is_a_softmax_over_what_codes_mean(bits, shape, seed, deterministic, dtype):
    cache, meant = coded(make_world(np.random.default_rng(seed), dtype, **shape), bits)
    expected, expected_lse = naive_attention(meant)
    out, lse = run(ReferenceKernels(), meant, cache, deterministic=deterministic)
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)


@bits
@settings(FEW, max_examples=16)
@given(shape=worlds, seed=st.integers(0, 10**6), deterministic=st.booleans())
def test_native_attention_is_the_reference(bits, shape, seed, deterministic, dtype, native_kernels):
    cache, meant = coded(make_world(np.random.default_rng(seed), dtype, **shape), bits)
    expected, expected_lse = run(ReferenceKernels(), meant, cache)
    out, lse = run(native_kernels, meant, cache, deterministic=deterministic)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    of_scores = 3e-4 if dtype == torch.float32 or native_kernels.name == "avx512bf16" else 2e-2
    torch.testing.assert_close(lse, expected_lse, atol=of_scores, rtol=of_scores)


@bits
def test_a_heavy_key_hides_no_light_ones(bits, native_kernels):
    """One key has half the mass, thousands share the rest evenly: digits of 8 bits would round those to nothing."""
    torch.manual_seed(2)
    length, dim = 4096, 64
    keys = torch.zeros(length, 1, dim)
    keys[37] = 1.0
    values = torch.ones(length, 1, dim) + 0.1 * torch.randn(length, 1, dim)
    values[37] = -1.0
    cache = empty_cache(length // 32, 1, dim, 32, bits)
    write(cache, torch.arange(length), (*encode(keys, bits), *encode(values, bits)))
    index = ViewIndex.from_numpy([0, 1], [length], [[b, 0, 32, 32 * b] for b in range(length // 32)], [0, length // 32])
    q = torch.full((1, 1, dim), np.log(length) / dim)
    results = []
    for kernels in (ReferenceKernels(), native_kernels):
        out = poisoned(1, 1, dim, dtype=torch.float32)
        kernels.coded_attention(q, cache, index, 1.0, out)
        results.append(out)
    torch.testing.assert_close(results[1], results[0], atol=1e-3, rtol=0)


@bits
@FEW
@given(
    seed=st.integers(0, 10**6), heads=st.sampled_from([(1, 1), (4, 2), (6, 3)]), dim=st.sampled_from([32, 96, 128]),
    tokens=st.sampled_from([1, 7, 90]), rotary=st.sampled_from([0, 8, 32]),
)  # fmt: skip
def test_native_store_is_the_reference(bits, seed, heads, dim, tokens, rotary, dtype, native_kernels, threads):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    query_heads, kv_heads = heads
    fused = (torch.randn(tokens, (query_heads + 2 * kv_heads) * dim) * 3).to(dtype)
    table = torch.randn(200, 2, rotary // 2)
    positions = torch.from_numpy(rng.integers(0, 200, tokens).astype(np.int32))
    slots = torch.from_numpy(rng.permutation(5 * 32)[:tokens].astype(np.int64))
    slots[torch.from_numpy(rng.random(tokens) < 0.2)] = -1
    results = []
    for kernels in (ReferenceKernels(), native_kernels):
        cache = empty_cache(5, kv_heads, dim, 32, bits)
        sizes = (query_heads, kv_heads, kv_heads)
        q, k, v = fused.clone().view(tokens, -1, dim).split_with_sizes(sizes, 1)
        threads(3)
        kernels.rope_and_encode(q, k, v, table, positions, slots, cache)
        results.append((q, read(cache, torch.arange(5 * 32))))
    (q, expected), (native_q, found) = results
    torch.testing.assert_close(native_q, q, atol=3e-2, rtol=1e-2)
    assert found[2].equal(expected[2]) and found[3].equal(expected[3])
    far = slots[slots >= 0]
    keys, native_keys = (decode(*(part[far] for part in parts[:2]), bits) for parts in (expected, found))
    # A multiply-add rounds once where torch rounds twice: a key may come to lie on the other side of a step's middle.
    step = (expected[0].float() - found[0].float()).abs()[far]
    assert step.numel() == 0 or ((step > 0).float().mean() < 0.02 and (native_keys - keys).abs().max() < 2.0)
    others = torch.ones(5 * 32, dtype=torch.bool).index_fill_(0, far, False)
    assert all(a[others].equal(b[others]) for a, b in zip(found, expected, strict=True))


@bits
def test_bits_do_not_depend_on_the_batch(bits, kernels, dtype, threads):
    rng = np.random.default_rng(5)
    length, kv_heads, group, dim = 150 if isinstance(kernels, ReferenceKernels) else 700, 2, 3, 64
    q = torch.from_numpy(rng.standard_normal((length, kv_heads * group, dim)).astype(np.float32)).to(dtype)
    keys, values = (
        encode(torch.from_numpy(rng.standard_normal((length, kv_heads, dim)).astype(np.float32)), bits) for _ in range(2)
    )

    def attend(pieces, shift: int, split: float) -> torch.Tensor:
        """pieces: lists of (first, end) rows computed together. `shift`: slots that every entry lies further on."""
        cache = empty_cache((length + shift) // 32 + 1, kv_heads, dim, 32, bits)
        at = np.arange(length) + shift
        write(cache, torch.from_numpy(at), (*keys, *values))
        entries = [(int(a) // 32, int(a) % 32, i) for i, a in enumerate(at)]
        result = torch.full((length, kv_heads * group, dim + 1), float("nan"))
        for spans in pieces:
            rows = torch.cat([torch.arange(a, b) for a, b in spans])
            index = build_index([np.arange(a, b) for a, b in spans], [entries[:b] for _, b in spans], rng, split)
            out, lse = poisoned(len(rows), *q.shape[1:], dtype=dtype), poisoned(len(rows), q.shape[1], dtype=torch.float32)
            kernels.coded_attention(q[rows], cache, index, 0.2, out, lse, deterministic=True)
            result[rows] = torch.cat([out.float(), lse[..., None]], -1)
        return result

    plain = attend([[(0, length)]], 0, 0.0)
    assert plain.isfinite().all()
    cuts = [0, *sorted(rng.choice(np.arange(1, length), 9, replace=False)), length]
    chunks = list(itertools.pairwise(cuts))
    assert plain.equal(attend([chunks], 5, 0.1))
    few = [(i, i + 1) for i in range(0, length, 97)]
    threads(1)
    alone_one = attend([[s] for s in few], 0, 0.1)
    threads(2 if isinstance(kernels, ReferenceKernels) else 5)  # more than there are cores cost torch seconds
    alone_many = attend([[s] for s in few], 21, 0.0)
    for first, _ in few:
        assert plain[first].equal(alone_one[first]) and plain[first].equal(alone_many[first])


def test_malformed_calls_are_refused(native_kernels):
    cache = empty_cache(4, 2, 32, 16, 8)
    q = torch.zeros(1, 4, 32)
    index = ViewIndex.from_numpy([0, 1], [3], [[0, 0, 4, 0]], [0, 1])
    with pytest.raises(ValueError, match="coded_attention needs"):
        native_kernels.coded_attention(q.double(), cache, index, 1.0, torch.empty_like(q))
    with pytest.raises(ValueError, match="a plane of codes"):
        native_kernels.coded_attention(q, cache._replace(bits=4), index, 1.0, torch.empty_like(q))
    with pytest.raises(ValueError, match="a plane of codes"):
        native_kernels.coded_attention(torch.zeros(1, 4, 64), cache, index, 1.0, torch.zeros(1, 4, 64))
    with pytest.raises(ValueError, match="share 2 KV heads"):
        native_kernels.coded_attention(q[:, :3], cache, index, 1.0, torch.zeros(1, 3, 32))
    outside = ViewIndex.from_numpy([0, 1], [3], [[4, 0, 4, 0]], [0, 1])
    with pytest.raises(IndexError, match="runs reach"):
        native_kernels.coded_attention(q, cache, outside, 1.0, torch.empty_like(q))
    positions, table = torch.zeros(1, dtype=torch.int32), torch.zeros(8, 2, 4)
    k = torch.zeros(1, 2, 32)
    with pytest.raises(IndexError, match="slots must lie"):
        native_kernels.rope_and_encode(q, k, k, table, positions, torch.tensor([64]), cache)
    with pytest.raises(ValueError, match="rope_and_encode needs"):
        native_kernels.rope_and_encode(q, k[:, :1], k[:, :1], table, positions, torch.tensor([0]), cache)
    for wrong in ((2, 48, 16, 8), (2, 1024, 16, 8), (2, 32, 24, 8), (2, 32, 16, 3)):
        with pytest.raises(ValueError):
            shapes(*wrong)
