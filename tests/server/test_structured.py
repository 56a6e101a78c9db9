"""Constrained answers over HTTP: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from tests.server.conftest import Running
from tests.server.test_errors import CHAT, HI, TEXT, check, post

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.compiling import After, Prepared, prepare
from hasten.engine.decoding.constraints.spec import ConstraintSpec
from hasten.serving.server.grammars import _QUICK_S

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
        (
            {
                "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}},
                "structured_outputs": {"order": "schema", "whitespace": "compact"},
            },
            ConstraintSpec.of_schema(PERSON, whitespace="compact", order="schema"),
        ),
        (
            {"guided_json": PERSON, "structured_outputs": {"order": "schema", "disable_fallback": False}},
            ConstraintSpec.of_schema(PERSON, whitespace=16, order="schema"),
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
    server.engine.script = 'So be it.</think>{"a": "</think>"}'
    body = {"messages": HI, "n": 2, "response_format": {"type": "json_object"}}
    for choice in post(server, CHAT, body).json()["choices"]:
        assert json.loads(choice["message"]["content"]) == {"a": "</think>"}
        assert choice["message"]["reasoning_content"] == "So be it."


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
        ({"structured_outputs": {"order": "schema"}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "order": "schema"}}, "structured_outputs.order", "invalid_value"),
        (
            {"structured_outputs": {"json": PERSON, "whitespace_pattern": " ?"}},
            "structured_outputs.whitespace_pattern",
            "unsupported_parameter",
        ),
        ({"guided_json": PERSON, "guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "unsupported_parameter"),
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


class Held:
    """Compilations that take as long as the test wants: of patterns that begin with "slow" until `go`, or to their limit."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), list[tuple[Any, float]]()
        self._compiled = server.service.grammars._compiled
        monkeypatch.setattr(server.service.grammars, "_compiled", self)

    def __call__(self, spec: Any, limits: Limits) -> Prepared:
        self.begun.append((spec.text, limits.seconds))
        while str(spec.text).startswith("slow") and not self.go.wait(0.01):
            limits.check()
        return self._compiled(spec, limits)


def test_an_endless_compilation_is_a_400_and_holds_nobody_up(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    held = Held(server, monkeypatch)
    server.service.grammars._limits_s = 1.0
    body = {"messages": HI, "max_tokens": 1}
    with ThreadPoolExecutor(8) as pool:
        hard = [pool.submit(post, server, CHAT, {**body, "guided_regex": f"slow{i}"}) for i in range(6)]
        assert server.until(lambda: any(seconds == 1.0 for _, seconds in held.begun))
        assert post(server, CHAT, {**body, "guided_regex": "quick"}).status_code == 200
        assert not all(answer.done() for answer in hard), "it did not wait for those that take long"
        for answer in hard:
            assert "more than 1 s" in check(answer.result(), 400, "guided_regex", "invalid_grammar")


def test_equal_grammars_at_once_are_compiled_once(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    held = Held(server, monkeypatch)
    body = {"messages": HI, "max_tokens": 1, "guided_regex": "slow"}
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(post, server, CHAT, body) for _ in range(5)]
        assert server.until(lambda: server.service.grammars._waiting.total() == 5)
        assert server.until(lambda: ("slow", 5.0) in held.begun)
        held.go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 5
    assert held.begun == [("slow", _QUICK_S), ("slow", 5.0)]
    assert post(server, CHAT, body).status_code == 200 and len(held.begun) == 2


def test_nothing_is_compiled_for_clients_that_left(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    held = Held(server, monkeypatch)
    for i in range(6):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{CHAT}", json={"messages": HI, "guided_regex": f"slow{i}"}, timeout=0.3)
    assert server.until(lambda: not server.service.grammars._waiting)
    assert 'outcome="client_gone"' in httpx.get(f"{server.url}/metrics").text and not server.engine.seen
    begun = len(held.begun)
    held.go.set()
    assert post(server, CHAT, {"messages": HI, "max_tokens": 1, "guided_regex": "[a-z]"}).status_code == 200
    assert [text for text, _ in held.begun[begun:]] == ["[a-z]"]


def test_what_the_engine_refuses_is_a_400_of_the_field(make_server: Any) -> None:
    server = make_server()
    hard = [{"role": "user", "content": "NOWAY"}]
    for stream in (False, True):
        body = {"messages": hard, "stream": stream, "response_format": {"type": "json_object"}}
        said = check(post(server, CHAT, body), 400, "response_format", "invalid_json_schema")
        assert said == "response_format: it is too hard"
        body = {"prompt": "NOWAY", "stream": stream, "guided_choice": ["a"]}
        check(post(server, TEXT, body), 400, "guided_choice", "invalid_grammar")


def test_the_client_sees_the_reason(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=HI, extra_body={"guided_regex": "(?<=a)b"})
    assert refused.value.param == "guided_regex" and "guided_regex" in refused.value.message
