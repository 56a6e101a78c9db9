"""A request's output depends only on the request: bit for bit with deterministic kernels, whatever runs beside it and however
its computation is cut, preempted, swapped or reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine import tiny

from hasten.engine.events import Kind
from hasten.engine.request import Request, SamplingParams

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
WINDOW = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24}


def mixed_requests() -> list[Request]:
    rng = np.random.default_rng(5)
    shared = rng.integers(1, 256, 80).tolist()
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "prompt_logprobs": 2},
        {"temperature": 0.9, "seed": 11, "top_p": 0.8, "n": 2},
        {"temperature": 1.1, "seed": 12, "top_k": 20, "repetition_penalty": 1.3},
        {"temperature": 0.7, "seed": 13, "min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 0.0, "logit_bias": {3: 4.0, 9: -100.0}, "min_tokens": 20},
    ]
    return [
        Request(
            id=f"r{i}",
            prompt=np.array(shared[: 80 - 10 * i] + rng.integers(1, 256, 25 * i + 1).tolist()),
            sampling=SamplingParams(max_tokens=24, logprobs=3, **kind),
        )
        for i, kind in enumerate(kinds)
    ]


def answers(built: tiny.Built, requests: list[Request]) -> dict[Any, Any]:
    got = tiny.run(built, requests)
    return {
        key: (tiny.tokens(deltas), [score for d in deltas for score in d.logprobs], deltas[0].prompt_logprobs)
        for key, deltas in got.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, WINDOW, MOE], ids=["llama", "window", "moe"])
def test_deterministic_runs_are_equal_bit_for_bit(tmp_path: Path, device: str, dtype: str, changes: dict[str, Any]) -> None:
    path = tiny.folder(tmp_path, **changes)
    settings: dict[str, Any] = {"model__dtype": dtype, "model__device": device, "executor__deterministic": True}
    plain = tiny.engine(path, kv__reuse=None, scheduling__max_rows=1, **settings)
    alone: dict[Any, Any] = {}
    for request in mixed_requests():
        alone.update(answers(plain, [request]))
    item = 4 if dtype == "float32" else 2
    block = 16 * 2 * 2 * 2 * 16 * item  # slots, layers, k and v, kv heads, head_dim
    for host in (0, 1 << 20):
        busy = tiny.engine(
            path,
            with_=("stall-free:chunk=23", "newest-yields:swap_from=1"),
            kv__block_size=16,
            kv__memory_bytes=26 * block,
            kv__host_bytes=host,
            scheduling__max_tokens=37,
            **settings,
        )
        assert answers(busy, mixed_requests()) == alone
        counts = busy.engine.events.counts
        assert counts[Kind.SWAPPED if host else Kind.PREEMPTED] > 0, "the test should press on memory"
        # Everything once more, now that prompts are cached.
        again = answers(busy, mixed_requests())
        assert again == alone
        assert counts[Kind.REUSED] > 0


def test_different_seeds_differ_and_n_samples_differ(tmp_path: Path) -> None:
    built = tiny.engine(tiny.folder(tmp_path))
    sampling = SamplingParams(max_tokens=16, temperature=1.5, seed=1, n=3)
    got = tiny.run(built, [Request(id="a", prompt=np.arange(1, 9), sampling=sampling)])
    texts = {tuple(tiny.tokens(deltas)) for deltas in got.values()}
    assert len(texts) == 3
    unseeded = SamplingParams(max_tokens=16, temperature=1.5)
    drawn = tiny.run(built, [Request(id=f"u{i}", prompt=np.arange(1, 9), sampling=unseeded) for i in range(3)])
    assert len({tuple(tiny.tokens(deltas)) for deltas in drawn.values()}) == 3


def test_prompt_logprobs_are_those_of_the_next_tokens(tmp_path: Path) -> None:
    built = tiny.engine(tiny.folder(tmp_path), with_=("stall-free:chunk=7",), scheduling__max_tokens=9)
    prompt = np.random.default_rng(1).integers(1, 256, 30)
    sampling = SamplingParams(max_tokens=2, temperature=0, logprobs=4, prompt_logprobs=4)
    (deltas,) = tiny.run(built, [Request(id="a", prompt=prompt, sampling=sampling)]).values()
    scores = deltas[0].prompt_logprobs
    assert scores is not None and len(scores) == 30 and scores[0] is None
    for i in (1, 8, 9, 17, 29):
        cut = Request(id=f"c{i}", prompt=prompt[:i], sampling=SamplingParams(max_tokens=1, temperature=0, logprobs=4))
        ((first, *_),) = tiny.run(built, [cut]).values()
        top = first.logprobs[0]
        assert top is not None and scores[i] is not None
        assert scores[i].token == prompt[i]
        assert [t for t, _ in scores[i].top] == [t for t, _ in top.top]
        np.testing.assert_allclose([v for _, v in scores[i].top], [v for _, v in top.top], rtol=1e-4, atol=1e-5)


def test_a_row_of_logits_that_is_not_finite_ends_its_request_only(tmp_path: Path, device: str) -> None:
    built = tiny.engine(tiny.folder(tmp_path), model__device=device)
    built.parts.model.embedding.weight[77] = float("nan")
    good = Request(id="good", prompt=np.array([1, 2, 3]), sampling=SamplingParams(max_tokens=5, temperature=0))
    bad = Request(id="bad", prompt=np.array([1, 77, 3]), sampling=SamplingParams(max_tokens=5, temperature=0))
    for request in (good, bad):
        built.engine.add(request)
    ends = {delta.request_id: delta for delta in built.engine.run() if delta.finish is not None}
    assert ends["bad"].finish == "error" and "not finite" in str(ends["bad"].error)
    assert ends["good"].finish in ("stop", "length")
    built.engine.ledger.audit()
