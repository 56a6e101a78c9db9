"""A server that costs next to nothing: it streams as many tokens as asked for at a steady pace, and never thinks.

    python -m hasten.lab.bench.stub --port 8001 --interval 0.005

It answers the part of the OpenAI API that a replay uses. What a client measures against it is the client's own limit.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN = b'data: {"object":"text_completion","choices":[{"index":0,"text":" a","finish_reason":null}],"usage":null}\n\n'
_LAST = _TOKEN.replace(b"null}]", b'"length"}]')


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class _Stub(asyncio.Protocol):
    """One connection: requests with a content length, one after the other."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        fields = (line.partition(b":") for line in head.lower().split(b"\r\n")[1:])
        length = int(next((value for name, _, value in fields if name == b"content-length"), b"0"))
        if len(rest) < length:
            return
        body, self._received = rest[:length], rest[length:]
        asked = orjson.loads(body) if body else None
        if asked is None:
            self._whole(200, {"data": [{"id": "stub", "object": "model", "max_model_len": 1_000_000}]})
        elif not isinstance(asked.get("ignore_eos", True), bool):
            self._whole(400, {"error": {"message": "ignore_eos must be true or false"}})
        else:
            self._stream(asked)

    def _whole(self, status: int, value: object) -> None:
        body = orjson.dumps(value)
        self._transport.write(b"HTTP/1.1 %d .\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    def _stream(self, asked: dict[str, object]) -> None:
        prompt, count = asked["prompt"], asked["max_tokens"]
        assert isinstance(prompt, list | str) and isinstance(count, int)
        length = len(prompt) if isinstance(prompt, list) else len(prompt.split())
        usage = {"prompt_tokens": length, "completion_tokens": count, "total_tokens": length + count}
        self._transport.write(_HEAD)
        self._next(count, orjson.dumps({"choices": [], "usage": usage}))

    def _next(self, left: int, usage: bytes) -> None:
        if self._transport.is_closing():
            return
        if left > 1:
            self._transport.write(_chunk(_TOKEN))
            self._loop.call_later(self._interval_s, self._next, left - 1, usage)
        else:
            end = _chunk(b"data: " + usage + b"\n\n") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            self._transport.write(_chunk(_LAST) + end)


@contextmanager
def running(interval_s: float = 0.005) -> Iterator[str]:
    """A stub in a process of its own; yields its address."""
    command = [sys.executable, "-m", "hasten.lab.bench.stub", "--port", "0", "--interval", str(interval_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()  # it has nothing to end, and where our parent ignores SIGTERM so does it
        process.wait()


async def _serve(port: int, interval_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Stub(interval_s), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one; the address is printed")
    parser.add_argument("--interval", type=float, default=0.005, help="seconds between tokens")
    options = parser.parse_args()
    try:
        asyncio.run(_serve(options.port, options.interval))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
