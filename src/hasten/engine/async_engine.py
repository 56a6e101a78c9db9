"""`AsyncEngine`: an engine in a process of its own, streamed from asyncio. Importing this imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from hasten.engine.config import EngineConfig
from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.compiling import After, Prepared, made_ready
from hasten.engine.frontend import Frontend
from hasten.engine.models.config import ModelError
from hasten.engine.outputs import Delta, EngineDead, TokenDelta
from hasten.engine.request import BadRequest, Request
from hasten.engine.sequence import Finish
from hasten.engine.technique import ConfigError
from hasten.engine.text import ChatTemplate, Tokenizer, load_text

_STARTUP_ERRORS = {"ConfigError": ConfigError, "ModelError": ModelError}

OnProgress = Callable[[str, float], None]


class AsyncEngine:
    """Made by `await AsyncEngine.start(config)`; all methods belong to the event loop that started it."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.info: dict[str, Any] = {}
        self.alive = False
        self.prepares_grammars = True
        """Whether the engine wants grammars compiled by our front ends; otherwise it takes what the user wrote."""
        self._frontend = Frontend(tokenizer)
        self._queues: dict[str, asyncio.Queue[Delta | Exception | None]] = {}
        """None in a queue: nothing more comes."""
        self._stats: dict[str, Any] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False

    @classmethod
    async def start(cls, config: EngineConfig, *, on_progress: OnProgress | None = None) -> AsyncEngine:
        """Start the process and load the model. Raises ConfigError, ModelError or EngineDead."""
        ours, theirs = socket.socketpair()
        # The child starts first: it imports torch while this process reads the tokenizer.
        process = subprocess.Popen(
            [sys.executable, "-m", "hasten.engine.process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        link = Connection(ours.detach())
        try:
            link.send(config.model_dump_json())
            engine = cls(*load_text(config.model))
            engine._process, engine._link = process, link
            engine.prepares_grammars = config.decoding.constraint == "pre3"
            await engine._until_ready(on_progress)
        except BaseException:
            link.close()
            process.kill()
            process.wait()
            raise
        return engine

    _process: subprocess.Popen[bytes]
    _link: Connection

    async def _until_ready(self, on_progress: OnProgress | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                kind, *rest = await loop.run_in_executor(None, self._link.recv)
            except (EOFError, OSError):
                raise EngineDead(f"the engine process ended while loading (exit status {self._process.wait()})") from None
            if kind == "progress" and on_progress is not None:
                on_progress(*rest)
            elif kind == "failed":
                name, message = rest
                raise _STARTUP_ERRORS.get(name, EngineDead)(message)
            elif kind == "ready":
                (self.info,) = rest
                break
        self.alive = True
        threading.Thread(target=self._read, args=(loop,), daemon=True, name="hasten-deltas").start()

    # -- from the engine ------------------------------------------------------------------------------------------------

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        reason = "the engine process ended"
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            try:
                while True:
                    message = self._link.recv()
                    if message[0] == "died":
                        reason = message[1]
                        break
                    loop.call_soon_threadsafe(self._dispatch, message)
            except (EOFError, OSError):
                pass
            loop.call_soon_threadsafe(self._lost, reason)

    def _dispatch(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "refused":
            request_id, error = rest
            self._frontend.close(request_id)
            self._put(request_id, error)
            return
        deltas, stats = rest
        if stats is not None:
            self._stats = stats
        for token_delta in deltas:
            self._deliver(token_delta)

    def _deliver(self, token_delta: TokenDelta) -> None:
        delta, cancel = self._frontend.feed(token_delta)
        if cancel:
            self._send("cancel", token_delta.request_id, token_delta.index, Finish.STOP)
        if delta is not None:
            self._put(delta.request_id, delta)
        if token_delta.last:
            self._put(token_delta.request_id, None)

    def _put(self, request_id: str, item: Delta | Exception | None) -> None:
        queue = self._queues.get(request_id)
        if queue is not None:
            queue.put_nowait(item)

    def _lost(self, reason: str) -> None:
        self.alive = False
        if not self._closing:
            for queue in self._queues.values():
                queue.put_nowait(EngineDead(reason))

    def _send(self, *command: Any) -> None:
        with contextlib.suppress(BrokenPipeError, OSError):  # `_lost` tells everybody
            self._link.send(command)

    # -- asking ---------------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The request's deltas as they come, all its sequences interleaved. Raises BadRequest, QueueFull or EngineDead.
        Leaving early (break, cancellation, aclose) cancels the request."""
        if not self.alive:
            raise EngineDead("the engine process is not running")
        if request.id in self._queues:
            raise ValueError(f"a request with id {request.id!r} is already running")
        asked = request.sampling.constraint
        ready = isinstance(asked.constraint if isinstance(asked, After) else asked, Prepared)
        if asked is not None and self.prepares_grammars and not ready:
            # The engine would compile it between two steps of others.
            try:
                constraint = await asyncio.to_thread(made_ready, asked)
            except GrammarError as failure:
                raise BadRequest(str(failure), "constraint") from None
            request = replace(request, sampling=replace(request.sampling, constraint=constraint))
        try:
            pickled = pickle.dumps(request)
        except Exception as failure:
            raise BadRequest(f"the request cannot be sent to the engine: {failure}") from None
        queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        self._queues[request.id] = queue
        self._idle.clear()
        self._frontend.open(request)
        done = False
        try:
            self._send("add", request.id, pickled)
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    done = True
                    raise item
                yield item
            done = True
        finally:
            if not done:
                await self.cancel(request.id)
            self._queues.pop(request.id, None)
            if not self._queues:
                self._idle.set()

    async def cancel(self, request_id: str) -> None:
        """End a request now; its deltas stop."""
        self._frontend.close(request_id)
        self._send("cancel", request_id, None, Finish.CANCELLED)
        self._put(request_id, None)

    def stats(self) -> dict[str, Any]:
        """The engine's latest counters (see `Engine.stats`), at most half a second old while it works."""
        return dict(self._stats)

    async def drain(self, timeout_s: float) -> None:
        """Wait for unfinished requests; TimeoutError when some are left after `timeout_s`."""
        await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def close(self) -> None:
        """Stop the process; unfinished requests raise EngineDead."""
        self._send("stop")
        self._lost("the engine was closed")
        self._closing = True
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._process.wait, 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._link.close()
