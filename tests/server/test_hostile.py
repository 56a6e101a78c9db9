"""Hostile grammars over HTTP: each is refused with a reason in bounded time, and a stream that runs beside them is unharmed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from tests.server.test_errors import CHAT, check
from tests.server.test_real import BUILTIN, HI, Served

pytestmark = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")

LONGEST_S = 15.0
"""Three times what compiling may take, for machines that are busy."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    found = Served("--set", "model.dtype=float32")
    yield found
    found.end()


def nested(depth: int, key: str) -> str:
    return f'{{"{key}":' * depth + "{}" + "}" * depth


def wide(count: int) -> str:
    return json.dumps({"type": "object", "properties": {f"property_{i}": {"type": "string"} for i in range(count)}})


HOSTILE: dict[str, tuple[str, str]] = {
    # The field, and its value as JSON text.
    "a pattern that repeats repetitions": ("guided_regex", json.dumps("(((a?){200}){200}){200}b")),
    "a pattern with many readings": ("guided_regex", json.dumps("(a?){5000}a{5000}")),
    "a pattern of exponentially many states": ("guided_regex", json.dumps("(.*a.{24}){3}")),
    "no pattern": ("guided_regex", json.dumps("(a")),
    "a pattern nested deep": ("guided_regex", json.dumps("(" * 5000 + "a" + ")" * 5000)),
    "a pattern in a schema": ("guided_json", json.dumps({"type": "string", "pattern": "^(((a?){200}){200}){200}b$"})),
    "a schema nested deep": ("guided_json", nested(1000, "items")),
    "a schema's text nested deep": ("guided_json", json.dumps(nested(50_000, "not"))),
    "a schema of more than a megabyte": ("guided_json", wide(40_000)),
    "a schema of a megabyte": ("guided_json", wide(25_000)),
    "a tool of parameters nested deep": (
        "tools",
        f'[{{"type": "function", "function": {{"name": "a", "strict": true, "parameters": {nested(980, "items")}}}}}]',
    ),
    "an enormous enum": ("guided_json", json.dumps({"enum": [f"{i * 7919 % 1000003} is a value" for i in range(40_000)]})),
    "a reference to itself": ("guided_json", json.dumps({"$ref": "#"})),
    "a reference around": ("guided_json", '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}'),
    "a value without end": ("guided_json", '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}'),
    "a reference to the net": ("guided_json", json.dumps({"$ref": "http://169.254.169.254/latest"})),
    "a rule without end": ("guided_grammar", json.dumps("root ::= root")),
    "a grammar nested deep": ("guided_grammar", json.dumps("start: " + "(" * 3000 + '"a"' + ")" * 3000)),
    "repetitions of repetitions": ("guided_grammar", json.dumps('root ::= (("a"{1,1000}){1,1000}){1,1000}')),
}  # fmt: skip


SERVED = {"an enormous enum", "repetitions of repetitions"}
"""Large, but no trouble: they are answered."""


class Stream(threading.Thread):
    """A long answer, and when its pieces came."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self._served = served
        self.times: list[float] = []
        self.text = ""

    def run(self) -> None:
        given: dict[str, Any] = dict(model="builtin", prompt="Once upon a time", temperature=0, max_tokens=1500)
        for chunk in self._served.client.completions.create(**given, stream=True, extra_body={"ignore_eos": True}):
            self.text += chunk.choices[0].text
            self.times.append(time.monotonic())


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_with_a_reason_or_served(served: Served, name: str) -> None:
    field, value = HOSTILE[name]
    began = time.monotonic()
    raw = f'{{"messages": {json.dumps(HI)}, "max_tokens": 1, "{field}": {value}}}'
    answer = httpx.post(served.url + CHAT, content=raw, timeout=60)
    assert time.monotonic() - began < LONGEST_S
    if name in SERVED:
        assert answer.status_code == 200, answer.text
        return
    param = None if answer.json()["error"]["code"] == "invalid_json" else field  # nested deeper than our reader reads
    assert len(check(answer, 400, param)) > 15


def test_a_stream_beside_all_of_them_is_unharmed(served: Served) -> None:
    alone = Stream(served)
    alone.start()
    alone.join()
    beside = Stream(served)
    beside.start()
    while not beside.times:
        time.sleep(0.01)
    asked = 0
    for field, value in HOSTILE.values():
        raw = f'{{"messages": {json.dumps(HI)}, "max_tokens": 1, "{field}": {value}}}'
        assert httpx.post(served.url + CHAT, content=raw, timeout=60).status_code in (200, 400)
        asked += beside.is_alive()
    beside.join()
    assert beside.text == alone.text and asked > 5
    longest = max(after - before for before, after in pairwise(beside.times))
    assert longest < 1.0, f"the stream stood still for {longest:.2f} s"
