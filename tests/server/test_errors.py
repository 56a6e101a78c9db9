"""Whatever a client does wrong: a clear error in the OpenAI shape, and the others unharmed."""

from __future__ import annotations

import logging
import socket

import httpx
import openai
import pytest
from openai import OpenAI
from tests.server.conftest import Running

from hasten.serving.server.settings import Settings

HI = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def post(server: Running, path: str, body=None, **more) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=20, **more)


def check(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The error has the shape and values; returns its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code
    assert error["message"]
    return error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.7"), ("temperature", True), ("temperature", -1), ("temperature", 1e300), ("temperature", []),
        ("top_p", 0), ("top_p", 1.1), ("top_k", 1.5), ("top_k", -2), ("top_k", 10**40), ("min_p", 2), ("n", 0), ("n", "2"),
        ("n", 10**6), ("n", True), ("seed", "x"), ("seed", 2**80), ("seed", 1.5), ("stop", 7), ("stop", [""]), ("stop", [1]),
        ("stop", ["a"] * 17), ("stop", ""), ("presence_penalty", 3), ("frequency_penalty", -2.5), ("repetition_penalty", 0),
        ("logit_bias", {"a": 1}), ("logit_bias", {"1": 200}), ("logit_bias", {"1": "x"}), ("logit_bias", [1]),
        ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", "10"), ("max_tokens", 10**30), ("max_tokens", True),
        ("min_tokens", -1), ("stream", "yes"), ("stream", 1), ("stream_options", {"include_usage": True}), ("priority", 0.5),
        ("cache_salt", 5), ("stop_token_ids", [-1]), ("ignore_eos", "no"), ("model", 5),
        ("speculate", -1), ("speculate", "off"), ("speculate", 1.5), ("speculate", 10**30),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_wrong_values_name_their_field(server: Running, path: str, field: str, value: object) -> None:
    before = len(server.engine.seen)
    body = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    message = check(post(server, path, {**body, field: value}), 400, field)
    assert field in message
    assert len(server.engine.seen) == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": HI, "logprobs": 3}, "logprobs"),
        ({"messages": HI, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HI, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"messages": HI, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": HI, "max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"messages": HI, "stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": HI, "stop_token_ids": [True]}, "stop_token_ids[0]"),
        ({"messages": HI, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_wrong_chats(server: Running, body: dict, param: str) -> None:
    check(post(server, CHAT, body), 400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"), ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [2**60]}, "prompt"), ({"prompt": [300]}, "prompt"), ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"), ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "best_of": 3}, "best_of"), ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "echo": 1}, "echo"),
    ],
)  # fmt: skip
def test_wrong_completions(server: Running, body: dict, param: str) -> None:
    check(post(server, TEXT, body), 400, param)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}), ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]), ("prediction", {"type": "content"}), ("reasoning_effort", "high"),
        ("web_search_options", {}), ("verbosity", "low"),
    ],
)  # fmt: skip
def test_what_we_lack_is_refused(server: Running, field: str, value: object) -> None:
    assert field in check(post(server, CHAT, {"messages": HI, field: value}), 400, field, "unsupported_parameter")


def test_harmless_values_of_what_we_lack(server: Running) -> None:
    body = {"messages": HI, "max_tokens": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    assert post(server, CHAT, {**body, "modalities": ["text"], "store": True, "user": "me"}).status_code == 200


def test_unknown_fields_are_logged_once(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hasten.server"):
        for _ in range(3):
            assert post(server, CHAT, {"messages": HI, "max_tokens": 1, "wibble": 1, "user": "me"}).status_code == 200
    assert [r.getMessage() for r in caplog.records] == ["the unknown request field 'wibble' is ignored (said once)"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nothing", b"[]", b'"text"', b"null", b'{"prompt": "\xff"}', b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}', b"[" * 100_000, b'{"prompt": "\\ud800"}',
    ],
)  # fmt: skip
def test_no_json(server: Running, body: bytes) -> None:
    check(httpx.post(server.url + TEXT, content=body), 400, None, "invalid_json")


def test_number_beyond_floats(server: Running) -> None:
    answer = httpx.post(server.url + TEXT, content=b'{"prompt": "x", "temperature": 1e999}')
    assert answer.status_code == 400 and answer.json()["error"]["code"] in ("invalid_json", "invalid_value")


def test_unknown_model(server: Running) -> None:
    for path in (CHAT, TEXT):
        body = {"model": "gpt-9", "messages": HI, "prompt": "x"}
        assert "gpt-9" in check(post(server, path, body), 404, "model", "model_not_found")
    check(httpx.get(f"{server.url}/v1/models/gpt-9"), 404, "model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        OpenAI(base_url=f"{server.url}/v1", api_key="x").chat.completions.create(model="no", messages=HI)


def test_prompt_over_the_context(server: Running) -> None:
    long = "x" * 600
    assert "512" in check(post(server, TEXT, {"prompt": long}), 400, "prompt", "context_length_exceeded")
    check(post(server, TEXT, {"prompt": [5] * 512}), 400, "prompt", "context_length_exceeded")
    ask = {"messages": [{"role": "user", "content": long}]}
    check(post(server, CHAT, ask), 400, "messages", "context_length_exceeded")
    ask["messages"][0]["content"] = "x" * 20_000  # long enough to be encoded in a thread
    check(post(server, CHAT, ask), 400, "messages", "context_length_exceeded")


def test_unknown_routes(server: Running) -> None:
    check(httpx.get(f"{server.url}/v1/nothing"), 404, None, "unknown_url")
    check(httpx.get(server.url + CHAT), 405, None, "method_not_allowed")


def test_api_key(make_server) -> None:
    server = make_server(Settings(api_key="schlüssel"))
    body = {"messages": HI, "max_tokens": 1}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic schluessel"}, {"Authorization": "Bearer"}):
        answer = post(server, CHAT, body, headers=headers)
        check(answer, 401, None, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        check(httpx.get(f"{server.url}/v1/models", headers=headers), 401)
    right = {"Authorization": "Bearer schlüssel".encode()}
    assert post(server, CHAT, body, headers=right).status_code == 200
    assert httpx.get(f"{server.url}/health").status_code == httpx.get(server.url).status_code == 200


def test_body_over_the_limit(make_server) -> None:
    server = make_server(Settings(body_limit_bytes=10_000))
    big = {"prompt": "x" * 2_000_000}
    assert "10000" in check(post(server, TEXT, big), 413, None, "body_too_large")

    def pieces():
        for _ in range(100):
            yield b"x" * 10_000

    check(httpx.post(server.url + TEXT, content=pieces()), 413, None, "body_too_large")
    waiting = httpx.post(server.url + TEXT, content=b"x" * 20_000, headers={"Expect": "100-continue"})
    check(waiting, 413, None, "body_too_large")
    assert post(server, TEXT, {"prompt": "x"}).status_code == 200


def test_time_out(make_server) -> None:
    server = make_server(Settings(request_timeout_s=0.3), step_s=0.02)
    check(post(server, CHAT, {"messages": HI}), 504, None, "request_timeout")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    got = []
    with pytest.raises(openai.APIError, match=r"longer than the 0\.3 s"):
        for chunk in client.chat.completions.create(model="fake", messages=HI, stream=True):
            got.append(chunk)
    assert got
    assert server.until(lambda: not server.engine.running)
    assert len(server.engine.cancelled) == 2


def test_a_body_that_does_not_come(make_server) -> None:
    server = make_server(Settings(request_timeout_s=0.2))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 504 " in raw.recv(4096)


@pytest.mark.parametrize("stream", [False, True])
def test_client_gone(make_server, stream: bool) -> None:
    server = make_server(step_s=0.01)
    body = {"messages": HI, "stream": stream}
    if stream:
        with httpx.stream("POST", server.url + CHAT, json=body) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json=body, timeout=0.2)
    assert server.until(lambda: server.engine.cancelled)
    assert not server.engine.running and len(server.engine.seen) == 1
    assert server.until(lambda: 'outcome="client_gone"} 1.0' in httpx.get(f"{server.url}/metrics").text)


def test_gone_client_of_many_prompts(make_server) -> None:
    server = make_server(step_s=0.01)
    with httpx.stream("POST", server.url + TEXT, json={"prompt": ["a", "b"], "stream": True, "max_tokens": 400}) as answer:
        next(answer.iter_lines())
    assert server.until(lambda: len(server.engine.cancelled) == 2)


def test_one_of_many_refused_cancels_the_rest(make_server) -> None:
    server = make_server(queue_limit=2, step_s=0.01)
    answer = post(server, TEXT, {"prompt": ["a", "b", "c"], "max_tokens": 400})
    check(answer, 429, None, "queue_full")
    assert answer.headers["retry-after"] == "1"
    assert server.until(lambda: not server.engine.running)


@pytest.mark.parametrize(("word", "status", "code"), [("BOOM", 500, "internal_error"), ("REJECT", 429, "queue_full")])
def test_a_failed_sequence(server: Running, word: str, status: int, code: str) -> None:
    check(post(server, TEXT, {"prompt": word}), status, None, code)
    assert post(server, TEXT, {"prompt": "fine"}).status_code == 200


def test_a_sequence_that_fails_in_a_stream(server: Running) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    got = []
    with pytest.raises(openai.APIError, match="a policy raised KeyError"):
        for chunk in client.completions.create(model="fake", prompt="BOOM", stream=True):
            got.append(chunk.choices[0].text)
    assert got == ["a", "b", "c"]


def test_our_own_mistake_is_hidden(make_server, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    monkeypatch.setattr(server.engine, "generate", lambda request: 1 / 0)
    message = check(post(server, TEXT, {"prompt": "x"}), 500, None, "internal_error")
    assert "division" not in message
    monkeypatch.undo()
    assert post(server, TEXT, {"prompt": "x"}).status_code == 200


def test_engine_dead(make_server) -> None:
    server = make_server()
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert "signal 11" in check(post(server, TEXT, {"prompt": "DIE"}), 503, None, "engine_unavailable")
    check(post(server, TEXT, {"prompt": "x"}), 503, None, "engine_unavailable")
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "engine dead")
    assert "hasten_engine_up 0.0" in httpx.get(f"{server.url}/metrics").text


def test_draining(make_server) -> None:
    server = make_server()
    server.service.draining = True
    check(post(server, TEXT, {"prompt": "x"}), 503, None, "shutting_down")
    assert httpx.get(f"{server.url}/health").status_code == 503


def test_errors_do_not_disturb_a_running_stream(make_server) -> None:
    server = make_server(step_s=0.005)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(model="fake", prompt="x", max_tokens=60, stream=True)
    text = next(stream).choices[0].text
    for bad in ({"prompt": 5}, {"prompt": "BOOM"}, {"prompt": "x" * 600}, {"prompt": "x", "temperature": -1}):
        assert post(server, TEXT, bad).status_code >= 400
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == ("abcdefghijklmnopqrstuvwxyz " * 3)[:60]
