"""The kernels over keys and values of 8 and 4 bits: the calls of `CacheKernels`, with codes for numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from hasten.kernels.base import ViewIndex
from hasten.kernels.coded import CodedCache, shapes
from hasten.kernels.cpu import native
from hasten.kernels.cpu.cache import PreparedIndex
from hasten.kernels.cpu.checks import IS_BF16, say, side_by_side


class CodedKernels:
    """The part of `CpuKernels` that works on a `CodedCache`."""

    _attention: Callable[[bytes], int]
    _rope_and_store: Callable[[bytes], int]
    prepare: Callable[[ViewIndex], PreparedIndex]
    _lib: ctypes.CDLL

    def coded_attention(
        self,
        q: Tensor,
        cache: CodedCache,
        index: ViewIndex,
        scale: float,
        out: Tensor,
        lse: Tensor | None = None,
        window: int | None = None,
        log_weight: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        prepared = self.prepare(index)
        shape, q_stride, out_stride = q.shape, q.stride(), out.stride()
        is_bf16 = IS_BF16.get(q.dtype)
        if (
            is_bf16 is None
            or out.dtype is not q.dtype
            or len(shape) != 3
            or out.shape != shape
            or not side_by_side(q_stride, shape)
            or not side_by_side(out_stride, shape)
            or not q.is_cpu
        ):
            raise ValueError(
                "coded_attention needs q, out [T, Hq, D] with heads side by side, both float32 or both bfloat16; "
                f"got {say(q, out)}"
            )
        tokens, heads, dim = shape
        blocks, kv_heads, block_size = _sizes(cache, dim)
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
        if tokens != prepared.tokens or prepared.groups not in (1, kv_heads):
            raise ValueError(
                f"the index is for {prepared.tokens} tokens and {prepared.groups} views a span; "
                f"got {tokens} tokens and {kv_heads} KV heads"
            )
        if prepared.block_end > blocks or prepared.slot_end > block_size:
            raise IndexError(
                f"runs reach block {prepared.block_end - 1} and slot {prepared.slot_end - 1}; "
                f"the cache has {blocks} blocks of {block_size}"
            )
        if lse is not None and not (lse.shape == shape[:2] and lse.dtype is torch.float32 and lse.is_contiguous()):
            raise ValueError(f"lse must be contiguous float32 [T, Hq]; got {say(lse)}")
        if log_weight is not None and not (
            log_weight.shape == (blocks, block_size) and log_weight.dtype is torch.float32 and log_weight.is_contiguous()
        ):
            raise ValueError(f"log_weight must be contiguous float32 [blocks, block_size]; got {say(log_weight)}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._attention(
            native.ATTENTION(
                *(is_bf16, prepared.address, q.data_ptr(), cache.k_codes.data_ptr(), cache.v_codes.data_ptr()),
                *(out.data_ptr(), 0 if lse is None else lse.data_ptr(), 0 if log_weight is None else log_weight.data_ptr()),
                *(q_stride[0], out_stride[0], heads, kv_heads, dim, block_size, window or 0, deterministic, scale),
                *(cache.bits, cache.k_params.data_ptr(), cache.v_params.data_ptr()),
            )
        )

    def rope_and_encode(
        self, q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, cache: CodedCache
    ) -> None:
        shape, kv_shape, table = q.shape, k.shape, cos_sin.shape
        q_stride, k_stride, v_stride = q.stride(), k.stride(), v.stride()
        is_bf16 = IS_BF16.get(q.dtype)
        if (
            is_bf16 is None
            or k.dtype is not q.dtype
            or v.dtype is not q.dtype
            or len(shape) != 3
            or kv_shape != (shape[0], cache.kv_heads, shape[2])
            or v.shape != kv_shape
            or not side_by_side(q_stride, shape)
            or not side_by_side(k_stride, kv_shape)
            or not side_by_side(v_stride, kv_shape)
            or not q.is_cpu
        ):
            raise ValueError(
                "rope_and_encode needs q [T, Hq, D], k and v [T, Hk, D] with heads side by side, all float32 or all bfloat16; "
                f"got {say(q, k, v)}"
            )
        tokens, heads, dim = shape
        blocks, kv_heads, block_size = _sizes(cache, dim)
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
        wrong = self._rope_and_store(
            native.ROPE(
                *(is_bf16, q.data_ptr(), k.data_ptr(), v.data_ptr(), cache.k_codes.data_ptr(), cache.v_codes.data_ptr()),
                *(cos_sin.data_ptr(), positions.data_ptr(), slots.data_ptr(), q_stride[0], k_stride[0], v_stride[0]),
                *(tokens, heads, kv_heads, dim, table[2], table[0], blocks, block_size),
                *(cache.bits, cache.k_params.data_ptr(), cache.v_params.data_ptr()),
            )
        )
        if wrong == 1:
            raise IndexError(f"positions must lie in [0, {table[0]}); found {positions.min()} .. {positions.max()}")
        if wrong:
            raise IndexError(f"slots must lie in [-1, {blocks * block_size}); found {slots.min()} .. {slots.max()}")


def _sizes(cache: CodedCache, dim: int) -> tuple[int, int, int]:
    """Blocks, KV heads and block size of a cache for heads of `dim`. Raises ValueError where a plane is not as it should be."""
    blocks, kv_heads, block_size = cache.blocks, cache.kv_heads, cache.block_size
    wanted = shapes(kv_heads, dim, block_size, cache.bits).values()
    kinds = (torch.uint8, torch.int16, torch.uint8, torch.int16)
    for plane, shape, kind in zip(cache.planes, wanted, kinds, strict=True):
        if plane.shape != (blocks, *shape) or plane.dtype is not kind or not plane.is_contiguous() or not plane.is_cpu:
            raise ValueError(f"a plane of codes for heads of {dim} must be {[blocks, *shape]} {kind}; got {say(plane)}")
    return blocks, kv_heads, block_size
