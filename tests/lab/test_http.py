"""Replay over HTTP: what the client's process writes down is what a server that we script did."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from hasten.engine.technique import ConfigError
from hasten.lab.bench import metrics, stub
from hasten.lab.bench.http import replay_http
from hasten.lab.bench.openai_form import Form, negotiate
from hasten.lab.bench.sse import Client, HttpError
from hasten.lab.workloads.base import TimedRequest, Workload

Script = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def server(script: Script) -> Iterator[str]:
    """`script(request line, body, writer)` answers each request; its connection closes when it closes the writer."""
    ready: list[tuple[asyncio.AbstractEventLoop, str]] = []
    up, stop = threading.Event(), asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                await script(head.split("\r\n")[0], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as served:
            ready.append((asyncio.get_running_loop(), f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}"))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert up.wait(10)
    loop, url = ready[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def whole(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


CARD = whole(200, {"data": [{"id": "m", "max_model_len": 99}]})


def chunk(text: str | None, **more: object) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


async def stream(writer: asyncio.StreamWriter, *pieces: bytes, pause_s: float = 0.0) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")


def workload(count: int = 1, gap_s: float = 0.0, output: int = 4) -> Workload:
    requests = [TimedRequest(id=str(i), arrival_s=i * gap_s, prompt_tokens=8, output_tokens=output) for i in range(count)]
    return Workload(name="w", requests=requests)


def test_the_stub_streams_and_the_client_counts() -> None:
    seen: list[tuple[int, int]] = []
    with stub.running(interval_s=0.02) as url:
        run = replay_http(url, workload(20, 0.01, output=5), progress=lambda done, total: seen.append((done, total)))
    table = metrics.requests(run)
    assert table.ok.all() and run.errors == {} and not run.simulated
    assert (table.output_tokens == 5).all() and (table.prompt_tokens == 8).all()
    assert np.allclose(table.due_s, np.arange(20) * 0.01)
    assert (table.ttft_s > 0).all() and (table.e2e_s > 0.07).all(), "four pauses of 20 ms"
    assert run.info["prompts"] == "token ids" and run.lag_p99_s >= 0
    assert seen and seen[-1][1] == 20
    assert np.isnan(table.scheduled_s).all() and "queue_p50_s" not in metrics.summary(run)


def test_arrivals_do_not_wait_and_stages_wait_for_their_parents() -> None:
    requests = [
        TimedRequest(id="a", arrival_s=0.0, prompt_tokens=4, output_tokens=10),
        TimedRequest(id="b", arrival_s=0.02, prompt_tokens=4, output_tokens=2),
        TimedRequest(id="c", arrival_s=0.0, prompt_tokens=4, output_tokens=2, parents=("a", "b"), delay_s=0.05),
    ]
    with stub.running(interval_s=0.02) as url:
        table = metrics.requests(replay_http(url, Workload(name="w", requests=requests)))
    assert table.ok.all()
    assert table.first_token_s[1] < table.end_s[0], "b did not wait for a"
    assert table.due_s[2] == pytest.approx(table.end_s[0] + 0.05)


def test_text_held_back_and_cached_tokens_are_counted() -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}

    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith("GET"):
            writer.write(CARD)
        else:
            await stream(
                writer, chunk("a"), chunk(""), chunk("bc"), chunk(None, usage=usage), b"data: [DONE]\n\n", pause_s=0.01
            )

    with server(script) as url:
        run = replay_http(url, workload())
    table = metrics.requests(run)
    assert table.output_tokens.tolist() == [4] and table.reused_tokens.tolist() == [6]
    assert len(metrics.gaps(run)) == 1 and run.info["model"] == "m"


def test_failures_are_told_and_cost_only_their_own() -> None:
    asked = 0

    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            writer.write(whole(503, {"error": "too busy"}))
        elif asked == 2:
            await stream(writer, chunk("a"), b'data: {"error": {"message": "it broke"}}\n\n')
        elif asked == 3:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nda")
            writer.close()
        elif asked == 4:
            await asyncio.sleep(1.0)
            writer.close()
        else:
            await stream(writer, *[chunk("a")] * 4)

    with server(script) as url:
        run = replay_http(url, workload(5, 0.1), form=Form("m"), silence_s=0.3)
    table = metrics.requests(run)
    assert table.ok.tolist() == [False, False, False, False, True]
    assert "503" in run.errors[0] and "too busy" in run.errors[0] and "it broke" in run.errors[1]
    assert "lost" in run.errors[2] and "said nothing" in run.errors[3]


def test_a_connection_closed_while_idle_is_opened_again() -> None:
    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await stream(writer, *[chunk("a")] * 4)
        await writer.drain()
        asyncio.get_running_loop().call_later(0.02, writer.close)

    with server(script) as url:
        run = replay_http(url, workload(4, 0.1), form=Form("m"))
    assert metrics.requests(run).ok.all(), run.errors


def test_an_uncounted_answer_that_ended_for_length_is_whole() -> None:
    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        finish = "length" if b'"max_tokens":9' in body else "stop"
        end = {"choices": [{"index": 0, "text": "", "finish_reason": finish}]}
        await stream(writer, chunk("a"), chunk("b"), b"data: " + json.dumps(end).encode() + b"\n\n")

    work = Workload(name="w", requests=[*workload(1, output=9), *workload(2, output=3).requests[1:]])
    with server(script) as url:
        run = replay_http(url, work, form=Form("m", usage=False))
    assert metrics.requests(run).output_tokens.tolist() == [9, 2] and run.info["answers that ended early"] == 1


def test_the_form_is_found_by_asking() -> None:
    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith("GET"):
            writer.write(CARD)
            return
        asked = json.loads(body)
        if not isinstance(asked["prompt"], str) or "stream_options" in asked or asked.get("min_tokens") == "nonsense":
            writer.write(whole(422, {"detail": "no"}))  # ignore_eos it neither knows nor refuses
        else:
            words = len(asked["prompt"].split())
            await stream(writer, chunk("a"), chunk("", usage={"prompt_tokens": 2 * words, "completion_tokens": 1}))

    with server(script) as url:
        form = negotiate(url + "/v1/")
        assert form == Form("m", ids=False, exact="min_tokens", usage=False, words_per_token=0.5, context=99)
    body = json.loads(form.body(np.arange(10), 7, 0.0, 0))
    assert len(body["prompt"].split()) == 5 and body["min_tokens"] == 7


def test_words_keep_what_prompts_have_in_common() -> None:
    form = Form("m", ids=False)
    shared = np.arange(50, dtype=np.int32)
    one, other = (form.words(np.concatenate([shared, tail])) for tail in (np.arange(9, 20), np.arange(60, 90)))
    assert one[:150] == other[:150] and one != other


def test_no_server_is_one_clear_sentence() -> None:
    with pytest.raises(ConfigError, match="no answer from http://127"):
        negotiate("http://127.0.0.1:9")

    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(404, {"detail": "not found"}))

    with server(script) as url, pytest.raises(ConfigError, match="no OpenAI-compatible server"):
        negotiate(url)
    with pytest.raises(HttpError, match="no address"):
        Client("localhost:8000", 1.0)


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
def test_the_stream_may_be_cut_anywhere(cut: int) -> None:
    """Chunk sizes, lines and headers arrive in pieces of `cut` bytes."""
    body = b"data: one\r\ndata: two\n\nlast\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for i in range(0, len(body), 5):
        answer += b"%X;x=y\r\n%b\r\n" % (len(body[i : i + 5]), body[i : i + 5])
    answer += b"0\r\ntrailer: x\r\n\r\n"

    async def script(line: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        for i in range(0, len(answer), cut):
            writer.write(answer[i : i + cut])
            await writer.drain()
            await asyncio.sleep(0)

    async def ask(url: str) -> list[bytes]:
        lines: list[bytes] = []
        client = Client(url, 5.0)
        for _ in range(2):  # the second over the same connection
            await client.post("/x", b"{}", lambda line, now: lines.append(line))
        client.close()
        return lines

    with server(script) as url:
        began = time.monotonic()
        assert asyncio.run(ask(url)) == [b"data: one", b"data: two", b"", b"last"] * 2
        assert time.monotonic() - began < 5
