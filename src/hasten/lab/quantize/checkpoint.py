"""Rounding a checkpoint and writing it in GPTQ's format, which this engine and others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.engine.models import Checkpoint, ModelError, ModelShape, read_json, resolve
from hasten.engine.models.published import packed_words
from hasten.kernels.quantized import GROUPS, QuantizedWeight, round_to_nearest
from hasten.lab.quantize.gptq import gptq, output_error

Method = Literal["nearest", "gptq"]
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The tensors of a layer by the op that multiplies them: those of one op see the same inputs."""
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")


@dataclass(frozen=True, slots=True)
class Settings:
    """bits: 4 or 8. group: input columns that share a scale. symmetric: no zero points."""

    bits: int
    group: int
    symmetric: bool
    method: Method

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, (4, 8)),
            ("group", self.group, GROUPS),
            ("method", self.method, get_args(Method)),
        ):
            if value not in known:
                raise ModelError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")


@dataclass(slots=True)
class Written:
    """What became of a model. `errors`: by how much each tensor's output changed on the calibration texts, as a share, and
    `nearest_errors`, by how much the nearest levels would have changed it (nothing of either without texts)."""

    bytes_before: int
    bytes_after: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    nearest_errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A model that can be rounded. `rounded`: (block, op) by the name of each tensor that will be, without `.weight`."""

    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    rounded: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, name: str, settings: Settings) -> Plan:
        """Reads the files' headers only. Raises ModelError for a model with experts, one that is quantised already, or one
        whose sides do not fill groups and words."""
        folder = resolve(name)
        if folder.is_file():
            raise ModelError(f"{folder} is a single file; quantise the model's checkpoint in safetensors format")
        config = read_json(folder / "config.json")
        shape = ModelShape.parse(config)
        if "quantization_config" in config:
            raise ModelError(f"{folder} is quantised already")
        if shape.experts is not None:
            raise ModelError("models with experts cannot be quantised to a file yet; serve them with --with int8 or int4")
        plan = cls(folder, config, Checkpoint(folder), {
            f"model.layers.{layer}.{tensor}": (layer, op)
            for layer in range(shape.layers) for op, tensors in PARTS.items() for tensor in tensors
        })  # fmt: skip
        for tensor in plan.rounded:
            plan._fits(tensor, settings)
        return plan

    def _fits(self, name: str, settings: Settings) -> None:
        entry = self.checkpoint.entries.get(f"{name}.weight")
        if entry is None:
            raise ModelError(f"{self.folder} holds no tensor {name}.weight, which config.json calls for")
        rows, columns = entry.shape
        if rows % (across := 32 // settings.bits):
            raise ModelError(f"{name} has {rows} rows, which do not fill words of {across}")
        if columns % settings.group:
            fitting = ", ".join(str(group) for group in GROUPS if columns % group == 0) or "none"
            raise ModelError(
                f"{name} has {columns} columns, which do not divide into groups of {settings.group} (fitting: {fitting})"
            )


def quantize(
    name: str, out: Path, settings: Settings, hessians: Mapping[tuple[int, str], Tensor], progress: Callable[[int, int], None]
) -> Written:
    """Write the model called `name` to the folder `out` with its layers' weights rounded; embedding, head and norms stay as
    they are. `hessians` by (block, op), for the method gptq. `progress(done, total)` counts tensors. Raises ModelError as
    `Plan.of` does."""
    plan = Plan.of(name, settings)
    written = Written(plan.checkpoint.nbytes)
    tensors: dict[str, Tensor] = {}
    keys = sorted(plan.checkpoint.entries)
    for done, key in enumerate(keys):
        progress(done, len(keys))
        tensor, name = plan.checkpoint.raw(key), key.removesuffix(".weight")
        if name not in plan.rounded:
            tensors[key] = tensor
            continue
        rounded = _rounded(name, tensor, settings, hessians.get(plan.rounded[name]), written)
        tensors |= {f"{name}.{part}": value for part, value in words_of(rounded).items()}
    _write(plan, out, settings, tensors)
    progress(len(keys), len(keys))
    written.bytes_after = sum(tensor.nbytes for tensor in tensors.values())
    return written


def _rounded(name: str, tensor: Tensor, settings: Settings, hessian: Tensor | None, written: Written) -> QuantizedWeight:
    """The tensor's levels; notes what they cost in `written`."""
    if settings.method == "gptq" and hessian is None:
        raise ModelError(f"no inputs of {name} were seen in calibration")
    nearest = round_to_nearest(tensor, settings.bits, settings.group, symmetric=settings.symmetric)
    if hessian is None:
        return nearest
    rounded = nearest
    if settings.method == "gptq":
        rounded = gptq(tensor, hessian, settings.bits, settings.group, symmetric=settings.symmetric)
    written.errors[name] = output_error(tensor, rounded, hessian)
    written.nearest_errors[name] = output_error(tensor, nearest, hessian)
    return rounded


def _write(plan: Plan, out: Path, settings: Settings, tensors: dict[str, Tensor]) -> None:
    """The weights come last and at once, so a folder that is not whole cannot be loaded."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for file in plan.folder.glob(pattern):
            if not file.name.endswith(".safetensors.index.json"):
                shutil.copyfile(file, out / file.name)
    said = {
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": settings.group,
        "sym": settings.symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    config = {**plan.config, "quantization_config": said}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    unfinished = out / "model.safetensors.part"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(out / "model.safetensors")


def words_of(weight: QuantizedWeight) -> dict[str, Tensor]:
    """A weight as the tensors that GPTQ's format calls qweight, qzeros, scales and g_idx. Raises ModelError where sides do
    not fill whole words."""
    rows, columns = weight.levels.shape
    across = 32 // weight.bits
    if rows % across or columns % weight.group:
        raise ModelError(f"a weight [{rows}, {columns}] does not divide into words of {across} and groups of {weight.group}")
    zeros = torch.full_like(weight.scales, weight.zero, dtype=torch.uint8) if weight.zeros is None else weight.zeros
    less = (zeros.int() - 1) & ((1 << weight.bits) - 1)
    return {
        "qweight": packed_words(weight.levels, weight.bits).T.contiguous(),
        "qzeros": packed_words(less.T, weight.bits).contiguous(),
        "scales": (weight.scales.float() * weight.unit).to(torch.float16).T.contiguous(),
        "g_idx": (torch.arange(columns) // weight.group).to(torch.int32),
    }
