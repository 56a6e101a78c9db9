"""The engine's own process: `python -m hasten.engine.process FD` talks over an inherited socket.

In: the configuration, then commands. Out: loading progress, readiness, and after every step its deltas. A step never waits for
the other side: commands are read by a thread, and the socket's buffer is large.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from hasten.engine.outputs import QueueFull
from hasten.engine.request import BadRequest

STATS_EVERY_S = 0.5


def main(fd: int) -> int:
    # The parent decides when to stop; a Ctrl-C at the terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(fd)) as buffered:
        buffered.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    link = Connection(fd)
    config_json = link.recv()
    try:
        built = _build(config_json, link)
    except Exception as failure:
        expected = isinstance(failure, ValueError | OSError)
        if not expected:
            traceback.print_exc()
        link.send(("failed", type(failure).__name__, str(failure) or repr(failure)))
        return 1
    try:
        link.send(("ready", built.info))
        _serve(built.engine, link)
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the parent is gone, and with it everybody who asked
    except Exception as failure:
        traceback.print_exc()
        link.send(("died", f"{type(failure).__name__}: {failure}"))
        return 1
    finally:
        built.engine.executor.close()
    return 0


def _build(config_json: str, link: Connection) -> Any:
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig
    from hasten.engine.text import load_text

    config = EngineConfig.model_validate_json(config_json)
    tokenizer, _ = load_text(config.model)
    last = 0.0

    def progress(done: float, total: float) -> None:
        nonlocal last
        if time.perf_counter() - last > 0.1:
            last = time.perf_counter()
            link.send(("progress", "loading weights", done / max(total, 1)))

    return build(config, eos=tokenizer.eos_ids, progress=progress, tokenizer=tokenizer)


def _serve(engine: Any, link: Connection) -> None:
    commands: deque[tuple[Any, ...]] = deque()
    wake = threading.Event()

    def read() -> None:
        try:
            while True:
                commands.append(link.recv())
                wake.set()
        except Exception:  # nobody is there any more, or what comes makes no sense: nothing can be served either way
            commands.append(("stop",))
            wake.set()

    threading.Thread(target=read, daemon=True, name="hasten-commands").start()
    reported = 0.0
    while True:
        if not engine.unfinished and not commands:
            link.send(("out", [], engine.stats()))
            while engine.tend() and not commands:
                wake.wait(1e-3)
            wake.wait()
        wake.clear()
        while commands:
            command = commands.popleft()
            if command[0] == "stop":
                return
            _obey(engine, command, link)
        # A policy that holds requests back must not keep this thread from the commands.
        deltas = engine.step(engine.clock.now() + 1e-3)
        now = time.perf_counter()
        stats = engine.stats() if now - reported > STATS_EVERY_S else None
        if stats is not None:
            reported = now
        if deltas or stats is not None:
            link.send(("out", deltas, stats))


def _obey(engine: Any, command: tuple[Any, ...], link: Connection) -> None:
    name, *arguments = command
    if name == "add":
        request_id, pickled = arguments
        try:
            engine.add(pickle.loads(pickled))
        except (BadRequest, QueueFull) as refused:
            link.send(("refused", request_id, refused))
        except Exception as failure:  # a constraint whose class this process does not know, say
            link.send(("refused", request_id, BadRequest(f"the request cannot be read: {type(failure).__name__}: {failure}")))
    elif name == "cancel":
        engine.cancel(*arguments)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
