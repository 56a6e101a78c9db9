"""Tools over HTTP, as the official client sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from tests.server.conftest import Running
from tests.server.test_errors import CHAT, HI, check, post

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.compiling import After, Prepared, prepare
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.engine.decoding.constraints.tools import HERMES, Tool, ToolSpec
from hasten.engine.text import ChatTemplate

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "clock", "strict": True}},
]
NO_PARAMETERS = json.dumps({"type": "object", "properties": {}, "additionalProperties": False})
OFFERED = (Tool("weather", json.dumps(PARAMETERS)), Tool("clock", NO_PARAMETERS, True))
NAMED = {"type": "function", "function": {"name": "clock"}}
TEMPLATE = (
    "{% if tools %}<tool_call>{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}={{ c.function.arguments.city }}{% endfor %}|{% endfor %}"
)
ANSWER = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Pa}ris"}}\n</tool_call>\n'
ANSWER += '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


@pytest.fixture
def server(make_server: Any) -> Running:
    found: Running = make_server()
    found.engine.chat_template = ChatTemplate({"default": TEMPLATE})
    found.service.tool_format = HERMES
    found.engine.script = ANSWER
    return found


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def blob(spec: ToolSpec) -> bytes:
    return prepare(spec, Limits()).blob


def test_calls_come_whole(client: OpenAI, server: Running) -> None:
    [choice] = client.chat.completions.create(model="fake", messages=HI, tools=TOOLS).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    calls = choice.message.tool_calls
    assert calls is not None and len({call.id for call in calls}) == 2
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Pa}ris"}),
        ("clock", {}),
    ]
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1].prompt.tolist())
    assert prompt == "<tool_call>[weather][clock]<user>hi|"


def test_calls_come_in_pieces(client: OpenAI) -> None:
    calls: dict[int, Any] = {}
    content, finish = "", []
    for chunk in client.chat.completions.create(model="fake", messages=HI, tools=TOOLS, stream=True, n=2):
        [choice] = chunk.choices
        if choice.index:
            continue
        content += choice.delta.content or ""
        finish.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(calls) and call.type == "function" and call.function.arguments == ""
                calls[call.index] = {"name": call.function.name, "pieces": []}
            else:
                assert call.function.name is None
                calls[call.index]["pieces"].append(call.function.arguments)
    assert content == "I look." and finish[-1] == "tool_calls" and set(finish[:-1]) == {None}
    assert [call["name"] for call in calls.values()] == ["weather", "clock"]
    assert "".join(calls[0]["pieces"]) == '{"city": "Pa}ris"}' and len(calls[0]["pieces"]) > 5
    assert "".join(calls[1]["pieces"]) == "{}"


def test_only_calls_have_no_content(client: OpenAI, server: Running) -> None:
    server.engine.script = ANSWER.partition("\n")[2]
    [choice] = client.chat.completions.create(model="fake", messages=HI, tools=TOOLS, tool_choice="required").choices
    assert choice.message.content is None and len(choice.message.tool_calls or []) == 2
    server.engine.script = "Just words < than a call.\n"
    [choice] = client.chat.completions.create(model="fake", messages=HI, tools=TOOLS).choices
    assert (choice.message.content, choice.message.tool_calls) == ("Just words < than a call.\n", None)
    assert choice.finish_reason == "stop"
    [choice] = client.chat.completions.create(model="fake", messages=HI, tools=TOOLS, max_tokens=4).choices
    assert (choice.message.content, choice.finish_reason) == ("Just", "length")


def test_a_call_that_a_stop_string_cuts_is_none_to_run(client: OpenAI) -> None:
    given: dict[str, Any] = dict(model="fake", messages=HI, tools=TOOLS)
    [choice] = client.chat.completions.create(**given, stop=["ris"]).choices
    [call] = choice.message.tool_calls or []
    assert (choice.finish_reason, call.function.arguments) == ("stop", '{"city": "Pa}')
    *_, last = client.chat.completions.create(**given, stop=["ris"], stream=True)
    assert last.choices[0].finish_reason == "stop"
    [choice] = client.chat.completions.create(**given, stop=["</tool_call>"]).choices
    [call] = choice.message.tool_calls or []
    assert (choice.finish_reason, json.loads(call.function.arguments)) == ("tool_calls", {"city": "Pa}ris"})


def test_calls_come_after_a_thought(client: OpenAI, server: Running) -> None:
    server.engine.chat_template = ChatTemplate({"default": TEMPLATE + "<think>\n"})
    server.engine.script = "Is <tool_call> or </thin right?</think>" + ANSWER
    given: dict[str, Any] = dict(model="fake", messages=HI, tools=TOOLS)
    [choice] = client.chat.completions.create(**given).choices
    thought = choice.message.model_extra["reasoning_content"]  # type: ignore[index]
    assert (thought, choice.message.content) == ("Is <tool_call> or </thin right?", "I look.")
    assert len(choice.message.tool_calls or []) == 2 and choice.finish_reason == "tool_calls"
    constraint = server.engine.seen[-1].sampling.constraint
    assert isinstance(constraint, After) and constraint.text == "</think>"
    thought, said, calls = "", "", 0
    for chunk in client.chat.completions.create(**given, stream=True):
        delta = chunk.choices[0].delta
        thought += (delta.model_extra or {}).get("reasoning_content", "")
        said += delta.content or ""
        calls += sum(call.id is not None for call in delta.tool_calls or ())
    assert (thought, said, calls) == ("Is <tool_call> or </thin right?", "I look.", 2)
    [choice] = client.chat.completions.create(**given, max_tokens=35).choices
    assert choice.message.model_extra["reasoning_content"].endswith("right?</th")  # type: ignore[index]
    assert (choice.message.content, choice.finish_reason) == ("", "length")


def test_a_back_end_that_takes_no_tools_is_told_of_them(server: Running) -> None:
    server.service.grammars._prepares = server.engine.prepares_grammars = False
    said = check(post(server, CHAT, {"messages": HI, "tools": TOOLS}), 400, "tools", "invalid_json_schema")
    assert said == "tools: this back end takes none"


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({}, ToolSpec(OFFERED, whitespace=16)),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolSpec(OFFERED, parallel=False, whitespace=16)),
        ({"tool_choice": "required"}, ToolSpec(OFFERED, required=True, whitespace=16)),
        (
            {"tool_choice": NAMED},
            ToolSpec(OFFERED[1:], required=True, parallel=False, whitespace=16),
        ),
        (
            {"response_format": {"type": "json_object"}},
            ToolSpec(OFFERED, answer=ConstraintSpec("json_object", whitespace=16), whitespace=16),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
            ToolSpec(OFFERED[1:], whitespace=16),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
            ToolSpec(OFFERED[1:], required=True, whitespace=16),
        ),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolSpec(OFFERED, whitespace=16)),
        ({"tool_choice": "none"}, None),
    ],
)
def test_what_reaches_the_engine(server: Running, fields: dict, spec: ToolSpec | None) -> None:
    assert post(server, CHAT, {"messages": HI, "max_tokens": 1, "tools": TOOLS, **fields}).status_code == 200
    got = server.engine.seen[-1].sampling.constraint
    if spec is None:
        assert got is None
        assert "weather" not in server.engine.tokenizer.decode(server.engine.seen[-1].prompt.tolist())
    else:
        assert isinstance(got, Prepared) and got.blob == blob(spec)
        prompt = server.engine.tokenizer.decode(server.engine.seen[-1].prompt.tolist())
        assert prompt.startswith("<tool_call>[weather][clock]"), "the model is told of all, whatever it may choose"


def test_a_conversation_with_calls_reaches_the_template(client: OpenAI, server: Running) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, tools=TOOLS).choices[0].message
    call = answer.tool_calls[0]  # type: ignore[index]
    said = [*HI, answer.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    client.chat.completions.create(model="fake", messages=said, tools=TOOLS, max_tokens=1)
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1].prompt.tolist())
    assert prompt == "<tool_call>[weather][clock]<user>hi|<assistant>I look.weather=Pa}risclock=|<tool>sunny|"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters":
          {"$dynamicRef": "#x"}}}]}, "tools[0].function.parameters"),
        ({"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema":
          {"name": "a", "strict": True, "schema": {"$dynamicRef": "#x"}}}}, "response_format"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": 1}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": 3}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [NAMED]}}},
         "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS[:1], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
         "tool_choice.allowed_tools.tools[0].function.name"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages[0].tool_calls[0].function.name"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Running, fields: dict, param: str) -> None:
    check(post(server, CHAT, {"messages": HI, "max_tokens": 1, **fields}), 400, param)


def test_a_format_without_marks_takes_no_second_constraint(make_server: Any) -> None:
    server = make_server()
    body = {"messages": HI, "tools": TOOLS, "response_format": {"type": "json_object"}}
    assert "marks no calls" in check(post(server, CHAT, body), 400, "response_format")
