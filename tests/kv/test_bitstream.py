"""Chunks of compressed KV: errors within half a bin, bytes near the entropy, damage noticed, planes in and out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xxhash

from hasten.engine.kv.bitstream import chunk, entropy, levels, normal, stream
from hasten.engine.kv.bitstream.entropy import CorruptStream
from hasten.engine.kv.bitstream.native import PATH
from hasten.engine.kv.bitstream.planes import fill, rows_of, unrotate
from hasten.kernels import ReferenceKernels

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="the library of entropy coding is not built")


def sites(seed: int, tokens: int, shapes: tuple[tuple[int, int], ...] = ((2, 16), (2, 16), (1, 40))) -> list[chunk.Site]:
    """Means of several standard deviations, unlike channels, now and then a number far off, a channel that is constant."""
    rng = np.random.default_rng(seed)
    made = []
    for heads, dim in shapes:
        pair = []
        for _ in range(2):
            rows = rng.normal(rng.normal(0, 3, (heads, dim)), rng.uniform(0.3, 2, (heads, dim)), (tokens, heads, dim))
            rows[rng.random(rows.shape) < 0.002] *= 30
            rows[:, 0, 0] = 1.5
            pair.append(rows.astype(np.float32))
        made.append((pair[0], pair[1]))
    return made


@pytest.mark.parametrize("form", chunk.FORMS)
@pytest.mark.parametrize("tokens", [1, 9, 10, 11, 203])
def test_every_value_comes_back_within_half_a_bin(form: str, tokens: int) -> None:
    given = sites(tokens, tokens)
    for level in range(len(levels.LEVELS)):
        data = chunk.encode(given, 640, level, form)
        head, got = chunk.decode(data)
        assert (head.tokens, head.first, head.level, head.form) == (tokens, 640, level, form)
        for index, (one, other) in enumerate(zip(given, got, strict=True)):
            for before, after, bins in zip(one, other, levels.bins(levels.LEVELS[level], index, len(given)), strict=True):
                heads = before.shape[1]
                step = np.maximum(
                    bins * np.sqrt(before.reshape(tokens, -1).var(0).reshape(heads, -1).mean(1)),
                    np.abs(before).max() / stream.FURTHEST,
                )
                if form == "anchor":  # the anchors' own bins are an eighth bit of the widest channel's range
                    width = before[:: chunk.GROUP].max(0) - before[:: chunk.GROUP].min(0)
                    step = np.maximum(step, width.max(1) / chunk.ANCHOR_BINS)
                if form == "scaled":  # by the largest of the token, against the root mean square of them
                    largest = np.abs(before).reshape(tokens, -1).max(1)
                    step = step * (largest / np.sqrt(np.square(largest).mean()))[:, None]
                    error = np.abs(before - after) / step[..., None]
                else:
                    error = np.abs(before - after) / step[None, :, None]
                assert error.max() <= 0.505


@pytest.mark.parametrize("form", chunk.FORMS)
def test_zeros_come_back(form: str) -> None:
    zeros = np.zeros((25, 2, 16), np.float32)
    for keys, values in chunk.decode(chunk.encode([(zeros, zeros)], 0, 1, form))[1]:
        assert not keys.any() and not values.any()


def test_coarser_levels_take_fewer_bytes() -> None:
    given = sites(1, 300)
    sizes = [len(chunk.encode(given, 0, level)) for level in range(len(levels.LEVELS))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.8 * sizes[0]


def test_bytes_are_near_the_entropy() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(rng.normal(0, 3, 128), rng.uniform(0.5, 2, 128), (1536, 128)).astype(np.float32)
    steps = np.full(4, 0.5, np.float32)
    data = stream.encode(rows, steps)
    bits = 0.0
    for channel in np.rint(rows / 0.5).astype(int).T:
        share = np.unique(channel, return_counts=True)[1] / len(channel)
        bits -= len(channel) * float(share @ np.log2(share))
    head = 2 * 128 + 4 * entropy.LANES + 64
    assert bits / 8 < len(data) < 1.02 * bits / 8 + head


def test_counts_are_the_same_everywhere() -> None:
    """A chunk written on one machine is read on another: a change here is a change of the format."""
    codes = np.arange(60, 190, dtype=np.uint8)
    means = np.linspace(-20, 20, len(codes))
    low = (np.rint(means) - 20).astype(np.int16)
    counts = normal.counts(means, normal.spreads_of(codes), low, 41)
    assert xxhash.xxh3_64_hexdigest(counts.astype("<u2").tobytes()) == "4f661812e91042ef"
    assert (np.diff(counts.astype(int), axis=0) > 0).all()
    spreads = np.array([1e-5, 0.31, 1.0, 7.3])
    np.testing.assert_allclose(normal.spreads_of(normal.code_spreads(spreads))[1:], spreads[1:], rtol=0.05)


def test_work_may_be_shared_among_threads() -> None:
    given = sites(3, 100)
    with ThreadPoolExecutor(3) as pool:
        data = chunk.encode(given, 0, 1, executor=pool)
        assert data == chunk.encode(given, 0, 1)
        for one, other in zip(chunk.decode(data, pool)[1], chunk.decode(data)[1], strict=True):
            assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_damage_is_noticed() -> None:
    data = chunk.encode(sites(4, 40), 0, 1)
    rng = np.random.default_rng(0)
    for length in [*range(60), *rng.integers(60, len(data), 50).tolist()]:
        with pytest.raises(CorruptStream):
            chunk.decode(data[:length])
    for _ in range(200):
        bad = bytearray(data)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        with pytest.raises(CorruptStream):
            chunk.decode(bytes(bad))


@pytest.mark.parametrize("form", chunk.FORMS)
def test_what_was_made_on_purpose_is_read_within_bounds(form: str) -> None:
    """With the checksum made right again a chunk is refused or gives numbers of the right shape: never more than that."""
    data = chunk.encode(sites(5, 40), 0, 1, form)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(12, len(bad)) if rng.random() < 0.5 else rng.integers(12, 120))
            bad[at] = rng.integers(256)
        bad[4:12] = xxhash.xxh3_64_intdigest(bytes(bad[12:])).to_bytes(8, "little")
        try:
            head, got = chunk.decode(bytes(bad))
        except CorruptStream:
            refused += 1
        else:
            assert [keys.shape[1:] for keys, _ in got] == list(head.shapes)
    assert refused > 300


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        chunk.encode(sites(0, 8), 0, len(levels.LEVELS))
    with pytest.raises(ValueError, match="level"):
        chunk.encode([], 0, 0)
    keys, values = sites(0, 8)[0]
    with pytest.raises(ValueError, match="must agree"):
        chunk.encode([(keys, values[:4])], 0, 0)
    keys[3, 0, 1] = np.inf
    with pytest.raises(ValueError, match="finite"):
        chunk.encode([(keys, values)], 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_planes_go_out_unrotated_and_come_back(dtype: torch.dtype) -> None:
    blocks, heads, size, dim, rotary = 3, 2, 8, 24, 16
    tokens = blocks * size
    torch.manual_seed(0)
    plain = torch.randn(tokens, heads, dim)
    angles = torch.arange(tokens)[:, None] * 0.5 ** torch.arange(rotary // 2)
    table = torch.stack([angles.cos(), angles.sin()], 1) * 1.3  # some models scale as they rotate
    cache = torch.zeros(blocks, heads, size, dim, dtype=dtype)
    given = plain.to(dtype)
    ReferenceKernels().rope_and_store(
        given.clone(), given, given, table, torch.arange(tokens, dtype=torch.int32), torch.arange(tokens), cache, cache.clone()
    )
    plane = (cache.view(torch.uint16) if dtype is torch.bfloat16 else cache).numpy()
    rows = rows_of(plane)
    unrotate(rows, table.numpy())
    eps = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    np.testing.assert_allclose(rows, plain.numpy(), atol=8 * eps)
    back = np.zeros_like(plane)
    fill(back, rows, table.numpy())
    np.testing.assert_allclose(rows_of(back), cache.float().permute(0, 2, 1, 3).reshape(tokens, heads, dim), atol=8 * eps)


@pytest.mark.parametrize("form", chunk.FORMS)
def test_decoding_into_planes_is_decoding_and_filling(form: str) -> None:
    size, tokens = 8, 48
    given = sites(6, tokens)
    data = chunk.encode(given, 0, 1, form)
    tables = [
        np.random.default_rng(i).normal(size=(tokens, 2, dim // 4)).astype(np.float32) for i, dim in enumerate((16, 16, 40))
    ]
    shapes = [(tokens // size, keys.shape[1], size, keys.shape[2]) for keys, _ in given for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for turns in (None, tables):
            one, two = ([np.zeros(shape, np.uint16) for shape in shapes] for _ in range(2))
            for site, (keys, values) in enumerate(chunk.decode(data)[1]):
                fill(one[2 * site], keys, None if turns is None else turns[site])
                fill(one[2 * site + 1], values)
            chunk.decode_into(data, chunk.head(data), two, turns, pool)
            assert all(np.array_equal(before, after) for before, after in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="offsets must be"):
        chunk.decode_into(data, chunk.head(data), [plane[1:] for plane in two])
