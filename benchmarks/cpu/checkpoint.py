"""Writes a checkpoint of random bfloat16 weights in Hugging Face format: real shapes, nothing to download.

    python checkpoint.py qwen3-0.6b /tmp/peers/models

Speed depends on the shapes and not on the values, so every engine gets this same folder (or its own conversion of it). The
tokenizer is hasten's built-in one, for engines that will not load a folder without; prompts are given as token ids anyway.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
    # Without the rope scaling of the published model: it costs nothing, and not every engine reads it alike.
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "mlp_bias": False,
    },
}
_COMMON = {
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
_TOKENIZER = Path(__file__).parents[2] / "src/hasten/builtin_model"


def config_of(name: str) -> dict[str, Any]:
    return {**SHAPES[name], **_COMMON}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint by its name; the head is the embedding's and has none of its own."""
    width, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    shapes["model.norm.weight"] = (width,)
    return shapes


def write(name: str, root: Path) -> Path:
    """The folder of shape `name` under `root`, written if it is not there yet. Weights as after usual initialisation: normal
    with a deviation of 0.02, norms 1; the same on every machine."""
    folder = root / name
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        tensor: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        for tensor, shape in tensor_shapes(config_of(name)).items()
    }
    (folder / "config.json").write_text(json.dumps(config_of(name), indent=1) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / file, folder / file)
    half = folder / "half-written"
    save_file(tensors, half, metadata={"format": "pt"})
    half.rename(folder / "model.safetensors")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    print(write(options.name, options.root))


if __name__ == "__main__":
    main()
