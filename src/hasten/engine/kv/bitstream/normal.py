"""Counts of a normal distribution, equal on every machine: encoder and decoder must not differ in a single bit.

Only integers, and single operations on float64, which IEEE 754 rounds in one way. The table of the distribution is rounded to
16 bits, far coarser than mathematical libraries differ in.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream.entropy import TOTAL

FINE = 256
"""Entries of the table for a standard deviation."""
REACH = 6
"""Standard deviations to each side."""
_END = REACH * FINE
_BELOW = np.array([round(0x8000 * (1 + math.erf(k / FINE / math.sqrt(2)))) for k in range(-_END, _END + 1)])
_ROOTS = np.array([1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142136, 1.5422108, 1.6817928, 1.8340081])
"""2 ** (i / 8): a spread is coded as a whole number of eighths of an octave."""
OCTAVES = 16


def code_spreads(spreads: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Standard deviations, in steps, in eighths of an octave above 2 ** -OCTAVES."""
    with np.errstate(divide="ignore"):
        eighths = np.rint(8 * (np.log2(spreads) + OCTAVES))
    codes: npt.NDArray[np.uint8] = np.clip(eighths, 0, 255).astype(np.uint8)
    return codes


def spreads_of(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    spreads: npt.NDArray[np.float64] = np.ldexp(_ROOTS[codes % 8], codes // 8 - np.int64(OCTAVES))
    return spreads


def counts(
    means: npt.NDArray[np.float64], spreads: npt.NDArray[np.float64], low: npt.NDArray[np.int16], alphabet: int
) -> npt.NDArray[np.uint16]:
    """Cumulative counts uint16 [alphabet + 1, channels] of whole numbers, `low` [channels] and on, of a channel with this mean
    and spread. The last symbol stands for all that lies outside."""
    # Edges below symbols 0 to alphabet - 1, in steps from the mean.
    edges = np.arange(alphabet, dtype=np.float64)[:, None] + (low - 0.5 - means)
    below = _BELOW[np.rint(np.clip(edges * (FINE / spreads), -_END, _END)).astype(np.int64) + _END]
    out = np.empty((alphabet + 1, len(means)), dtype=np.uint16)
    # Every symbol keeps one count, however far it lies; what is below `low` counts as outside.
    out[:-1] = ((below - below[0]) * (TOTAL - alphabet) >> 16) + np.arange(alphabet)[:, None]
    out[-1] = TOTAL
    return out
