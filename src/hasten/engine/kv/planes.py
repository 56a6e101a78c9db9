"""Planes: how a site's keys and values lie in memory.

A form says which tensors a site's store consists of. Each of these planes is contiguous with the block as its first axis, so
the bytes of a block are its rows of all planes one after another, site by site. Whoever copies, counts, sends or writes blocks
needs to know no more than that: `Memory.planes` and `Memory.host_planes` list them. What the bytes mean is known to the form
and to the kernels of the attention policy that chose it (`Technique.form`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plane:
    """`shape`: of one block's part; the tensor is [blocks, *shape] of `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of one block."""
        return prod(self.shape) * self.dtype.itemsize


class Form(Protocol):
    """`name` says all that the meaning of the bytes depends on, beside the shapes: blocks of one name and equal planes may be
    exchanged."""

    @property
    def name(self) -> str: ...

    def planes(self, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> tuple[Plane, ...]:
        """The planes of a site in a model of this run dtype. Raises ConfigError for shapes that the form cannot hold."""
        ...

    def read(self, planes: Seq[Tensor], slots: Tensor, block_size: int) -> tuple[Tensor, ...]:
        """What slots int64 [n] (block * block_size + offset) hold: tensors [n, ...], in memory of their own."""
        ...

    def write(self, planes: Seq[Tensor], slots: Tensor, block_size: int, held: Seq[Tensor]) -> None:
        """Put what `read` gave into other slots, distinct."""
        ...


class Dense:
    """Keys (rotated) and values as they are: [blocks, kv heads, block size, head_dim] each, in the run dtype."""

    name = "dense"

    def planes(self, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> tuple[Plane, ...]:
        shape = (kv_heads, block_size, head_dim)
        return Plane("k", shape, dtype), Plane("v", shape, dtype)

    def read(self, planes: Seq[Tensor], slots: Tensor, block_size: int) -> tuple[Tensor, ...]:
        return tuple(plane[slots // block_size, :, slots % block_size] for plane in planes)

    def write(self, planes: Seq[Tensor], slots: Tensor, block_size: int, held: Seq[Tensor]) -> None:
        for plane, rows in zip(planes, held, strict=True):
            plane[slots // block_size, :, slots % block_size] = rows


DENSE = Dense()
