"""Tokens for requests that say only how long they are and what they share.

A token is a hash of (seed, what the block holds, place in it), so equal block numbers are equal tokens in any order of asking,
in any process, and nothing needs to be kept. What no block covers is a hash of the request's id instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError

FIRST_TOKEN = 16
"""Lower ids are avoided: vocabularies begin with the special tokens."""

_GOLDEN = np.uint32(0x9E3779B1)


class Prompts:
    """The prompts of `workload` as tokens in [low, vocabulary), where low is FIRST_TOKEN or, in tiny vocabularies, 0.

    `encode` gives the tokens of requests that carry text. Raises WorkloadError for a vocabulary of less than 2 tokens."""

    def __init__(
        self, workload: Workload, vocabulary: int, seed: int = 0, encode: Callable[[str], Sequence[int]] | None = None
    ) -> None:
        if not 2 <= vocabulary <= 2**31:
            raise WorkloadError(f"the vocabulary must have from 2 to 2**31 tokens, got {vocabulary}")
        self._block_tokens = workload.block_tokens
        self._low = FIRST_TOKEN if vocabulary >= 4 * FIRST_TOKEN else 0
        self._span = np.uint64(vocabulary - self._low)
        self._seed = seed
        self._encode = encode
        self._places = np.arange(0, dtype=np.uint32)

    def tokens(self, request: TimedRequest) -> npt.NDArray[np.int32]:
        """int32 [n]: the request's prompt, n = `prompt_tokens`, or as many as its text has. Raises WorkloadError for text
        without `encode`."""
        if request.text is not None:
            return self._encoded(request)
        total, size = request.prompt_tokens, self._block_tokens
        shared = request.blocks[: -(-total // size)]
        out = np.empty(total, dtype=np.int32)
        covered = min(total, len(shared) * size)
        if shared:
            # Places are the same in each block, so whole blocks are one array operation.
            keys = _mixed(np.array(shared, dtype=np.uint64) ^ np.uint64(xxhash.xxh64_intdigest(b"block", self._seed)))
            out[:covered] = self._drawn(keys[:, None], size).reshape(-1)[:covered]
        if covered < total:
            key = np.array([xxhash.xxh64_intdigest(request.id, self._seed)], dtype=np.uint64)
            out[covered:] = self._drawn(key, total - covered)
        return out

    def _encoded(self, request: TimedRequest) -> npt.NDArray[np.int32]:
        if self._encode is None:
            raise WorkloadError(f"request {request.id!r} is text: a tokenizer is needed to make tokens of it")
        assert request.text is not None
        tokens = np.asarray(self._encode(request.text), dtype=np.int32)
        if not tokens.size:
            raise WorkloadError(f"request {request.id!r}: its text {request.text!r} has no tokens")
        return tokens

    def _drawn(self, keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
        """Tokens [..., count] for keys [..., 1]: MurmurHash3's finaliser over (place, key), in 32 bits as they are cheaper."""
        if len(self._places) < count:
            self._places = np.arange(count, dtype=np.uint32) * _GOLDEN
        low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
        x = self._places[:count] + low
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= high
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
        wide = x.astype(np.uint64)
        wide *= self._span
        wide >>= np.uint64(32)
        wide += np.uint64(self._low)
        return wide


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: neighbouring block numbers become unrelated keys."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
