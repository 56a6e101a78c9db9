"""Rounding a checkpoint and writing it in GPTQ's format, which this engine and others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.engine.models import Checkpoint, ModelError, ModelShape, read_json, resolve
from hasten.engine.models.published import packed_words
from hasten.kernels.quantized import QuantizedWeight, round_to_nearest
from hasten.lab.quantize.gptq import gptq, output_error

Method = Literal["nearest", "gptq"]
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The tensors of a layer by the op that multiplies them: those of one op see the same inputs."""
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")


@dataclass(frozen=True, slots=True)
class Settings:
    bits: int
    group: int
    symmetric: bool
    method: Method


def quantize(
    name: str, out: Path, settings: Settings, hessians: Mapping[tuple[int, str], Tensor], progress: Callable[[int, int], None]
) -> dict[str, float]:
    """Write the model called `name` to the folder `out` with its layers' weights rounded; embedding, head and norms stay as
    they are. `hessians` by (block, op), for the method gptq. Returns by how much each tensor's output changed on the
    calibration texts (nothing without them). Raises ModelError for a model of another build or one that is quantised
    already."""
    folder = resolve(name)
    config = read_json(folder / "config.json")
    shape = ModelShape.parse(config)
    if "quantization_config" in config:
        raise ModelError(f"{folder} is quantised already")
    if shape.experts is not None:
        raise ModelError("models with experts cannot be quantised to a file yet; serve them with --with int8 or int4")
    checkpoint = Checkpoint(folder)
    wanted = {
        f"model.layers.{layer}.{tensor}": (layer, op)
        for layer in range(shape.layers)
        for op, ts in PARTS.items()
        for tensor in ts
    }
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for done, key in enumerate(sorted(checkpoint.entries)):
        progress(done, len(checkpoint.entries))
        tensor, name = checkpoint.raw(key), key.removesuffix(".weight")
        if name not in wanted:
            tensors[key] = tensor
            continue
        hessian = hessians.get(wanted[name])
        if settings.method == "gptq":
            if hessian is None:
                raise ModelError(f"no inputs of {name} were seen in calibration")
            rounded = gptq(tensor, hessian, settings.bits, settings.group, symmetric=settings.symmetric)
        else:
            rounded = round_to_nearest(tensor, settings.bits, settings.group, symmetric=settings.symmetric)
        if hessian is not None:
            errors[name] = output_error(tensor, rounded, hessian)
        tensors |= {f"{name}.{part}": value for part, value in words_of(rounded).items()}
    out.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for file in folder.glob(pattern):
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
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": said}, indent=2) + "\n", encoding="utf-8")
    unfinished = out / "model.safetensors.part"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(out / "model.safetensors")
    return errors


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
