"""One server from its socket to its exit: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import uvicorn

from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.async_engine import AsyncEngine
    from hasten.serving.server.settings import Settings

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Longer than the pools of usual clients keep a connection, so that none is closed under a request being sent."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or ConfigError saying why not. Done before loading a model, which would be in vain otherwise.

    Who connects while the model loads waits in the backlog."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        hint = "; choose another with --port, or 0 for any free one" if port else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}{hint}") from None
    return bound


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours drain first, and end with status 0


async def serve(
    listening: socket.socket,
    start: Callable[[], Awaitable[AsyncEngine]],
    settings: Settings,
    *,
    on_ready: Callable[[AsyncEngine], None] | None = None,
    on_drain: Callable[[int], None] | None = None,
) -> None:
    """Start the engine and serve until SIGTERM or SIGINT; then drain, and return. A second signal ends it at once. Both are
    ignored from then on: the process is about to end.

    `on_drain` gets the number of requests still running. Raises what `start` raises."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, signalled)
    try:
        # The engine's process loads while this one imports the web framework.
        starting = asyncio.ensure_future(start())
        importing = asyncio.create_task(asyncio.to_thread(import_module, "hasten.serving.server.app"))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        module = await importing
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        engine = starting.result()
        try:
            await _serve(listening, engine, module.build(engine, settings), stop, hurry, on_ready, on_drain)
        finally:
            await engine.close()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # one that comes while the process ends must not spoil its status
        listening.close()


async def _serve(
    listening: socket.socket,
    engine: AsyncEngine,
    app: object,
    stop: asyncio.Event,
    hurry: asyncio.Event,
    on_ready: Callable[[AsyncEngine], None] | None,
    on_drain: Callable[[int], None] | None,
) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    service = app.state.service  # type: ignore[attr-defined]
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if on_ready is not None:
        on_ready(engine)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        if on_drain is not None:
            on_drain(len(service.answers))
        draining = asyncio.create_task(service.drain())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        server.force_exit = hurried.done()
        server.should_exit = True
        draining.cancel()
        hurried.cancel()
    stopped.cancel()
    await serving
