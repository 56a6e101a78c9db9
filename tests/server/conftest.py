from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from tests.server.fake import FakeEngine

from hasten.serving.server.app import build
from hasten.serving.server.run import bind
from hasten.serving.server.settings import Settings


@dataclass
class Running:
    url: str
    engine: FakeEngine
    service: Any

    def until(self, condition: Callable[[], object], seconds: float = 5.0) -> bool:
        """Wait for `condition`; False when it does not come true."""
        end_s = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end_s:
                return False
            time.sleep(0.005)
        return True


@contextmanager
def running(settings: Settings | None = None, **knobs: Any) -> Iterator[Running]:
    """A real server on a free port in a thread, around a fake engine."""
    engine = FakeEngine(**knobs)
    app = build(engine, settings)  # type: ignore[arg-type]
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, app.state.service)
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture
def make_server() -> Iterator[Callable[..., Running]]:
    """`make_server(settings, **knobs of FakeEngine)`; gone after the test."""
    with ExitStack() as stack:
        yield lambda *given, **knobs: stack.enter_context(running(*given, **knobs))
