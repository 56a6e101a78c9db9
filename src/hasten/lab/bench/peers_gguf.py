"""Writes a Llama checkpoint in Hugging Face format as GGUF, so that llama.cpp can serve it beside hasten.

    python -m hasten.lab.bench.peers_gguf FOLDER model.gguf
    python -m llama_cpp.server --model model.gguf --port 8002 --n_ctx 2048 --interrupt_requests False
    hasten bench compare http://127.0.0.1:8000 http://127.0.0.1:8002 --context 2048 --workload ...

Needs the `gguf` package, which hasten itself does not. Weights are written as float16 (norms as float32) with the tokenizer's
vocabulary and merges; models with attention biases or another rope than Llama's plain one are refused. Control tokens lose
their names: llama.cpp ends an answer at some of them by name, and a comparison needs answers of exact length.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from hasten.engine.models.gguf import LAYER_NAMES, NAMES

_NAMES = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
_WHOLE = {ours: theirs for theirs, ours in NAMES.items()}


def convert(folder: Path, to: Path) -> None:
    """Raises ValueError for a model that is no plain Llama, ImportError where `gguf` is not installed."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("rope_scaling"):
        raise ValueError(
            f"{folder}: only Llama without attention bias and rope scaling is converted, got {config['model_type']}"
        )
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(to, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _tokenizer(writer, gguf, folder, config)
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            writer.add_tensor(*_tensor(name, tensor, heads, kv_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor(name: str, tensor: torch.Tensor, heads: int, kv_heads: int) -> tuple[str, npt.NDArray[Any]]:
    stem = name.removesuffix(".weight")
    if stem in _WHOLE:
        short = _WHOLE[stem]
    else:
        _, _, layer, kind = stem.split(".", 3)
        short = f"blk.{layer}.{_NAMES[kind]}"
    if short.endswith(("attn_q", "attn_k")):
        tensor = _interleaved(tensor, heads if short.endswith("q") else kv_heads)
    values = tensor.float().numpy()
    return f"{short}.weight", values if values.ndim == 1 else values.astype(np.float16)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp turns neighbouring pairs of a head's channels, Hugging Face's layout channel i and i + half."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(writer: Any, gguf: Any, folder: Path, config: dict[str, Any]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"<unused {i}>" for i in range(config["vocab_size"])]
    kinds = [int(gguf.TokenType.UNUSED)] * len(tokens)
    for token, i in data["model"]["vocab"].items():
        tokens[i], kinds[i] = token, int(gguf.TokenType.NORMAL)
    for added in data["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = f"<control {added['id']}>", int(gguf.TokenType.CONTROL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    ends = config["eos_token_id"]
    writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("to", type=Path)
    options = parser.parse_args()
    convert(options.folder, options.to)


if __name__ == "__main__":
    main()
