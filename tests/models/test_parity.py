"""Every family against transformers in float32: logits of the whole prompt within 1e-4, and 64 greedy tokens equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.harness import Runner, load
from torch import Tensor

transformers = pytest.importorskip("transformers")

TINY = dict(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


@dataclasses.dataclass
class Case:
    family: str
    prompt: int = 12
    change: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_length: int | None = None


CASES = {
    "llama": Case("Llama"),
    "llama-long": Case("Llama", 300),
    "llama-multi-head": Case("Llama", change=dict(num_key_value_heads=4)),
    "llama-tied": Case("Llama", change=dict(tie_word_embeddings=True)),
    "llama-biases": Case("Llama", change=dict(attention_bias=True, mlp_bias=True)),
    "llama-theta": Case("Llama", change=dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "llama-derived-head": Case("Llama", change=dict(head_dim=None, hidden_size=64)),
    "llama-gelu": Case("Llama", change=dict(hidden_act="gelu_pytorch_tanh")),
    "llama-linear": Case("Llama", 300, dict(rope_parameters=LINEAR)),
    "llama-linear-beyond": Case("Llama", 300, dict(rope_parameters=LINEAR, max_position_embeddings=128), 512),
    "llama-dynamic": Case("Llama", 300, dict(rope_parameters=DYNAMIC)),
    "llama-dynamic-growing": Case("Llama", 40, dict(rope_parameters=DYNAMIC, max_position_embeddings=64), 128),
    "llama-llama3": Case("Llama", 300, dict(rope_parameters=LLAMA3)),
    "llama-yarn": Case("Llama", 300, dict(rope_parameters=YARN)),
    "llama-yarn-knobs": Case(
        "Llama",
        300,
        dict(rope_parameters={**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5}),
    ),
    "llama-yarn-untruncated": Case("Llama", 300, dict(rope_parameters={**YARN, "truncate": False, "attention_factor": 1.2})),
    "mistral": Case("Mistral", change=dict(sliding_window=None)),
    "mistral-window": Case("Mistral", 100, dict(sliding_window=24)),
    "mistral-window-long": Case("Mistral", 300, dict(sliding_window=64)),
    "qwen2": Case("Qwen2"),
    "qwen2-tied": Case("Qwen2", change=dict(tie_word_embeddings=True)),
    "qwen2-window": Case("Qwen2", 100, dict(use_sliding_window=True, sliding_window=16, max_window_layers=1)),
    "qwen3": Case("Qwen3"),
    "qwen3-yarn-tied": Case("Qwen3", 300, dict(rope_parameters=YARN, tie_word_embeddings=True)),
    "qwen3-bias": Case("Qwen3", change=dict(attention_bias=True)),
    "qwen3-layers": Case(
        "Qwen3",
        100,
        dict(
            use_sliding_window=True,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "mixtral": Case("Mixtral", change=dict(num_local_experts=4, num_experts_per_tok=2)),
    "mixtral-long-window": Case("Mixtral", 300, dict(num_local_experts=4, sliding_window=64)),
    "qwen3moe": Case("Qwen3Moe", change=dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24)),
    "qwen3moe-normalised": Case(
        "Qwen3Moe",
        100,
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True),
    ),
    "qwen3moe-some-dense": Case(
        "Qwen3Moe",
        change=dict(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            num_hidden_layers=4,
            decoder_sparse_step=2,
            mlp_only_layers=[1],
        ),
    ),
}


def build(family: str, change: dict[str, Any]) -> Any:
    """A transformers model of random weights that are large enough for every part to matter."""
    config = getattr(transformers, f"{family}Config")(**{**TINY, **change})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 1.0 if "embed" in name else 0.25)
    return model


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], Tensor, list[float]]:
    """Tokens, logits of the prompt's rows, and how far the best logit leads at each token."""
    out = model(torch.tensor([prompt]), use_cache=True)
    logits, tokens, leads = out.logits[0], [], []
    row = logits[-1]
    while True:
        best = row.topk(2).values
        leads.append(float((best[0] - best[1]) / row.abs().max()))
        tokens.append(int(row.argmax()))
        if len(tokens) == count:
            return tokens, logits, leads
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        row = out.logits[0, -1]


def prompt_of(length: int) -> list[int]:
    return torch.randint(0, 160, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs = build(case.family, case.change)
    theirs.save_pretrained(tmp_path)
    prompt = prompt_of(case.prompt)
    expected, expected_logits, leads = greedy(theirs, prompt, 64)
    runner = Runner(load(tmp_path, max_length=case.max_length))
    tokens, logits = runner.generate(prompt, 64)
    scale = expected_logits.abs().max()
    assert (logits - expected_logits).abs().max() <= 1e-4 * scale
    for ours, want, lead in zip(tokens, expected, leads, strict=True):
        if ours != want:
            assert lead <= 1e-4, "a token differs where the best logit leads clearly"
            break


def test_dynamic_beyond_the_trained_length_is_transformers_fed_token_by_token(tmp_path: Path) -> None:
    theirs = build("Llama", dict(rope_parameters=DYNAMIC, max_position_embeddings=64))
    theirs.save_pretrained(tmp_path)
    prompt = prompt_of(120)
    runner = Runner(load(tmp_path, max_length=128))
    ours = runner.forward(prompt)[-1]
    with torch.inference_mode():
        cache = None
        for token in prompt:
            out = theirs(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    expected = out.logits[0, -1]
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", ["Qwen3", "Mixtral"])
def test_chunks_and_batches_do_not_change_a_bit_when_deterministic(family: str, tmp_path: Path) -> None:
    build(family, dict(num_local_experts=4) if family == "Mixtral" else {}).save_pretrained(tmp_path)
    model = load(tmp_path, deterministic=True)
    prompt = prompt_of(40)
    whole = Runner(model, deterministic=True).forward(prompt)
    cut = Runner(model, deterministic=True)
    rows = torch.cat([cut.forward(prompt[a:b]) for a, b in [(0, 7), (7, 8), (8, 31), (31, 40)]])
    assert torch.equal(whole, rows)
