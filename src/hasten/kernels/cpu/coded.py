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
from hasten.kernels.cpu.checks import IS_BF16, check_places, check_reads, raise_misplaced, say, side_by_side


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
        _, heads, dim = shape
        blocks, kv_heads, block_size = _sizes(cache, dim)
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
        check_reads(prepared, shape, (blocks, kv_heads, block_size), lse, window, log_weight)
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
        check_places(tokens, dim, cos_sin, positions, slots)
        wrong = self._rope_and_store(
            native.ROPE(
                *(is_bf16, q.data_ptr(), k.data_ptr(), v.data_ptr(), cache.k_codes.data_ptr(), cache.v_codes.data_ptr()),
                *(cos_sin.data_ptr(), positions.data_ptr(), slots.data_ptr(), q_stride[0], k_stride[0], v_stride[0]),
                *(tokens, heads, kv_heads, dim, table[2], table[0], blocks, block_size),
                *(cache.bits, cache.k_params.data_ptr(), cache.v_params.data_ptr()),
            )
        )
        raise_misplaced(wrong, cos_sin, positions, slots, blocks * block_size)


def _sizes(cache: CodedCache, dim: int) -> tuple[int, int, int]:
    """Blocks, KV heads and block size of a cache for heads of `dim`. Raises ValueError where a plane is not as it should be."""
    blocks, kv_heads, block_size = cache.blocks, cache.kv_heads, cache.block_size
    wanted = shapes(kv_heads, dim, block_size, cache.bits).values()
    kinds = (torch.uint8, torch.int16, torch.uint8, torch.int16)
    for plane, shape, kind in zip(cache.planes, wanted, kinds, strict=True):
        if plane.shape != (blocks, *shape) or plane.dtype is not kind or not plane.is_contiguous() or not plane.is_cpu:
            raise ValueError(f"a plane of codes for heads of {dim} must be {[blocks, *shape]} {kind}; got {say(plane)}")
    return blocks, kv_heads, block_size
