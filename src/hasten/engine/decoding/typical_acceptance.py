"""Typical acceptance: a drafted token stays if it is likely enough, instead of only if it is what was drawn.

Medusa's rule (Cai et al., 2024, after truncation sampling, Hewitt et al., 2022): with p what the request draws from at a place,
penalties, bias, constraint, temperature and filters applied, and H its entropy in nats, a drafted token x may stay if
p(x) > min(epsilon, delta exp(-H)): where much is possible, unlikely tokens are fine too. Of all paths of a draft whose tokens
may all stay the longest is said, the one drafted first among equals. The token behind it is drawn as ever, so what follows no
draft is a true draw, and so is every token where nothing is drafted.

Approximate: what is said then depends on what was drafted, and unlikely tokens that were drawn are replaced by likely ones.
Greedy requests are not touched, as p is then all on one token (the paper: "reverts to greedy"). Works with every proposer.
Costs a softmax over the places behind which something is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from hasten.engine.decoding.base import Row
from hasten.engine.decoding.lossless import LosslessSampler
from hasten.engine.technique import Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.09
    """A token this likely may always stay."""
    delta: Annotated[float, Field(gt=0)] | None = None
    """How likely it must be in parts of exp(-entropy); None: the square root of epsilon."""


class TypicalSampler(LosslessSampler):
    def __init__(self, parts: Parts, options: Options) -> None:
        super().__init__(parts.kernels, parts.model.vocabulary, parts.eos)
        self._epsilon = options.epsilon
        self._delta = options.delta if options.delta is not None else options.epsilon**0.5

    def _decide(self, shaped: Tensor, rows: Seq[Row], tokens: list[int]) -> list[int]:
        parents = _parents(rows)
        children = [i for i, parent in enumerate(parents) if parent >= 0 and rows[i].sequence.request.sampling.temperature > 0]
        if not children:
            return tokens
        may_stay = self._typical(shaped, rows, children, parents)
        # Drafted tokens in a row that may stay, up to each row; those of rows behind one that may not are left out.
        length = [0 if parent < 0 else -1 for parent in parents]
        longest: dict[int, int] = {}
        for i, stays in zip(children, may_stay, strict=True):
            if stays and length[parents[i]] >= 0:
                length[i] = length[parents[i]] + 1
                key = id(rows[i].sequence)
                if key not in longest or length[i] > length[longest[key]]:
                    longest[key] = i
        said = list(tokens)
        for end in longest.values():
            i = end
            while parents[i] >= 0:
                said[parents[i]] = rows[i].path[-1]
                i = parents[i]
        return said

    def _typical(self, shaped: Tensor, rows: Seq[Row], children: Seq[int], parents: Seq[int]) -> list[bool]:
        """Whether the drafted token that each of `children` stands behind may stay."""
        places = sorted({parents[i] for i in children})
        at = {place: number for number, place in enumerate(places)}
        p = self._probabilities(shaped[torch.tensor(places, device=shaped.device)], [rows[place] for place in places])
        entropy = torch.special.entr(p).sum(-1)
        threshold = torch.clamp(self._delta * torch.exp(-entropy), max=self._epsilon)
        where = torch.tensor([at[parents[i]] for i in children], device=shaped.device)
        token = torch.tensor([rows[i].path[-1] for i in children], device=shaped.device)
        stays: list[bool] = (p[where, token] > threshold[where]).tolist()
        return stays

    def _probabilities(self, logits: Tensor, rows: Seq[Row]) -> Tensor:
        """What each row is drawn from, float [n, vocabulary]."""
        temperature, top_k, top_p, min_p, _ = self.knobs(rows, logits.device)
        p = torch.softmax(logits.float() / temperature[:, None], -1)
        params = [row.sequence.request.sampling for row in rows]
        if any(one.top_k or one.top_p < 1 or one.min_p for one in params):
            p = _kept(p.double(), top_k, top_p, min_p)
        return p


def _kept(p: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """p [n, vocabulary] without what the filters of `Kernels.sample` leave out, summing to 1 again."""
    ordered, ids = torch.sort(p, dim=-1, descending=True, stable=True)
    rank = torch.arange(p.shape[1], device=p.device)
    kept = rank < torch.where(top_k > 0, top_k, p.shape[1])[:, None]
    mass = (ordered * kept).cumsum(-1)
    kept &= (mass - ordered < top_p.double()[:, None] * mass[:, -1:]) | (rank == 0) | (top_p >= 1)[:, None]
    kept &= ordered >= min_p.double()[:, None] * ordered[:, :1]
    left = torch.zeros_like(p).scatter(1, ids, ordered * kept)
    return left / left.sum(-1, keepdim=True)


def _parents(rows: Seq[Row]) -> list[int]:
    """Of each row the one that its last drafted token follows; -1 where no row of its sequence does. Parents come first."""
    found: dict[tuple[int, tuple[int, ...]], int] = {}
    parents = []
    for i, row in enumerate(rows):
        key = id(row.sequence)
        parents.append(found.get((key, row.path[:-1]), -1) if row.path else -1)
        found.setdefault((key, row.path), i)  # of equal guesses the first is the one that is kept
    return parents


TECHNIQUE = Technique(
    name="typical-acceptance",
    seam="decoding",
    summary="keeps drafted tokens of drawn answers that are likely enough, not only those that are drawn",
    exact=False,
    sets={"decoding.sampler": "typical-acceptance"},
    options=Options,
    make=TypicalSampler,
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads (2024)",
)
