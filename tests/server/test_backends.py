"""The optional back ends behind a server in a process of its own: the same requests, with the masks of other packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import jsonschema
import pytest
from tests.server.test_errors import CHAT, check, post
from tests.server.test_real import BUILTIN, PERSON, WEATHER, Served

pytestmark = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")

ASK = [{"role": "user", "content": "Maria Smith, who is 34, lives in Lisbon."}]
GIVEN: dict[str, Any] = dict(model="builtin", messages=ASK, temperature=0, max_tokens=200)
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
        for name in ("llguidance", "xgrammar")
    ],
)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    found = Served("--with", request.param, "--set", "model.dtype=float32")
    yield found
    found.end()


def test_answers_follow_a_schema_streamed_or_not(served: Served) -> None:
    whole = served.client.chat.completions.create(**GIVEN, response_format=FORM).choices[0]
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.message.content), PERSON)
    chunks = served.client.chat.completions.create(**GIVEN, response_format=FORM, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    drawn = served.client.chat.completions.create(**{**GIVEN, "temperature": 1.5}, n=4, seed=1, response_format=FORM)
    for choice in drawn.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"guided_regex": "[A-Z]{3}-[0-9]{3}"}, "[A-Z]{3}-[0-9]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "<" [ab]+ ">" | "<>"'}, "<[ab]*>"),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "1|2"),
    ],
)
def test_every_other_way_to_ask(served: Served, asked: dict, pattern: str) -> None:
    given = dict(model="builtin", prompt="Code: <think>so</think>", temperature=0.7, seed=3, max_tokens=60)
    choice = served.client.completions.create(**given, extra_body=asked).choices[0]
    assert re.fullmatch(pattern, choice.text) or (choice.finish_reason == "length" and choice.text.startswith("<"))


def test_what_is_refused_names_its_field(served: Served) -> None:
    for asked, param in (
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_json": {"type": "pear"}}, "guided_json"),
        ({"guided_grammar": "root ::= other"}, "guided_grammar"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tools"),
    ):
        check(post(served, CHAT, {"messages": ASK, **asked}), 400, param)  # type: ignore[arg-type]
    assert served.client.chat.completions.create(**GIVEN).choices[0].message.content


def test_many_at_once_share_a_grammar(served: Served) -> None:
    schema = {**PERSON, "title": "for many"}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}

    def one(number: int) -> str:
        given: dict[str, Any] = {**GIVEN, "response_format": form} if number % 2 else GIVEN
        return served.client.chat.completions.create(**given).choices[0].message.content or ""

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(6)))
    assert len({*answers[1::2]}) == len({*answers[::2]}) == 1
    jsonschema.validate(json.loads(answers[1]), PERSON)
