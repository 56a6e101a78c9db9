"""Constrained answers over HTTP: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from tests.server.conftest import Running
from tests.server.test_errors import CHAT, HI, TEXT, check, post

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.compiling import After, Prepared, prepare
from hasten.engine.decoding.constraints.spec import ConstraintSpec

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}
ODD = {"$dynamicRef": "#x"}


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def blob(spec: ConstraintSpec) -> bytes:
    return prepare(spec, Limits()).blob


def sent(server: Running) -> Any:
    return server.engine.seen[-1].sampling.constraint


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"guided_choice": ["yes", "no"]}, ConstraintSpec.of_choices(["no", "yes"])),
        ({"guided_regex": "[a-z]+"}, ConstraintSpec("regex", "[a-z]+")),
        ({"guided_grammar": 'root ::= "a"+'}, ConstraintSpec("gbnf", 'root ::= "a"+')),
        ({"guided_grammar": 'start: "a"+'}, ConstraintSpec("ebnf", 'start: "a"+')),
        ({"guided_json": PERSON}, ConstraintSpec.of_schema(PERSON, whitespace=16)),
        ({"guided_json": json.dumps(PERSON)}, ConstraintSpec.of_schema(PERSON, whitespace=16)),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ConstraintSpec.of_choices(["yes", "no"])),
        (
            {"structured_outputs": {"json": PERSON, "whitespace": "compact", "order": "schema"}},
            ConstraintSpec.of_schema(PERSON, whitespace="compact", order="schema"),
        ),
        ({"response_format": {"type": "json_object"}}, ConstraintSpec("json_object", whitespace=16)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}},
            ConstraintSpec.of_schema(PERSON, whitespace=16),
        ),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None}, None),
    ],
)
def test_every_way_to_ask(server: Running, endpoint: str, fields: dict, spec: ConstraintSpec | None) -> None:
    body = {"messages": HI} if endpoint == CHAT else {"prompt": "x"}
    assert post(server, endpoint, {**body, "max_tokens": 1, **fields}).status_code == 200
    got = sent(server)
    if spec is None:
        assert got is None
    else:
        assert isinstance(got, Prepared) and got.blob == blob(spec)


def test_the_official_client_asks_with_a_schema(client: OpenAI, server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    client.chat.completions.create(model="fake", messages=HI, max_tokens=2, response_format=form)
    assert sent(server).blob == blob(ConstraintSpec.of_schema(PERSON, whitespace=16))
    client.chat.completions.create(model="fake", messages=HI, max_tokens=2, extra_body={"guided_choice": ["a"]})
    assert sent(server).blob == blob(ConstraintSpec.of_choices(["a"]))


def test_a_constraint_may_begin_after_a_text(server: Running) -> None:
    asked = {"structured_outputs": {"choice": ["a"], "after": "</think>"}}
    assert post(server, CHAT, {"messages": HI, "max_tokens": 1, **asked}).status_code == 200
    assert isinstance(sent(server), After) and sent(server).text == "</think>"


def test_a_template_that_opens_a_thought_puts_the_constraint_after_it(make_server: Any) -> None:
    from hasten.engine.text import ChatTemplate

    server = make_server()
    server.engine.chat_template = ChatTemplate({"default": "{{ messages[0].content }}<assistant><think>\n"})
    assert post(server, CHAT, {"messages": HI, "max_tokens": 1, "guided_choice": ["a"]}).status_code == 200
    assert sent(server).text == "</think>"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "invalid_grammar"),
        ({"guided_grammar": "root ::= other"}, "guided_grammar", "invalid_grammar"),
        ({"guided_choice": []}, "guided_choice", "invalid_grammar"),
        ({"guided_choice": "yes"}, "guided_choice", "invalid_type"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]", "invalid_type"),
        ({"guided_json": 5}, "guided_json", "invalid_type"),
        ({"guided_json": "{"}, "guided_json", "invalid_json_schema"),
        ({"guided_json": {"type": "pear"}}, "guided_json", "invalid_json_schema"),
        ({"guided_json": False}, "guided_json", "invalid_json_schema"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": PERSON, "order": "none"}}, "structured_outputs.order", "invalid_value"),
        ({"structured_outputs": {"json": PERSON, "whitespace": -1}}, "structured_outputs.json", "invalid_json_schema"),
        ({"structured_outputs": {"json": PERSON, "regex": "a"}}, "structured_outputs.regex", "invalid_value"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": ODD, "strict": True}}},
            "response_format",
            "invalid_json_schema",
        ),
        ({"guided_regex": "a" * 1_100_000}, "guided_regex", "grammar_too_large"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Running, fields: dict, param: str, code: str) -> None:
    seen = len(server.engine.seen)
    check(post(server, CHAT, {"messages": HI, "max_tokens": 1, **fields}), 400, param, code)
    assert len(server.engine.seen) == seen


def test_an_endless_compilation_is_a_400_and_holds_nobody_up(make_server: Any) -> None:
    server = make_server()
    server.service.grammars._limits_s = 0.3
    hard = {"guided_regex": "(((a?){200}){200}){200}b"}
    message = check(post(server, CHAT, {"messages": HI, "max_tokens": 1, **hard}), 400, "guided_regex", "invalid_grammar")
    assert message
    assert post(server, CHAT, {"messages": HI, "max_tokens": 1}).status_code == 200


def test_the_client_sees_the_reason(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=HI, extra_body={"guided_regex": "(?<=a)b"})
    assert refused.value.param == "guided_regex" and "guided_regex" in refused.value.message
