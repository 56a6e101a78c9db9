"""Model families: one file a family, and loading a checkpoint of any of them. Importing this costs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.engine.config import ModelConfig
from hasten.engine.models.checkpoint import Checkpoint, Progress, read_config, read_json, resolve
from hasten.engine.models.config import ModelError, ModelShape

if TYPE_CHECKING:
    import torch

    from hasten.engine.executors.step import Model
    from hasten.engine.models.llama import Loader, MakeStore
    from hasten.engine.models.source import Source

__all__ = [
    "Checkpoint",
    "ModelError",
    "ModelShape",
    "Progress",
    "context_length",
    "fingerprint",
    "load",
    "read_config",
    "read_json",
    "resolve",
]


def load(
    config: ModelConfig,
    make_store: MakeStore,
    device: torch.device,
    max_length: int | None = None,
    sites: Callable[[int], int] | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load the model that `config` names onto `device` in its run dtype, for sequences of at most `max_length` tokens
    (None: the model's own limit). `make_store(weight, bias, name=...)` makes each linear layer's store; `sites` is the depth
    policy's. The sites come without KV, which `Memory` allocates. Raises ModelError."""
    from hasten.engine.weights.stores import Stores

    dummy = config.load_format == "dummy"
    folder = resolve(config.path, weights=not dummy)
    raw = read_config(folder)
    shape = ModelShape.parse(raw)
    length = context_length(shape, max_length)
    source = _source(config, folder, raw, shape, device, progress)
    if shape.experts is not None:
        from hasten.engine.models.moe import ExpertLoader

        loader: Loader = ExpertLoader(shape, source, make_store)
    else:
        from hasten.engine.models.llama import Loader

        loader = Loader(shape, source, make_store)
    fingerprint = source.fingerprint(raw)
    if isinstance(make_store, Stores) and not dummy:
        make_store.begin(fingerprint, source.dtype)
    model = loader.model(length, fingerprint, sites)
    if isinstance(make_store, Stores):
        make_store.end()
    return model


def fingerprint(config: ModelConfig) -> str:
    """The fingerprint that the model which `config` names would have on its device, without loading it. Raises ModelError."""
    import torch

    folder = resolve(config.path, weights=config.load_format != "dummy")
    raw = read_config(folder)
    return _source(config, folder, raw, ModelShape.parse(raw), torch.device(config.device), None).fingerprint(raw)


def context_length(shape: ModelShape, asked: int | None) -> int:
    """Most tokens of a sequence: what was asked for, or the model's own limit. Raises ModelError beyond the limit."""
    if asked is None:
        return shape.default_length
    if asked > shape.longest:
        raise ModelError(f"model.max_length={asked} is more than the {shape.longest} positions this model has")
    return asked


def _source(
    config: ModelConfig,
    folder: Path,
    raw: Mapping[str, Any],
    shape: ModelShape,
    device: torch.device,
    progress: Progress | None,
) -> Source:
    from hasten.engine.models.published import Format, format_of
    from hasten.engine.models.source import CheckpointSource, DummySource

    if config.load_format == "dummy":
        dtype = run_dtype(config.dtype, shape.dtype, device)
        return DummySource(dtype, device, dtype.itemsize * parameters(shape), progress)
    checkpoint: Checkpoint
    form: Format | None
    if folder.is_file():
        from hasten.engine.models.gguf import GgufCheckpoint

        checkpoint = form = GgufCheckpoint(folder)
    else:
        checkpoint, form = Checkpoint(folder), format_of(raw)
    stored = checkpoint.dtype_of("model.embed_tokens.weight") or shape.dtype
    return CheckpointSource(checkpoint, run_dtype(config.dtype, stored, device), device, progress, form)


def run_dtype(asked: str, stored: str | None, device: torch.device) -> torch.dtype:
    """The dtype to compute in. `auto`: bfloat16 for bfloat16 checkpoints where the device multiplies it natively
    (CUDA, or a processor with bf16 instructions), else float32."""
    import torch

    if asked != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]
    native = device.type != "cpu" or _cpu_has_bfloat16()
    return torch.bfloat16 if stored == "bfloat16" and native else torch.float32


def _cpu_has_bfloat16() -> bool:
    import torch

    probes: list[Any] = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe() for probe in probes if probe is not None)


def parameters(shape: ModelShape) -> int:
    """Weights in the checkpoint of a shape, the embedding among them."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.width * (2 * q + 2 * kv)
    dense = 3 * shape.width * shape.inner_width
    total = shape.vocabulary * shape.width * (1 if shape.tied else 2)
    for layer in range(shape.layers):
        total += attention
        if shape.experts is not None and layer in shape.experts.layers:
            total += shape.experts.count * (3 * shape.width * shape.experts.width + shape.width)
        else:
            total += dense
    return total
