"""Prompts as short vectors: hashed n-grams of tokens, so that prompts with pieces in common point the same way.

The hashing trick (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009): each n-gram adds +1 or -1 to
one of the vector's places, both told by its hash; unlike n-grams cancel out on average. Counts are damped by a square root,
so that what repeats does not drown the rest, and the vector has length 1. O(tokens looked at).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WIDTH = 256
EDGE = 512
"""Tokens looked at from the beginning of a prompt, and from its end."""
GRAM = 3

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xBF58476D1CE4E5B9)


def sketch(tokens: npt.NDArray[np.int32], width: int = WIDTH, gram: int = GRAM) -> npt.NDArray[np.float32]:
    """float32 [width], of length 1, of a prompt int32 [n], n >= 1. Prompts shorter than an n-gram are one as they are."""
    if len(tokens) > 2 * EDGE:
        tokens = np.concatenate([tokens[:EDGE], tokens[-EDGE:]])
    codes = tokens.astype(np.uint64)
    gram = min(gram, len(codes))
    count = len(codes) - gram + 1
    keys = np.zeros(count, dtype=np.uint64)
    for i in range(gram):
        keys = (keys ^ codes[i : i + count]) * _GOLDEN
        keys ^= keys >> np.uint64(29)
    keys *= _ODD
    place = ((keys >> np.uint64(32)) % np.uint64(width)).astype(np.int64)
    sign = 1.0 - 2.0 * (keys >> np.uint64(63)).astype(np.float64)
    sums = np.bincount(place, sign, width)
    damped = np.sign(sums) * np.sqrt(np.abs(sums))
    norm = float(np.sqrt(damped @ damped))
    return (damped / norm if norm else damped).astype(np.float32)
