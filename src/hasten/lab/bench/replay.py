"""Replays a production trace against an OpenAI-compatible server, open loop and streaming.

    python -m hasten.lab.bench.replay --requests 200 --load 0.7 --out replay.json --plot replay.png

Starts `hasten serve` on the built-in model unless --url names a server. Lengths are scaled so that the longest request fits the
model's context; arrival times so that the request rate is --load of the capacity, which is measured first by keeping
--concurrency requests of the same trace in flight. Open loop: an arrival never waits for a completion.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

TRACE = "azure-llm-2023-conv.csv"
SOURCE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/AzureLLMInferenceTrace_conv.csv"


@dataclass(slots=True)
class Job:
    """One request of the trace: `at_s` after the first, lengths in tokens."""

    at_s: float
    prompt: int
    output: int


@dataclass(slots=True)
class Outcome:
    """Seconds from sending; `tokens` the server counted, or an error."""

    ttft_s: float = 0.0
    total_s: float = 0.0
    tokens: int = 0
    error: str | None = None

    @property
    def tpot_s(self) -> float:
        return (self.total_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else float("nan")


def load_trace(count: int, context: int) -> list[Job]:
    """The first `count` requests of the Azure LLM inference trace 2023 (conversation), lengths scaled to `context` tokens."""
    path = Path(os.environ.get("HASTEN_DATA", ".")) / TRACE
    if not path.is_file():
        raise SystemExit(f"{path} is not there: set HASTEN_DATA to the folder that holds {TRACE}, or fetch it from {SOURCE}")
    with path.open() as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    longest = max(int(row["ContextTokens"]) + int(row["GeneratedTokens"]) for row in rows)
    scale = min(1.0, (context - 1) / longest)
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [
        Job(at - times[0], max(1, int(int(row["ContextTokens"]) * scale)), max(1, int(int(row["GeneratedTokens"]) * scale)))
        for at, row in zip(times, rows, strict=True)
    ]


async def ask(client: httpx.AsyncClient, job: Job, model: str, prompt: list[int]) -> Outcome:
    """One streamed completion of exactly `job.output` tokens."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": job.output,
        "temperature": 0.8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    out = Outcome()
    began = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return Outcome(error=f"{response.status_code}: {response.text[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return Outcome(error=str(chunk["error"]))
                if chunk["choices"]:
                    out.total_s = time.perf_counter() - began
                    out.ttft_s = out.ttft_s or out.total_s
                if chunk.get("usage"):
                    out.tokens = chunk["usage"]["completion_tokens"]
    except httpx.HTTPError as error:
        return Outcome(error=f"{type(error).__name__}: {error}")
    if out.tokens != job.output:
        out.error = f"{out.tokens} tokens came, {job.output} were asked for"
    return out


async def measure(url: str, count: int, load: float, concurrency: int, seed: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        card = (await client.get("/v1/models")).json()["data"][0]
        model, context = card["id"], int(card.get("max_model_len") or card.get("max_length") or 2048)
        jobs = load_trace(count, context)
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(256, 4096, job.prompt).tolist() for job in jobs]
        with Progress(console=Console(stderr=True), transient=True) as bars:
            capacity = await _capacity(client, jobs, prompts, model, concurrency, bars)
            rate = load * capacity
            outcomes, took = await _replay(client, jobs, prompts, model, rate, bars)
    return _figures(jobs, outcomes, took, capacity, rate, model)


async def _capacity(
    client: httpx.AsyncClient, jobs: list[Job], prompts: list[list[int]], model: str, concurrency: int, bars: Progress
) -> float:
    """Requests per second with `concurrency` always in flight."""
    task = bars.add_task("measuring capacity", total=len(jobs))
    gate = asyncio.Semaphore(concurrency)

    async def one(job: Job, prompt: list[int]) -> Outcome:
        async with gate:
            # Reversed, so that the replay proper finds none of these prompts cached.
            outcome = await ask(client, job, model, prompt[::-1])
            bars.advance(task)
            return outcome

    began = time.perf_counter()
    outcomes = await asyncio.gather(*(one(job, prompt) for job, prompt in zip(jobs, prompts, strict=True)))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed while measuring capacity, the first: {failed[0]}")
    return len(jobs) / (time.perf_counter() - began)


async def _replay(
    client: httpx.AsyncClient, jobs: list[Job], prompts: list[list[int]], model: str, rate: float, bars: Progress
) -> tuple[list[Outcome], float]:
    task = bars.add_task("replaying", total=len(jobs))
    stretch = (len(jobs) / rate) / jobs[-1].at_s

    async def one(job: Job, prompt: list[int]) -> Outcome:
        await asyncio.sleep(max(0.0, began + job.at_s * stretch - time.perf_counter()))
        outcome = await ask(client, job, model, prompt)
        bars.advance(task)
        return outcome

    began = time.perf_counter()
    outcomes = await asyncio.gather(*(one(job, prompt) for job, prompt in zip(jobs, prompts, strict=True)))
    return outcomes, time.perf_counter() - began


def _figures(jobs: list[Job], outcomes: list[Outcome], took: float, capacity: float, rate: float, model: str) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if outcome.error is None]

    def percentiles(values: list[float]) -> dict[str, float]:
        clean = [value for value in values if value == value]
        return {f"p{p}": float(np.percentile(clean, p)) for p in (50, 95, 99)} if clean else {}

    return {
        "model": model,
        "requests": len(jobs),
        "completed": len(done),
        "errors": [outcome.error for outcome in outcomes if outcome.error],
        "capacity_requests_per_s": capacity,
        "offered_requests_per_s": rate,
        "seconds": took,
        "ttft_s": percentiles([outcome.ttft_s for outcome in done]),
        "tpot_s": percentiles([outcome.tpot_s for outcome in done]),
        "output_tokens_per_s": sum(outcome.tokens for outcome in done) / took,
        "total_tokens_per_s": sum(job.prompt + job.output for job in jobs) / took,
        "prompt_tokens": [job.prompt for job in jobs],
        "ttft_each_s": [outcome.ttft_s for outcome in outcomes],
        "tpot_each_s": [outcome.tpot_s for outcome in outcomes],
    }


def show(figures: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{figures['completed']} of {figures['requests']} requests completed in {figures['seconds']:.1f} s at "
        f"{figures['offered_requests_per_s']:.2f} requests/s (capacity {figures['capacity_requests_per_s']:.2f}), "
        f"{figures['output_tokens_per_s']:.0f} output tokens/s, {figures['total_tokens_per_s']:.0f} tokens/s in all"
    )
    table = Table("ms", "p50", "p95", "p99")
    for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        table.add_row(name, *(f"{value * 1e3:.1f}" for value in figures[key].values()))
    console.print(table)
    for error in figures["errors"][:5]:
        console.print(f"[red]{error}[/]")


def plot(figures: dict[str, Any], path: Path) -> None:
    """TTFT and TPOT as cumulative distributions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, key, label in ((axes[0], "ttft", "time to first token, ms"), (axes[1], "tpot", "time per output token, ms")):
        values = np.sort([v * 1e3 for v in figures[f"{key}_each_s"] if v == v])
        axis.step(values, np.arange(1, len(values) + 1) / len(values) * 100, where="post", color="#2b6cb0", linewidth=1.8)
        for p in (50, 95, 99):
            at = figures[f"{key}_s"][f"p{p}"] * 1e3
            axis.plot(at, p, "o", color="#c05621", markersize=5)
            offset, side = {50: ((7, -11), "left"), 95: ((-7, -10), "right"), 99: ((-7, 0), "right")}[p]
            axis.annotate(f"p{p} {at:.1f}", (at, p), textcoords="offset points", xytext=offset, fontsize=8, ha=side)
        axis.set(xlabel=label, ylabel="requests, %", ylim=(0, 104), xscale="log")
        axis.grid(True, which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{figures['requests']} requests of the Azure 2023 conversation trace at {figures['offered_requests_per_s']:.1f} "
        f"requests/s ({figures['offered_requests_per_s'] / figures['capacity_requests_per_s']:.0%} of capacity)", fontsize=10
    )  # fmt: skip
    figure.savefig(path, dpi=130)


def _serve() -> tuple[subprocess.Popen[bytes], str]:
    """`hasten serve` on a free port, ready to answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "hasten.cli.main", "serve", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                return server, url
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    server.terminate()
    raise SystemExit("the server was not ready within a minute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an OpenAI-compatible server; default: start hasten serve")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--load", type=float, default=0.7, help="share of the measured capacity")
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight while measuring capacity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--plot", type=Path, help="write the distributions here as PNG")
    options = parser.parse_args()
    server = None
    url = options.url
    if url is None:
        server, url = _serve()
    try:
        figures = asyncio.run(measure(url, options.requests, options.load, options.concurrency, options.seed))
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    show(figures)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot is not None:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
