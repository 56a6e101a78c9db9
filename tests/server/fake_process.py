"""`python -m tests.server.fake_process GRACE_S`: prints its address and serves a slow fake engine until a signal."""

from __future__ import annotations

import asyncio
import sys

from tests.server.fake import FakeEngine

from hasten.serving.server.run import bind, serve
from hasten.serving.server.settings import Settings

listening = bind("127.0.0.1", 0)
asyncio.run(
    serve(
        listening,
        lambda: FakeEngine.start(step_s=0.02),  # type: ignore[arg-type, return-value]
        Settings(grace_s=float(sys.argv[1])),
        on_ready=lambda engine: print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True),
    )
)
