"""Quantised checkpoints as others publish them: GPTQ, AWQ and compressed-tensors, read as `QuantizedWeight`.

All pack levels into 32-bit words, each in an order of its own; what follows undoes the packing and nothing else, so a model is
multiplied with the very levels and scales that it was published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.engine.models.config import ModelError
from hasten.kernels.quantized import GROUPS, QuantizedWeight, kept_scales

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which column the first, second, ... four bits of a word belong to: AWQ's kernels unpack even and odd ones apart."""
ROW_GROUP = 128
"""Columns of a group where a checkpoint has one scale a row: only activations are cut finer."""


class Tensors(Protocol):
    def __contains__(self, name: str) -> bool: ...
    def raw(self, name: str) -> Tensor: ...


class Format(Protocol):
    """`holds`: whether the weight called `name` (without `.weight`) is quantised; `read` gives it, of the shape [rows,
    columns]."""

    def holds(self, tensors: Tensors, name: str) -> bool: ...
    def read(self, tensors: Tensors, name: str, rows: int, columns: int) -> QuantizedWeight: ...


def format_of(config: Mapping[str, Any]) -> Format | None:
    """What `config.json` says under quantization_config; None for plain weights. Raises ModelError for what cannot be read."""
    said = config.get("quantization_config")
    if said is None:
        return None
    method = said.get("quant_method")
    if method == "gptq":
        _known("bits", bits := said.get("bits"), (4, 8))
        _known("group_size", group := said.get("group_size"), GROUPS)
        if said.get("desc_act"):
            raise ModelError("a GPTQ checkpoint with desc_act (columns out of order) cannot be read")
        return Gptq(bits, group, 0 if said.get("checkpoint_format") == "gptq_v2" else 1)
    if method == "awq":
        _known("bits", said.get("bits"), (4,))
        _known("group_size", group := said.get("group_size"), GROUPS)
        return Awq(group)
    if method == "compressed-tensors":
        return _compressed(said)
    raise ModelError(f"quantization_config names the method {method!r}; gptq, awq and compressed-tensors can be read")


def _compressed(said: Mapping[str, Any]) -> Compressed:
    groups = list(said.get("config_groups", {}).values())
    if len(groups) != 1:
        raise ModelError(f"a compressed-tensors checkpoint must have one group of settings, this has {len(groups)}")
    weights = groups[0].get("weights") or {}
    bits, group = weights.get("num_bits"), weights.get("group_size")
    _known("weights.num_bits", bits, (4, 8))
    _known("weights.type", weights.get("type"), ("int",))
    _known("weights.strategy", strategy := weights.get("strategy"), ("channel", "group"))
    if strategy == "channel":
        group = ROW_GROUP
    _known("weights.group_size", group, GROUPS)
    assert bits is not None and group is not None
    return Compressed(bits, group)


def _known(what: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ModelError(f"quantization_config: {what} is {value!r}; readable: {', '.join(map(str, known))}")


@dataclass(frozen=True, slots=True)
class Gptq:
    """qweight int32 [in * bits / 32, out], qzeros int32 [groups, out * bits / 32] (less `shift`), scales [groups, out]."""

    bits: int
    group: int
    shift: int

    def holds(self, tensors: Tensors, name: str) -> bool:
        return f"{name}.qweight" in tensors

    def read(self, tensors: Tensors, name: str, rows: int, columns: int) -> QuantizedWeight:
        levels = unpacked(tensors.raw(f"{name}.qweight").T, self.bits)
        zeros = (unpacked(tensors.raw(f"{name}.qzeros"), self.bits).T + self.shift) & ((1 << self.bits) - 1)
        if f"{name}.g_idx" in tensors:
            order = tensors.raw(f"{name}.g_idx")
            if not torch.equal(order.long(), torch.arange(len(order)) // self.group):
                raise ModelError(f"{name}: its columns are out of order (act-order), which cannot be read")
        return _weight(name, levels, tensors.raw(f"{name}.scales").T, zeros, self.bits, self.group, rows, columns)


@dataclass(frozen=True, slots=True)
class Awq:
    """qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out]."""

    group: int

    def holds(self, tensors: Tensors, name: str) -> bool:
        return f"{name}.qweight" in tensors

    def read(self, tensors: Tensors, name: str, rows: int, columns: int) -> QuantizedWeight:
        levels, zeros = (_in_order(unpacked(tensors.raw(f"{name}.{part}"), 4)).T for part in ("qweight", "qzeros"))
        return _weight(name, levels, tensors.raw(f"{name}.scales").T, zeros, 4, self.group, rows, columns)


@dataclass(frozen=True, slots=True)
class Compressed:
    """weight_packed int32 [out, in / 8] or weight int8 [out, in]; weight_scale [out, groups or 1]; weight_zero_point, if any,
    int8 [out, groups]."""

    bits: int
    group: int

    def holds(self, tensors: Tensors, name: str) -> bool:
        return f"{name}.weight_scale" in tensors

    def read(self, tensors: Tensors, name: str, rows: int, columns: int) -> QuantizedWeight:
        half = 1 << (self.bits - 1)
        if f"{name}.weight_packed" in tensors:
            levels = unpacked(tensors.raw(f"{name}.weight_packed"), self.bits)
        else:
            levels = (tensors.raw(f"{name}.weight").short() + half).to(torch.uint8)
        groups = -(-columns // self.group)
        scales = tensors.raw(f"{name}.weight_scale").float().expand(-1, groups)
        zeros = None
        if f"{name}.weight_zero_point" in tensors:
            stored = tensors.raw(f"{name}.weight_zero_point")
            if stored.dtype == torch.int32:
                zeros = unpacked(stored.T, self.bits).T
            else:
                zeros = (stored.short() + half).to(torch.uint8)
            zeros = zeros.expand(-1, groups)
        return _weight(name, levels, scales, zeros, self.bits, self.group, rows, columns)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [n, m] -> uint8 [n, m * 32 / bits], the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    levels = torch.bitwise_right_shift(words[..., None], shifts) & ((1 << bits) - 1)
    return levels.to(torch.uint8).flatten(1)


def packed_words(levels: Tensor, bits: int) -> Tensor:
    """The inverse of `unpacked`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int64)
    words = torch.bitwise_left_shift(levels.long().unflatten(1, (-1, 32 // bits)), shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _in_order(levels: Tensor) -> Tensor:
    order = torch.tensor(_AWQ_ORDER).argsort().argsort()
    ordered: Tensor = levels.unflatten(1, (-1, 8))[..., order]
    return ordered.flatten(1)


def _weight(
    name: str, levels: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group: int, rows: int, columns: int
) -> QuantizedWeight:
    groups = -(-columns // group)
    for part, tensor, shape in (
        ("levels", levels, (rows, columns)),
        ("scales", scales, (rows, groups)),
        ("zeros", zeros, (rows, groups)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ModelError(f"{name}: its {part} are {list(tensor.shape)}, config.json calls for {list(shape)}")
    if zeros is not None and bool((zeros == 1 << (bits - 1)).all()):
        zeros = None
    kept, unit = kept_scales(scales.float())
    return QuantizedWeight(
        levels.contiguous(), kept.contiguous(), None if zeros is None else zeros.to(torch.uint8).contiguous(), unit, bits, group
    )
