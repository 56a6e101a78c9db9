"""What config.json would say of a model in a GGUF file, from the file's metadata. No torch is needed.

Three architectures are read: llama (Llama, and Mistral's dense models, which go by that name there), qwen2 and qwen3. What
would change the result and is not understood is refused by name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.engine.models.config import ModelError
from hasten.engine.models.gguf_header import Header, read_header

FORM = 1
"""To be raised whenever `gguf.py` makes other numbers of the same file: packed weights are kept under a fingerprint."""

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")
"""End tokens that some files do not name as such; llama.cpp ends an answer at them too."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_CONTROL = 3


def read_gguf_config(file: Path) -> dict[str, Any]:
    """As `ModelShape.parse` takes it. Raises ModelError."""
    return config_of(read_header(file))


def config_of(header: Header) -> dict[str, Any]:
    file, tensors, get = header.file, header.tensors, header.get
    if header.architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"{file}: the architecture {header.architecture!r} is not supported in GGUF; supported: {known}")
    if get("expert_count", 0):
        raise ModelError(f"{file}: models with experts are not read from GGUF; use their safetensors")
    if (embedding := tensors.get("token_embd.weight")) is None:
        raise ModelError(f"{file} holds no tensor token_embd.weight")
    sizes = {name: header.size(key) for name, key in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    head_dim = header.size("attention.key_length", sizes["hidden_size"] // heads)
    if (value_dim := header.size("attention.value_length", head_dim)) != head_dim:
        raise ModelError(f"{file}: values of {value_dim} beside keys of {head_dim} are not supported")
    biases = {name.split(".")[2] for name in tensors if name.startswith("blk.") and name.endswith(".bias")}
    return {
        **sizes,
        **_family(header),
        "num_key_value_heads": header.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "vocab_size": embedding.shape[0],
        "attention_bias": any(name.startswith("attn") for name in biases),
        "mlp_bias": any(name.startswith("ffn") for name in biases),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": {"rope_theta": get("rope.freq_base", 10000.0), **_rope(header, head_dim)},
        "partial_rotary_factor": header.size("rope.dimension_count", head_dim) / head_dim,
        "eos_token_id": end_tokens(header.metadata),
        "gguf": FORM,
    }


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer."""
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = {token for token in named if token is not None}
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, (text, kind) in enumerate(zip(metadata.get("tokenizer.ggml.tokens", []), kinds, strict=False)):
        if kind == _CONTROL and text in _ENDS:
            ids.add(token)
    return sorted(ids)


def _family(header: Header) -> dict[str, Any]:
    """Llama is Mistral where it has a sliding window that a sequence can outgrow. llama.cpp gives Qwen none."""
    window, length = header.get("attention.sliding_window"), header.size("context_length")
    if not window or header.size("attention.sliding_window") >= length:
        return {"architectures": [_ARCHITECTURES[header.architecture]]}
    if header.architecture != "llama":
        raise ModelError(f"{header.file}: a sliding window ({window}) is not supported for {header.architecture} in GGUF")
    return {"architectures": ["MistralForCausalLM"], "sliding_window": window}


def _rope(header: Header, head_dim: int) -> dict[str, Any]:
    file, get = header.file, header.get
    if "rope_freqs.weight" in header.tensors:
        return _llama3(header, head_dim)
    kind, factor = get("rope.scaling.type", "none"), get("rope.scaling.factor", 0.0)
    if kind == "none" or not factor:
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{file}: rope.scaling.type {kind!r} is not supported; supported: none, linear, yarn")
    if get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ModelError(f"{file}: rope.scaling.attn_factor {get('rope.scaling.attn_factor')} is not supported; supported: 1")
    knobs = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        knobs["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        knobs["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        knobs["beta_slow"] = get("rope.scaling.yarn_beta_slow")
    return knobs


def _llama3(header: Header, head_dim: int) -> dict[str, Any]:
    """Files of Llama 3.1 hold what each frequency is divided by, not the four numbers it comes from. All releases share three
    of them; the fourth is the largest divisor, and the tensor says whether that is right."""
    entry = header.tensors["rope_freqs.weight"]
    if entry.dtype != "F32" or entry.shape != (head_dim // 2,):
        raise ModelError(f"{header.file}: rope_freqs.weight is {entry.dtype} {list(entry.shape)}, not F32 [{head_dim // 2}]")
    with header.file.open("rb") as stream:
        stream.seek(entry.start)
        divisors = struct.unpack(f"<{head_dim // 2}f", stream.read(entry.nbytes))
    theta, factor = float(header.get("rope.freq_base", 10000.0)), max(divisors)
    low, high, original = _LLAMA3.values()
    for i, divisor in enumerate(divisors):
        turns = original * theta ** (-2 * i / head_dim) / (2 * math.pi)  # within the trained length
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        if not math.isclose(divisor, 1 / ((1 - share) / factor + share), rel_tol=1e-3):
            raise ModelError(f"{header.file}: rope_freqs.weight is not the frequency scaling of Llama 3.1, the one supported")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
