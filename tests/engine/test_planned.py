"""Recorded steps: the same numbers as the Python path, bit for bit, whatever runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import tiny

from hasten.engine.attention.paged import PagedAttention
from hasten.engine.build import Built
from hasten.engine.executors.planned import PlannedPass
from hasten.engine.executors.step import Linear
from hasten.engine.request import Request, SamplingParams
from hasten.kernels.cpu import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library is built (make native)")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
}


def requests() -> list[Request]:
    """Prompts of one token to more than a plan has rows, so that steps of all sizes come up."""
    sampling = SamplingParams(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)
    return [Request(id=f"{n}", prompt=(7 * np.arange(n) + n) % 250 + 1, sampling=sampling) for n in (1, 3, 20, 70, 33, 2)]


def outputs(built: Built) -> dict[tuple[str, int], list[Any]]:
    return {key: [(d.tokens, d.logprobs) for d in deltas] for key, deltas in tiny.run(built, requests()).items()}


def plans(built: Built) -> list[PlannedPass | None]:
    return list(built.parts.executor._plans.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_give_the_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, **FAMILIES[family])
    with_plan, without = (tiny.engine(path, model__dtype=dtype, executor__native=native) for native in (True, False))
    assert outputs(with_plan) == outputs(without)
    assert isinstance(plans(with_plan)[0], PlannedPass) and not plans(without)


def test_an_attention_policy_in_python_is_called_between_recorded_calls(tmp_path: Path) -> None:
    class InPython(PagedAttention):
        native = False
        calls = 0

        def attend(self, site, q, k, v, step):
            InPython.calls += 1
            return super().attend(site, q, k, v, step)

    path = tiny.folder(tmp_path)
    with_plan, without = tiny.engine(path), tiny.engine(path, executor__native=False)
    with_plan.parts.executor._attention = InPython()  # type: ignore[union-attr]
    assert outputs(with_plan) == outputs(without)
    assert InPython.calls > 0 and isinstance(plans(with_plan)[0], PlannedPass)


def test_results_in_python_may_lie_anywhere(tmp_path: Path) -> None:
    """In the memory an op is given, in some of its own, or where the input lies."""

    class InPlace(PagedAttention):
        native = False

        def attend(self, site, q, k, v, step):
            step.empty(*q.shape).fill_(float("nan"))  # given memory, used for something else
            q.copy_(super().attend(site, q, k, v, step).view(q.shape))
            return q.reshape(q.shape[0], -1)

    path = tiny.folder(tmp_path)
    with_plan, without = tiny.engine(path), tiny.engine(path, executor__native=False)
    with_plan.parts.executor._attention = InPlace()  # type: ignore[union-attr]
    assert outputs(with_plan) == outputs(without)
    assert isinstance(plans(with_plan)[0], PlannedPass)


@pytest.mark.parametrize("in_python", [False, True])
def test_a_profiled_step_says_where_its_time_went(in_python: bool, tmp_path: Path) -> None:
    class InPython(PagedAttention):
        native = False

    built = tiny.engine(tiny.folder(tmp_path))
    executor: Any = built.parts.executor
    executor.profile = True
    if in_python:
        executor._attention = InPython()
    built.engine.add(Request(id="a", prompt=np.arange(1, 9), sampling=SamplingParams(max_tokens=6, ignore_eos=True)))
    while built.engine.unfinished:
        began = time.perf_counter()
        built.engine.step()
        took, parts = time.perf_counter() - began, dict(built.engine.last_seconds)
        assert min(parts.values()) >= 0 and sum(parts.values()) <= took
        assert {"linear", "attention", "norm", "activation", "head"} <= parts.keys()
        assert min(parts[kind] for kind in ("linear", "attention", "norm", "activation")) > 0
    assert isinstance(plans(built)[0], PlannedPass)


def test_changed_weights_are_recorded_anew(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    built, plain = (tiny.engine(path, kv__reuse="none", executor__native=native) for native in (True, False))
    before = outputs(built)
    undo = []
    for one in (built, plain):
        linear = next(op for op in one.parts.model.blocks[0].ops if isinstance(op, Linear) and op.name == "gate_up")
        undo.append(linear.store.patch((torch.arange(8), torch.arange(8)), torch.full((8,), 3.0)))
    changed = outputs(built)
    assert changed == outputs(plain) and changed != before
    for each in undo:
        each()
    assert outputs(built) == before


def test_an_unknown_op_keeps_the_model_in_python(tmp_path: Path) -> None:
    class Nothing:
        name, kind, calls = "nothing", "test", 0

        def __call__(self, step, site) -> None:
            Nothing.calls += 1

    path = tiny.folder(tmp_path)
    built, plain = tiny.engine(path), tiny.engine(path)
    built.parts.model.blocks[1].insert("qkv", Nothing())
    assert outputs(built) == outputs(plain)
    assert Nothing.calls > 0 and plans(built) == [None]
