"""Keys and values of 8 and 4 bits: what the codes mean, how they lie in the cache, and the kernels over them in plain torch.

A value is scale * code + low, its code unsigned. Of 8 bits a token's head has one scale and one low, both bfloat16: low is the
smallest element, the scale 257/256 of the rest of the range by 255, lest its rounding cut the range's end off. Of 4 bits each
group of 32 dimensions has a word of 16 bits: a scale of 12 (exponent of 8, fraction of 4, rounded to nearest), and in the 4
lowest the code that means zero, so that low = -scale * that code; the range is widened to hold 0. A byte a code and 4 bytes a
head, or half a byte a code and 2 bytes a group: with a head_dim of 128 a bfloat16 cache shrinks to 0.516 and 0.281 of its
size.

Slots lie in *strips* of 16, in the order in which products of bytes want them. Codes of keys are [words, 16 slots, 4 bytes],
codes of values [words, head_dim, 4 bytes], a word four dimensions of a key or four slots of a value; of 4 bits word 2 i has
the low halves of the bytes of place i and word 2 i + 1 the high ones. Scales are [params, 16 slots].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.kernels.base import HostIndex, ViewIndex

STRIP = 16
GROUP = 32
LARGEST_HEAD = 512
"""Dimensions that the native kernels have room for."""
_LEAST = 2.0**-100
"""Smaller scales are taken for 0, lest their inverse overflow."""


class CodedCache(NamedTuple):
    """The planes of one site, B the blocks, n = block_size / 16 strips, P params (2 of 8 bits, head_dim / 32 of 4).

    k_codes uint8 [B, Hk, n, D * bits / 32, 16, 4]; v_codes uint8 [B, Hk, n, bits / 2, D, 4]; k_params, v_params int16
    [B, Hk, n, P, 16]."""

    k_codes: Tensor
    k_params: Tensor
    v_codes: Tensor
    v_params: Tensor
    bits: int

    @classmethod
    def of(cls, planes: Sequence[Tensor], bits: int) -> CodedCache:
        k_codes, k_params, v_codes, v_params = planes
        return cls(k_codes, k_params, v_codes, v_params, bits)

    @property
    def planes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k_codes, self.k_params, self.v_codes, self.v_params

    def some(self, blocks: Tensor) -> CodedCache:
        """A copy of these blocks, int64 [n]."""
        return CodedCache.of([plane[blocks] for plane in self.planes], self.bits)

    @property
    def blocks(self) -> int:
        return self.k_codes.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.k_codes.shape[1]

    @property
    def block_size(self) -> int:
        return self.k_codes.shape[2] * STRIP

    @property
    def head_dim(self) -> int:
        return self.v_codes.shape[4]


def shapes(kv_heads: int, head_dim: int, block_size: int, bits: int) -> dict[str, tuple[int, ...]]:
    """The shape of a block in each plane, in the order of `CodedCache`. Raises ValueError for what it cannot hold."""
    if bits not in (4, 8):
        raise ValueError(f"codes have 4 or 8 bits, not {bits}")
    if head_dim % GROUP or head_dim > LARGEST_HEAD:
        raise ValueError(f"codes need a head_dim that is a multiple of {GROUP}, at most {LARGEST_HEAD}, not {head_dim}")
    if block_size % STRIP:
        raise ValueError(f"codes need a kv.block_size that is a multiple of {STRIP}, got {block_size}")
    strips = (kv_heads, block_size // STRIP)
    params = (*strips, 2 if bits == 8 else head_dim // GROUP, STRIP)
    return {
        "k_codes": (*strips, head_dim * bits // 32, STRIP, 4),
        "k_params": params,
        "v_codes": (*strips, bits // 2, head_dim, 4),
        "v_params": params,
    }


# What codes mean


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes uint8 [..., D], params int16 [..., P]."""
    x = x.float()
    if bits == 8:
        low = x.amin(-1, keepdim=True).to(torch.bfloat16)
        width = (x.amax(-1, keepdim=True) - low.float()).clamp(min=0)
        scale = (width * (257 / 256 / 255)).to(torch.bfloat16)
        scale = torch.where(scale < _LEAST, 0.0, scale)
        inverse = torch.where(scale > 0, 1.0 / scale.float(), 0.0)
        codes = ((x - low.float()) * inverse).clamp(0, 255).round()
        return codes.to(torch.uint8), torch.cat([scale, low], -1).view(torch.int16)
    groups = x.unflatten(-1, (-1, GROUP))
    smallest, largest = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    kept = (((largest - smallest) / 15.0).view(torch.int32) + (1 << 18)) >> 19 << 19
    kept = torch.where(kept.view(torch.float32) < _LEAST, 0, kept)
    inverse = torch.where(kept > 0, 1.0 / kept.view(torch.float32), 0.0)
    zero = (-smallest * inverse).round().clamp(0, 15)
    codes = ((groups * inverse).round() + zero).clamp(0, 15)
    params = (kept >> 15 | zero.to(torch.int32)).squeeze(-1)
    return codes.to(torch.uint8).flatten(-2), torch.where(params > 0x7FFF, params - 0x10000, params).to(torch.int16)


def decode(codes: Tensor, params: Tensor, bits: int) -> Tensor:
    """codes uint8 [..., D], params int16 [..., P] -> float32 [..., D]."""
    if bits == 8:
        scale, low = params.view(torch.bfloat16).float().unsqueeze(-1).unbind(-2)
        return codes.float() * scale + low
    words = params.to(torch.int32) & 0xFFFF
    scale, zero = ((words & 0xFFF0) << 15).view(torch.float32), words & 15
    return ((codes.unflatten(-1, (-1, GROUP)).float() - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)


# How they lie


def unpack(cache: CodedCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes uint8 [B, Hk, slots, D] and params int16 [B, Hk, slots, P] of keys, then of values, in memory of their own."""
    keys, values = _bytes(cache.k_codes, cache.bits), _bytes(cache.v_codes, cache.bits)
    return (
        keys.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3),  # [B, Hk, n, words, slot, byte]
        cache.k_params.transpose(-1, -2).flatten(2, 3),
        values.permute(0, 1, 2, 3, 5, 4).flatten(2, 4),  # [B, Hk, n, words, dimension, byte]
        cache.v_params.transpose(-1, -2).flatten(2, 3),
    )


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """[..., places, X, 4] -> [..., words, X, 4], a byte a code."""
    if bits == 8:
        return codes
    return torch.stack([codes & 15, codes >> 4], 4).flatten(3, 4)


def _halves(codes: Tensor, bits: int) -> Tensor:
    """The other way round."""
    if bits == 8:
        return codes
    low, high = codes.unflatten(3, (-1, 2)).unbind(4)
    return low | high << 4


def read(cache: CodedCache, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What slots int64 [n] hold: codes uint8 [n, Hk, D] and params int16 [n, Hk, P], of keys, then of values."""
    used, where = torch.unique(slots // cache.block_size, return_inverse=True)
    at = slots % cache.block_size
    keys, key_params, values, value_params = unpack(cache.some(used))
    return keys[where, :, at], key_params[where, :, at], values[where, :, at], value_params[where, :, at]


def write(cache: CodedCache, slots: Tensor, held: tuple[Tensor, ...]) -> None:
    """Put what `read` gave into slots int64 [n], distinct."""
    used, where = torch.unique(slots // cache.block_size, return_inverse=True)
    parts = unpack(cache.some(used))
    for part, rows in zip(parts, held, strict=True):
        part[where, :, slots % cache.block_size] = rows
    keys, key_params, values, value_params = (part.unflatten(2, (-1, STRIP)) for part in parts)  # [B, Hk, n, 16, ...]
    cache.k_codes[used] = _halves(keys.unflatten(-1, (-1, 4)).transpose(3, 4), cache.bits)
    cache.v_codes[used] = _halves(values.unflatten(3, (-1, 4)).transpose(4, 5), cache.bits)
    cache.k_params[used], cache.v_params[used] = key_params.transpose(-1, -2), value_params.transpose(-1, -2)


def dense(cache: CodedCache, index: ViewIndex) -> tuple[Tensor, Tensor, ViewIndex, Tensor]:
    """Keys and values float32 [used, Hk, slots, D] of the blocks an index names, the index over those, and their numbers."""
    used, where = torch.unique(index.runs[:, 0].long(), return_inverse=True)
    keys, key_params, values, value_params = unpack(cache.some(used))
    runs = torch.cat([where[:, None].to(torch.int32), index.runs[:, 1:]], 1)
    host = index.on_host()
    here = HostIndex(host.span_offsets, host.positions, runs.cpu().numpy(), host.run_offsets, host.is_tree)
    over = replace(index, runs=runs, host=here, forest=None, cache={})
    return decode(keys, key_params, cache.bits), decode(values, value_params, cache.bits), over, used
