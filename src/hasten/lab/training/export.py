"""Writing a trained network as a Hugging Face checkpoint folder."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from hasten.lab.testbed.tokenizer import save_tokenizer, stop_token_ids
from hasten.lab.training.net import Llama, MixtralConfig, NetConfig

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}

MANTISSA_BITS = 5
"""Those of bf16's seven that weights keep. Packed, as in a repository's history, a file is a sixth smaller (13.8 to 11.6 MB
for `base`, of whose 200 answers on each of four tasks as many were right as with all seven)."""


def export(net: Llama, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, generation_config.json, the tokenizer and model.safetensors into `folder`.

    The weights go to a temporary name first, so a reader never finds half a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stop_ids = stop_token_ids(tokenizer)
    config = {
        **(MIXTRAL if isinstance(net.config, MixtralConfig) else LLAMA),
        **asdict(net.config),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": stop_ids,
        "pad_token_id": stop_ids[0],
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    generation = {
        "eos_token_id": stop_ids,
        "pad_token_id": stop_ids[0],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, net.config.max_position_embeddings)
    bits = MANTISSA_BITS if dtype == torch.bfloat16 else 23
    weights = {name: rounded(tensor.detach(), bits).to(dtype).contiguous() for name, tensor in net.state_dict().items()}
    unfinished = folder / "model.safetensors.part"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors makes it readable by its owner alone
    unfinished.replace(folder / "model.safetensors")


def rounded(x: Tensor, bits: int) -> Tensor:
    """x in fp32, its mantissas rounded to so many bits after the leading one."""
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """What `export` wrote, as an fp32 network and its tokenizer."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = MixtralConfig if content["model_type"] == MIXTRAL["model_type"] else NetConfig
    net = Llama(kind(**{field.name: content[field.name] for field in fields(kind)}))
    net.load_state_dict(_weights(folder / "model.safetensors"))
    return net, Tokenizer.from_file(str(folder / "tokenizer.json"))


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise ValueError(f"{path} is damaged: {fault}") from None
