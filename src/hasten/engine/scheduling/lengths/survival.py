"""How likely outputs are to be longer than so many tokens, learned from outputs that ended and outputs that were cut short.

Lengths are counted in bins: single tokens up to 16, then each `RATIO` times as wide as the last. What ended at a length is an
end in its bin; what was cancelled or failed there was at risk until then and says nothing of the end (censored). The
product-limit estimate (Kaplan and Meier, 1958; in bins: the actuarial estimate of Cutler and Ederer, 1958) makes a
distribution of both. Weights of old lengths decay, so that drift is followed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RATIO = 1.06
LONGEST = 1 << 20
SAMPLES = 24
"""Equally likely lengths that stand for a distribution."""

_FINE = 16
_RESCALE = 1e9


def _upper_bounds() -> npt.NDArray[np.int64]:
    bounds = list(range(1, _FINE + 1))
    while bounds[-1] < LONGEST:
        bounds.append(max(bounds[-1] + 1, round(bounds[-1] * RATIO)))
    return np.array(bounds, dtype=np.int64)


UPPER = _upper_bounds()
"""int64 [BINS]: the longest output of each bin; the first bin's is 1."""
LOWER = np.concatenate([[0], UPPER[:-1]])
BINS = len(UPPER)
_WIDTH = (UPPER - LOWER).astype(np.float64)
LEVELS: Floats = (np.arange(SAMPLES) + 0.5) / SAMPLES


def bin_of(length: int) -> int:
    return min(int(np.searchsorted(UPPER, length)), BINS - 1)


class Counts:
    """Decayed counts by bin: `ended` and `cut` (censored), float64 [BINS]. A length counts half as much once `half_life` more
    have come."""

    __slots__ = ("_growth", "cut", "ended", "seen", "unit")

    def __init__(self, half_life: float) -> None:
        self.ended: Floats = np.zeros(BINS)
        self.cut: Floats = np.zeros(BINS)
        self.unit = 1.0
        """What the newest length counts: weights grow in place of all others' falling."""
        self.seen = 0
        """How many lengths there have been."""
        self._growth = 2.0 ** (1.0 / half_life)

    def add(self, length: int, *, ended: bool) -> None:
        (self.ended if ended else self.cut)[bin_of(length)] += self.unit
        self.seen += 1
        self.unit *= self._growth
        if self.unit > _RESCALE:
            self.ended /= self.unit
            self.cut /= self.unit
            self.unit = 1.0

    @property
    def total(self) -> float:
        """How many lengths there are, decayed."""
        return float(self.ended.sum() + self.cut.sum()) / self.unit

    def weights(self) -> Floats:
        """float64 [2, BINS]: ended and cut, in lengths of full weight."""
        return np.stack([self.ended, self.cut]) / self.unit


def lengths(weights: Floats, at_least: int) -> Floats:
    """Equally likely whole lengths float64 [SAMPLES], ascending, of outputs longer than `at_least` tokens. `weights`: float64
    [2, BINS] as `Counts.weights` gives them."""
    ended, cut = weights.copy()
    first = bin_of(at_least + 1)
    ended[:first] = cut[:first] = 0.0
    # Of the bin that it has partly passed, only the rest counts.
    rest = (UPPER[first] - at_least) / _WIDTH[first]
    ended[first] *= rest
    cut[first] *= rest
    # Whoever is cut short in a bin was at risk in half of it.
    at_risk = np.cumsum((ended + cut)[::-1])[::-1] - 0.5 * cut
    hazard = np.divide(ended, at_risk, out=np.zeros(BINS), where=at_risk > 0)
    surviving = np.cumprod(1.0 - hazard)
    reached = 1.0 - surviving
    place = np.searchsorted(reached, LEVELS, side="left")
    beyond = place >= BINS
    inside = np.minimum(place, BINS - 1)
    low = np.maximum(LOWER[inside], at_least).astype(np.float64)
    before = np.where(inside > 0, reached[inside - 1], 0.0)
    mass = np.maximum(reached[inside] - before, 1e-12)
    out = low + (UPPER[inside] - low) * np.clip((LEVELS - before) / mass, 0.0, 1.0)
    if beyond.any():  # nobody is known to have ended there: as long again, more or less
        known = np.flatnonzero(ended + cut)
        last = float(max(at_least, UPPER[known[-1]] if len(known) else 1))
        left = 1.0 - reached[-1]
        out[beyond] = last * (1.0 + (LEVELS[beyond] - reached[-1]) / max(left, 1e-12))
    found: Floats = np.maximum(np.ceil(out - 1e-9), at_least + 1.0)
    return found
