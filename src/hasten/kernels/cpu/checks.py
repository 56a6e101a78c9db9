"""What the kernels' checks of their arguments share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hasten.kernels.cpu.cache import PreparedIndex

IS_BF16 = {torch.float32: 0, torch.bfloat16: 1}


def side_by_side(stride: tuple[int, ...], shape: torch.Size) -> bool:
    """Whether the heads of [T, H, D] follow each other without gaps (or there is nothing to be apart)."""
    return (stride[2] == 1 and (stride[1] == shape[2] or shape[1] == 1)) or not shape[0]


def say(*tensors: Tensor | None) -> str:
    return ", ".join("none" if t is None else f"{list(t.shape)} {str(t.dtype)[6:]} strides {t.stride()}" for t in tensors)


def check_reads(
    prepared: PreparedIndex,
    q: torch.Size,
    cache: tuple[int, int, int],
    lse: Tensor | None,
    window: int | None,
    log_weight: Tensor | None,
) -> None:
    """What attention over any cache asks of its index and of what is optional, for queries of shape `q` [T, Hq, D] and a
    `cache` of (blocks, KV heads, block size). Raises ValueError, IndexError for runs beyond the cache."""
    blocks, kv_heads, block_size = cache
    if q[0] != prepared.tokens or prepared.groups not in (1, kv_heads):
        raise ValueError(
            f"the index is for {prepared.tokens} tokens and {prepared.groups} views a span; "
            f"got {q[0]} tokens and {kv_heads} KV heads"
        )
    if prepared.block_end > blocks or prepared.slot_end > block_size:
        raise IndexError(
            f"runs reach block {prepared.block_end - 1} and slot {prepared.slot_end - 1}; "
            f"the cache has {blocks} blocks of {block_size}"
        )
    if lse is not None and not (lse.shape == q[:2] and lse.dtype is torch.float32 and lse.is_contiguous()):
        raise ValueError(f"lse must be contiguous float32 [T, Hq]; got {say(lse)}")
    if log_weight is not None and not (
        log_weight.shape == (blocks, block_size) and log_weight.dtype is torch.float32 and log_weight.is_contiguous()
    ):
        raise ValueError(f"log_weight must be contiguous float32 [blocks, block_size]; got {say(log_weight)}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


def check_places(tokens: int, dim: int, cos_sin: Tensor, positions: Tensor, slots: Tensor) -> None:
    """What storing `tokens` tokens with heads of `dim` in any cache asks of where they go. Raises ValueError."""
    table = cos_sin.shape
    if (
        positions.dtype is not torch.int32
        or slots.dtype is not torch.int64
        or positions.shape != (tokens,)
        or slots.shape != (tokens,)
        or not (positions.is_contiguous() and slots.is_contiguous())
    ):
        raise ValueError(f"positions must be int32 [T] and slots int64 [T]; got {say(positions, slots)}")
    if (
        cos_sin.dtype is not torch.float32
        or len(table) != 3
        or table[1] != 2
        or 2 * table[2] > dim
        or not cos_sin.is_contiguous()
    ):
        raise ValueError(f"cos_sin must be contiguous float32 [positions, 2, R / 2], R <= {dim}; got {say(cos_sin)}")


def raise_misplaced(wrong: int, cos_sin: Tensor, positions: Tensor, slots: Tensor, end: int) -> None:
    """Raises IndexError for what a store kernel reports: 0 nothing, 1 a position, else a slot beyond `end`."""
    if wrong == 1:
        raise IndexError(f"positions must lie in [0, {len(cos_sin)}); found {positions.min()} .. {positions.max()}")
    if wrong:
        raise IndexError(f"slots must lie in [-1, {end}); found {slots.min()} .. {slots.max()}")
