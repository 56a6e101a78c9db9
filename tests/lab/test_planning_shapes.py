"""Facts of models from their config.json, and hardware profiles."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engine.models.config import ModelError
from hasten.engine.technique import ConfigError
from hasten.lab.planning import hardware, shapes

# Billions of parameters: of the hub's safetensors metadata, or as the model's card says (the last digit is then rounded).
PUBLISHED = {
    "llama-2-7b": 6.738,
    "llama-2-13b": 13.016,
    "llama-2-70b": 68.977,
    "llama-3-8b": 8.030,
    "llama-3-70b": 70.554,
    "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "mistral-7b": 7.248,
    "mistral-nemo-12b": 12.248,
    "mistral-small-24b": 23.572,
    "mixtral-8x7b": 46.703,
    "mixtral-8x22b": 140.63,
    "qwen2.5-0.5b": 0.494,
    "qwen2.5-1.5b": 1.544,
    "qwen2.5-3b": 3.086,
    "qwen2.5-7b": 7.616,
    "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
    "qwen3-0.6b": 0.596,
    "qwen3-4b": 4.022,
    "qwen3-8b": 8.191,
    "qwen3-14b": 14.77,
    "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53,
    "qwen3-235b-a22b": 235.1,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    facts = shapes.shape(name)
    assert facts.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.001)
    assert facts.weight_bytes == 2 * facts.parameters


@pytest.mark.parametrize(("name", "billions"), [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22.0)])
def test_active_parameters_of_expert_models(name: str, billions: float) -> None:
    facts = shapes.shape(name)
    embedding = facts.head_flops // 2  # cards count it among the active ones
    assert facts.active_weight_bytes / 2 + embedding == pytest.approx(billions * 1e9, rel=0.02)


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-7b", 6.53), ("qwen2.5-72b", 70.0), ("qwen3-8b", 6.95)])
def test_flops_are_twice_the_published_weights_without_embeddings(name: str, billions: float) -> None:
    assert shapes.shape(name).flops_per_token == pytest.approx(2e9 * billions, rel=0.01)


def test_kv_and_attention_of_llama_3_8b() -> None:
    facts = shapes.shape("Llama-3-8B")
    assert facts.kv_bytes_per_token == 128 * 1024  # 32 layers × 2 × 8 heads × 128 × 2 bytes
    assert facts.attention_flops == 32 * 4 * 32 * 128
    assert (facts.layers, facts.max_length, facts.vocabulary) == (32, 8192, 128256)
    wide = shapes.shape("llama-3-8b", "float32")
    assert (wide.weight_bytes, wide.kv_bytes_per_token) == (2 * facts.weight_bytes, 2 * facts.kv_bytes_per_token)
    assert (wide.parameters, wide.flops_per_token, wide.head_flops) == (
        facts.parameters,
        facts.flops_per_token,
        facts.head_flops,
    )


TINY: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama", attention_bias=True, mlp_bias=True),
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3"),
    "mixtral": dict(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(
        model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[1]
    ),
}


def engine_model(path: str, dtype: str, load_format: str = "auto") -> Any:
    import torch

    from hasten import kernels
    from hasten.engine import models
    from hasten.engine.config import ModelConfig
    from hasten.engine.weights.dense import DenseWeights, WeightContext

    make = partial(DenseWeights, context=WeightContext(kernels.load(), False))

    def store(weight: Any, bias: Any = None, *, name: str = "") -> Any:
        return make(weight, bias)

    return models.load(ModelConfig(path=path, dtype=dtype, load_format=load_format), store, torch.device("cpu"))


def agrees(facts: shapes.ModelFacts, model: Any, *, tied: bool) -> None:
    from hasten.engine.memory import block_bytes

    # The engine leaves an untied embedding out of its count: no step reads it whole.
    assert facts.weight_bytes == model.weight_bytes + (0 if tied else model.embedding.nbytes)
    assert facts.active_weight_bytes == model.active_weight_bytes
    assert facts.kv_bytes_per_token == block_bytes(model, 16) // 16
    assert facts.attention_flops == sum(4 * site.heads * site.head_dim for site in model.sites)
    assert (facts.layers, facts.vocabulary, facts.max_length) == (len(model.sites), model.vocabulary, model.max_length)


@pytest.mark.parametrize("family", TINY)
def test_facts_agree_with_the_engine_s_own_count(family: str, tmp_path: Path) -> None:
    config = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 96,
        "max_position_embeddings": 64,
        **TINY[family],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shapes.shape(tmp_path, "float32")
    agrees(facts, engine_model(str(tmp_path), "float32", "dummy"), tied=family == "qwen2")
    assert shapes.shape(tmp_path / "config.json", "float32") == facts
    assert facts.name == tmp_path.name


def test_facts_of_the_built_in_model_agree_with_the_loaded_one() -> None:
    facts = shapes.shape("builtin")
    agrees(facts, engine_model("builtin", "bfloat16"), tied=True)


def test_a_batch_reads_more_experts_than_a_token() -> None:
    facts = shapes.shape("mixtral-8x7b")
    experts = facts.experts
    assert experts is not None
    assert experts.touched(1) == pytest.approx(experts.per_token)
    assert facts.read_bytes(1) == pytest.approx(facts.active_weight_bytes)
    everything = facts.weight_bytes - facts.head_flops  # the embedding: vocabulary × width × 2 bytes
    assert facts.read_bytes(1e6) == pytest.approx(everything)
    read = [facts.read_bytes(n) for n in (1, 2, 4, 8, 16, 64)]
    assert read == sorted(read) and len(set(read)) == len(read)
    rng = np.random.default_rng(0)
    draws = [len({e for _ in range(4) for e in rng.choice(8, 2, replace=False)}) for _ in range(2000)]
    assert experts.touched(4) == pytest.approx(np.mean(draws), rel=0.02)
    assert shapes.shape("llama-3-8b").read_bytes(512) == shapes.shape("llama-3-8b").active_weight_bytes


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("llama-3-9b", "bfloat16", "did you mean llama-3-8b"),
        ("zebra", "bfloat16", "known: llama-2-7b"),
        ("llama-3-8b", "int3", "known: bfloat16"),
    ],
)
def test_unknown_models_are_refused(name: str, dtype: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shapes.shape(name, dtype)


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(ModelError, match="num_hidden_layers is missing"):
        shapes.shape(path)


def test_shapes_and_profiles_need_no_torch() -> None:
    code = "from hasten.lab.planning import hardware, shapes; shapes.shape('builtin')"
    code += "; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", hardware.PROFILES)
def test_profiles_are_plausible(name: str) -> None:
    found = hardware.profile(name.upper())
    assert found.name == name
    assert found.read_rate < found.memory_bandwidth and found.matmul_rate < found.bf16_flops
    assert found.attention_rate <= found.matmul_rate and found.host_rate < found.host_link < found.read_rate
    assert found.fp8_flops is None or found.fp8_flops == pytest.approx(2 * found.bf16_flops, rel=0.001)
    assert set(found.sources) == {
        "peaks", "bandwidth_share", "matmul_share", "attention_share", "host_link_share", "overhead_s", "copy_call_s",
    }  # fmt: skip


OWN = dict(memory_bytes=16 << 30, memory_bandwidth=448e9, bf16_flops=60e12, host_link=16e9)


def test_a_profile_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in OWN.items()) + "\nbandwidth_share = 0.5\n")
    found = hardware.profile(path)
    assert (found.name, found.read_rate) == ("desk", 224e9)
    other = tmp_path / "desk.json"
    other.write_text(json.dumps(OWN))
    assert hardware.profile(str(other)).memory_bytes == 16 << 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("[1]", "must hold an object"),
        ("{", "is no JSON"),
        (json.dumps({**OWN, "memory_bandwidth": -1}), "memory_bandwidth: .* greater than 0"),
        (json.dumps({**OWN, "speed": 1}), "speed: .* not permitted; fields: name"),
        (json.dumps({**OWN, "bandwidth_share": 1.5}), "bandwidth_share: .* less than or equal to 1"),
        (json.dumps({"memory_bytes": 1}), "memory_bandwidth: Field required"),
    ],
)
def test_a_broken_profile_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "desk.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        hardware.profile(path)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean h100.*known: a100, h100, h200, l4"):
        hardware.profile("h1000")
