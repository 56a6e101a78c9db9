"""The replay's client, in a process of its own: `python -m hasten.lab.bench.http_client FD` talks over an inherited socket.

In: a `Job`. Out: progress, then what came of it. Nothing else runs in this process, so its own delays are few, and it measures
them. Times are `time.perf_counter`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import orjson

from hasten.engine.events import EventLog, Kind
from hasten.lab.bench.arrivals import Arrivals
from hasten.lab.bench.openai_form import Form
from hasten.lab.bench.sse import Client, HttpError
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.prompts import Prompts

_PROGRESS_EVERY_S = 0.2
_BEFORE_START_S = 0.1


@dataclass(slots=True)
class Job:
    """`form`: what the server accepts. `silence_s`: how long an answer may stall before it counts as failed."""

    url: str
    form: Form
    workload: Workload
    vocabulary: int
    seed: int
    temperature: float
    silence_s: float
    key: str | None


@dataclass(slots=True)
class _Answer:
    """One answer as it comes. `times_s`: of each chunk with text; `last_s`: of the last chunk with a choice."""

    times_s: list[float] = field(default_factory=list)
    last_s: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None
    error: str | None = None

    def line(self, line: bytes, now_s: float) -> None:
        if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
            return
        chunk = orjson.loads(line[5:])
        if chunk.get("error"):
            self.error = str(chunk["error"])
            return
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        if chunk.get("choices"):
            self.last_s = now_s
            choice = chunk["choices"][0]
            self.finish = choice.get("finish_reason") or self.finish
            if choice.get("text"):
                self.times_s.append(now_s)

    def tokens(self, asked: int) -> int:
        """How many came: as the server counts them, or all if it ended for length, else one a chunk with text."""
        return int(self.usage.get("completion_tokens") or (asked if self.finish == "length" else len(self.times_s)))


class Replay:
    def __init__(self, job: Job, link: Connection) -> None:
        self._job = job
        self._link = link
        self._client = Client(job.url, job.silence_s, job.key)
        self._prompts = Prompts(job.workload, job.vocabulary, seed=job.seed)
        self._log = EventLog(keep=None)
        self._errors: dict[int, str] = {}
        self._short = 0
        self._ended = 0
        self._released = asyncio.Event()
        self._reported_s = 0.0

    async def run(self) -> dict[str, Any]:
        requests = self._job.workload.requests
        self._lag = np.full(len(requests), np.nan)
        # What is there now stays; collecting it again and again would hold up the stream.
        gc.collect()
        gc.freeze()
        start_s = time.perf_counter() + _BEFORE_START_S
        self._arrivals = Arrivals(self._job.workload, start_s)
        tasks: set[asyncio.Task[None]] = set()
        while not self._arrivals.done:
            for number in self._arrivals.pop(time.perf_counter()):
                task = asyncio.create_task(self._one(number))
                tasks.add(task)
                task.add_done_callback(self._settled)
            wait_s = min(self._arrivals.next_s - time.perf_counter(), 3600.0)
            self._released.clear()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._released.wait(), wait_s)
            else:
                await asyncio.sleep(0)
            settled = {task for task in tasks if task.done()}
            tasks -= settled
            for task in settled:
                task.result()  # an error of our own ends the replay
        await asyncio.gather(*tasks)
        self._client.close()
        return {
            "columns": self._columns(),
            "start_s": start_s,
            "due_s": self._arrivals.due_s,
            "lag_s": self._lag,
            "errors": self._errors,
            "short": self._short,
            "client_cpu_s": time.process_time(),
        }

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._released.set()

    def _columns(self) -> dict[str, Any]:
        """In order of time: a request's events are written when it has ended."""
        columns = self._log.columns()
        order = np.argsort(columns["time_s"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    async def _one(self, number: int) -> None:
        timed = self._job.workload.requests[number]
        answer = _Answer()
        due_s = float(self._arrivals.due_s[number])
        prompt = timed.text if timed.text is not None else self._prompts.tokens(timed)
        body = self._job.form.body(prompt, timed.output_tokens, self._job.temperature, number)
        self._lag[number] = time.perf_counter() - due_s
        try:
            await self._client.post("/v1/completions", body, answer.line)
        except (HttpError, orjson.JSONDecodeError) as error:
            answer.error = answer.error or str(error)
        output = answer.tokens(timed.output_tokens)
        if answer.error is None and not output:
            answer.error = "no token came"
        self._write(number, due_s, answer, output)
        if answer.error is None:
            self._short += output < timed.output_tokens
            self._arrivals.ended(number, answer.last_s)
            self._ended += 1
        else:
            self._errors[number] = answer.error
            lost = self._arrivals.failed(number)
            for other in lost:
                self._errors[other] = f"request {number}, which it needs, failed"
            self._ended += 1 + len(lost)
        self._report()

    def _write(self, number: int, due_s: float, answer: _Answer, output: int) -> None:
        add = self._log.add
        usage = answer.usage
        prompt = usage.get("prompt_tokens") or self._job.workload.requests[number].prompt_tokens
        add(due_s, Kind.ARRIVED, number, prompt, number)
        # A chunk is a token; text held back (half a letter) and what a server sends in one go come with the last one.
        shown = answer.times_s[:output]
        if shown:
            reused = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            if reused:
                add(shown[0], Kind.REUSED, number, reused)
            add(shown[0], Kind.FIRST_TOKEN, number)
            for at in shown[:-1]:
                add(at, Kind.TOKENS, number, 1)
            add(shown[-1], Kind.TOKENS, number, 1 + output - len(shown))
        elif output:
            add(answer.last_s, Kind.FIRST_TOKEN, number)
            add(answer.last_s, Kind.TOKENS, number, output)
        if answer.error is None:
            add(answer.last_s, Kind.FINISHED, number, output)
        else:
            add(time.perf_counter(), Kind.FAILED, number, output)

    def _report(self) -> None:
        now = time.perf_counter()
        if now > self._reported_s + _PROGRESS_EVERY_S:
            self._reported_s = now
            self._link.send(("progress", self._ended))


def main(fd: int) -> int:
    # The parent decides when to stop; a Ctrl-C at the terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    link = Connection(fd)
    job = link.recv()
    try:
        link.send(("done", asyncio.run(Replay(job, link).run())))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, and with it everybody who asked
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
