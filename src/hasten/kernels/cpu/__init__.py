"""The kernels in C++ for x86 processors (and any other, plainly): `CpuKernels` over one native library.

Tensors of a call must lie on the CPU. The summation order of every kernel is fixed by the row alone, except that attention
scores a few rows along their keys unless it is `deterministic`: then decoded tokens, chunks and trees go through the same
arithmetic.

A small model calls these functions thousands of times a second, so the checks of their arguments (without which a wrong shape
would read or write foreign memory) touch each property of a tensor once: a look at a dtype or shape costs a tenth of the call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hasten.kernels.base import Activation
from hasten.kernels.cpu import native
from hasten.kernels.cpu.cache import CacheKernels
from hasten.kernels.cpu.checks import IS_BF16, say
from hasten.kernels.cpu.coded import CodedKernels
from hasten.kernels.cpu.packing import PackedWeight, packed
from hasten.kernels.cpu.plan import Segment, Tape
from hasten.kernels.quantized import QuantizedWeight

_KINDS = {"silu": 0, "gelu_tanh": 1}


class CpuKernels(CodedKernels, CacheKernels):
    """`Kernels` on one native library ("avx512bf16", "avx512", "avx2", "generic"); what it lacks is the reference's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lib = native.library(name)
        self._recorder = threading.Lock()
        self._bind(lambda function: getattr(self._lib, f"hasten_{function}"))

    def _bind(self, find: Callable[[str], Callable[[bytes], int]]) -> None:
        self._attention_alone = find("attention_alone")
        self._attention, self._merge, self._rope_and_store = find("attention"), find("merge"), find("rope_and_store")
        self._rms_norm, self._add_rms_norm, self._act_mul = find("rms_norm"), find("add_rms_norm"), find("act_mul")
        self._copy_blocks, self._linear, self._sample = find("copy_blocks"), find("linear"), find("sample")
        self._quantized_linear, self._quantized_rows = find("quantized_linear"), find("quantized_rows")
        self._apply_mask = find("apply_mask")

    @contextmanager
    def recording(self) -> Iterator[Tape]:
        """Within, this thread's calls are checked and recorded instead of computed. One thread at a time."""
        with self._recorder:
            tape = Tape()
            self._bind(lambda function: tape.stand_in(function, getattr(self._lib, f"hasten_{function}")))
            try:
                yield tape
            finally:
                self._bind(lambda function: getattr(self._lib, f"hasten_{function}"))

    def timed(self) -> tuple[CpuKernels, Callable[[], float]]:
        """The same kernels, but attention is computed by the calling thread alone; and the seconds that its last call took,
        without those of checking its arguments."""
        other, seconds = CpuKernels(self.name), 0.0

        def attention(arguments: bytes) -> int:
            nonlocal seconds
            began = time.perf_counter()
            self._attention_alone(arguments)
            seconds = time.perf_counter() - began
            return 0

        other._attention = attention
        return other, lambda: seconds

    def cut(self, tape: Tape) -> Segment:
        """What a tape recorded since the last cut, ready to run."""
        return tape.cut(self._lib)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        dtype, shape, stride, out_stride = x.dtype, x.shape, x.stride(), out.stride()
        is_bf16, width = IS_BF16.get(dtype), shape[-1]
        if (
            is_bf16 is None
            or weight.dtype is not dtype
            or out.dtype is not dtype
            or out.shape != shape
            or not 2 <= len(shape) <= 3
            or stride[-1] != 1
            or out_stride[-1] != 1
            or weight.shape != (width,)
            or not weight.is_contiguous()
            or not x.is_cpu
        ):
            raise ValueError(
                f"rms_norm needs x, out [N, M] or [T, H, M] and weight [M] of one dtype; got {say(x, out, weight)}"
            )
        inner, x_inner, out_inner = (1, 0, 0) if len(shape) == 2 else (shape[1], stride[1], out_stride[1])
        self._rms_norm(
            native.RMS_NORM(
                is_bf16,
                x.data_ptr(),
                weight.data_ptr(),
                out.data_ptr(),
                shape[0],
                inner,
                width,
                stride[0],
                x_inner,
                out_stride[0],
                out_inner,
                eps,
            )
        )

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        dtype, shape, stride, delta_stride, out_stride = x.dtype, x.shape, x.stride(), delta.stride(), out.stride()
        is_bf16 = IS_BF16.get(dtype)
        if (
            is_bf16 is None
            or delta.dtype is not dtype
            or weight.dtype is not dtype
            or out.dtype is not dtype
            or len(shape) != 2
            or delta.shape != shape
            or out.shape != shape
            or weight.shape != shape[1:]
            or not (stride[1] == delta_stride[1] == out_stride[1] == 1)
            or not weight.is_contiguous()
            or not x.is_cpu
        ):
            raise ValueError(f"add_rms_norm needs x, delta, out [T, M], weight [M]; got {say(x, delta, out, weight)}")
        self._add_rms_norm(
            native.ADD_RMS_NORM(
                is_bf16,
                x.data_ptr(),
                delta.data_ptr(),
                weight.data_ptr(),
                out.data_ptr(),
                shape[0],
                shape[1],
                stride[0],
                delta_stride[0],
                out_stride[0],
                eps,
            )
        )

    def act_mul(self, gate_up: Tensor, out: Tensor, activation: Activation = "silu") -> None:
        kind = _KINDS.get(activation)
        if kind is None:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(map(repr, _KINDS))}")
        dtype, shape, in_stride, out_stride = out.dtype, out.shape, gate_up.stride(), out.stride()
        is_bf16 = IS_BF16.get(dtype)
        if (
            is_bf16 is None
            or gate_up.dtype is not dtype
            or len(shape) != 2
            or gate_up.shape != (shape[0], 2 * shape[1])
            or not (in_stride[1] == out_stride[1] == 1)
            or not out.is_cpu
        ):
            raise ValueError(f"act_mul needs gate_up [T, 2 I] and out [T, I] of one dtype; got {say(gate_up, out)}")
        self._act_mul(
            native.ACT_MUL(is_bf16, kind, gate_up.data_ptr(), out.data_ptr(), shape[0], shape[1], in_stride[0], out_stride[0])
        )

    def linear(self, x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
        dtype, shape, weights = x.dtype, x.shape, w.shape
        x_stride, w_stride, out_stride = x.stride(), w.stride(), out.stride()
        is_bf16 = IS_BF16.get(dtype)
        if (
            is_bf16 is None
            or w.dtype is not dtype
            or out.dtype is not dtype
            or len(shape) != 2
            or len(weights) != 2
            or weights[1] != shape[1]
            or out.shape != (shape[0], weights[0])
            or not (x_stride[1] == w_stride[1] == out_stride[1] == 1)
            or (bias is not None and (bias.dtype is not dtype or bias.shape != weights[:1] or not bias.is_contiguous()))
            or not x.is_cpu
        ):
            raise ValueError(
                f"linear needs x [T, K], w [N, K], out [T, N] and bias [N] of one dtype; got {say(x, w, out, bias)}"
            )
        self._linear(
            native.LINEAR(
                is_bf16,
                x.data_ptr(),
                w.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                shape[0],
                weights[0],
                shape[1],
                x_stride[0],
                w_stride[0],
                out_stride[0],
            )
        )

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        return packed(weight)

    def unpack(self, packed: PackedWeight) -> QuantizedWeight:
        return packed.unpacked()

    def quantized_rows(self, packed: PackedWeight, ids: Tensor, out: Tensor) -> None:
        outputs, inner = packed.shape
        is_bf16 = IS_BF16.get(out.dtype)
        if (
            is_bf16 is None
            or ids.dtype is not torch.int64
            or ids.ndim != 1
            or not ids.is_contiguous()
            or out.shape != (len(ids), inner)
            or out.stride(1) != 1
            or not out.is_cpu
        ):
            raise ValueError(f"quantized_rows needs ids int64 [n] and out [n, {inner}]; got {say(ids, out)}")
        panels = packed.panels
        if self._quantized_rows(
            native.QUANTIZED_ROWS(
                is_bf16,
                packed.bits,
                1 << (packed.bits - 1),
                packed.has_zeros,
                ids.data_ptr(),
                panels.data_ptr(),
                out.data_ptr(),
                len(ids),
                outputs,
                inner,
                packed.group,
                out.stride(0),
                panels.stride(0),
                packed.unit,
            )
        ):
            raise IndexError(f"ids must be below {outputs}")

    def quantized_linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None, out: Tensor) -> None:
        dtype, shape, x_stride, out_stride = x.dtype, x.shape, x.stride(), out.stride()
        is_bf16 = IS_BF16.get(dtype)
        outputs, inner = packed.shape
        if (
            is_bf16 is None
            or out.dtype is not dtype
            or len(shape) != 2
            or shape[1] != inner
            or out.shape != (shape[0], outputs)
            or not (x_stride[1] == out_stride[1] == 1)
            or (bias is not None and (bias.dtype is not dtype or bias.shape != (outputs,) or not bias.is_contiguous()))
            or not x.is_cpu
        ):
            raise ValueError(
                f"quantized_linear needs x [T, {inner}], out [T, {outputs}] and bias [{outputs}] of one dtype; got "
                f"{say(x, out, bias)}"
            )
        panels = packed.panels
        self._quantized_linear(
            native.QUANTIZED(
                is_bf16,
                packed.bits,
                1 << (packed.bits - 1),
                packed.has_zeros,
                x.data_ptr(),
                panels.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                shape[0],
                outputs,
                inner,
                packed.group,
                -(-inner // packed.group),
                x_stride[0],
                out_stride[0],
                panels.stride(0),
                packed.unit,
            )
        )

    def sample(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
        rows, vocabulary = logits.shape
        parameters = (temperature, top_k, top_p, min_p, keys)
        wanted = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64)
        is_bf16 = IS_BF16.get(logits.dtype)
        if (
            is_bf16 is None
            or vocabulary < 1
            or logits.stride(1) != 1
            or not logits.is_cpu
            or any(
                p.dtype is not t or p.shape != (rows,) or not p.is_contiguous() for p, t in zip(parameters, wanted, strict=True)
            )
        ):
            raise ValueError(
                "sample needs logits [L, V] float32 or bfloat16 and for each row temperature, top_p, min_p float32, "
                f"top_k int32, keys int64; got {say(logits, *parameters)}"
            )
        out = torch.empty(rows, dtype=torch.int64)
        bad = self._sample(
            native.SAMPLE(
                *(is_bf16, logits.data_ptr(), rows, vocabulary, logits.stride(0)),
                *(p.data_ptr() for p in parameters),
                out.data_ptr(),
            )
        )
        if bad >= 0:
            raise ValueError(f"logits of row {bad} cannot be sampled: all -inf, or NaN or +inf among them")
        return out

    def apply_mask(self, logits: Tensor, mask: Tensor, rows: Tensor) -> None:
        is_bf16 = IS_BF16.get(logits.dtype)
        if (
            is_bf16 is None
            or logits.ndim != 2
            or logits.stride(1) != 1
            or not logits.is_cpu
            or mask.dtype is not torch.int32
            or rows.dtype is not torch.int64
            or rows.ndim != 1
            or not rows.is_contiguous()
            or mask.shape != (len(rows), -(-logits.shape[1] // 32))
            or mask.stride(1) != 1
        ):
            raise ValueError(
                "apply_mask needs logits [L, V] float32 or bfloat16, mask int32 [n, ceil(V / 32)] and rows int64 [n]; got "
                f"{say(logits, mask, rows)}"
            )
        if self._apply_mask(
            native.APPLY_MASK(
                *(is_bf16, logits.data_ptr(), mask.data_ptr(), rows.data_ptr()),
                *(len(rows), *logits.shape, logits.stride(0), mask.stride(0)),
            )
        ):
            raise IndexError(f"rows must be below {len(logits)}")
