"""A chunk: the KV of some hundred or thousand tokens in all sites, decodable alone.

Layout, little-endian: `_HEAD`; for each site its heads and dim, uint16; the ends of the streams, uint32, keys before values,
site by site; the streams. The checksum is of all behind it.

Keys are given, coded and got back as they are before rotation: neighbouring keys are then of one distribution, channel by
channel, and their means, several standard deviations long in most channels, cost nothing. Three forms were tried, at equal
error:

- `channel`: values by themselves;
- `anchor`: the first of every GROUP tokens finely, the others as differences to it (CacheGen as published);
- `scaled`: values divided by the largest of their token (as CacheGen was released).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from struct import Struct

import numpy as np
import numpy.typing as npt
import xxhash

from hasten.engine.kv.bitstream import levels, planes, stream
from hasten.engine.kv.bitstream.entropy import CorruptStream
from hasten.engine.kv.bitstream.planes import Plane

Floats = npt.NDArray[np.float32]
Site = tuple[Floats, Floats]
"""Keys and values [tokens, heads, dim] of a site."""

MAGIC = b"HKVS"
VERSION = 1
FORMS = ("channel", "anchor", "scaled")
GROUP = 10
ANCHOR_BINS = 254
"""Over the range of an anchor's channel with the longest: 8 bits."""
_HEAD = Struct("<4sQBBBxHxxII")
"""Magic, checksum, version, form, level, sites, tokens, position of the first."""
_CHECKED = 12
MOST_TOKENS, MOST_WIDTH = 1 << 20, 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a chunk before it is decoded. `ends`: byte behind each stream, `start`: of the first stream."""

    form: str
    level: int
    tokens: int
    first: int
    shapes: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    start: int


def encode(sites: Sequence[Site], first: int, level: int, form: str = "channel", executor: Executor | None = None) -> bytes:
    """The chunk of `sites`, keys not rotated, whose first token is at position `first`. Raises ValueError."""
    if not sites or not 0 <= level < len(levels.LEVELS) or form not in FORMS:
        raise ValueError(f"a chunk needs a site, a level below {len(levels.LEVELS)} and a form of {', '.join(FORMS)}")
    tokens = len(sites[0][0])
    jobs = []
    for index, site in enumerate(sites):
        for values, bins in zip(site, levels.bins(levels.LEVELS[level], index, len(sites)), strict=True):
            if values.shape != site[0].shape or len(values) != tokens or not 0 < tokens <= MOST_TOKENS:
                raise ValueError(f"keys and values [tokens, heads, dim] must agree, got {values.shape}")
            jobs.append((values, bins, form))
    streams = list(
        executor.map(_encode, *zip(*jobs, strict=True)) if executor is not None else map(_encode, *zip(*jobs, strict=True))
    )
    shapes = np.array([keys.shape[1:] for keys, _ in sites], "<u2").tobytes()
    start = _HEAD.size + len(shapes) + 4 * len(streams)
    ends = (start + np.cumsum([len(one) for one in streams])).astype("<u4").tobytes()
    rest = b"".join(
        (_HEAD.pack(MAGIC, 0, VERSION, FORMS.index(form), level, len(sites), tokens, first)[_CHECKED:], shapes, ends, *streams)
    )
    coded: bytes = MAGIC + xxhash.xxh3_64_intdigest(rest).to_bytes(8, "little") + rest
    return coded


def head(data: bytes | memoryview) -> Head:
    """Raises CorruptStream for what is no whole chunk of this version."""
    if len(data) < _HEAD.size:
        raise CorruptStream("too short for a chunk")
    magic, check, version, form, level, count, tokens, first = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise CorruptStream(f"no chunk of version {VERSION}")
    if xxhash.xxh3_64_intdigest(memoryview(data)[_CHECKED:]) != check:
        raise CorruptStream("the chunk's checksum is wrong")
    start = _HEAD.size + 12 * count
    if start > len(data) or form >= len(FORMS) or level >= len(levels.LEVELS) or not count or not 0 < tokens <= MOST_TOKENS:
        raise CorruptStream("the chunk's head is wrong")
    shapes = np.frombuffer(data, "<u2", 2 * count, _HEAD.size).reshape(-1, 2).tolist()
    ends = np.frombuffer(data, "<u4", 2 * count, _HEAD.size + 4 * count).tolist()
    if (
        any(not 0 < heads * dim <= MOST_WIDTH for heads, dim in shapes)
        or sorted([start, *ends]) != [start, *ends]
        or ends[-1] != len(data)
    ):
        raise CorruptStream("the chunk's head is wrong")
    return Head(FORMS[form], level, tokens, first, tuple((heads, dim) for heads, dim in shapes), tuple(ends), start)


def decode(data: bytes | memoryview, executor: Executor | None = None) -> tuple[Head, list[Site]]:
    """The sites of a chunk, keys not rotated, with its head. Raises CorruptStream."""
    found = head(data)
    nowhere = [None] * len(found.ends)
    values = _streams(data, found, nowhere, nowhere, executor)
    return found, list(zip(values[::2], values[1::2], strict=True))


def decode_into(
    data: bytes | memoryview,
    found: Head,
    out: Sequence[Plane],
    tables: Sequence[Floats] | None = None,
    executor: Executor | None = None,
) -> None:
    """Decode a chunk with the head `found` into contiguous planes `out` [blocks, heads, block size, dim], keys and values site
    by site, of as many slots as it has tokens. `tables` float32 [tokens, 2, rotary / 2] rotate each site's keys. Raises
    CorruptStream, with planes partly written."""
    turns: list[Floats | None] = [None] * len(out)
    if tables is not None:
        turns[::2] = tables
    _streams(data, found, out, turns, executor)


def _streams(
    data: bytes | memoryview,
    found: Head,
    out: Sequence[Plane | None],
    turns: Sequence[Floats | None],
    executor: Executor | None,
) -> list[Floats]:
    view = memoryview(data)
    begins = (found.start, *found.ends[:-1])
    pieces = [view[begin:end] for begin, end in zip(begins, found.ends, strict=True)]
    shapes = [shape for shape in found.shapes for _ in range(2)]
    jobs = (pieces, shapes, [found.tokens] * len(pieces), [found.form] * len(pieces), out, turns)
    return list(executor.map(_decode, *jobs) if executor is not None else map(_decode, *jobs))


def _encode(values: Floats, bins: float, form: str) -> bytes:
    tokens, heads, dim = values.shape
    rows = np.ascontiguousarray(values, np.float32).reshape(tokens, heads * dim)
    largest = np.abs(rows).max()
    if not np.isfinite(largest):
        raise ValueError("KV that is not finite cannot be coded")
    steps = np.maximum(bins * _spread(rows, heads), largest / stream.FURTHEST).astype(np.float32)
    if form == "channel":
        return stream.encode(rows, steps)
    if form == "anchor":
        anchors = rows[::GROUP]
        reach = (anchors.max(0) - anchors.min(0)).reshape(heads, dim).max(1)
        fine = np.maximum(reach / ANCHOR_BINS, largest / stream.FURTHEST).astype(np.float32)
        coded = stream.encode(anchors, fine, ANCHOR_BINS + 2)
        base, _ = stream.decode(memoryview(coded), 0, len(anchors), heads * dim, heads)
        others = np.arange(tokens) % GROUP > 0
        return coded + stream.encode((rows - np.repeat(base, GROUP, 0)[:tokens])[others], steps)
    scale = np.abs(rows).max(1).astype("<f2")
    if not np.isfinite(scale).all():
        raise ValueError("KV beyond what float16 holds cannot be scaled by it")
    by = np.maximum(scale.astype(np.float32), 1e-6)
    divided = rows / by[:, None]
    relative = (steps / np.sqrt(np.square(by).mean())).astype(np.float32)
    scales: bytes = scale.tobytes()
    return scales + stream.encode(divided, relative)


def _spread(rows: Floats, heads: int) -> Floats:
    """Root of the mean variance of a channel, float32 [heads]."""
    spread: Floats = np.sqrt(rows.var(0, dtype=np.float64).reshape(heads, -1).mean(1)).astype(np.float32)
    return spread


def _decode(
    data: memoryview, shape: tuple[int, int], tokens: int, form: str, plane: Plane | None, turn: Floats | None
) -> Floats:
    """Values float32 [tokens, heads, dim] of one stream of a chunk; none where they went into `plane`. Raises CorruptStream."""
    heads, dim = shape
    channels = heads * dim
    if form == "channel":
        into = None if plane is None else planes.slots(plane, turn)
        values, end = stream.decode(data, 0, tokens, channels, heads, into=into)
    elif form == "anchor":
        count = -(-tokens // GROUP)
        values = np.empty((tokens, channels), np.float32)
        values[::GROUP], at = stream.decode(data, 0, count, channels, heads)
        others = np.arange(tokens) % GROUP > 0
        base = np.ascontiguousarray(values[::GROUP][: -(-int(others.sum()) // (GROUP - 1))])
        values[others], end = stream.decode(data, at, int(others.sum()), channels, heads, base=base, base_rows=GROUP - 1)
    else:
        if len(data) < 2 * tokens:
            raise CorruptStream("the stream ends too early")
        scale = np.frombuffer(data, "<f2", tokens).astype(np.float32)
        values, end = stream.decode(data, 2 * tokens, tokens, channels, heads, scale=scale)
    if end != len(data):
        raise CorruptStream("a stream is longer than what it holds")
    if plane is not None and len(values):
        planes.fill(plane, values.reshape(tokens, heads, dim), turn)
    return values.reshape(-1, heads, dim)
