"""Between the planes of a dense store, keys rotated, and the rows that are coded, keys not rotated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream import entropy

Floats = npt.NDArray[np.float32]
Plane = npt.NDArray[Any]
"""[blocks, kv heads, block size, dim] of float32, float16, or uint16, the bit patterns of bfloat16."""


def rows_of(plane: Plane) -> Floats:
    """The values of all slots, float32 [blocks * block size, heads, dim]."""
    blocks, heads, size, dim = plane.shape
    if plane.dtype == np.uint16:
        plane = (plane.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(plane.transpose(0, 2, 1, 3), dtype=np.float32).reshape(blocks * size, heads, dim)


def unrotate(rows: Floats, cos_sin: Floats) -> None:
    """Turn keys [tokens, heads, dim] back in place; `cos_sin` float32 [tokens, 2, rotary / 2], which may scale as well."""
    half = cos_sin.shape[2]
    cos, sin = cos_sin[:, 0][:, None], cos_sin[:, 1][:, None]
    scale = 1 / np.maximum(np.square(cos) + np.square(sin), 1e-12)
    one, two = rows[..., :half].copy(), rows[..., half : 2 * half]
    rows[..., :half] = (one * cos + two * sin) * scale
    rows[..., half : 2 * half] = (two * cos - one * sin) * scale


def slots(plane: Plane, cos_sin: Floats | None = None) -> entropy.Slots:
    """Where rows [blocks * block size, heads, dim] go in a contiguous plane; `cos_sin` [tokens, 2, rotary / 2] rotates them."""
    blocks, heads, size, dim = plane.shape
    token = np.arange(blocks * size, dtype=np.int64)
    offsets = token // size * (heads * size * dim) + token % size * dim
    kind = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}[plane.dtype.name]
    flat = plane.reshape(-1)
    return entropy.Slots(
        flat.view(np.uint16) if kind == "float16" else flat,
        offsets,
        size * dim,
        kind,
        None if cos_sin is None else np.ascontiguousarray(cos_sin, np.float32),
        None if cos_sin is None else token.astype(np.int32),
    )


def fill(plane: Plane, rows: Floats, cos_sin: Floats | None = None) -> None:
    """Write rows [blocks * block size, heads, dim] into a contiguous plane; `cos_sin` [tokens, 2, rotary / 2] rotates."""
    entropy.place(rows, slots(plane, cos_sin))
