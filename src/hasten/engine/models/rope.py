"""Tables of rotary position embedding (Su et al., 2021) and its length extensions.

`linear` divides all frequencies by the factor (position interpolation; Chen et al., 2023). `yarn` interpolates the slow
dimensions, keeps the fast ones and scales the rotation by an attention factor (Peng et al., 2023). `llama3`
interpolates by wavelength (the Llama 3.1 release). `dynamic` raises the base as the sequence outgrows the trained
length (NTK-aware scaling). All are computed in float32 in the order in which transformers computes them.

What `dynamic` means here: transformers takes the frequencies of the *current* sequence length, recomputed at every
forward pass, while keys in its cache keep the rotation of the pass that stored them; the result thus depends on how
the prompt was cut. Here position p is always rotated with the frequencies of a sequence that ends at p. Within the
trained length, and for tokens generated beyond it one at a time, that is exactly what transformers does; a prompt that
is itself longer gives what transformers gives when it is fed token by token, not what it gives in a single pass. So a
request's output depends on the request alone, and prefixes can be shared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.engine.models.config import Rope


def cos_sin(rope: Rope, dim: int, length: int) -> Tensor:
    """Cosines then sines for positions 0 .. length - 1, any attention factor folded in: float32 [length, 2, dim /
    2]."""
    positions = torch.arange(length, dtype=torch.float32)[:, None]
    angles = positions * _frequencies(rope, dim, length)
    table = torch.empty(length, 2, dim // 2)
    torch.cos(angles, out=table[:, 0])
    torch.sin(angles, out=table[:, 1])
    scale = _attention_scale(rope)
    return table if scale == 1.0 else table.mul_(scale)


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _frequencies(rope: Rope, dim: int, length: int) -> Tensor:
    """Radians a position by dimension: float32 [dim / 2], or [length, dim / 2] where they depend on the position."""
    if rope.kind == "dynamic":
        return _dynamic(rope, dim, length)
    plain = 1.0 / (rope.theta ** _exponents(dim))
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, dim)
    return plain


def _dynamic(rope: Rope, dim: int, length: int) -> Tensor:
    ends_at = torch.arange(1, length + 1).clamp(min=rope.original)
    growth = (rope.factor * ends_at / rope.original) - (rope.factor - 1)
    base = rope.theta * growth ** (dim / (dim - 2))
    return 1.0 / (base[:, None] ** _exponents(dim))


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Short wavelengths stay, long ones are divided by the factor, and between the two limits the shares change
    linearly."""
    turns = rope.original / (2 * math.pi / plain)  # how often a dimension turns within the trained length
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    share = (turns - low) / (high - low)
    between = (1 - share) * plain / rope.factor + share * plain
    return torch.where(turns < low, plain / rope.factor, torch.where(turns > high, plain, between))


def _yarn(rope: Rope, dim: int) -> Tensor:
    def dimension_turning(times: float) -> float:
        return dim * math.log(rope.original / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    powers = rope.theta ** _exponents(dim)
    return (1.0 / (rope.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def _attention_scale(rope: Rope) -> float:
    """What cosines and sines are multiplied by (queries and keys both carry it, so scores carry its square)."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
