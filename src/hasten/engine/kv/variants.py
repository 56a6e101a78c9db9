"""Variants: KV of one chunk as it was computed in unlike contexts, and what was measured then.

Numbers only: what is measured comes from the attention seam (`attention/mass.py`), what follows from it is the business of
the policy (`kv/cache_craft.py`), who keeps and links variants is `engine/context_linking.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.base import Ints
from hasten.engine.kv.retention import CostAware, Facts

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measure:
    """Which attention mass of a span is wanted. `rows` int [m]: rows of the span, ascending; `tokens` int [m]: the sequence's
    tokens that they are; `ranges`: entries [start, stop) of its view, ascending and disjoint. What comes of it is float32 [m,
    ranges]: of what a row attends to, the share that lies in each range, mean of heads and layers."""

    rows: Ints
    tokens: Ints
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Mending:
    """Rows of a span that mend chunks, and what says that they need not go on. `question`: the rows behind the last chunk, and
    as ranges all chunks of the prompt; `rows`: by the number of a chunk those that mend it, int [n], rows of the span. In each
    layer `low` is given the question's mass on each chunk, float32 [chunks], mean of its rows and of heads, and says bool
    [chunks] which are ranked low. The rows of a chunk of which it said so in `window` layers in a row leave the step."""

    question: Measure
    rows: Mapping[int, Ints]
    low: Callable[[Floats], npt.NDArray[np.bool_]]
    window: int


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """Of a chunk that was computed in a context. `front`: names of the chunks that stood before it, in order; `inter` float32
    [len(front)]: attention mass from its tokens to each of these, summed over the tokens, mean of heads and layers; `scores`
    float32 [tokens]: each token's part of that; `cci`: how far the chunk is bound to its context, in [1/2, 1]."""

    front: tuple[bytes, ...]
    inter: Floats
    scores: Floats
    cci: float


class PerRepair(CostAware):
    """As `CostAware`, with what is computed again at each use taken for a price: uses by the mean share that was repaired. A
    variant that has not been used yet counts as one that would be computed whole."""

    def score(self, facts: Facts) -> float:
        return self._floor + (1 + facts.hits) * facts.seconds / facts.nbytes / facts.repaired
