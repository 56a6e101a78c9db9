"""One stream: rows of real numbers by channel, as whole numbers of bins, coded with a normal distribution for each channel.

The distributions come with the stream, two bytes a channel, and fit its own rows: that takes fewer bytes than tables measured
once for a model (docs/techniques/cachegen.md has the figures), and nothing about the model need be known to anyone.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream import entropy, normal
from hasten.engine.kv.bitstream.entropy import CorruptStream

Floats = npt.NDArray[np.float32]

NEAR = 3.5
"""Standard deviations to each side that have symbols; what lies beyond is escaped."""
MOST_SYMBOLS = 64
FURTHEST = 32767
"""Bins that an escaped number may be away from 0."""
LEAST = 1e-30
"""No bin is smaller, lest its inverse overflow."""
_HEAD = Struct("<HfIII")
"""Alphabet, unit of the means, rows, escapes, bytes of the coded symbols."""


def encode(values: Floats, steps: Floats, most_symbols: int = MOST_SYMBOLS) -> bytes:
    """`values` [rows, channels], already without base and scale; `steps` [groups], channels / groups of which share one. Values
    beyond FURTHEST bins are cut off there; steps below LEAST are taken for it."""
    rows, channels = values.shape
    steps = np.maximum(steps, np.float32(LEAST))
    bins = values * (1 / np.repeat(steps, channels // len(steps)))
    mean = bins.mean(0, dtype=np.float64) if rows else np.zeros(channels)
    spread = np.sqrt(np.maximum(np.square(bins).mean(0, dtype=np.float64) - mean**2, 0)) if rows else np.ones(channels)
    codes = normal.code_spreads(np.sqrt(spread**2 + 1 / 12))
    unit = np.float32(max(np.abs(mean).max(initial=0) / 127, 1e-6))
    means = np.rint(mean / unit).astype(np.int8)
    alphabet = _alphabet(codes, most_symbols)
    low, counts = _tables(means, unit, codes, alphabet)
    levels = np.rint(bins, out=bins)
    np.clip(levels, -FURTHEST, FURTHEST, out=levels)
    levels -= low
    outside = (levels < 0) | (levels >= alphabet - 1)
    escapes = (levels + low)[outside].astype("<i2")
    levels[outside] = alphabet - 1
    coded = entropy.encode(levels.astype(np.uint8), counts)
    head = _HEAD.pack(alphabet, unit, rows, len(escapes), len(coded))
    return b"".join((head, steps.astype("<f4").tobytes(), means.tobytes(), codes.tobytes(), escapes.tobytes(), coded))


def decode(data: memoryview, at: int, rows: int, channels: int, groups: int, **scheme: Any) -> tuple[Floats, int]:
    """Values float32 [rows, channels] of the stream that begins at byte `at`, and where it ends. `scheme`: as `entropy.decode`,
    the groups are its heads. Raises CorruptStream."""
    if len(data) - at < _HEAD.size:
        raise CorruptStream("the stream ends too early")
    alphabet, unit, held, escaped, coded = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    parts = (4 * groups, channels, channels, 2 * escaped, coded)
    if held != rows or not 3 <= alphabet <= entropy.MOST_SYMBOLS or len(data) - at < sum(parts) or escaped > rows * channels:
        raise CorruptStream("a stream's head does not fit its chunk")
    ends = at + np.cumsum(parts)
    steps, means, codes, escapes, symbols = (data[end - size : end] for end, size in zip(ends.tolist(), parts, strict=True))
    step = np.repeat(np.frombuffer(steps, "<f4"), channels // groups)
    if not (np.isfinite(step).all() and np.isfinite(unit)):
        raise CorruptStream("a stream's bins are not finite")
    low, counts = _tables(np.frombuffer(means, np.int8), np.float32(unit), np.frombuffer(codes, np.uint8), alphabet)
    far = np.frombuffer(escapes, "<i2").astype(np.int16, copy=False)
    values = entropy.decode(symbols, counts, rows, low, step, escapes=far, heads=groups, **scheme)
    return values, int(ends[-1])


def _alphabet(codes: npt.NDArray[np.uint8], most: int) -> int:
    widest = float(normal.spreads_of(codes.max(keepdims=True, initial=0))[0])
    return int(min(max(2 * np.ceil(NEAR * widest) + 2, 4), most))


def _tables(
    means: npt.NDArray[np.int8], unit: np.float32, codes: npt.NDArray[np.uint8], alphabet: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """What symbol 0 stands for, int16 [channels], and the counts [alphabet + 1, channels]."""
    mean = means.astype(np.float64) * np.float64(unit)
    low = np.clip(np.rint(mean) - (alphabet - 1) // 2, -FURTHEST, FURTHEST - entropy.MOST_SYMBOLS).astype(np.int16)
    return low, normal.counts(mean, normal.spreads_of(codes), low, alphabet)
