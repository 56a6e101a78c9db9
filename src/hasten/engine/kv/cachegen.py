"""CacheGen: stored KV as a compressed bitstream, fetched chunk by chunk in the quality that the link allows.

From CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving (Liu et al., SIGCOMM 2024). Values are
divided into bins that coarsen with depth, and the bins' numbers arithmetic-coded with a distribution for each layer and
channel; every chunk of a prefix is decodable alone and stored in several qualities; while it is fetched, a controller picks the
quality of each next chunk, or has the rest computed from the text, by the bandwidth of the one before. Approximate.
Coding and decoding are O(values), some hundred million a second and thread (`kernels/entropy`).

Differs from the paper, each for fewer bytes at equal error, measured (docs/techniques/cachegen.md): keys are coded as they are
before rotation; values are coded by themselves, not as differences to an anchor token; distributions are normal ones whose
means and spreads come with the chunk, not tables measured once for a model; the coder is an interleaved rANS.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream import chunk, levels
from hasten.engine.kv.bitstream.entropy import CorruptStream
from hasten.engine.kv.bitstream.native import library
from hasten.engine.kv.bitstream.planes import rows_of, unrotate
from hasten.engine.kv.blockfile import Head, Planes, Unusable
from hasten.engine.technique import ConfigError, Technique

Floats = npt.NDArray[np.float32]

_FLOATS = ("float32", "bfloat16", "float16")
_ROTATED, _UNROTATED = b"\0", b"\1"
"""First byte of a payload: how its keys are coded."""
_MOST_A_VALUE = 4
"""Bytes: two of the coder, two of an escape."""
_MOST_A_STREAM = 4096
_tables: dict[tuple[str, int], list[Floats]] = {}
"""By the weights' fingerprint and the number of sites: cosines and sines [positions, 2, rotary / 2] of each site, of as many
positions as the engine of the longest sequences has in this process."""


class CacheGen:
    """A `Codec` of dense planes. `level`: of `levels.LEVELS`, the finest is 0. Raises ConfigError for no level, and where the
    native library is missing."""

    def __init__(self, level: int) -> None:
        if not 0 <= level < len(levels.LEVELS):
            raise ConfigError(f"cachegen: level={level}: there are 0, the finest, to {len(levels.LEVELS) - 1}")
        try:
            library()
        except RuntimeError as error:
            raise ConfigError(f"cachegen: {error}") from None
        self._level = level
        self.loss = 1 + level

    def prepare(self, parts: Any) -> None:
        """Learn how keys of this engine's model are rotated. Raises ConfigError for KV that is not dense, or not there."""
        if not hasattr(parts.model, "sites"):
            raise ConfigError("cachegen cannot be simulated: how many bytes KV is coded in depends on the KV")
        if (form := parts.config.form().name) != "dense":
            raise ConfigError(
                f"cachegen codes dense KV, and attention.policy={parts.config.attention.policy} keeps it as {form}"
            )
        tables = [site.cos_sin.float().cpu().numpy() for site in parts.model.sites]
        known = _tables.setdefault((parts.model.fingerprint, len(tables)), tables)
        if len(known[0]) < len(tables[0]):
            _tables[parts.model.fingerprint, len(tables)] = tables

    def encode(self, planes: Planes, head: Head) -> bytes | memoryview:
        self._dense(head)
        rows = [rows_of(plane) for plane in planes]
        tables = self._turns(head)
        for keys, table in zip(rows[::2], tables or (), strict=False):
            unrotate(keys, table)
        coded = chunk.encode(list(zip(rows[::2], rows[1::2], strict=True)), head.start, self._level)
        return (_ROTATED if tables is None else _UNROTATED) + coded

    def decode(self, payload: bytes | memoryview, head: Head) -> Planes:
        self._dense(head)
        view = memoryview(payload)
        kind, coded = bytes(view[:1]), view[1:]
        if kind not in (_ROTATED, _UNROTATED):
            raise Unusable("how its keys are coded is not known")
        tables = self._turns(head) if kind == _UNROTATED else None
        if kind == _UNROTATED and tables is None:
            raise Unusable("how its keys are rotated is not known here")
        shapes = tuple((plane.shape[0], plane.shape[2]) for plane in head.planes[::2])
        try:
            found = chunk.head(coded)
            if found.tokens != len(head.tokens) or found.first != head.start or found.shapes != shapes:
                raise Unusable("it holds KV of another shape")
            planes = [np.empty((head.blocks, *plane.shape), plane.stored) for plane in head.planes]
            chunk.decode_into(coded, found, planes, tables)
        except CorruptStream as error:
            raise Unusable(str(error)) from None
        return planes

    def most_bytes(self, head: Head) -> int:
        values = sum(int(np.prod(plane.shape)) for plane in head.planes) * head.blocks
        return (
            _MOST_A_VALUE * values
            + _MOST_A_STREAM * len(head.planes)
            + sum(8 * plane.shape[0] * plane.shape[2] for plane in head.planes)
        )

    def _dense(self, head: Head) -> None:
        """Raises Unusable unless the planes are keys and values of site after site."""
        parts = [plane.part for plane in head.planes]
        shapes = [plane.shape for plane in head.planes]
        if (
            parts != ["k", "v"] * (len(parts) // 2)
            or shapes[::2] != shapes[1::2]
            or any(len(plane.shape) != 3 or plane.dtype not in _FLOATS for plane in head.planes)
        ):
            raise Unusable("its planes are not dense keys and values")

    def _turns(self, head: Head) -> list[Floats] | None:
        """Of the chunk's tokens, for each site; None when this process does not run such a model."""
        tables = _tables.get((head.weights, len(head.planes) // 2))
        stop = head.start + len(head.tokens)
        if tables is None or any(stop > len(table) for table in tables):
            return None
        return [table[head.start : stop] for table in tables]


@lru_cache
def _made(level: int) -> CacheGen:
    return CacheGen(level)


TECHNIQUE = Technique(
    name="cachegen",
    seam="kv",
    summary="stored KV as a compressed bitstream, fetched in the quality that the link allows",
    exact=False,
    sets={"kv.reuse": "tiered"},
    make=lambda variant, options: _made(levels.DEFAULT if variant is None else int(variant)),
    requires=("tiered",),
    paper="CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving, 2024",
)
