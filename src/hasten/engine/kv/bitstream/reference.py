"""The coder in numpy, lane by lane: the specification of the stream, for reading and for tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LANES, PRECISION = 32, 14
LOWEST = 1 << 16
"""Of a state between two symbols; a state lies in [LOWEST, LOWEST << 16)."""


def encode(symbols: npt.NDArray[np.uint8], counts: npt.NDArray[np.uint16]) -> bytes:
    """As `entropy.encode`. A symbol of frequency f out of 2**PRECISION takes a state from x to about x * 2**PRECISION / f; what
    would not fit any more leaves as a word first. Backwards, because a decoder undoes the last symbol first."""
    rows, channels = symbols.shape
    states = [LOWEST] * min(LANES, channels)
    words: list[int] = []
    for row in range(rows - 1, -1, -1):
        for channel in range(channels - 1, -1, -1):
            symbol, lane = int(symbols[row, channel]), channel % LANES
            start = int(counts[symbol, channel])
            frequency = int(counts[symbol + 1, channel]) - start
            x = states[lane]
            if x >= frequency << (32 - PRECISION):
                words.append(x & 0xFFFF)
                x >>= 16
            states[lane] = (x // frequency << PRECISION) + x % frequency + start
    return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


def decode(stream: bytes, counts: npt.NDArray[np.uint16], rows: int) -> npt.NDArray[np.uint8]:
    """The symbols [rows, channels]. Raises ValueError for a stream that `encode` did not write."""
    channels = counts.shape[1]
    lanes = min(LANES, channels)
    if len(stream) < 4 * lanes or len(stream) % 2:
        raise ValueError("the stream ends too early")
    states = np.frombuffer(stream, "<u4", lanes).tolist()
    words = iter(np.frombuffer(stream, "<u2", offset=4 * lanes).tolist())
    symbols = np.empty((rows, channels), np.uint8)
    for row in range(rows):
        for channel in range(channels):
            x = states[channel % LANES]
            slot = x & ((1 << PRECISION) - 1)
            symbol = int(np.searchsorted(counts[:, channel], slot, side="right")) - 1
            start, stop = int(counts[symbol, channel]), int(counts[symbol + 1, channel])
            x = (stop - start) * (x >> PRECISION) + slot - start
            if x < LOWEST:
                try:
                    x = x << 16 | next(words)
                except StopIteration:
                    raise ValueError("the stream ends too early") from None
            states[channel % LANES] = x
            symbols[row, channel] = symbol
    if next(words, None) is not None or any(x != LOWEST for x in states):
        raise ValueError("the stream is damaged, or of other counts")
    return symbols
