"""Constrained answers of the built-in model: valid, and the same whatever makes them faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import LLM, After, ConstraintSpec, SamplingParams
from hasten.engine.events import Kind

BUILTIN = Path(hasten.__file__).with_name("builtin_model")
pytestmark = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "maxLength": 20},
        "items": {
            "type": "array",
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["apple", "pear", "plum"]},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        },
        "express": {"type": "boolean"},
    },
    "required": ["customer", "items", "express"],
    "additionalProperties": False,
}  # fmt: skip
COMPACT = ConstraintSpec.of_schema(ORDER, whitespace="compact", order="schema")
RULES = {
    "role": "system",
    "content": " ".join(["Write down what is ordered, with the customer and the count of each item."] * 5),
}
PROMPTS = [
    [RULES, {"role": "user", "content": f"Order {n} {name} for {who}."}]
    for who in ("Nina", "Omar")
    for n, name in ((1, "apples"), (2, "pears"), (3, "plums"))
]


def answers(*, with_: tuple[str, ...] = (), temperature: float = 0.0, n: int = 1, **settings: Any) -> tuple[list[str], LLM]:
    llm = LLM(with_=with_, set_={"model.dtype": "float32", **{k.replace("__", "."): v for k, v in settings.items()}})
    sampling = SamplingParams(max_tokens=120, temperature=temperature, seed=3, n=n, constraint=COMPACT)
    done = llm.chat(PROMPTS, sampling)
    assert [choice.error for one in done for choice in one.choices if choice.error] == []
    assert {choice.finish for one in done for choice in one.choices} == {"stop"}
    return [choice.text for one in done for choice in one.choices], llm


def valid(text: str) -> bool:
    order = json.loads(text)
    items = order["items"]
    return bool(
        list(order) == ["customer", "items", "express"]
        and len(order["customer"]) <= 20
        and isinstance(order["express"], bool)
        and len(items) <= 3
        and all(set(i) == {"name", "count"} and i["name"] in ("apple", "pear", "plum") and 1 <= i["count"] <= 99 for i in items)
    )


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_every_answer_is_valid(temperature: float) -> None:
    texts, _ = answers(temperature=temperature, n=3 if temperature else 1)
    assert all(map(valid, texts)), texts


def test_everything_together_changes_nothing() -> None:
    plain, without = answers(with_=("whole-prompts",), kv__reuse=None)
    many, made = answers(with_=("forced-tokens",), kv__memory_bytes=1_000_000, scheduling__max_tokens=48)
    assert many == plain
    counts = made.engine.events.counts
    assert counts[Kind.DRAFTED] and made.engine.events.sums[Kind.REUSED]
    assert counts[Kind.PREEMPTED], "memory was short"
    forced, quick = answers(with_=("forced-tokens",))
    assert forced == plain and quick.engine.events.counts[Kind.STEP] < without.engine.events.counts[Kind.STEP]


def test_after_a_thought() -> None:
    llm = LLM()
    spec = After("</think>", ConstraintSpec.of_choices(["yes", "no"]))
    done = llm.generate(
        "Is 7 a prime number? <think>It is.", SamplingParams(max_tokens=300, temperature=0.7, seed=1, constraint=spec)
    )
    [choice] = done[0].choices
    assert choice.finish == "length" or choice.text.partition("</think>")[2] in ("yes", "no")
