"""A lean client for streamed completions: HTTP/1.1 over asyncio, connections kept and reused, one line of the stream at a time.

It exists because the replay's client shares the machine with the server under test: per request it takes a fraction of the CPU
time of a general client (httpx), which would otherwise be part of every measured latency.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

OnLine = Callable[[bytes, float], None]
"""Called with a line of the stream (without its end) and the clock's time at which it came."""


class HttpError(Exception):
    """The server refused, broke off, or spoke something else than HTTP/1.1."""


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.used = False
        self.open = True
        self.last_s = 0.0
        self._received = bytearray()
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.begun = False
        self._keep = True
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body, or of the chunk under way, still to come; None: until the connection closes."""
        self._in_trailer = False
        self._body = bytearray()
        self._on_line: OnLine | None = None
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.done is not None and not self.done.done():
            if self.begun and self.status and not self._chunked and self._left is None:
                self._finish()
            else:
                self.done.set_exception(HttpError(f"the connection was lost{f': {error}' if error else ''}"))

    def start(self, request: bytes, on_line: OnLine) -> asyncio.Future[None]:
        self._reset()
        self._on_line = on_line
        self.last_s = time.perf_counter()
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    @property
    def reusable(self) -> bool:
        return self.open and self._keep and not self.transport.is_closing()

    @property
    def body(self) -> str:
        """What of the body was not passed on as lines."""
        return self._body.decode(errors="replace")

    def data_received(self, data: bytes) -> None:
        self.last_s = time.perf_counter()
        self._received += data
        self.begun = True
        try:
            if not self.status and not self._head():
                return
            while self._received and self.done is not None and not self.done.done() and self._advance():
                pass
        except (ValueError, IndexError):
            if self.done is not None and not self.done.done():
                self.done.set_exception(HttpError("the answer is no HTTP/1.1"))
            self.transport.abort()

    def _head(self) -> bool:
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = bytes(head).split(b"\r\n")
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(b":") for line in lines)}
        self.status = int(first.split(b" ")[1])
        self._keep = fields.get(b"connection") != b"close"
        self._chunked = fields.get(b"transfer-encoding", b"").endswith(b"chunked")
        length = fields.get(b"content-length")
        self._left = 0 if self._chunked else int(length) if length is not None else None
        self._received = rest
        if self._left == 0 and not self._chunked:
            self._finish()
        return True

    def _advance(self) -> bool:
        """Take one piece of what was received; False when more is needed."""
        if self._chunked and not self._left:
            line, end, rest = self._received.partition(b"\r\n")
            if not end:
                return False
            self._received = rest
            if self._in_trailer:
                if not line:
                    self._finish()
            elif line:  # the empty line ends the chunk before
                self._left = int(line.split(b";")[0], 16)
                self._in_trailer = self._left == 0
            return True
        piece = self._received[: self._left] if self._left is not None else self._received[:]
        del self._received[: len(piece)]
        self._pass_on(piece)
        if self._left is not None:
            self._left -= len(piece)
            if not self._left and not self._chunked:
                self._finish()
        return True

    def _pass_on(self, piece: bytearray) -> None:
        self._body += piece
        if self.status != 200 or self._on_line is None:
            return
        *lines, self._body = self._body.split(b"\n")
        for line in lines:
            self._on_line(bytes(line).rstrip(b"\r"), self.last_s)

    def _finish(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


class Client:
    """Posts to one server. `silence_s`: how long a connection may say nothing before it is given up."""

    def __init__(self, url: str, silence_s: float, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpError(f"{url!r} is no address of a server; write http://host:port")
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        given = f"authorization: Bearer {key}\r\n" if key else ""
        self._fields = f"host: {parts.netloc}\r\ncontent-type: application/json\r\naccept: */*\r\n{given}"
        self._silence_s = silence_s
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, on_line: OnLine) -> None:
        """Pass on the lines of a 200 answer as they come, until it has ended. Raises HttpError for anything else."""
        request = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._fields}content-length: {len(body)}\r\n\r\n".encode() + body
        while True:
            connection = await self._connect()
            fresh = not connection.used
            connection.used = True
            done = connection.start(request, on_line)
            try:
                await self._until(connection, done)
            except HttpError:
                # A server may close an idle connection at the moment it is used; nothing was asked then. Silence on an open one
                # is an answer that never came.
                if fresh or connection.begun or connection.open:
                    raise
                continue
            finally:
                if not done.done() or not connection.reusable:
                    connection.transport.abort()
            if connection.reusable:
                self._idle.append(connection)
            if connection.status != 200:
                raise HttpError(f"{connection.status}: {connection.body[:300]}")
            return

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        try:
            connect = asyncio.get_running_loop().create_connection(_Connection, self._host, self._port, ssl=self._ssl)
            return (await asyncio.wait_for(connect, self._silence_s))[1]
        except (OSError, TimeoutError) as error:
            raise HttpError(f"no connection to {self._host}:{self._port}: {error or type(error).__name__}") from None

    async def _until(self, connection: _Connection, done: asyncio.Future[None]) -> None:
        left = self._silence_s
        while True:
            await asyncio.wait([done], timeout=left)
            if done.done():
                return done.result()
            left = connection.last_s + self._silence_s - time.perf_counter()
            if left <= 0:
                raise HttpError(f"the server said nothing for {self._silence_s:g} s")

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()
