"""Entropy coding of small integers by channel, and what comes before and after it: levels to values, values into the cache.

Rows of symbols uint8 [rows, channels] are coded with one distribution a channel by 32 interleaved rANS states (Duda,
"Asymmetric numeral systems", 2013; Giesen, "Interleaved entropy coders", 2014), each of which codes every 32nd channel. The
stream holds the final states, uint32 little-endian, and the 16-bit words that decoding takes in, in that order; it does not
hold its shape or its distributions. `reference.py` is the same in numpy. No torch: arrays are numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream.native import CorruptStream, check, library

__all__ = ["KINDS", "LANES", "PRECISION", "TOTAL", "CorruptStream", "Slots", "cumulative", "decode", "encode", "place"]

LANES = 32
PRECISION = 14
TOTAL = 1 << PRECISION
"""What a channel's counts add up to."""
MOST_SYMBOLS = 256

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint16]
Number = TypeVar("Number", bound=np.generic)
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}

_ENCODE, _DECODE, _PLACE = Struct("7q").pack, Struct("16q").pack, Struct("13q").pack


@dataclass(frozen=True, slots=True)
class Slots:
    """Where rows [heads, dim] go in the flat array `out`, float32, or uint16 for a `kind` of bfloat16 or float16: head h of row
    r from element offsets[r] + h * head_stride on, `offsets` int64 [rows]. With `cos_sin` float32 [positions, 2, rotary / 2]
    the first `rotary` of dim are rotated to `positions` int32 [rows] on the way, halves against each other."""

    out: npt.NDArray[np.float32 | np.uint16]
    offsets: npt.NDArray[np.int64]
    head_stride: int
    kind: str
    cos_sin: Floats | None = None
    positions: npt.NDArray[np.int32] | None = None


def cumulative(probabilities: npt.NDArray[np.floating]) -> Counts:
    """Cumulative counts uint16 [alphabet + 1, channels] for `probabilities` [alphabet, channels], non-negative with a positive
    sum in every channel: 0 first, TOTAL last, at least 1 for every symbol. Raises ValueError."""
    alphabet, channels = probabilities.shape
    if not 2 <= alphabet <= MOST_SYMBOLS:
        raise ValueError(f"an alphabet has 2 to {MOST_SYMBOLS} symbols, not {alphabet}")
    sums = probabilities.sum(0)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and (sums > 0).all()):
        raise ValueError("probabilities must be finite, not negative, and not all 0 in a channel")
    counts = np.floor(probabilities / sums * (TOTAL - alphabet)).astype(np.int64) + 1
    # What rounding down left over goes to the likeliest symbol, to which it makes the least difference.
    counts[counts.argmax(0), np.arange(channels)] += TOTAL - counts.sum(0)
    out = np.zeros((alphabet + 1, channels), dtype=np.uint16)
    out[1:] = np.cumsum(counts, 0)
    return out


def encode(symbols: npt.NDArray[np.uint8], counts: Counts) -> bytes:
    """The stream of `symbols` [rows, channels], each below the alphabet of `counts` [alphabet + 1, channels], or ValueError."""
    symbols, counts = np.ascontiguousarray(symbols, np.uint8), _contiguous(counts, np.uint16)
    rows, channels = symbols.shape
    alphabet = _alphabet(counts, channels)
    out = np.empty(4 * LANES + 2 * symbols.size, dtype=np.uint8)  # a symbol takes at most PRECISION bits
    packed = _ENCODE(symbols.ctypes.data, counts.ctypes.data, rows, channels, alphabet, out.ctypes.data, out.nbytes)
    return out[: check(library().hasten_entropy_encode(packed))].tobytes()


def decode(
    stream: bytes | memoryview,
    counts: Counts,
    rows: int,
    low: npt.NDArray[np.int16],
    step: Floats,
    *,
    escapes: npt.NDArray[np.int16] | None = None,
    scale: Floats | None = None,
    base: Floats | None = None,
    base_rows: int = 1,
    into: Slots | None = None,
    heads: int = 1,
) -> Floats:
    """Values float32 [rows, channels]: base + scale * step * (low + symbol). With `into` they go there, row by row, each of
    `heads` heads, and none are returned: [0, channels].

    `low` int16 and `step` float32 [channels]; `scale` float32 [rows] (absent: 1); `base` float32 [ceil(rows / base_rows),
    channels] (absent: 0), a row of which serves `base_rows` rows. With `escapes` int16 [e] the last symbol of the alphabet
    stands for the next of them, without `low`. Raises ValueError for arguments that do not fit and CorruptStream for a stream
    that is not, to its last bit, one that `encode` wrote for this shape and these counts."""
    counts = _contiguous(counts, np.uint16)
    channels = counts.shape[1]
    alphabet = _alphabet(counts, channels)
    low, step = _contiguous(low, np.int16), _contiguous(step, np.float32)
    _shape("low", low, (channels,))
    _shape("step", step, (channels,))
    if scale is not None:
        scale = _contiguous(scale, np.float32)
        _shape("scale", scale, (rows,))
    if base is not None:
        base = _contiguous(base, np.float32)
        _shape("base", base, (-(-rows // base_rows), channels))
    far = None if escapes is None else _contiguous(escapes, np.int16)
    raw = np.frombuffer(stream, dtype=np.uint8)
    where = None if into is None else _place(into, rows, heads, channels // heads)
    out = np.empty((rows if where is None else 0, channels), dtype=np.float32)
    packed = _DECODE(
        raw.ctypes.data, raw.nbytes, counts.ctypes.data, rows, channels, alphabet,
        -1 if far is None else alphabet - 1, _address(far), 0 if far is None else far.size,
        low.ctypes.data, step.ctypes.data, _address(scale), _address(base), base_rows, out.ctypes.data,
        0 if where is None else np.frombuffer(where, np.uint8).ctypes.data,
    )  # fmt: skip
    check(library().hasten_entropy_decode(packed))
    return out


def place(values: Floats, into: Slots) -> None:
    """Write `values` float32 [rows, heads, dim] where `into` says. Raises ValueError."""
    values = _contiguous(values, np.float32)
    rows, heads, dim = values.shape
    check(library().hasten_entropy_place(_place(into, rows, heads, dim, values)))


def _place(into: Slots, rows: int, heads: int, dim: int, values: Floats | None = None) -> bytes:
    """The arguments that `into` is for the library. Its arrays are contiguous, or ValueError: they must outlive the call."""
    out, cos_sin, positions = into.out, into.cos_sin, into.positions
    if not out.flags.c_contiguous or out.dtype != (np.float32 if into.kind == "float32" else np.uint16):
        raise ValueError(f"out must be contiguous and hold {into.kind}, not {out.dtype}")
    _shape("offsets", into.offsets, (rows,))
    rotary = length = 0
    if cos_sin is not None:
        if positions is None:
            raise ValueError("what is to be rotated needs positions")
        _shape("positions", positions, (rows,))
        length, rotary = cos_sin.shape[0], 2 * cos_sin.shape[2]
    for array, dtype in ((into.offsets, np.int64), (cos_sin, np.float32), (positions, np.int32)):
        if array is not None and not (array.flags.c_contiguous and array.dtype == dtype):
            raise ValueError(f"a contiguous array of {np.dtype(dtype)} is needed, not one of {array.dtype}")
    return _PLACE(
        _address(values), _address(cos_sin), _address(positions), into.offsets.ctypes.data, rows, heads, dim, rotary, length,
        into.head_stride, KINDS[into.kind], out.ctypes.data, out.size,
    )  # fmt: skip


def _contiguous(array: npt.NDArray[Number], dtype: type[Number]) -> npt.NDArray[Number]:
    if array.dtype != dtype:
        raise ValueError(f"{array.dtype} was given where {np.dtype(dtype)} is needed")
    return np.ascontiguousarray(array)


def _alphabet(counts: npt.NDArray[Any], channels: int) -> int:
    if counts.ndim != 2 or counts.shape[1] != channels or counts.shape[0] < 3:
        raise ValueError(f"counts [alphabet + 1, {channels}] are needed, got {list(counts.shape)}")
    alphabet: int = counts.shape[0] - 1
    return alphabet


def _shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")


def _address(array: npt.NDArray[Any] | None) -> int:
    address: int = 0 if array is None else array.ctypes.data
    return address
