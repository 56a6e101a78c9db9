"""Calls of tools: the grammar of answers that hold some, and reading them in pieces."""

from __future__ import annotations

import json
import random

import pytest

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.constraints.tools import (
    HERMES,
    JSON,
    LLAMA,
    CallReader,
    Found,
    Tool,
    ToolFormat,
    ToolSpec,
    format_of,
)

CITY = Tool("weather", json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
                                   "additionalProperties": False}), True)  # fmt: skip
ANY = Tool("note")
LETTERS = Vocabulary([bytes([byte]) for byte in range(256)], [])


def judge(spec: ToolSpec, text: str) -> bool:
    state: State = CompiledGrammar(spec.compile(Limits()), LETTERS).start()
    if state.match(text.encode()) < len(text.encode()):
        return False
    for byte in text.encode():
        state.advance(byte)
    return state.ended


def call(form: ToolFormat, name: str, arguments: str) -> str:
    return form.open + name + form.middle + arguments + form.close


PARIS = call(HERMES, "weather", '{"city": "Paris"}')
NOTE = call(HERMES, "note", '{"text": ["}", {"a": "\\\\\\"{"}]}')


def test_what_may_be_answered() -> None:
    auto = ToolSpec((CITY, ANY))
    for text in (
        "hello",
        "a <tool> of <tool_calls",
        "{}",
        PARIS,
        f"{PARIS}\n{NOTE}",
        f"I look.\n{PARIS}",
        f"<think>\n</think>{NOTE}",
    ):
        assert judge(auto, text), text
    for text in ("a <tool_call>", f"{PARIS} done", f"{PARIS}{NOTE}", call(HERMES, "else", "{}"), call(HERMES, "weather", "{}")):
        assert not judge(auto, text), text
    one = ToolSpec((CITY, ANY), required=True, parallel=False)
    assert judge(one, PARIS) and judge(one, NOTE)
    assert not judge(one, f"{PARIS}\n{NOTE}") and not judge(one, "hello")
    answer = ToolSpec((CITY,), answer=ConstraintSpec("json_schema", '{"type": "integer"}'))
    assert judge(answer, "12") and judge(answer, PARIS) and not judge(answer, "twelve")
    plain = ToolSpec((CITY, ANY), JSON)
    for text, right in (
        ("hello", True),
        ('{"a": 1}', True),
        (call(JSON, "weather", '{"city": ""}'), True),
        (call(JSON, "weather", "{}"), False),
        ('{"name": "x"}', False),
    ):
        assert judge(plain, text) == right, text


def test_schemas_that_cannot_be_enforced() -> None:
    odd = json.dumps({"type": "object", "$dynamicRef": "#x", "properties": {"a": {"type": "integer"}}})
    with pytest.raises(GrammarError, match="tool f"):
        ToolSpec((Tool("f", odd, True),)).compile(Limits())
    assert ToolSpec((Tool("f", odd),)).compile(Limits()).warnings
    assert judge(ToolSpec((Tool("f", odd),)), call(HERMES, "f", '{"a": 1}'))
    wrong = Tool("f", '{"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}')
    assert judge(ToolSpec((wrong,)), call(HERMES, "f", '{"a": 1}'))


def test_what_cannot_stand_in_calls_is_refused() -> None:
    for name in ('a"b', "a\\b", "a\nb", "\ud800"):
        with pytest.raises(GrammarError, match="no plain way to write the name"):
            ToolSpec((Tool(name),)).compile(Limits())
    with pytest.raises(GrammarError, match="cannot stand beside tools"):
        ToolSpec((Tool("f"),), answer=ConstraintSpec("ebnf", 'start: "a"')).compile(Limits())
    both = ToolSpec((Tool("f"),), answer=ConstraintSpec("gbnf", 'root ::= "a"'))
    assert judge(both, "a") and judge(both, call(HERMES, "f", "{}")) and not judge(both, "b")


def test_the_format_is_told_by_the_template() -> None:
    assert format_of("{{ '<tool_call>' }}") is HERMES
    assert format_of("<|python_tag|>") is LLAMA
    assert format_of("{{ messages }}") is JSON


def read(form: ToolFormat, answer: str, cuts: list[int]) -> list[Found]:
    """What is found when the answer comes in pieces, neighbours of a kind joined."""
    reader = CallReader(form)
    found: list[Found] = []
    for start, stop in zip([0, *cuts], [*cuts, len(answer)], strict=True):
        found += reader.feed(answer[start:stop])
    joined: list[Found] = []
    for kind, piece in found + reader.end():
        if joined and joined[-1][0] == kind and kind != "call":
            joined[-1] = (kind, joined[-1][1] + piece)
        else:
            joined.append((kind, piece))
    return joined


@pytest.mark.parametrize("form", [HERMES, LLAMA, JSON])
def test_calls_are_read_however_they_come(form: ToolFormat) -> None:
    rng = random.Random(0)
    arguments = ['{"city": "Pa{ris\\""}', "{}", '{"a": [{"b": "}"}, "\\\\"]}']
    calls = [call(form, f"tool_{i}", text) for i, text in enumerate(arguments)]
    want = [part for i, text in enumerate(arguments) for part in (("call", f"tool_{i}"), ("arguments", text))]
    answers = [(form.between.join(calls), want)]
    if form.marker:
        answers.append(
            (f"First, a <tool_cal, then:\n\n{form.between.join(calls)}", [("text", "First, a <tool_cal, then:"), *want])
        )
    answers += [(text, [("text", text)]) for text in ("hello\n", " {", "<tool_cal", '{"nam', "x\n\n<", "\n")]
    for answer, expected in answers:
        for _ in range(60):
            cuts = sorted(rng.randrange(len(answer) + 1) for _ in range(rng.choice([0, 1, 3, len(answer)])))
            assert read(form, answer, cuts) == expected, (answer, cuts)


def test_a_call_that_is_cut_off() -> None:
    cut = PARIS[: PARIS.index("Paris")]
    assert read(HERMES, cut, []) == [("call", "weather"), ("arguments", '{"city": "')]
    assert read(HERMES, PARIS[:15], []) == [("text", PARIS[:15])]
    assert read(HERMES, PARIS + "\n<tool", [5]) == [("call", "weather"), ("arguments", '{"city": "Paris"}')]
