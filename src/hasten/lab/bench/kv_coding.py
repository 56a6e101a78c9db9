"""How fast KV is encoded and decoded, and how near the coder comes to the entropy of what it codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np

from hasten.engine.kv.bitstream import chunk, entropy, levels, normal
from hasten.engine.kv.bitstream.planes import fill, rows_of, unrotate

SITES, HEADS, DIM, TOKENS = 2, 8, 128, 1536
"""Two layers of Qwen3-0.6B: 4,096 numbers a token, in bfloat16."""
GIGABIT = 1e9 / 8


@dataclass(frozen=True)
class Rates:
    """Seconds of one chunk, by threads. `plain_bytes` of it in bfloat16, `nbytes` coded, `symbols` in all."""

    encode_s: dict[int, float]
    decode_s: dict[int, float]
    plain_bytes: int
    nbytes: int
    symbols: int

    def hidden(self, threads: int) -> float:
        """Seconds of decoding over seconds of the chunk's transfer at a gigabit a second."""
        return self.decode_s[threads] / (self.nbytes / GIGABIT)


def rates(level: int = levels.DEFAULT, *, rounds: int = 5, seed: int = 0) -> Rates:
    """From planes to a chunk and back, everything in between included, on normal numbers of means and spreads as measured in
    the built-in model."""
    rng = np.random.default_rng(seed)
    size = 32
    shape = (TOKENS // size, HEADS, size, DIM)
    angles = np.arange(TOKENS)[:, None] * 1e4 ** (-np.arange(DIM // 2) / (DIM // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    planes = []
    for _ in range(2 * SITES):
        mean, spread = rng.normal(0, 2, (HEADS, 1, DIM)), np.exp(rng.normal(0, 0.2, (HEADS, 1, DIM)))
        numbers = rng.normal(mean, spread, shape).astype(np.float32)
        planes.append((numbers.view(np.uint32) >> 16).astype(np.uint16))
    for plane in planes[::2]:
        fill(plane, rows_of(plane), table)
    out = [np.empty_like(plane) for plane in planes]
    encode_s, decode_s = {}, {}
    data = b""
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:

            def encode() -> None:
                nonlocal data
                rows = list(pool.map(rows_of, planes))
                list(pool.map(lambda keys: unrotate(keys, table), rows[::2]))
                data = chunk.encode(list(zip(rows[::2], rows[1::2], strict=True)), 0, level, executor=pool)

            def decode() -> None:
                chunk.decode_into(data, chunk.head(data), out, [table] * SITES, pool)

            encode_s[threads] = _median(encode, rounds)
            decode_s[threads] = _median(decode, rounds)
    plain = sum(plane.nbytes for plane in planes)
    return Rates(encode_s, decode_s, plain, len(data), plain // 2)


def overhead(seed: int = 0) -> float:
    """By how many per cent streams are longer than the entropy of their symbols under the counts they are coded with, for
    normal channels of every spread."""
    rng = np.random.default_rng(seed)
    channels, alphabet = 256, 32
    spread = np.exp(rng.uniform(np.log(0.3), np.log(4), channels))
    codes = normal.code_spreads(spread)
    low = np.full(channels, -(alphabet - 1) // 2, np.int16)
    counts = normal.counts(np.zeros(channels), normal.spreads_of(codes), low, alphabet)
    numbers = np.rint(rng.normal(0, spread, (TOKENS, channels))) - low
    symbols = np.where((numbers < 0) | (numbers >= alphabet - 1), alphabet - 1, numbers).astype(np.uint8)
    seen = np.stack([np.bincount(column, minlength=alphabet) for column in symbols.T], 1)
    bits = -(seen * np.log2(np.maximum(seen, 1) / TOKENS)).sum()
    return float(100 * (8 * len(entropy.encode(symbols, counts)) / bits - 1))


def _median(work: Callable[[], None], rounds: int) -> float:
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return median(took[1:])
