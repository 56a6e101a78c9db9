"""Codecs: how the planes of a chunk become bytes and planes again.

`raw` is here. Any other is a technique of the kv seam whose `make(variant, options)` gives a `Codec`, found by its name like
all techniques; a number behind the name, as in `cachegen-2`, is its variant. A chunk's head names its codec, and an engine
takes only chunks of codecs it was told to accept: KV that went through a lossy one is not what the engine computes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np

from hasten.engine.kv.blockfile import Head, Planes, Unusable
from hasten.engine.technique import ConfigError, find


class Codec(Protocol):
    """Called by several worker threads at a time. `loss`: 0 is exact; of two, the one that says more loses more."""

    @property
    def loss(self) -> int: ...
    def prepare(self, parts: Any) -> None:
        """Learn what there is to know of the engine built from `parts` (`assemble.Parts`), once. Raises ConfigError for one
        whose KV it cannot code."""
        ...

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

    loss = 0

    def prepare(self, parts: Any) -> None: ...

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
    technique = find(family(name))
    variant = name[len(technique.name) + 1 :] or None
    options = technique.options() if technique.options is not None else None
    made = technique.make(variant, options) if technique.make is not None else None
    if not hasattr(made, "decode") or not hasattr(made, "encode"):
        raise ConfigError(f"{name} is no codec of KV blocks")
    return cast(Codec, made)


def family(name: str) -> str:
    """The codec's name without its variant."""
    head, _, tail = name.rpartition("-")
    return head if head and tail.isdecimal() else name


def accepts(mine: str, name: str) -> bool:
    """Whether an engine that codes with `mine` takes chunks of the codec `name`: any variant that there is, and exact ones."""
    if name == RAW:
        return True
    if family(name) != family(mine):
        return False
    try:
        codec(name)
    except ConfigError:
        return False
    return True
