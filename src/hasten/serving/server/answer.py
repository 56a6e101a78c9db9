"""From an HTTP request to its last byte: read, prepare, run on the engine, write, and let go of whoever left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hasten.engine.outputs import GRAMMAR_REFUSED, Delta
from hasten.engine.request import BadRequest
from hasten.engine.request import Request as EngineRequest
from hasten.serving.server.errors import ApiError, from_exception, internal, queue_full, timed_out
from hasten.serving.server.limits import check_key, read_body
from hasten.serving.server.metrics import Meter
from hasten.serving.server.service import Service
from hasten.serving.server.structured import bad_grammar

if TYPE_CHECKING:
    from hasten.engine.async_engine import AsyncEngine

log = logging.getLogger("hasten.server")


class Writer(Protocol):
    """Turns deltas into bytes: server-sent events as they come, or one JSON body at the end."""

    media_type: str

    def begin(self) -> bytes:
        """What precedes the first delta."""
        ...

    def add(self, choice: int, delta: Delta) -> bytes:
        """What to send for `delta` of the choice with that index; empty: nothing yet."""
        ...

    def end(self, usage: dict[str, Any]) -> bytes: ...


@dataclass(slots=True)
class Job:
    """One HTTP request as the engine runs it: a request a prompt, each with `n` choices, and who writes the answer.
    `constrained_by`: the field that asked for its constraint."""

    id: str
    requests: list[EngineRequest]
    writer: Writer
    constrained_by: str | None = None

    @property
    def n(self) -> int:
        return self.requests[0].sampling.n


Prepare = Callable[[Service, bytes, Mapping[str, str]], Coroutine[Any, Any, Job]]
"""From the body and the headers."""


async def answer(service: Service, request: Request, endpoint: str, prepare: Prepare) -> Response:
    """Check, read and prepare the request; what is returned runs it. Every way it can end is counted."""
    meter = Meter(service.metrics, endpoint)
    limit_s = service.settings.request_timeout_s
    gone: asyncio.Task[None] | None = None
    try:
        check_key(request.headers.get("authorization"), service.settings.api_key)
        service.check_open()
        async with asyncio.timeout(limit_s):
            raw = await read_body(request, service.settings.body_limit_bytes)
            gone = asyncio.create_task(_gone(request.receive))
            job = await _unless(gone, prepare(service, raw, request.headers))
    except ClientDisconnect:
        meter.finish("client_gone")
        return Response(status_code=499)  # nobody is there to read it
    except Exception as raised:
        if gone is not None:
            gone.cancel()
        error = timed_out(limit_s or 0) if isinstance(raised, TimeoutError) else from_exception(raised)
        meter.finish(error.code or "bad_request")
        return error.response()
    meter.accept(sum(len(part.prompt) for part in job.requests), job.requests[0].slo)
    return Answer(service, job, meter, gone)


async def _unless(gone: asyncio.Task[None], prepared: Coroutine[Any, Any, Job]) -> Job:
    """What `prepared` gives; ClientDisconnect if the client leaves first, since compiling a grammar may take seconds."""
    work = asyncio.create_task(prepared)
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()


async def deltas(engine: AsyncEngine, requests: list[EngineRequest]) -> AsyncIterator[tuple[int, Delta]]:
    """(number of the request, delta) of all `requests` as they come. Leaving it cancels those unfinished."""
    if len(requests) == 1:
        async with aclosing(engine.generate(requests[0])) as stream:  # type: ignore[type-var]
            async for delta in stream:
                yield 0, delta
        return
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def pump(number: int, request: EngineRequest) -> None:
        try:
            async with aclosing(engine.generate(request)) as stream:  # type: ignore[type-var]
                async for delta in stream:
                    arrived.put_nowait((number, delta))
        except Exception as error:
            arrived.put_nowait((number, error))
        else:
            arrived.put_nowait((number, None))

    tasks = [asyncio.create_task(pump(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            number, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Answer(Response):
    """Runs a job and sends what its writer makes of it.

    No header is sent before there is something to say, so a full queue is a 429 also for a stream. Once a stream has begun, an
    error is its last event (and no [DONE] follows).
    """

    def __init__(self, service: Service, job: Job, meter: Meter, gone: asyncio.Task[None]) -> None:
        """`gone` ends when the client leaves."""
        super().__init__()
        self._service = service
        self._job = job
        self._meter = meter
        self._gone = gone
        self._work: asyncio.Task[None] | None = None
        self._aborted: ApiError | None = None
        self._started = False

    def abort(self, error: ApiError) -> None:
        """End it now; the client is told `error`."""
        self._aborted = error
        if self._work is not None:
            self._work.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.answers.add(self)
        self._work = work = asyncio.create_task(self._run(send))
        gone = self._gone
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._meter.finish("client_gone")
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            self._service.answers.discard(self)

    async def _run(self, send: Send) -> None:
        limit_s = self._service.settings.request_timeout_s
        left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - self._meter.start_s))
        try:
            async with asyncio.timeout(left_s):
                await self._answer(send)
            return
        except TimeoutError:
            error = timed_out(limit_s or 0)
        except asyncio.CancelledError:
            if self._aborted is None:
                raise
            error = self._aborted
        except Exception as raised:
            error = self._refused(raised) or from_exception(raised)
        self._meter.finish(error.code or "bad_request")
        await self._fail(send, error)

    def _refused(self, raised: Exception) -> ApiError | None:
        """What to tell where the engine refused the constraint, which its front end could not know."""
        param = self._job.constrained_by
        if param is None or not isinstance(raised, BadRequest) or raised.param != "constraint":
            return None
        return bad_grammar(raised, param)

    async def _answer(self, send: Send) -> None:
        job, meter, writer = self._job, self._meter, self._job.writer
        first, n = True, job.n
        async with aclosing(deltas(self._service.engine, job.requests)) as stream:  # type: ignore[type-var]
            async for prompt, delta in stream:
                choice = prompt * n + delta.index
                meter.add(prompt, choice, delta)
                if delta.finish is not None and delta.finish not in ("stop", "length"):
                    raise _failure(delta)
                data = writer.add(choice, delta)
                if first:
                    data, first = writer.begin() + data, False
                if data:
                    if not self._started:
                        await self._start(send, 200, [(b"content-type", writer.media_type.encode())])
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        data = writer.end(meter.usage())
        if not self._started:
            length = str(len(data)).encode()
            await self._start(send, 200, [(b"content-type", writer.media_type.encode()), (b"content-length", length)])
        meter.finish("completed")
        await send({"type": "http.response.body", "body": data})

    async def _start(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        headers += [(b"x-request-id", self._job.id.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _fail(self, send: Send, error: ApiError) -> None:
        body = error.body()
        if not self._started:
            headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._start(send, error.status, headers)
        else:
            body = b"data: " + body + b"\n\n"
        await send({"type": "http.response.body", "body": body})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _failure(delta: Delta) -> ApiError | BadRequest:
    """What to tell about a sequence that did not end well."""
    if (delta.error or "").startswith(GRAMMAR_REFUSED):
        return BadRequest((delta.error or "").removeprefix(GRAMMAR_REFUSED), "constraint")
    if delta.finish == "rejected":
        return queue_full(delta.error or "the scheduler refused the request")
    if delta.finish == "cancelled":
        return ApiError(503, "the request was cancelled on the server", type="server_error", code="cancelled")
    log.error("request %s failed in the engine: %s", delta.request_id, delta.error)
    return internal(f"the engine failed on this request: {delta.error or 'no reason given'}")
