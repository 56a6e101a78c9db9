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

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


class Prompts:
    """The prompts of `workload` as tokens in [low, vocabulary), where low is FIRST_TOKEN or, in tiny vocabularies, 0.

    `encode` gives the tokens of requests that carry text. Raises WorkloadError for a vocabulary of less than 2 tokens."""

    def __init__(
        self, workload: Workload, vocabulary: int, seed: int = 0, encode: Callable[[str], Sequence[int]] | None = None
    ) -> None:
        if not 2 <= vocabulary <= 2**31:
            raise WorkloadError(f"the vocabulary must have from 2 to 2**31 tokens, got {vocabulary}")
        self._block_tokens = workload.block_tokens
        low = FIRST_TOKEN if vocabulary >= 4 * FIRST_TOKEN else 0
        self._low, self._span = np.uint64(low), np.uint64(vocabulary - low)
        self._seed = seed
        self._encode = encode
        self._places = np.empty(0, dtype=np.uint64)

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
            key = np.array([xxhash.xxh64_intdigest(request.id.encode(), self._seed)], dtype=np.uint64)
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

    def _drawn(self, keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int32]:
        """Tokens [..., count] for keys [..., 1]: a multiply-xorshift hash of key and place, brought into the range by a
        multiplication. Each step is in place: a long prompt costs memory passes, not arithmetic."""
        if len(self._places) < count:
            self._places = np.arange(count, dtype=np.uint64) * _GOLDEN
        x = self._places[:count] + keys
        x ^= x >> _HALF
        x *= _ODD
        x >>= _HALF
        x *= self._span
        x >>= _HALF
        x += self._low
        return x.astype(np.int32)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: neighbouring block numbers become unrelated keys."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
