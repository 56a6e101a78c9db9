"""The shapes of common open models: what their published config.json files say of sizes, and nothing else.

Each entry is a config.json that `ModelShape.parse` reads. Where base and instruction-tuned releases differ, the latter's sizes
stand here.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _config(
    kind: str,
    width: int,
    inner_width: int,
    layers: int,
    heads: tuple[int, int],
    vocabulary: int,
    positions: int,
    **rest: Any,
) -> Config:
    """`heads`: of queries, and of keys and values."""
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        **rest,
    }


def _qwen3_moe(width: int, inner_width: int, layers: int, heads: tuple[int, int], expert_width: int) -> Config:
    return _config(
        "qwen3_moe",
        width,
        inner_width,
        layers,
        heads,
        151936,
        40960,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=expert_width,
        norm_topk_prob=True,
    )


_NARROW = dict(head_dim=128)
_TIED = dict(tie_word_embeddings=True)
_MIXTRAL = dict(num_local_experts=8, num_experts_per_tok=2, sliding_window=None)

KNOWN: dict[str, Config] = {
    "llama-2-7b": _config("llama", 4096, 11008, 32, (32, 32), 32000, 4096),
    "llama-2-13b": _config("llama", 5120, 13824, 40, (40, 40), 32000, 4096),
    "llama-2-70b": _config("llama", 8192, 28672, 80, (64, 8), 32000, 4096),
    "llama-3-8b": _config("llama", 4096, 14336, 32, (32, 8), 128256, 8192),
    "llama-3-70b": _config("llama", 8192, 28672, 80, (64, 8), 128256, 8192),
    "llama-3.1-8b": _config("llama", 4096, 14336, 32, (32, 8), 128256, 131072),
    "llama-3.1-70b": _config("llama", 8192, 28672, 80, (64, 8), 128256, 131072),
    "llama-3.1-405b": _config("llama", 16384, 53248, 126, (128, 8), 128256, 131072),
    "llama-3.2-1b": _config("llama", 2048, 8192, 16, (32, 8), 128256, 131072, head_dim=64, **_TIED),
    "llama-3.2-3b": _config("llama", 3072, 8192, 28, (24, 8), 128256, 131072, **_NARROW, **_TIED),
    "mistral-7b": _config("mistral", 4096, 14336, 32, (32, 8), 32768, 32768, sliding_window=None),
    "mistral-nemo-12b": _config("mistral", 5120, 14336, 40, (32, 8), 131072, 131072, **_NARROW, sliding_window=None),
    "mistral-small-24b": _config("mistral", 5120, 32768, 40, (32, 8), 131072, 32768, **_NARROW, sliding_window=None),
    "mixtral-8x7b": _config("mixtral", 4096, 14336, 32, (32, 8), 32000, 32768, **_MIXTRAL),
    "mixtral-8x22b": _config("mixtral", 6144, 16384, 56, (48, 8), 32768, 65536, **_MIXTRAL),
    "qwen2.5-0.5b": _config("qwen2", 896, 4864, 24, (14, 2), 151936, 32768, **_TIED),
    "qwen2.5-1.5b": _config("qwen2", 1536, 8960, 28, (12, 2), 151936, 32768, **_TIED),
    "qwen2.5-3b": _config("qwen2", 2048, 11008, 36, (16, 2), 151936, 32768, **_TIED),
    "qwen2.5-7b": _config("qwen2", 3584, 18944, 28, (28, 4), 152064, 32768),
    "qwen2.5-14b": _config("qwen2", 5120, 13824, 48, (40, 8), 152064, 32768),
    "qwen2.5-32b": _config("qwen2", 5120, 27648, 64, (40, 8), 152064, 32768),
    "qwen2.5-72b": _config("qwen2", 8192, 29568, 80, (64, 8), 152064, 32768),
    "qwen3-0.6b": _config("qwen3", 1024, 3072, 28, (16, 8), 151936, 40960, **_NARROW, **_TIED),
    "qwen3-1.7b": _config("qwen3", 2048, 6144, 28, (16, 8), 151936, 40960, **_NARROW, **_TIED),
    "qwen3-4b": _config("qwen3", 2560, 9728, 36, (32, 8), 151936, 40960, **_NARROW, **_TIED),
    "qwen3-8b": _config("qwen3", 4096, 12288, 36, (32, 8), 151936, 40960, **_NARROW),
    "qwen3-14b": _config("qwen3", 5120, 17408, 40, (40, 8), 151936, 40960, **_NARROW),
    "qwen3-32b": _config("qwen3", 5120, 25600, 64, (64, 8), 151936, 40960, **_NARROW),
    "qwen3-30b-a3b": _qwen3_moe(2048, 6144, 48, (32, 4), 768),
    "qwen3-235b-a22b": _qwen3_moe(4096, 12288, 94, (64, 4), 1536),
}
