"""Entropy coding: every variant against the numpy reference, rates against the entropy, damage, values into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.engine.kv.bitstream import entropy, reference
from hasten.engine.kv.bitstream.entropy import CorruptStream
from hasten.engine.kv.bitstream.native import library

try:
    VARIANTS = range(library().hasten_entropy_variants())
except RuntimeError:
    pytest.skip("the library of entropy coding is not built", allow_module_level=True)


@pytest.fixture(params=VARIANTS, autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[int]:
    assert library().hasten_entropy_use(request.param) == 0
    yield request.param
    library().hasten_entropy_use(0)


def world(rng: np.random.Generator, rows: int, channels: int, alphabet: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols, and counts that fit them roughly, very unevenly in some channels."""
    weights = rng.random((alphabet, channels)) ** rng.integers(1, 12, channels)
    weights /= weights.sum(0)
    symbols = np.stack([rng.choice(alphabet, rows, p=weights[:, c]) for c in range(channels)], 1).astype(np.uint8)
    return symbols, entropy.cumulative(weights)


def decoded(stream: bytes, counts: np.ndarray, rows: int) -> np.ndarray:
    channels = counts.shape[1]
    return entropy.decode(stream, counts, rows, np.zeros(channels, np.int16), np.ones(channels, np.float32))


@pytest.mark.parametrize("channels", [1, 5, 31, 32, 33, 64, 100])
def test_streams_are_the_references_and_come_back(channels: int) -> None:
    rng = np.random.default_rng(channels)
    for rows, alphabet in ((0, 2), (1, 2), (3, 256), (40, 17)):
        symbols, counts = world(rng, rows, channels, alphabet)
        stream = entropy.encode(symbols, counts)
        assert stream == reference.encode(symbols, counts)
        assert np.array_equal(reference.decode(stream, counts, rows), symbols)
        assert np.array_equal(decoded(stream, counts, rows), symbols)


def test_rate_is_the_entropy() -> None:
    rng = np.random.default_rng(1)
    rows, channels, alphabet = 1536, 64, 24
    values = rng.laplace(0, rng.uniform(0.5, 3, channels), (rows, channels))
    symbols = np.clip(np.rint(values) + alphabet // 2, 0, alphabet - 1).astype(np.uint8)
    seen = np.stack([np.bincount(symbols[:, c], minlength=alphabet) for c in range(channels)], 1)
    bits = -(seen * np.log2(np.maximum(seen, 1) / rows)).sum()
    stream = entropy.encode(symbols, entropy.cumulative(seen + 1e-3))
    assert bits / 8 <= len(stream) <= 1.01 * bits / 8 + 4 * entropy.LANES


def test_another_coder_needs_as_many_bytes() -> None:
    constriction = pytest.importorskip("constriction")
    rng = np.random.default_rng(7)
    symbols, counts = world(rng, 1000, 40, 24)
    other = constriction.stream.stack.AnsCoder()
    for channel in range(40):
        shares = np.diff(counts[:, channel].astype(np.float32)) / entropy.TOTAL
        model = constriction.stream.model.Categorical(shares, perfect=False)
        other.encode_reverse(symbols[:, channel].astype(np.int32), model)
    mine = len(entropy.encode(symbols, counts)) - 4 * entropy.LANES  # the states, of which the other coder has one
    assert mine == pytest.approx(other.num_bits() / 8, rel=0.005)


def test_values_from_levels() -> None:
    rng = np.random.default_rng(2)
    rows, channels, alphabet, together = 21, 40, 9, 4
    symbols, counts = world(rng, rows, channels, alphabet)
    low = rng.integers(-9, 9, channels).astype(np.int16)
    step = rng.random(channels, np.float32) + 0.1
    scale = rng.random(rows, np.float32)
    base = rng.standard_normal((-(-rows // together), channels)).astype(np.float32)
    levels = symbols.astype(np.float32) + low
    far = symbols == alphabet - 1
    escapes = rng.integers(-3000, 3000, far.sum()).astype(np.int16)
    levels[far] = escapes
    stream = entropy.encode(symbols, counts)
    got = entropy.decode(stream, counts, rows, low, step, escapes=escapes, scale=scale, base=base, base_rows=together)
    expected = base[np.arange(rows) // together] + levels * step * scale[:, None]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    for wrong in (escapes[:-1], np.append(escapes, np.int16(1))):
        with pytest.raises(CorruptStream):
            entropy.decode(stream, counts, rows, low, step, escapes=wrong)


def test_damaged_streams_are_refused() -> None:
    rng = np.random.default_rng(3)
    symbols, counts = world(rng, 30, 37, 12)
    stream = entropy.encode(symbols, counts)
    for length in range(len(stream)):
        with pytest.raises(CorruptStream):
            decoded(stream[:length], counts, 30)
    for wrong in (stream + b"\0\0", stream + b"\0", b"\0" * len(stream), b"\xff" * len(stream)):
        with pytest.raises(CorruptStream):
            decoded(wrong, counts, 30)
    with pytest.raises(CorruptStream):
        decoded(stream, counts, 29)
    for _ in range(200):
        bad = bytearray(stream)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        with pytest.raises(CorruptStream):
            decoded(bytes(bad), counts, 30)


def test_noise_is_read_within_its_bounds() -> None:
    """Under the address sanitizer (`make sanitize`) a read beyond the stream ends the test."""
    rng = np.random.default_rng(4)
    _, counts = world(rng, 1, 64, 16)
    for _ in range(300):
        noise = rng.bytes(int(rng.integers(0, 600)))
        with pytest.raises(CorruptStream):
            decoded(noise, counts, int(rng.integers(1, 50)))


def test_bad_arguments_are_refused() -> None:
    rng = np.random.default_rng(5)
    symbols, counts = world(rng, 4, 8, 5)
    stream = entropy.encode(symbols, counts)
    for at, value in (((0, 3), 1), ((5, 3), 100), ((2, 3), counts[1, 3])):
        bad = counts.copy()
        bad[at] = value
        with pytest.raises(ValueError, match="counts must begin"):
            entropy.encode(symbols, bad)
        with pytest.raises(ValueError, match="counts must begin"):
            decoded(stream, bad, 4)
    with pytest.raises(ValueError, match="do not fit"):
        entropy.encode(symbols + np.uint8(5), counts)
    with pytest.raises(ValueError, match=r"low must be \[8\]"):
        entropy.decode(stream, counts, 4, np.zeros(7, np.int16), np.ones(8, np.float32))
    with pytest.raises(ValueError, match="is needed"):
        entropy.decode(stream, counts, 4, np.zeros(8, np.int64), np.ones(8, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        entropy.cumulative(np.zeros((4, 2)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_values_go_rotated_where_they_belong(kind: str) -> None:
    rng = np.random.default_rng(6)
    rows, heads, dim, rotary, size = 10, 3, 12, 8, 4
    values = rng.standard_normal((rows, heads, dim), np.float32) * np.float32(10.0) ** rng.integers(-7, 5, (rows, heads, dim))
    values = values.astype(np.float32)
    table = rng.standard_normal((20, 2, rotary // 2)).astype(np.float32)
    positions = rng.permutation(20)[:rows].astype(np.int32)
    blocks = -(-rows // size)
    out = np.zeros((blocks, heads, size, dim), np.float32 if kind == "float32" else np.uint16)
    row = np.arange(rows)
    offsets = row // size * heads * size * dim + row % size * dim
    slots = entropy.Slots(out, offsets, size * dim, kind)
    rotated = replace(slots, cos_sin=table, positions=positions)
    entropy.place(values, rotated)

    cos, sin = (table[positions, i][:, None] for i in (0, 1))
    one, two = values[..., : rotary // 2], values[..., rotary // 2 : rotary]
    turned = np.concatenate([one * cos - two * sin, two * cos + one * sin, values[..., rotary:]], -1)
    flat = torch.from_numpy(out) if kind == "float32" else torch.from_numpy(out.view(np.int16)).view(getattr(torch, kind))
    got = flat.permute(0, 2, 1, 3).reshape(-1, heads, dim)[:rows].float().numpy()
    eps = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}[kind]
    np.testing.assert_allclose(got, turned, rtol=1.01 * eps, atol=2e-5 if kind == "float32" else 2**-24)

    entropy.place(values, slots)
    expected = torch.from_numpy(values).to(getattr(torch, kind))  # not rotated: rounded as torch rounds, bit for bit
    flat = torch.from_numpy(out) if kind == "float32" else torch.from_numpy(out.view(np.int16)).view(getattr(torch, kind))
    assert torch.equal(flat.permute(0, 2, 1, 3).reshape(-1, heads, dim)[:rows], expected)

    with pytest.raises(ValueError, match="do not fit"):
        entropy.place(values, replace(slots, offsets=offsets + 1 + 3 * size * dim))
    with pytest.raises(ValueError, match="do not fit"):
        entropy.place(values, replace(rotated, positions=positions + np.int32(10)))
    with pytest.raises(ValueError, match="is needed"):
        entropy.place(values, replace(slots, offsets=offsets.astype(np.int32)))
    with pytest.raises(ValueError, match="offsets must be"):
        entropy.place(values, replace(slots, offsets=offsets[1:]))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_decoding_into_a_cache_is_decoding_and_placing(kind: str) -> None:
    """To the last bit, and not beyond the rows."""
    rng = np.random.default_rng(8)
    for rows, heads, dim, alphabet in ((1, 1, 1, 2), (7, 3, 12, 40), (5, 2, 48, 256)):
        symbols, counts = world(rng, rows, heads * dim, alphabet)
        low = rng.integers(-9, 9, heads * dim).astype(np.int16)
        step = rng.random(heads * dim, np.float32)
        escapes = rng.integers(-3000, 3000, (symbols == alphabet - 1).sum()).astype(np.int16)
        table = rng.standard_normal((rows, 2, dim // 4)).astype(np.float32)
        stream = entropy.encode(symbols, counts)
        values = entropy.decode(stream, counts, rows, low, step, escapes=escapes)
        offsets = rng.permutation(rows).astype(np.int64) * heads * (dim + 3)
        out = [np.full(rows * heads * (dim + 3), 7, np.float32 if kind == "float32" else np.uint16) for _ in range(2)]
        for turn, positions in ((None, None), (table, np.arange(rows, dtype=np.int32))):
            one, two = (entropy.Slots(to, offsets, dim + 3, kind, turn, positions) for to in out)
            entropy.place(values.reshape(rows, heads, dim), one)
            assert entropy.decode(stream, counts, rows, low, step, escapes=escapes, into=two, heads=heads).size == 0
            assert np.array_equal(out[0].view(np.uint8), out[1].view(np.uint8))
        with pytest.raises(ValueError, match="do not fit"):
            entropy.decode(
                stream, counts, rows, low, step, escapes=escapes, into=replace(two, head_stride=1 << 20), heads=heads + 1
            )
        with pytest.raises(CorruptStream):
            entropy.decode(stream[:-2], counts, rows, low, step, escapes=escapes, into=two, heads=heads)


def test_every_slot_is_found() -> None:
    """Whatever the distribution: wide symbols, many narrow ones in a row, edges where buckets of slots begin."""
    rng = np.random.default_rng(9)
    for alphabet in (2, 3, 65, 200, 256):
        edges = [np.arange(1, alphabet), entropy.TOTAL - np.arange(1, alphabet)[::-1], 64 * np.arange(1, alphabet)]
        edges += [np.sort(rng.choice(entropy.TOTAL - 1, alphabet - 1, replace=False)) + 1 for _ in range(30)]
        counts = np.zeros((alphabet + 1, len(edges)), np.uint16)
        counts[1:-1], counts[-1] = np.stack(edges, 1), entropy.TOTAL
        symbols = rng.integers(0, alphabet, (300, len(edges)), dtype=np.uint8)
        symbols[:alphabet] = np.arange(alphabet)[:, None]
        assert np.array_equal(decoded(entropy.encode(symbols, counts), counts, 300), symbols)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # which says which variant is used
@given(st.binary(max_size=400), st.integers(1, 40), st.integers(2, 256), st.integers(0, 20))
def test_no_bytes_harm_the_decoder(noise: bytes, channels: int, alphabet: int, rows: int) -> None:
    """They are refused, or are what the encoder makes of the symbols that they hold."""
    counts = np.zeros((alphabet + 1, channels), np.uint16)
    inner = np.random.default_rng(len(noise)).permuted(np.tile(np.arange(1, entropy.TOTAL), (channels, 1)), axis=1)
    counts[1:-1], counts[-1] = np.sort(inner[:, : alphabet - 1], 1).T, entropy.TOTAL
    try:
        symbols = decoded(noise, counts, rows)
    except CorruptStream:
        return
    assert entropy.encode(symbols.astype(np.uint8), counts) == noise
