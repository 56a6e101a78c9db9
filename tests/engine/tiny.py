"""Tiny models with random weights, and the meaning of *exact* as a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hasten.engine.build import Built, build
from hasten.engine.config import EngineConfig
from hasten.engine.outputs import TokenDelta
from hasten.engine.request import Request, SamplingParams

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 0,
}


def folder(where: Path, **changes: Any) -> str:
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(where)


def engine(path: str, *, with_: tuple[str, ...] = (), **settings: Any) -> Built:
    """An engine with random weights in float32; settings as `kv__memory_bytes=...`."""
    values: dict[str, Any] = {
        "model.load_format": "dummy",
        "model.dtype": "float32",
        "kv.memory_bytes": 4 << 20,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return build(EngineConfig.build(path, with_=with_, set_=values))


def run(built: Built, requests: list[Request]) -> dict[tuple[str, int], list[TokenDelta]]:
    for request in requests:
        built.engine.add(request)
    out: dict[tuple[str, int], list[TokenDelta]] = {}
    for delta in built.engine.run():
        assert delta.error is None, delta.error
        out.setdefault((delta.request_id, delta.index), []).append(delta)
    built.engine.ledger.audit()
    return out


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


_KNOWN: dict[tuple[int, bytes, int], tuple[Built, list[TokenDelta]]] = {}
"""What a plain engine gave for a prompt and a number of tokens. The engine stays, so that its id stays its own."""


def alone(plain: Built, request: Request) -> list[TokenDelta]:
    """What an engine that keeps nothing gives for this request and no other, computed once."""
    key = (id(plain), np.asarray(request.prompt, dtype=np.int64).tobytes(), request.sampling.max_tokens or 0)
    if key not in _KNOWN:
        _KNOWN[key] = (plain, run(plain, [request])[(request.id, 0)])
    return _KNOWN[key][1]


def assert_exact(plain: Built, other: Built, prompts: list[list[int]], count: int) -> None:
    """Greedy tokens of `other`, all prompts at once, equal those of `plain`, one prompt at a time. `plain` must keep nothing of
    earlier ones.

    Where the plain engine's two best logits are too close to call (within 1e-4 of the largest magnitude; here: of their
    log-probabilities), both are fed the plain token and go on."""
    left = {i: list(prompt) for i, prompt in enumerate(prompts)}
    goal = {i: len(prompt) + count for i, prompt in enumerate(prompts)}
    for _ in range(8):
        if not left:
            return
        requests = {
            i: Request(
                id=f"x{i}",
                prompt=np.array(prompt),
                sampling=SamplingParams(max_tokens=goal[i] - len(prompt), temperature=0, logprobs=2, ignore_eos=True),
            )
            for i, prompt in left.items()
        }
        want = {i: alone(plain, request) for i, request in requests.items()}
        got = run(other, list(requests.values()))
        for i, prompt in list(left.items()):
            mine, theirs = tokens(want[i]), tokens(got[(f"x{i}", 0)])
            if mine == theirs:
                del left[i]
                continue
            at = next(j for j, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            scores = [score for delta in want[i] for score in delta.logprobs][at]
            assert scores is not None
            best, second = scores.top[0][1], scores.top[1][1]
            assert best - second <= 1e-4 * abs(best), f"token {at} of prompt {i}: {mine[at]} became {theirs[at]}"
            left[i] = prompt + mine[: at + 1]
    assert not left, "too many ties to tell"
