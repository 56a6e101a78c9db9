"""The server as a whole: what it shows of itself, how it behaves under a crowd, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from tests.server.conftest import Running

from hasten.engine.technique import ConfigError
from hasten.serving.server.app import PAGE
from hasten.serving.server.run import bind
from hasten.serving.server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_http_process_needs_no_torch() -> None:
    code = (
        "import asyncio, sys, hasten.serving.server.app, hasten.serving.server.run, hasten.engine.async_engine;"
        "from hasten.serving.server.grammars import Grammars;"
        "from hasten.engine.decoding.constraints.spec import ConstraintSpec;"
        "asyncio.run(Grammars().compile(ConstraintSpec.of_choices(['a']), 'guided_choice'));"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_models(server: Running, make_server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x")
    [card] = client.models.list().data
    assert card.id == "fake" and card.max_model_len == 512 and card.engine["device"] == "cpu"
    assert client.models.retrieve("fake").id == "fake"
    named = make_server(Settings(served_name="team/a model"))
    client = OpenAI(base_url=f"{named.url}/v1", api_key="x")
    assert client.models.retrieve("team/a model").id == "team/a model"
    answer = client.completions.create(model="team/a model", prompt="x", max_tokens=1)
    assert answer.model == "team/a model"


def test_page(server: Running) -> None:
    answer = httpx.get(server.url)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text = answer.text
    assert text == PAGE.read_text()
    # Nothing is loaded from anywhere: no address but its own paths, inline data and the name of the SVG format.
    found = set(re.findall(r"""(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s"'<)]*""", text))
    assert found == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""<script[^>]+src=|<link[^>]+href=["'](?!data:)|@import|url\((?!["']?data:)""", text)
    for control in re.findall(r"<(?:input|textarea)[^>]*>", text):
        name = re.search(r'id="([\w-]+)"', control)
        assert name and (f'for="{name.group(1)}"' in text or re.search(rf"<label[^>]*>[^<]*{re.escape(control)}", text))


def test_metrics(make_server) -> None:
    server = make_server()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    client.completions.create(model="fake", prompt="four", max_tokens=5)
    list(client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=3, stream=True))
    httpx.post(f"{server.url}/v1/completions", json={"prompt": 1})
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'hasten_requests_total{endpoint="completions",outcome="completed"} 1.0',
        'hasten_requests_total{endpoint="chat",outcome="completed"} 1.0',
        'hasten_requests_total{endpoint="completions",outcome="invalid_value"} 1.0',
        'hasten_prompt_tokens_total{endpoint="completions"} 4.0',
        'hasten_output_tokens_total{endpoint="completions"} 5.0',
        'hasten_output_tokens_total{endpoint="chat"} 3.0',
        'hasten_time_to_first_token_seconds_count{endpoint="chat"} 1.0',
        'hasten_time_per_output_token_seconds_count{endpoint="completions"} 1.0',
        'hasten_request_seconds_count{endpoint="completions"} 1.0',
        "hasten_requests_running 0.0",
        "hasten_kv_blocks_free 90.0",
        "hasten_prefix_hit_tokens_total 9.0",
        'hasten_drafted_tokens_total{depth="1"} 2.0',
        'hasten_accepted_tokens_total{depth="0"} 4.0',
        "hasten_engine_up 1.0",
    ):
        assert line in answer.text.splitlines(), line


def test_a_thousand_at_once(make_server) -> None:
    server = make_server(queue_limit=100, step_s=0.02)

    body = b'{"prompt": "x", "max_tokens": 50}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    port = int(server.url.rpartition(":")[2])

    async def one() -> tuple[int, str, str | None]:
        # By hand, as a client library takes longer for its thousand connections than the server for all answers.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body)
        top, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        found = json.loads(rest)
        retry = re.search(rb"(?i)retry-after: (\d+)", top)
        text = found["choices"][0]["text"] if "choices" in found else found["error"]["code"]
        return int(top.split()[1]), text, retry.group(1).decode() if retry else None

    async def crowd() -> list[tuple[int, str, str | None]]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    answers = asyncio.run(crowd())
    done = [answer for answer in answers if answer[0] == 200]
    assert len(done) >= 100 and {text for _, text, _ in done} == {("abcdefghijklmnopqrstuvwxyz " * 2)[:50]}
    assert {answer for answer in answers if answer[0] != 200} == {(429, "queue_full", "1")}
    assert server.engine.most_running == 100
    assert server.until(lambda: not server.service.answers and not server.engine.running)


def test_port_in_use() -> None:
    with bind("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--host"):
        bind("no such host", 0)


class Process:
    """A server of its own, with a fake engine that takes 20 ms a token."""

    def __init__(self, grace_s: float = 10.0) -> None:
        command = [sys.executable, "-m", "tests.server.fake_process", str(grace_s)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain(number: signal.Signals) -> None:
    with Process() as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(model="fake", prompt="x", max_tokens=60, stream=True)
        text = next(stream).choices[0].text
        server.process.send_signal(number)
        time.sleep(0.2)
        assert httpx.get(f"{server.url}/health").json()["status"] == "draining"
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text == ("abcdefghijklmnopqrstuvwxyz " * 3)[:60]
        assert server.process.wait(10) == 0


def test_grace_ends_with_an_error_event() -> None:
    with (
        Process(grace_s=0.3) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
        assert '"shutting_down"' in last
        assert server.process.wait(10) == 0


def test_second_signal_ends_at_once() -> None:
    with (
        Process(grace_s=60) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()  # kept: were it let go, so would be the connection
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
