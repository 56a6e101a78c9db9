"""Cache-Craft: chunks are kept as they were computed behind others, and mended where they stand by what was measured then.

Cache-Craft: Managing Chunk-Caches for Efficient Retrieval-Augmented Generation (2025). A marked chunk C is computed in its
context the first time. Of attention, mean of heads and layers, is kept: inter_j, the mass of C's tokens on each chunk C_j
before it; each token's part of that; intra, their mass on C itself. With |C| in tokens

    a = sum_j inter_j / (|C| |C_j|),  b = intra / |C|^2,  CCI = 1 / (1 + e^(-a/b))

so CCI (chunk context impact) is 1/2 for a chunk that looks at nothing before it, and nears 1 for one bound to it. Behind
another set of chunks

    beta = sum of inter_j over old chunks that are there again / sum over all old ones
    gamma = share of the pairs of those chunks that stand in the other order (Kendall's tau distance, normalised)
    CFO = alpha CCI (1 - beta (1 - gamma))

is the share of C that is computed again (cache fix overhead), the ceil(CFO |C|) tokens with most inter mass. Of several
variants that of the lowest CFO is taken; when all of its tokens would be computed it is not, and the chunk becomes a new
variant.

What the formulas leave open, and how it is settled here: *Layers*: a and b are linear in mass, so the means over layers are
taken of the mass, before the formulas. *Nothing before*: a chunk that stood first has a = 0, so CCI = 1/2, and no sum for beta:
it is 1 where nothing stands before it either, else 0, as nothing of the new context was seen. The same by number of chunks
where all inter mass is 0. *A chunk that stands there twice*: the n-th of a name is matched with the n-th. *Ties* of inter
mass: first tokens first, so that of a chunk that stood first its beginning is mended, which took itself for that of the text.
*CFO = 1* cannot be reached with alpha <= 1, but that all tokens are wanted can, by rounding up; that is taken for it. *Which
variant goes* when there are too many or memory is short: that of least uses per CFO, in seconds of computing by block, ageing
(`PerRepair`); one not yet used counts as CFO = 1.

With `stop_after` mending may end before the last layer. Each layer ranks the chunks of the prompt by the question's mass on
them, and one that was ranked low in so many layers in a row is mended no further: its rows leave the step, and in the layers
after that one its KV is the variant's. Settled here: *The question* is the text behind the last chunk, and its mass on a chunk
the mean of its tokens and of heads. *By mass, not by mass per token*: what is wrong in a chunk's KV reaches the question by
the chunk's share of its attention, be the chunk long or short. *Each layer's own mass*, not the mean of all so far, so that
so many layers in a row are so many witnesses. *Low-ranked* are the last chunks of the ranking as far as they have, together,
at most `stop_share` of the question's mass on all chunks: it bounds what is given up, and where attention is even nearly
nothing is. *Stable* is asked of each chunk for itself: how those above it change places, or another one wavers, says nothing
of it. Chunks that are not mended are ranked too. *Who leaves*: tokens of found chunks only. New chunks, whose notes are of all
layers, text, the question and whatever has logits go on. *When*: after the attention of the layer that decides. It takes a
step with all of the question in it: where a prompt is cut in between, tokens that were computed in earlier steps were mended in
all layers, which is right, and dearer.

Text that is not marked is no chunk in the formulas; it is computed each time, or, in front of the first chunk, found by the
prefix cache. beta sees what is gone, not what is new: behind the same chunks and one more, CFO is 0. Not exact, and an answer
depends on what was found, so deterministic engines refuse it.

Cost: a prompt computes its text, its new chunks, and CFO |C| of each found one; attention reads everything. Measuring takes
attention once more, for tokens of new chunks (`attention/mass.py`) and, with `stop_after`, of the question, as long as
anything is mended; and blocks are copied that are to be written whole.

Where this differs from the paper: when mending ends early was not to be had from it in formulas, and is off unless asked for;
keys are kept rotated and turned when linked (`executors/shifting.py`); variants lie in the KV pool, so no layers are fetched
from slower tiers ahead of a prefill; a chunk mended in part is not kept as a variant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import ceil, exp
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.base import Ints
from hasten.engine.kv.variants import Floats, Notes
from hasten.engine.technique import Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    alpha: float = field(default=1.0, metadata={"search": (0.5, 1.5, 2.0, 3.0)})
    """Scales the share that is computed again."""
    variants: int = field(default=4, metadata={"search": (1, 2, 8)})
    """Most that are kept of one chunk."""
    share: float | None = None
    """Of every found chunk this share is computed again, whatever was measured; None: CFO."""
    pick: Literal["inter", "random"] = "inter"
    """Which tokens: those with most mass on other chunks, or, to know what that is worth, as many at random."""
    stop_after: int | None = None
    """Mending a chunk ends when so many layers in a row ranked it low; None: after the last layer."""
    stop_share: float = 0.25
    """The low-ranked chunks have, all together, at most this share of the question's mass on chunks."""


class CacheCraft:
    def __init__(self, options: Options) -> None:
        if options.alpha < 0:
            raise ValueError(f"cache-craft: alpha must be at least 0, got {options.alpha}")
        if options.variants < 1:
            raise ValueError(f"cache-craft: variants must be at least 1, got {options.variants}")
        if options.share is not None and not 0 <= options.share <= 1:
            raise ValueError(f"cache-craft: share must lie in [0, 1], got {options.share}")
        if options.stop_after is not None and options.stop_after < 1:
            raise ValueError(f"cache-craft: stop_after must be at least 1, got {options.stop_after}")
        if not 0 <= options.stop_share <= 1:
            raise ValueError(f"cache-craft: stop_share must lie in [0, 1], got {options.stop_share}")
        self._options = options

    @property
    def variants(self) -> int:
        return self._options.variants

    @property
    def stop_after(self) -> int | None:
        return self._options.stop_after

    def low(self, mass: Floats) -> npt.NDArray[np.bool_]:
        order = np.argsort(mass, kind="stable")
        held = mass[order].cumsum(dtype=np.float64)
        low = np.zeros(len(mass), dtype=bool)
        low[order[held <= self._options.stop_share * held[-1]]] = True
        return low

    def note(self, front: Seq[bytes], sizes: Seq[int], mass: Floats) -> Notes:
        size = sizes[-1]
        inter = mass[:, :-1].sum(0)
        intra = float(mass[:, -1].sum())
        return Notes(tuple(front), inter, mass[:, :-1].sum(1), cci(inter, intra, sizes[:-1], size))

    def choose(self, front: Seq[bytes], name: bytes, kept: Seq[Notes]) -> tuple[int, Ints] | None:
        costs = [self._options.alpha * notes.cci * (1 - kept_share(notes, front)) for notes in kept]
        best = min(range(len(kept)), key=costs.__getitem__)
        share = costs[best] if self._options.share is None else self._options.share
        size = len(kept[best].scores)
        count = ceil(share * size - 1e-6)  # 0.1 * 30 is more than 3
        if count >= size:
            return None
        if self._options.pick == "inter":
            order = np.argsort(-kept[best].scores, kind="stable")
        else:
            order = np.random.default_rng(_seed(name, *front)).permutation(size)
        return best, np.sort(order[:count]).astype(np.int32)


def cci(inter: Seq[float] | Floats, intra: float, sizes: Seq[int], size: int) -> float:
    """`inter`: mass on each chunk before, of `sizes` tokens; `intra` on the chunk itself, of `size`."""
    a = sum(float(one) / (size * other) for one, other in zip(inter, sizes, strict=True))
    b = intra / size**2
    return 1 / (1 + exp(-a / b)) if b > 0 else 1.0


def kept_share(notes: Notes, front: Seq[bytes]) -> float:
    """beta (1 - gamma): how much of what was attended to stands before the chunk again, and in the same order."""
    old, new = _numbered(notes.front), {name: i for i, name in enumerate(_numbered(front))}
    common = [i for i, name in enumerate(old) if name in new]
    if not old:
        return 0.0 if new else 1.0
    whole = float(notes.inter.sum())
    beta = float(notes.inter[common].sum()) / whole if whole > 0 else len(common) / len(old)
    return min(beta, 1.0) * (1 - disorder([new[old[i]] for i in common]))


def _numbered(names: Seq[bytes]) -> list[tuple[bytes, int]]:
    """Names with how often each stood before."""
    seen: dict[bytes, int] = {}
    numbered = []
    for name in names:
        numbered.append((name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return numbered


def disorder(places: Seq[int]) -> float:
    """Of all pairs of unlike numbers the share that stands in descending order: 0 of fewer than two."""
    n = len(places)
    at = np.array(places)
    wrong = int(np.triu(at[:, None] > at, 1).sum())
    return 2 * wrong / (n * (n - 1)) if n > 1 else 0.0


def _seed(*names: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(names)).digest()[:8], "big")


TECHNIQUE = Technique(
    name="cache-craft",
    seam="kv",
    summary="marked chunks keep the context they were computed in; how much of them is computed again is measured",
    exact=False,
    sets={"kv.repair": "cache-craft"},
    options=Options,
    make=lambda parts, options: CacheCraft(options),
    paper="Cache-Craft: Managing Chunk-Caches for Efficient Retrieval-Augmented Generation (2025)",
)
