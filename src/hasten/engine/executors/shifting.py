"""Moving KV to other positions: blocks are copied and their keys turned.

A key that stands at position p was stored as R(p) k, where R(p) multiplies every pair of dimensions, as complex numbers, by the
entry z(p) of the site's table (an attention factor in it included). At position q it is R(q) k = R(q) R(p)^-1 R(p) k, so every
pair of the stored key is multiplied by z(q) conj(z(p)) / |z(p)|^2. This is taken from the table itself, not from the angle q -
p: whatever rounding and scaling is in the table, what comes out is the key that would have been stored at q, but for one
product more in float32 and, in bfloat16, one rounding more. A key that is turned twice has been rounded twice. Values have no
position.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from hasten.engine.executors.step import Site
from hasten.engine.kv.base import Shift

AT_ONCE = 64
"""Blocks turned together: what bounds the memory for them."""


def shift_blocks(sites: Seq[Site], shifts: Seq[Shift]) -> None:
    """Carry out `shifts` in the dense stores of all `sites`. Slots without an entry may hold anything, after as before."""
    for begin in range(0, len(shifts), AT_ONCE):
        some = torch.tensor(shifts[begin : begin + AT_ONCE], device=sites[0].k.device)
        source, target, came_from, goes_to = some.unbind(1)
        turns: dict[int, Tensor] = {}  # sites of one kind share a table
        for site in sites:
            table = site.cos_sin
            if id(table) not in turns:
                turns[id(table)] = turn(table, came_from, goes_to, site.block_size)
            site.v[target] = site.v[source]
            site.k[target] = turned(site.k[source], turns[id(table)])


def turn(table: Tensor, came_from: Tensor, goes_to: Tensor, slots: int) -> Tensor:
    """What to multiply keys by: float32 [n, slots, 2, R / 2], real and imaginary parts, for blocks whose first slots stand at
    `came_from` and shall stand at `goes_to`, int64 [n]. `table` float32 [positions, 2, R / 2]."""
    ahead = torch.arange(slots, device=table.device)
    # Slots behind the last entry may lie beyond the table.
    old, new = (table[(first[:, None] + ahead).clamp(max=len(table) - 1)].double() for first in (came_from, goes_to))
    size = old.square().sum(2)
    real = (new * old).sum(2) / size
    imaginary = (new[:, :, 1] * old[:, :, 0] - new[:, :, 0] * old[:, :, 1]) / size
    return torch.stack([real, imaginary], 2).float()


def turned(keys: Tensor, by: Tensor) -> Tensor:
    """Keys [n, kv heads, slots, D], their first R dimensions multiplied by `by` [n, slots, 2, R / 2] in float32."""
    half = by.shape[-1]
    real, imaginary = by[:, None, :, 0], by[:, None, :, 1]
    a, b, rest = keys[..., :half].float(), keys[..., half : 2 * half].float(), keys[..., 2 * half :]
    return torch.cat([(a * real - b * imaginary).to(keys.dtype), (b * real + a * imaginary).to(keys.dtype), rest], -1)
