"""The two rules the slow way: which keys a query sees, from the definition. `size`: keys its budget has room for."""

from __future__ import annotations

import math

import numpy as np

from hasten.engine.rng import mix


def sink_window(query: int, size: int, sinks: int = 4) -> set[int]:
    return {key for key in range(query + 1) if key < sinks or query - key < size - sinks}


def random_eviction(sizes: list[int], recent: int = 8, seed: int = 0) -> list[set[int]]:
    """For every query in turn: a cache that drops, while it is too full, the key with the largest number."""
    cache: set[int] = set()
    seen = []
    for query, size in enumerate(sizes):
        cache.add(query)
        while len(cache) > size:
            cache.remove(max((key for key in cache if key <= query - recent), key=lambda key: mix(seed, key)))
        seen.append(set(cache))
    return seen


def share_of(context: int, share: float = 0.25) -> int:
    return max(16, math.ceil(share * context))


def mask(name: str, length: int, *, prompt: int | None = None) -> np.ndarray:
    """Bool [length, length] with the default knobs; `prompt`: cut after so many tokens (`prefill=exact`)."""
    sizes = [share_of(q + 1 if prompt is None else prompt) for q in range(length)]
    kept = [sink_window(q, sizes[q]) for q in range(length)] if name == "sink-window" else random_eviction(sizes)
    out = np.zeros((length, length), dtype=bool)
    for query in range(length):
        if prompt is not None and query < prompt:
            out[query, : query + 1] = True
        else:
            out[query, sorted(kept[query])] = True
    return out
