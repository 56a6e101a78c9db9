"""Writes a checkpoint of `checkpoint.py` as a GGUF file in bfloat16, which llama.cpp reads and rounds further by itself.

Without a vocabulary: prompts come as token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(folder: Path, to: Path) -> None:
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(to, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, bits in _tensors(folder / "model.safetensors"):
        short = _short(name)
        if bits.ndim == 1:
            writer.add_tensor(short, (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if config["model_type"] == "llama" and short.endswith(("attn_q.weight", "attn_k.weight")):
            bits = _interleaved(bits, config["head_dim"])
        writer.add_tensor(short, np.ascontiguousarray(bits).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(file: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every tensor with its bfloat16 bits as uint16: numpy knows no bfloat16, and torch is not needed for this."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    content = np.memmap(file, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, content[begin:end].view(np.uint16).reshape(entry["shape"])


def _short(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    _, _, layer, kind = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[kind]}.weight"


def _interleaved(bits: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """In a Llama GGUF the channels that are rotated together are neighbours; in Hugging Face's layout they are half a head
    apart."""
    rows, columns = bits.shape
    return bits.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)
