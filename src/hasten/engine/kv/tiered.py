"""Tiers: reusable KV outlives device memory, and the process.

What the prefix tree caches in the pool goes on to host memory and from there to disk, and can be fetched from a peer process
(`tiered_cache.py` says how). Exact as long as the codec is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.kv.codecs import RAW, codec
from hasten.engine.kv.prefix_tree import PrefixTree
from hasten.engine.kv.retention import ADMISSIONS, RETENTIONS
from hasten.engine.kv.tiered_cache import TieredCache
from hasten.engine.technique import Technique

CACHEGEN = "cachegen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    host_bytes: int = 4 << 30
    """Of the second pool, in host memory."""
    disk: str = ""
    """Folder of block files; empty: none."""
    disk_bytes: int = 16 << 30
    peer: str = ""
    """Host of a process that serves its folder; empty: none."""
    peer_port: int = 8471
    peer_token: str = ""
    """What it knows its clients by; empty: what HASTEN_CACHE_TOKEN says."""
    chunk: int = 256
    """Tokens of a chunk, made whole blocks."""
    keep: str = "lru"
    """What slower tiers give up first: `lru` or `cost-aware`."""
    to_disk: str = "all"
    """What of host memory goes on to disk: `all`, or what was found again (`reused`)."""
    codec: str = ""
    """How chunks are written; read are those of this codec and raw ones. Empty: `cachegen` where that is switched on, else
    `raw`."""
    margin: float = 1.0
    """Loading must be predicted to take at most this part of computing."""
    disk_rate: float = 1e9
    """Bytes per second expected of the disk before any was measured; in simulations what it gives."""
    peer_rate: float = 1e8
    """The same of the peer."""
    timeout_s: float = 5.0
    """In which a chunk must come from the peer."""
    first_token_s: float = 1.0
    """Where the peer has chunks in several qualities: they come in the best one with which the prompt is there in this time."""


def _make(parts: Any, options: Options) -> TieredCache:
    config = parts.config.kv
    chunk = max(1, options.chunk // config.block_size)
    for name, known in (("keep", RETENTIONS), ("to_disk", ADMISSIONS)):
        if (said := getattr(options, name)) not in known:
            raise ValueError(f"tiered: {name}={said}: there are {', '.join(known)}")
    for name in ("chunk", "disk_rate", "peer_rate", "timeout_s", "first_token_s"):
        if not (said := getattr(options, name)) > 0:
            raise ValueError(f"tiered: {name} must be above 0, got {said}")
    name = options.codec or (CACHEGEN if CACHEGEN in parts.config.techniques else RAW)
    codec(name).prepare(parts)
    second = parts.second_pool(options.host_bytes)
    if second.blocks < 2 * chunk:
        raise ValueError(f"tiered: host_bytes={options.host_bytes} hold less than two chunks of {chunk} blocks")

    def price(start: int, tokens: int) -> float:
        return float(parts.executor.price(StepShape(tokens, 1, 0, start + tokens, span_pairs(tokens, start))))

    cache = TieredCache(
        PrefixTree(parts.books.pool),
        parts.books,
        second,
        parts.stores(second, options, price, RETENTIONS[options.keep], name),
        chunk=chunk,
        price=price,
        retention=RETENTIONS[options.keep](),
        admission=ADMISSIONS[options.to_disk],
        context=parts.kv_context,
        margin=options.margin,
        codec=name,
    )
    second.on_close(cache.close)
    return cache


TECHNIQUE = Technique(
    name="tiered",
    seam="kv",
    summary="reusable KV goes on to host memory and disk, and comes from there or from a peer",
    exact=True,
    sets={"kv.reuse": "tiered"},
    options=Options,
    make=_make,
)
