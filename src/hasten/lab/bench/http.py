"""Open-loop replay of a workload against an OpenAI-compatible server, from a process of its own.

The run's events are what a client sees, so its metrics are computed as those of a run in this process; what only an engine
knows (scheduling, KV, steps) is missing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hasten.lab.bench.drive import Progress
from hasten.lab.bench.http_client import Job
from hasten.lab.bench.openai_form import Form, negotiate
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import Workload

VOCABULARY = 4096
"""Token ids of prompts are drawn below this: every model we know has more."""


def replay_http(
    url: str,
    workload: Workload,
    *,
    name: str = "",
    seed: int = 0,
    temperature: float = 0.0,
    form: Form | None = None,
    vocabulary: int = VOCABULARY,
    silence_s: float = 300.0,
    key: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Send each request when it is due, whatever the server does, and read all answers as they stream.

    `form`: what the server accepts, found by asking if None. An answer that stalls for `silence_s` counts as failed. `key`: the
    server's API key. CPU seconds and memory of the run are 0: the server's are not seen. Raises ConfigError when the server is
    not there or answers no form we know, RuntimeError when the client's process dies."""
    form = form or negotiate(url, key)
    job = Job(url, form, workload, vocabulary, seed, temperature, silence_s, key)
    began_s = time.perf_counter()
    found = _in_own_process(job, progress)
    info = {"url": url, "model": form.model, **form.described, "seed": seed, "client_cpu_s": found["client_cpu_s"]}
    if found["short"]:
        info["answers that ended early"] = found["short"]
    sent = np.isfinite(found["lag_s"])
    return Run(
        name=name or url,
        workload=workload,
        columns=found["columns"],
        sequence=np.where(sent, np.arange(len(workload)), -1),
        start_s=found["start_s"],
        due_s=found["due_s"],
        lag_s=found["lag_s"],
        errors=found["errors"],
        wall_s=time.perf_counter() - began_s,
        info=info,
    )


def _in_own_process(job: Job, progress: Progress | None) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "hasten.lab.bench.http_client", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    link = Connection(os.dup(ours.fileno()))
    ours.close()
    try:
        link.send(job)
        while True:
            what, value = link.recv()
            if what == "done":
                return value
            if progress is not None:
                progress(value, len(job.workload))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        raise RuntimeError(f"the client's process ended with status {process.wait(10)} before the replay did") from None
    finally:
        link.close()
        process.terminate()
        process.wait(10)
