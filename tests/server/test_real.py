"""End to end: `hasten serve` in a process of its own with the built-in model, and its engine in another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

import hasten

BUILTIN = Path(hasten.__file__).with_name("builtin_model")
pytestmark = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")

HI = [{"role": "user", "content": "Hello!"}]


class Served:
    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "hasten.cli.main", "serve", "--port", "0", "--threads", "1", *options]
        env = os.environ | {"COLUMNS": "200"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"address +(http://\S+)", line):
                self.url = found.group(1)
                break
        else:
            raise AssertionError("".join(said))
        # Whoever writes into a full pipe stops.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def engine_pid(self) -> int:
        task = Path(f"/proc/{self.process.pid}/task")
        children = [pid for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
        [pid] = [pid for pid in children if b"hasten.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(pid)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=20).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def until(self, name: str, value: float, seconds: float = 20.0) -> float:
        """The metric, once it is `value`, or after `seconds`."""
        end_s = time.monotonic() + seconds
        while (now := self.metric(name)) != value and time.monotonic() < end_s:
            time.sleep(0.05)
        return now

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    found = Served("--queue-limit", "16", "--set", "model.dtype=float32")
    yield found
    found.end()


def test_chat_streams_what_it_answers(served: Served) -> None:
    given = dict(model="builtin", messages=HI, temperature=0, max_tokens=12)
    whole = served.client.chat.completions.create(**given)
    assert whole.usage.completion_tokens <= 12 and whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(served.client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_are_of_the_text(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="builtin", messages=HI, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content).startswith(choice.message.content)
    for entry in choice.logprobs.content:
        assert entry.logprob <= 0 and entry.logprob == max(top.logprob for top in entry.top_logprobs)


def test_echoed_logprobs(served: Served) -> None:
    prompt = "def add(a, b):\n    return"
    answer = served.client.completions.create(
        model="builtin", prompt=prompt, max_tokens=0, echo=True, logprobs=0, temperature=0
    )
    choice = answer.choices[0]
    assert choice.text == prompt == "".join(choice.logprobs.tokens)
    assert choice.logprobs.token_logprobs[0] is None and all(lp <= 0 for lp in choice.logprobs.token_logprobs[1:])


def test_seed_and_n(served: Served) -> None:
    given = dict(model="builtin", prompt="The server", max_tokens=8, n=3, seed=11, temperature=1)
    first = [c.text for c in served.client.completions.create(**given).choices]
    assert first == [c.text for c in served.client.completions.create(**given).choices]
    assert len(set(first)) > 1


def test_stop_string(served: Served) -> None:
    given = dict(model="builtin", prompt="import", temperature=0)
    text = served.client.completions.create(**given, max_tokens=24).choices[0].text
    stop = text[5:8]
    choice = served.client.completions.create(**given, max_tokens=24, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_prefix_is_found_again(served: Served) -> None:
    prompt = "One two three four five six seven eight nine ten. " * 20
    for cached in (False, True):
        answer = served.client.completions.create(model="builtin", prompt=prompt, max_tokens=2, temperature=0)
        assert (answer.usage.prompt_tokens_details.cached_tokens > 0) is cached


def test_bad_requests_leave_others_alone(served: Served) -> None:
    given = dict(model="builtin", prompt="Once upon a time", temperature=0, max_tokens=60, extra_body={"ignore_eos": True})
    alone = served.client.completions.create(**given).choices[0].text
    stream = served.client.completions.create(**given, stream=True)
    text = next(stream).choices[0].text
    bad = (
        ({"prompt": "word " * 9000}, "context_length_exceeded"),
        ({"prompt": [10**6]}, "invalid_value"),
        ({"prompt": "x", "logit_bias": {"1000000": 1}}, "invalid_value"),
        ({"prompt": "x", "temperature": -1}, "invalid_value"),
    )
    for body, code in bad:
        answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=20)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == code, answer.text
    assert text + "".join(chunk.choices[0].text for chunk in stream) == alone


def test_a_gone_client_frees_its_memory(served: Served) -> None:
    before = served.metric("hasten_kv_blocks_free")
    body = {"prompt": "Once", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
    assert served.until("hasten_requests_running", 0) == 0
    assert served.until("hasten_kv_blocks_free", before) == before


def test_a_crowd(served: Served) -> None:
    answers: list[int] = []

    def one() -> None:
        try:
            given = dict(model="builtin", prompt="Hello", max_tokens=16, extra_body={"ignore_eos": True})
            answers.append(served.client.completions.create(**given).usage.completion_tokens)
        except openai.RateLimitError as error:
            assert error.response.headers["retry-after"]
            answers.append(429)

    threads = [threading.Thread(target=one) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 60 and set(answers) <= {16, 429} and answers.count(16) >= 16
    assert served.until("hasten_requests_running", 0) == 0


def test_sigterm_finishes_what_runs() -> None:
    served = Served()
    try:
        given = dict(model="builtin", prompt="Once", max_tokens=150, extra_body={"ignore_eos": True})
        stream = served.client.completions.create(**given, stream=True, stream_options={"include_usage": True})
        next(stream)
        served.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].usage.completion_tokens == 150 and chunks[-2].choices[0].finish_reason == "length"
        assert served.process.wait(20) == 0
    finally:
        served.process.kill()


def test_a_dead_engine_is_told() -> None:
    served = Served()
    try:
        given = dict(model="builtin", prompt="Once", max_tokens=1500, extra_body={"ignore_eos": True})
        stream = served.client.completions.create(**given, stream=True)
        next(stream)
        os.kill(served.engine_pid(), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        assert httpx.get(f"{served.url}/health").status_code == 503
        assert httpx.post(f"{served.url}/v1/completions", json={"prompt": "x"}).status_code == 503
    finally:
        served.end()
    assert served.process.returncode == 0


def test_the_model_does_what_the_page_offers(served: Served) -> None:
    block = re.search(r'id="examples">(.*?)</script>', httpx.get(served.url).text, re.DOTALL)
    assert block is not None
    expected = {
        "Extract JSON": '{"name": "Maria Smith", "city": "Lisbon", "age": 34}',
        "Answer from a text": "1964",
        "Call a function": '{"name": "send_email", "arguments": {"to": "Nina", "subject": "holiday"}}\n</tool_call>',
        "Add with written steps": "103",
        "Fill in Python": "except KeyError:",
    }
    answers = {}
    for example in json.loads(block[1]):
        given = dict(model="builtin", temperature=0, max_tokens=120)
        if example.get("goesOn"):
            text = served.client.completions.create(**given, prompt=example["said"]).choices[0].text
        else:
            system = [{"role": "system", "content": example["system"]}] if "system" in example else []
            messages = [*system, {"role": "user", "content": example["said"]}]
            text = served.client.chat.completions.create(**given, messages=messages).choices[0].message.content
        answers[example["label"]] = text.strip()
    assert answers.keys() == expected.keys()
    for label, end in expected.items():
        assert answers[label].endswith(end), label


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "city": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "city", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_answers_follow_a_schema(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    ask = [{"role": "user", "content": "Maria Smith, who is 34, lives in Lisbon."}]
    said = served.client.chat.completions.create(
        model="builtin", messages=ask, n=4, temperature=1.5, max_tokens=200, response_format=form, seed=1
    )
    assert len(said.choices) == 4
    for choice in said.choices:
        assert choice.finish_reason == "stop"
        person = json.loads(choice.message.content)
        assert person.keys() == {"name", "city", "age"} and isinstance(person["age"], int)
    body = {"guided_regex": "[A-Z]{3}-[0-9]{3}"}
    text = served.client.completions.create(model="builtin", prompt="Code:", temperature=1, extra_body=body).choices[0].text
    assert re.fullmatch(body["guided_regex"], text)
    with pytest.raises(openai.BadRequestError, match="guided_grammar"):
        served.client.completions.create(model="builtin", prompt="x", extra_body={"guided_grammar": "start: other"})


def test_tools_are_called(served: Served) -> None:
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    given = dict(model="builtin", messages=ask, tools=[WEATHER], max_tokens=100, temperature=0)
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        said = served.client.chat.completions.create(**given, tool_choice=choice, parallel_tool_calls=False).choices[0]
        [call] = said.message.tool_calls
        assert said.finish_reason == "tool_calls" and said.message.content is None
        assert call.function.name == "get_weather" and json.loads(call.function.arguments).keys() == {"city"}
    name, arguments, finish = "", "", None
    for chunk in served.client.chat.completions.create(**given, tool_choice="required", parallel_tool_calls=False, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        finish = chunk.choices[0].finish_reason
    assert (name, finish) == ("get_weather", "tool_calls") and json.loads(arguments).keys() == {"city"}
    free = served.client.chat.completions.create(**given, tool_choice="auto").choices[0].message
    assert free.content or free.tool_calls
