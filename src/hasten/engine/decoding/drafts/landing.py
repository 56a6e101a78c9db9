"""Where a draft's verification may land: how many of its tokens are accepted, and which token comes behind them.

That is guessed before the pass is over, from what an early layer of it says, and from what the draft thought of other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from math import exp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Landing = tuple[int, int]
"""(drafted tokens accepted, the token behind them)."""
Chances = Mapping[int, float]
"""Of some tokens, how likely each comes next."""
Likely = Seq[tuple[int, float]]
"""Tokens and their log-probabilities, as the draft thought."""
WEIGHT = 0.3
"""How much the logarithm of what an untrained exit says counts beside the draft's: measured at a half of the built-in model."""


def of_exit(logits: Tensor, draft: Seq[int], most: int) -> list[dict[int, float]]:
    """What an early layer says after the last known token and after each of the k tokens of `draft`: the chances of the `most`
    likeliest tokens and the drafted one. `logits` [k + 1, V]."""
    import torch

    probs = torch.softmax(logits.float(), -1)
    values, ids = torch.topk(probs, min(most, logits.shape[1]), -1)
    rows = [dict(zip(tokens, chances, strict=True)) for tokens, chances in zip(ids.tolist(), values.tolist(), strict=True)]
    for row, token, chance in zip(rows, draft, probs[range(len(draft)), list(draft)].tolist(), strict=False):
        row[token] = chance
    return rows


def of_draft(likely: Seq[Likely]) -> list[dict[int, float]]:
    """What the draft thought."""
    return [{token: exp(logprob) for token, logprob in row} for row in likely]


def of_both(logits: Tensor, tokens: Seq[int], likely: Seq[Likely]) -> list[dict[int, float]]:
    """Of the tokens that the draft thought likely, what it and an early layer say together. `logits` [k, n], of the n `tokens`,
    in which those of the k rows of `likely` all are."""
    import torch

    column = {token: number for number, token in enumerate(tokens)}
    rows = []
    for said, own in zip(torch.log_softmax(logits.float(), -1).tolist(), likely, strict=True):
        weights = {token: WEIGHT * said[column[token]] + logprob for token, logprob in own}
        most = max(weights.values())
        chances = {token: exp(weight - most) for token, weight in weights.items()}
        total = sum(chances.values())
        rows.append({token: chance / total for token, chance in chances.items()})
    return rows


def landings(chances: Seq[Chances], draft: Seq[int], drawn: Seq[int], most: int, trust: float) -> list[Landing]:
    """At most `most` landings, the likeliest first.

    `chances`: after the last known token and after each of the k tokens of `draft`, or without the last of these rows; `drawn`:
    of each row, what the request's own random numbers draw from it, or -1. `trust`: how much of the probability goes to what is
    drawn. Verification accepts token i with the probability that row i gives it, and lands at the first that is not accepted:
    landing (j, token) has the product of the first j and the token's own in row j."""
    found: dict[Landing, float] = {}
    reached = 1.0
    for j, (row, taken) in enumerate(zip(chances, drawn, strict=True)):
        mixed = {token: (1.0 - trust) * chance for token, chance in row.items()}
        if taken >= 0:
            mixed[taken] = mixed.get(taken, 0.0) + trust
        accepts = mixed.pop(draft[j], 0.0) if j < len(draft) else 0.0
        for token, chance in mixed.items():
            found[j, token] = reached * chance
        reached *= accepts
    return sorted(found, key=lambda landing: -found[landing])[:most]
