"""The kernels in C++ for x86 processors (and any other, plainly): `CpuKernels` over one native library.

Tensors of a call must lie on the CPU. The summation order of every kernel is fixed by the row alone, so `deterministic` changes
nothing here: decoded tokens, chunks and trees always go through the same arithmetic.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from hasten.kernels.base import Activation, ViewIndex
from hasten.kernels.cpu import native
from hasten.kernels.reference import ReferenceKernels

_IS_BF16 = {torch.float32: 0, torch.bfloat16: 1}
_KINDS = {"silu": 0, "gelu_tanh": 1}


class _Prepared:
    """A `ViewIndex` as the library reads it, with what it must outlive and the bounds to hold against the cache."""

    __slots__ = ("block_end", "keep", "pointer", "slot_end", "spans", "tokens", "views")

    def __init__(self, index: ViewIndex, lib: ctypes.CDLL) -> None:
        host = index.on_host()
        views = host.run_offsets.shape[0] - 1
        spans, tokens = index.spans, int(host.span_offsets[-1])
        if views not in (spans * index.groups, 0) or host.span_offsets[0] != 0 or host.run_offsets[-1] > host.runs.shape[0]:
            raise ValueError("a ViewIndex needs run_offsets for 1 or Hk views a span, and offsets that start at 0")
        if host.positions.shape[0] < tokens:
            raise ValueError(f"a ViewIndex of {tokens} tokens has {host.positions.shape[0]} positions")
        if (np.diff(host.span_offsets) < 0).any() or (np.diff(host.run_offsets) < 0).any():
            raise ValueError("the offsets of a ViewIndex must not decrease")
        lengths, ends = np.empty(views, np.int32), np.empty(2, np.int32)
        if lib.hasten_measure_views(
            host.runs.ctypes.data, host.run_offsets.ctypes.data, views, lengths.ctypes.data, ends.ctypes.data
        ):
            raise IndexError("a run of a ViewIndex has a negative block, slot or count")
        ancestors, words = index.ancestors, 0
        if host.is_tree is not None and host.is_tree.any():
            words = self._check_trees(index, lengths)
        self.views, self.spans, self.tokens = views, spans, tokens
        self.block_end, self.slot_end = int(ends[0]), int(ends[1])
        data = native.Index(
            host.span_offsets.ctypes.data,
            host.positions.ctypes.data,
            host.runs.ctypes.data,
            host.run_offsets.ctypes.data,
            lengths.ctypes.data,
            ancestors.data_ptr() if ancestors is not None and words else None,
            host.is_tree.ctypes.data if host.is_tree is not None and words else None,
            spans,
            index.groups,
            words,
        )
        self.pointer = ctypes.pointer(data)
        self.keep = (host, lengths, ancestors, data)

    @staticmethod
    def _check_trees(index: ViewIndex, lengths: np.ndarray) -> int:
        host, ancestors = index.on_host(), index.ancestors
        assert host.is_tree is not None
        if ancestors is None or not ancestors.is_contiguous() or ancestors.shape[0] < host.span_offsets[-1]:
            raise ValueError("a ViewIndex with tree spans needs contiguous ancestors, a row a token")
        sizes = np.diff(host.span_offsets) * (host.is_tree != 0)
        if sizes.max() > 64 * ancestors.shape[1]:
            raise ValueError(f"a tree of {sizes.max()} tokens does not fit in {ancestors.shape[1]} words of ancestors")
        if (lengths.reshape(index.spans, index.groups).min(1) < sizes).any():
            raise ValueError("the view of a tree span must end with the span's own tokens")
        return ancestors.shape[1]


class CpuKernels(ReferenceKernels):
    """`Kernels` on one native library ("avx512bf16", "avx512", "avx2", "generic"); what it lacks is the reference's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lib = native.library(name)
        self._attention = self._lib.hasten_attention
        self._linear = self._lib.hasten_linear

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
        prepared = index.cache.get("cpu")
        if prepared is None:
            prepared = index.cache["cpu"] = _Prepared(index, self._lib)
        tokens, heads, dim = q.shape
        blocks, kv_heads, block_size, _ = shape = k_cache.shape
        if (
            q.dtype not in _IS_BF16
            or k_cache.dtype != q.dtype
            or v_cache.dtype != q.dtype
            or out.dtype != q.dtype
            or v_cache.shape != shape
            or out.shape != q.shape
            or shape[3] != dim
            or dim % 8
            or heads % kv_heads
            or not k_cache.is_contiguous()
            or not v_cache.is_contiguous()
            or not _rows_of_heads(q, dim)
            or not _rows_of_heads(out, dim)
            or not k_cache.is_cpu
        ):
            raise ValueError(
                "attention needs q, out [T, Hq, D] with heads side by side and contiguous caches [blocks, Hk, block_size, D], "
                f"all float32 or all bfloat16, D a multiple of 8 and Hq of Hk; got {_say(q, out, k_cache, v_cache)}"
            )
        if tokens != prepared.tokens or prepared.views not in (prepared.spans, prepared.spans * kv_heads):
            raise ValueError(
                f"the index is for {prepared.tokens} tokens and {prepared.views} views in {prepared.spans} spans; "
                f"got {tokens} tokens and {kv_heads} KV heads"
            )
        if prepared.block_end > blocks or prepared.slot_end > block_size:
            raise IndexError(
                f"runs reach block {prepared.block_end - 1} and slot {prepared.slot_end - 1}; "
                f"the cache has {blocks} blocks of {block_size}"
            )
        if lse is not None and not (lse.shape == q.shape[:2] and lse.dtype == torch.float32 and lse.is_contiguous()):
            raise ValueError(f"lse must be contiguous float32 [T, Hq]; got {_say(lse)}")
        if log_weight is not None and not (
            log_weight.shape == (blocks, block_size) and log_weight.dtype == torch.float32 and log_weight.is_contiguous()
        ):
            raise ValueError(f"log_weight must be contiguous float32 [blocks, block_size]; got {_say(log_weight)}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._attention(
            _IS_BF16[q.dtype],
            prepared.pointer,
            q.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            out.data_ptr(),
            None if lse is None else lse.data_ptr(),
            None if log_weight is None else log_weight.data_ptr(),
            q.stride(0),
            out.stride(0),
            heads,
            kv_heads,
            dim,
            block_size,
            scale,
            0 if window is None else min(window, 2**31 - 1),
        )

    def merge(self, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        parts, tokens, heads, dim = outs.shape
        if outs.dtype not in _IS_BF16 or lses.dtype != torch.float32 or lses.shape != outs.shape[:3]:
            raise ValueError(f"merge needs outs [P, T, H, D] and float32 lses [P, T, H]; got {_say(outs, lses)}")
        outs, lses = outs.contiguous(), lses.contiguous()
        out, lse = torch.empty_like(outs[0]), torch.empty_like(lses[0])
        self._lib.hasten_merge(
            *(_IS_BF16[outs.dtype], outs.data_ptr(), lses.data_ptr(), out.data_ptr(), lse.data_ptr()),
            *(parts, tokens * heads, dim),
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
        tokens, heads, dim = q.shape
        blocks, kv_heads, block_size, _ = shape = k_cache.shape
        if (
            q.dtype not in _IS_BF16
            or not (k.dtype == v.dtype == k_cache.dtype == v_cache.dtype == q.dtype)
            or not (k.shape == v.shape == (tokens, kv_heads, dim))
            or v_cache.shape != shape
            or shape[3] != dim
            or not k_cache.is_contiguous()
            or not v_cache.is_contiguous()
            or not (_rows_of_heads(q, dim) and _rows_of_heads(k, dim) and _rows_of_heads(v, dim))
            or not k_cache.is_cpu
        ):
            raise ValueError(
                "rope_and_store needs q [T, Hq, D], k and v [T, Hk, D] with heads side by side and contiguous caches "
                f"[blocks, Hk, block_size, D], all float32 or all bfloat16; got {_say(q, k, v, k_cache, v_cache)}"
            )
        if (
            positions.dtype != torch.int32
            or slots.dtype != torch.int64
            or positions.shape != (tokens,)
            or slots.shape != (tokens,)
            or not (positions.is_contiguous() and slots.is_contiguous())
        ):
            raise ValueError(f"positions must be int32 [T] and slots int64 [T]; got {_say(positions, slots)}")
        if (
            cos_sin.dtype != torch.float32
            or cos_sin.dim() != 3
            or cos_sin.shape[1] != 2
            or 2 * cos_sin.shape[2] > dim
            or not cos_sin.is_contiguous()
        ):
            raise ValueError(f"cos_sin must be contiguous float32 [positions, 2, R / 2], R <= {dim}; got {_say(cos_sin)}")
        given = native.Rope(
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), cos_sin.data_ptr()),
            *(positions.data_ptr(), slots.data_ptr(), q.stride(0), k.stride(0), v.stride(0), tokens, heads, kv_heads),
            *(dim, cos_sin.shape[2], cos_sin.shape[0], blocks, block_size),
        )
        wrong = self._lib.hasten_rope_and_store(_IS_BF16[q.dtype], given)
        if wrong == 1:
            raise IndexError(f"positions must lie in [0, {cos_sin.shape[0]}); found {positions.min()} .. {positions.max()}")
        if wrong:
            raise IndexError(f"slots must lie in [-1, {blocks * block_size}); found {slots.min()} .. {slots.max()}")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        x_stride, out_stride = x.stride(), out.stride()
        if (
            x.dtype not in _IS_BF16
            or not (x.dtype == weight.dtype == out.dtype)
            or x.shape != out.shape
            or weight.shape != x.shape[-1:]
            or x_stride[-1] != 1
            or out_stride[-1] != 1
            or weight.stride(0) != 1
            or not x.is_cpu
        ):
            raise ValueError(
                f"rms_norm needs x, out [N, M] or [T, H, M] and weight [M] of one dtype; got {_say(x, out, weight)}"
            )
        inner, x_inner, out_inner = (x.shape[1], x_stride[1], out_stride[1]) if x.dim() == 3 else (1, 0, 0)
        self._lib.hasten_rms_norm(
            *(_IS_BF16[x.dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.shape[0], inner, x.shape[-1]),
            *(x_stride[0], x_inner, out_stride[0], out_inner, eps),
        )

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        if (
            x.dtype not in _IS_BF16
            or not (x.dtype == delta.dtype == weight.dtype == out.dtype)
            or not (x.shape == delta.shape == out.shape)
            or x.dim() != 2
            or weight.shape != x.shape[-1:]
            or not (x.stride(1) == delta.stride(1) == out.stride(1) == weight.stride(0) == 1)
            or not x.is_cpu
        ):
            raise ValueError(f"add_rms_norm needs x, delta, out [T, M], weight [M]; got {_say(x, delta, out, weight)}")
        self._lib.hasten_add_rms_norm(
            *(_IS_BF16[x.dtype], x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape),
            *(x.stride(0), delta.stride(0), out.stride(0), eps),
        )

    def act_mul(self, gate_up: Tensor, out: Tensor, activation: Activation = "silu") -> None:
        kind = _KINDS.get(activation)
        if kind is None:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(map(repr, _KINDS))}")
        if (
            out.dtype not in _IS_BF16
            or gate_up.dtype != out.dtype
            or out.dim() != 2
            or gate_up.shape != (out.shape[0], 2 * out.shape[1])
            or not (gate_up.stride(1) == out.stride(1) == 1)
            or not out.is_cpu
        ):
            raise ValueError(f"act_mul needs gate_up [T, 2 I] and out [T, I] of one dtype; got {_say(gate_up, out)}")
        self._lib.hasten_act_mul(
            *(_IS_BF16[out.dtype], kind, gate_up.data_ptr(), out.data_ptr(), *out.shape, gate_up.stride(0), out.stride(0))
        )

    def copy_blocks(self, cache: Tensor, src: Tensor, dst: Tensor) -> None:
        if not (
            cache.is_contiguous()
            and cache.is_cpu
            and src.dtype == dst.dtype == torch.int64
            and src.dim() == 1
            and src.shape == dst.shape
            and src.is_contiguous()
            and dst.is_contiguous()
        ):
            raise ValueError(f"copy_blocks needs a contiguous cache and int64 src, dst [n]; got {_say(cache, src, dst)}")
        bytes_each = cache.stride(0) * cache.element_size()
        if self._lib.hasten_copy_blocks(
            cache.data_ptr(), src.data_ptr(), dst.data_ptr(), src.shape[0], cache.shape[0], bytes_each
        ):
            raise IndexError(f"blocks to copy must lie in [0, {cache.shape[0]})")

    def linear(self, x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
        rows, inner = x.shape
        outputs = w.shape[0]
        dtype = x.dtype
        if (
            dtype not in _IS_BF16
            or w.dtype != dtype
            or out.dtype != dtype
            or w.shape[1] != inner
            or out.shape != (rows, outputs)
            or not (x.stride(1) == w.stride(1) == out.stride(1) == 1)
            or (bias is not None and (bias.dtype != dtype or bias.shape != (outputs,) or bias.stride(0) != 1))
            or not x.is_cpu
        ):
            raise ValueError(
                f"linear needs x [T, K], w [N, K], out [T, N] and bias [N] of one dtype; got {_say(x, w, out, bias)}"
            )
        self._linear(
            *(_IS_BF16[dtype], x.data_ptr(), w.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr()),
            *(rows, outputs, inner, x.stride(0), w.stride(0), out.stride(0)),
        )

    def sample(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, u: Tensor) -> Tensor:
        rows, vocabulary = logits.shape
        parameters = (temperature, top_k, top_p, min_p, u)
        wanted = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float64)
        if (
            logits.dtype not in _IS_BF16
            or logits.stride(1) != 1
            or not logits.is_cpu
            or any(p.dtype != t or p.shape != (rows,) or not p.is_contiguous() for p, t in zip(parameters, wanted, strict=True))
        ):
            raise ValueError(
                "sample needs logits [L, V] float32 or bfloat16 and for each row temperature, top_p, min_p float32, "
                f"top_k int32, u float64; got {_say(logits, *parameters)}"
            )
        out = torch.empty(rows, dtype=torch.int64)
        bad = self._lib.hasten_sample(
            *(_IS_BF16[logits.dtype], logits.data_ptr(), rows, vocabulary, logits.stride(0)),
            *(p.data_ptr() for p in parameters),
            out.data_ptr(),
        )
        if bad >= 0:
            raise ValueError(f"logits of row {bad} cannot be sampled: all -inf, or NaN or +inf among them")
        return out


def _rows_of_heads(x: Tensor, dim: int) -> bool:
    strides = x.stride()
    return (strides[2] == 1 and (strides[1] == dim or x.shape[1] == 1)) or not x.numel()


def _say(*tensors: Tensor | None) -> str:
    return ", ".join("none" if t is None else f"{list(t.shape)} {str(t.dtype)[6:]} strides {t.stride()}" for t in tensors)
