"""The kernels that read and write the KV cache: attention, merging, rotation and storing, copying of blocks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hasten.kernels.base import ViewIndex
from hasten.kernels.cpu import native
from hasten.kernels.cpu.checks import IS_BF16, check_places, check_reads, raise_misplaced, say, side_by_side
from hasten.kernels.reference import ReferenceKernels

_WRONG_INDEX = (
    "",
    "the offsets of a ViewIndex must start at 0, not decrease, and end at its numbers of tokens and runs",
    "a run of a ViewIndex has a negative block, slot or count, or a view is too long",
    "a tree has more tokens than its ancestors have bits",
    "the view of a tree span must end with the span's own tokens",
)


_WRONG_FOREST = (
    "",
    "a node of the forest does not fit the views of its index",
    "the tasks of the forest do not make up its nodes",
    "a path of the forest does not make up the view of its row",
)


class PreparedIndex:
    """A `ViewIndex` as the library reads it, checked, with the bounds to hold against the cache."""

    __slots__ = ("address", "block_end", "groups", "keep", "slot_end", "tokens")

    def __init__(self, index: ViewIndex, lib: ctypes.CDLL) -> None:
        positions, runs, run_offsets = index.positions, index.runs, index.run_offsets
        arrays = (index.span_offsets, positions, runs, run_offsets)
        # Makes the OpenMP runtime use torch's thread count in this thread too, which it learns only from a first call.
        torch.get_num_threads()
        spans, groups, tokens = index.spans, index.groups, positions.shape[0]
        if any(a.dtype != torch.int32 or not a.is_contiguous() or not a.is_cpu for a in arrays) or runs.shape[1:] != (4,):
            raise ValueError(f"the integers of a ViewIndex must be contiguous int32 on the CPU; got {say(*arrays)}")
        if run_offsets.shape[0] != spans * groups + 1:
            raise ValueError(f"a ViewIndex of {spans} spans cannot have {run_offsets.shape[0]} run_offsets")
        ancestors, is_tree, words = index.ancestors, index.is_tree, 0
        if ancestors is not None and is_tree is not None:
            words = ancestors.shape[1]
            if ancestors.dtype != torch.int64 or not ancestors.is_contiguous() or ancestors.shape[0] != tokens:
                raise ValueError(f"the ancestors of a ViewIndex must be contiguous int64 [T, W]; got {say(ancestors)}")
        if is_tree is not None:
            if is_tree.element_size() != 1 or is_tree.shape != (spans,) or not is_tree.is_contiguous():
                raise ValueError(f"is_tree of a ViewIndex must be contiguous uint8 [S]; got {say(is_tree)}")
            if ancestors is None and bool(is_tree.any()):
                raise ValueError("a ViewIndex with tree spans needs their ancestors")
        lengths, ends = np.empty(spans * groups, np.int32), np.empty(2, np.int32)
        where = [a.data_ptr() for a in arrays]
        trees = is_tree.data_ptr() if is_tree is not None and words else 0
        wrong = lib.hasten_measure_views(
            native.MEASURE_VIEWS(
                *(where[0], where[2], where[3], trees, spans, groups, tokens, runs.shape[0], words),
                *(lengths.ctypes.data, ends.ctypes.data),
            )
        )
        if wrong:
            raise (IndexError if wrong == 2 else ValueError)(_WRONG_INDEX[wrong])
        forest, packed_forest = index.forest, None
        if forest is not None:
            parts = (forest.nodes, forest.rows, forest.tasks, forest.path_offsets, forest.paths)
            if any(a.dtype != np.int32 or not a.flags.c_contiguous for a in parts) or len(forest.path_offsets) != tokens + 1:
                raise ValueError("the arrays of a Forest must be contiguous int32, with a path for every token of the index")
            contexts = forest.contexts
            if contexts is not None and (
                contexts.dtype != np.uint8 or contexts.shape != (len(forest.nodes),) or not contexts.flags.c_contiguous
            ):
                raise ValueError("the contexts of a Forest must be contiguous uint8, one for every node")
            packed_forest = ctypes.create_string_buffer(
                native.FOREST(
                    *(a.ctypes.data for a in parts),
                    *(len(forest.nodes), len(forest.tasks)),
                    0 if contexts is None else contexts.ctypes.data,
                    *(forest.temperature, forest.scale),
                )
            )
        self.tokens, self.groups = tokens, groups
        self.block_end, self.slot_end = ends.tolist()
        packed = ctypes.create_string_buffer(
            native.INDEX(
                *where,
                lengths.ctypes.data,
                ancestors.data_ptr() if ancestors is not None and words else 0,
                *(trees, spans, groups, words),
                0 if packed_forest is None else ctypes.addressof(packed_forest),
            )
        )
        self.address = ctypes.addressof(packed)
        if forest is not None:
            checked = native.CHECK_FOREST(self.address, len(forest.rows), len(forest.paths))
            if wrong := lib.hasten_check_forest(checked):
                raise ValueError(_WRONG_FOREST[wrong])
        self.keep = (packed, arrays, lengths, ancestors, is_tree, forest, packed_forest)


class CacheKernels(ReferenceKernels):
    """The part of `CpuKernels` that works on the KV cache."""

    _lib: ctypes.CDLL
    _attention: Callable[[bytes], int]
    _merge: Callable[[bytes], int]
    _rope_and_store: Callable[[bytes], int]
    _copy_blocks: Callable[[bytes], int]

    def prepare(self, index: ViewIndex) -> PreparedIndex:
        """A `ViewIndex` checked and packed, once per step."""
        prepared: PreparedIndex | None = index.cache.get("cpu")
        if prepared is None:
            prepared = index.cache["cpu"] = PreparedIndex(index, self._lib)
        return prepared

    def attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        index: ViewIndex,
        scale: float,
        out: Tensor,
        lse: Tensor | None = None,
        window: int | None = None,
        log_weight: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        prepared = self.prepare(index)
        shape, cache_shape, dtype = q.shape, k_cache.shape, q.dtype
        q_stride, out_stride = q.stride(), out.stride()
        is_bf16 = IS_BF16.get(dtype)
        if (
            is_bf16 is None
            or k_cache.dtype is not dtype
            or v_cache.dtype is not dtype
            or out.dtype is not dtype
            or len(shape) != 3
            or len(cache_shape) != 4
            or v_cache.shape != cache_shape
            or out.shape != shape
            or cache_shape[3] != shape[2]
            or shape[2] % 8
            or shape[1] % cache_shape[1]
            or not k_cache.is_contiguous()
            or not v_cache.is_contiguous()
            or not side_by_side(q_stride, shape)
            or not side_by_side(out_stride, shape)
            or not k_cache.is_cpu
        ):
            raise ValueError(
                "attention needs q, out [T, Hq, D] with heads side by side and contiguous caches [blocks, Hk, block_size, D], "
                f"all float32 or all bfloat16, D a multiple of 8 and Hq of Hk; got {say(q, out, k_cache, v_cache)}"
            )
        _, heads, dim = shape
        blocks, kv_heads, block_size, _ = cache_shape
        check_reads(prepared, shape, (blocks, kv_heads, block_size), lse, window, log_weight)
        self._attention(
            native.ATTENTION(
                is_bf16,
                prepared.address,
                q.data_ptr(),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                out.data_ptr(),
                0 if lse is None else lse.data_ptr(),
                0 if log_weight is None else log_weight.data_ptr(),
                q_stride[0],
                out_stride[0],
                heads,
                kv_heads,
                dim,
                block_size,
                window or 0,
                deterministic,
                scale,
                *(0, 0, 0),
            )
        )

    def kv_bytes(self) -> int:
        """Bytes of keys and values that attention has read from caches in this process so far, by this library: each as often
        as it was fetched, once for all rows that were computed with it."""
        return int(self._lib.hasten_kv_bytes(b""))

    def merge(self, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        is_bf16 = IS_BF16.get(outs.dtype)
        if (
            is_bf16 is None
            or outs.dim() != 4
            or lses.dtype is not torch.float32
            or lses.shape != outs.shape[:3]
            or not outs.is_cpu
        ):
            raise ValueError(f"merge needs outs [P, T, H, D] and float32 lses [P, T, H]; got {say(outs, lses)}")
        outs, lses = outs.contiguous(), lses.contiguous()
        parts, tokens, heads, dim = outs.shape
        out, lse = outs.new_empty(tokens, heads, dim), lses.new_empty(tokens, heads)
        self._merge(
            native.MERGE(
                *(is_bf16, outs.data_ptr(), lses.data_ptr(), out.data_ptr(), lse.data_ptr(), parts, tokens * heads, dim)
            )
        )
        return out, lse

    def rope_and_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> None:
        dtype, shape, kv_shape, cache_shape, table = q.dtype, q.shape, k.shape, k_cache.shape, cos_sin.shape
        q_stride, k_stride, v_stride = q.stride(), k.stride(), v.stride()
        is_bf16 = IS_BF16.get(dtype)
        if (
            is_bf16 is None
            or k.dtype is not dtype
            or v.dtype is not dtype
            or k_cache.dtype is not dtype
            or v_cache.dtype is not dtype
            or len(shape) != 3
            or len(cache_shape) != 4
            or kv_shape != (shape[0], cache_shape[1], shape[2])
            or v.shape != kv_shape
            or v_cache.shape != cache_shape
            or cache_shape[3] != shape[2]
            or not k_cache.is_contiguous()
            or not v_cache.is_contiguous()
            or not side_by_side(q_stride, shape)
            or not side_by_side(k_stride, kv_shape)
            or not side_by_side(v_stride, kv_shape)
            or not k_cache.is_cpu
        ):
            raise ValueError(
                "rope_and_store needs q [T, Hq, D], k and v [T, Hk, D] with heads side by side and contiguous caches "
                f"[blocks, Hk, block_size, D], all float32 or all bfloat16; got {say(q, k, v, k_cache, v_cache)}"
            )
        tokens, heads, dim = shape
        blocks, kv_heads, block_size, _ = cache_shape
        check_places(tokens, dim, cos_sin, positions, slots)
        wrong = self._rope_and_store(
            native.ROPE(
                is_bf16,
                q.data_ptr(),
                k.data_ptr(),
                v.data_ptr(),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                cos_sin.data_ptr(),
                positions.data_ptr(),
                slots.data_ptr(),
                q_stride[0],
                k_stride[0],
                v_stride[0],
                tokens,
                heads,
                kv_heads,
                dim,
                table[2],
                table[0],
                blocks,
                block_size,
                *(0, 0, 0),
            )
        )
        raise_misplaced(wrong, cos_sin, positions, slots, blocks * block_size)

    def copy_blocks(self, cache: Tensor, src: Tensor, dst: Tensor) -> None:
        count = src.shape[0]
        if not (
            cache.is_contiguous()
            and cache.is_cpu
            and src.dtype is dst.dtype is torch.int64
            and src.shape == dst.shape == (count,)
            and src.is_contiguous()
            and dst.is_contiguous()
        ):
            raise ValueError(f"copy_blocks needs a contiguous cache and int64 src, dst [n]; got {say(cache, src, dst)}")
        block_bytes = cache.stride(0) * cache.element_size()
        if self._copy_blocks(
            native.COPY_BLOCKS(cache.data_ptr(), src.data_ptr(), dst.data_ptr(), count, cache.shape[0], block_bytes)
        ):
            raise IndexError(f"blocks to copy must lie in [0, {cache.shape[0]})")
