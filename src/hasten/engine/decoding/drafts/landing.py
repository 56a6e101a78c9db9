"""Where a draft's verification may land: how many of its tokens are accepted, and which token comes behind them.

Both are guessed from logits of an earlier layer of the same pass, before the pass is over.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Landing = tuple[int, int]
"""(drafted tokens accepted, the token behind them)."""


def landings(logits: Tensor, draft: Seq[int], drawn: Seq[int], likely: int, trust: float) -> list[Landing]:
    """At most `likely` landings, the likeliest first.

    `logits` [k + 1, V]: an early layer's, after the last known token and after each of the k tokens of `draft`; `drawn` [k
    + 1]: what the request's own random numbers draw from them. `trust`: how much of the probability goes to what is drawn,
    0 for requests that take the likeliest. Verification accepts token i with the probability that row i gives it, and lands
    at the first that is not accepted: landing (j, token) has the product of the first j and the token's own in row j."""
    import torch

    k = len(draft)
    logprobs = torch.log_softmax(logits.float(), -1)
    values, ids = torch.topk(logprobs, min(likely + 1, logits.shape[1]), -1)
    own = logprobs[torch.arange(k), torch.tensor(draft, dtype=torch.int64)] if k else logprobs[:0, 0]
    found: dict[Landing, float] = {}
    reached = 1.0
    accepts = own.exp().tolist()
    for j, (row_values, row_ids, taken) in enumerate(zip(values.exp().tolist(), ids.tolist(), drawn, strict=True)):
        chances = {token: (1.0 - trust) * value for token, value in zip(row_ids, row_values, strict=True)}
        if taken >= 0:
            chances[taken] = chances.get(taken, 0.0) + trust
        for token, chance in chances.items():
            if j == k or token != draft[j]:
                found[(j, token)] = reached * chance
        if j < k:
            reached *= (1.0 - trust) * accepts[j] + (trust if taken == draft[j] else 0.0)
    best = sorted(found, key=lambda landing: -found[landing])
    return best[:likely]
