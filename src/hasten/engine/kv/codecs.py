"""Codecs: how the planes of a chunk become bytes and planes again.

`raw` is here. Any other is a technique of the kv seam whose `make(None, options)` gives a `Codec`, found by its name like all
techniques. A chunk's head names its codec, and an engine takes only chunks of codecs it was told to accept: KV that went
through a lossy one is not what the engine computes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, cast

import numpy as np

from hasten.engine.kv.blockfile import Head, Planes, Unusable
from hasten.engine.technique import ConfigError, find


class Codec(Protocol):
    """Called by several worker threads at a time."""

    def encode(self, planes: Planes, head: Head) -> bytes | memoryview:
        """The payload of planes that `head` describes."""
        ...

    def decode(self, payload: bytes | memoryview, head: Head) -> Planes:
        """The planes; they may be read-only. Raises Unusable for bytes that `encode` does not write."""
        ...

    def most_bytes(self, head: Head) -> int:
        """No payload of such a head is longer."""
        ...


class Raw:
    """The planes' bytes, one plane after the other. Exact."""

    def encode(self, planes: Planes, head: Head) -> bytes | memoryview:
        payload = np.empty(head.plain_bytes, dtype=np.uint8)
        at = 0
        for plane in planes:  # array by array, which lets other threads run meanwhile; joining bytes does not
            part = np.ascontiguousarray(plane).reshape(-1).view(np.uint8)
            payload[at : at + len(part)] = part
            at += len(part)
        return payload.data

    def decode(self, payload: bytes | memoryview, head: Head) -> Planes:
        if len(payload) != head.plain_bytes:
            raise Unusable(f"{len(payload)} bytes of planes that take {head.plain_bytes}")
        planes, at = [], 0
        for plane in head.planes:
            count = head.blocks * int(np.prod(plane.shape))
            planes.append(np.frombuffer(payload, plane.stored, count, at).reshape(head.blocks, *plane.shape))
            at += head.blocks * plane.nbytes
        return planes

    def most_bytes(self, head: Head) -> int:
        return head.plain_bytes


RAW = "raw"


@lru_cache
def codec(name: str) -> Codec:
    """The codec called `name`. Raises ConfigError."""
    if name == RAW:
        return Raw()
    technique = find(name)
    made = technique.make(None, technique.options() if technique.options is not None else None) if technique.make else None
    if not hasattr(made, "decode") or not hasattr(made, "encode"):
        raise ConfigError(f"{name} is no codec of KV blocks")
    return cast(Codec, made)
