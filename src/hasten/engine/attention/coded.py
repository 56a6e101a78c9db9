"""Attention over keys and values of few bits: what the policies `kv-int8` and `kv-int4` share.

A block of the pool holds codes and their scales (`kernels/coded.py`). New keys, rotated, and values are rounded as they are
stored and never again; every query, those of the prompt too, reads the rounded ones. So a token's KV depends on the tokens
before it alone, however the prompt was cut and wherever its blocks went since: blocks are shared, forked, cut and moved as
dense ones are.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from hasten.engine.attention.base import SUPPORTS, StatelessAttention
from hasten.engine.executors.step import Site, Step
from hasten.engine.kv.planes import Plane
from hasten.engine.technique import ConfigError
from hasten.kernels.coded import CodedCache, read, shapes, write


class CodedForm:
    """Codes of `bits` and their scales: the planes of `CodedCache`, in its order."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"codes-{bits}"

    def planes(self, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> tuple[Plane, ...]:
        try:
            wanted = shapes(kv_heads, head_dim, block_size, self.bits)
        except ValueError as error:
            raise ConfigError(f"kv-int{self.bits}: {error}") from None
        return tuple(
            Plane(name, shape, torch.uint8 if name.endswith("codes") else torch.int16) for name, shape in wanted.items()
        )

    def read(self, planes: Seq[Tensor], slots: Tensor, block_size: int) -> tuple[Tensor, ...]:
        return read(CodedCache.of(planes, self.bits), slots)

    def write(self, planes: Seq[Tensor], slots: Tensor, block_size: int, held: Seq[Tensor]) -> None:
        write(CodedCache.of(planes, self.bits), slots, tuple(held))


class CodedAttention(StatelessAttention):
    supports = SUPPORTS - {"link"}  # turning codes would round them once more
    native = True

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        kernels, cache = step.kernels, CodedCache.of(site.planes, self._bits)
        kernels.rope_and_encode(q, k, v, site.cos_sin, step.index.positions, step.slots, cache)
        out = step.empty(*q.shape)
        kernels.coded_attention(q, cache, step.index, site.scale, out, window=site.window, deterministic=step.deterministic)
        return out.view(q.shape[0], -1)
