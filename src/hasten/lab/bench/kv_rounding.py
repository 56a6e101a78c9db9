"""Round trips of dense KV through what it is stored in, with the bytes that takes: the codec `cachegen` and plain rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream import chunk
from hasten.engine.kv.bitstream.planes import fill, rows_of, unrotate
from hasten.lab.bench.kv_prefix import Planes

Floats = npt.NDArray[np.float32]
GROUP = 32
"""Channels that share a scale."""
RoundTrip = Callable[[Planes], tuple[Planes, int]]
"""Planes of a prefix from position 0 on -> what comes back, and the bytes in between."""


def bitstream(cos_sin: Floats, level: int, *, tokens: int = 1536, form: str = "channel") -> RoundTrip:
    """The codec, in chunks of `tokens`."""

    def trip(planes: Planes) -> tuple[Planes, int]:
        out = [np.empty_like(plane) for plane in planes]
        blocks, _, size, _ = planes[0].shape
        nbytes = 0
        for begin in range(0, blocks, tokens // size):
            part = slice(begin, min(blocks, begin + tokens // size))
            table = cos_sin[part.start * size : part.stop * size]
            rows = [rows_of(plane[part]) for plane in planes]
            for keys in rows[::2]:
                unrotate(keys, table)
            data = chunk.encode(list(zip(rows[::2], rows[1::2], strict=True)), part.start * size, level, form)
            nbytes += len(data)
            for site, (keys, values) in enumerate(chunk.decode(data)[1]):
                fill(out[2 * site][part], keys, table)
                fill(out[2 * site + 1][part], values)
        return out, nbytes

    return trip


def int8(planes: Planes) -> tuple[Planes, int]:
    """8 bits and a float16 scale for each token and head."""
    return _each(planes, lambda rows: _symmetric(rows, 127), 8, 16)


def int4(planes: Planes) -> tuple[Planes, int]:
    """4 bits, with a float16 scale and minimum for each token and group of 32 channels."""
    return _groupwise(planes, 4)


def int2(planes: Planes) -> tuple[Planes, int]:
    """2 bits, the same."""
    return _groupwise(planes, 2)


def _groupwise(planes: Planes, bits: int) -> tuple[Planes, int]:
    groups = -(-planes[0].shape[3] // GROUP)
    return _each(planes, lambda rows: _ranged(rows, 2**bits - 1), bits, 32 * groups)


def plain(planes: Planes) -> tuple[Planes, int]:
    return planes, sum(plane.nbytes for plane in planes)


def _each(planes: Planes, trip: Callable[[Floats], Floats], bits: int, bits_a_head: int) -> tuple[Planes, int]:
    out, total = [], 0
    for plane in planes:
        _, _, _, dim = plane.shape
        back = np.empty_like(plane)
        rows = rows_of(plane)
        fill(back, trip(rows))
        out.append(back)
        total += plane.size * bits + plane.size // dim * bits_a_head
    return out, total // 8


def _symmetric(rows: Floats, most: int) -> Floats:
    scale = (np.abs(rows).max(-1, keepdims=True) / most).astype(np.float16).astype(np.float32)
    scale = np.maximum(scale, 1e-8)
    out: Floats = np.clip(np.rint(rows / scale), -most, most) * scale
    return out


def _ranged(rows: Floats, most: int) -> Floats:
    shape = rows.shape
    parts = rows.reshape(*shape[:-1], -1, min(GROUP, shape[-1]))
    least = parts.min(-1, keepdims=True).astype(np.float16).astype(np.float32)
    scale = np.maximum(((parts.max(-1, keepdims=True) - least) / most).astype(np.float16).astype(np.float32), 1e-8)
    out: Floats = (np.clip(np.rint((parts - least) / scale), 0, most) * scale + least).reshape(shape)
    return out
