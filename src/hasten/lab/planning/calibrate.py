"""Measures the engine of this machine over a grid of steps and fits the cost model to it.

The grid: prompts alone (batched tokens), decoding at several batch sizes and contexts, and traffic that mixes both; each in
several rounds over the whole grid, so that a drift of the machine does not fall on one part of it. Copies to the host tier are
timed apart. What is kept also says how well the model fits.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hasten.engine.build import Built
from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.kv.host import runs_of
from hasten.engine.request import Request, SamplingParams
from hasten.engine.technique import ConfigError
from hasten.lab.bench.machine import processor
from hasten.lab.planning.devices import Device
from hasten.lab.planning.fit import Fit, fit
from hasten.lab.planning.steps import Floats, steps_of

Progress = Callable[[str, float], None]

ROUNDS = 3
DECODED = 8
"""Tokens decoded by each sequence of a decode scenario."""
CONTEXT_TOKENS = 24_000
"""Most tokens that a decode scenario prefills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`count` requests at once, each with a prompt of `prompt` tokens and `output` new ones; `apart_s`: seconds between two."""

    count: int
    prompt: int
    output: int
    apart_s: float = 0.0

    @property
    def tokens(self) -> int:
        return self.count * (self.prompt + self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured on one machine for one model: the cost model, and the facts that simulation needs beside it.

    `machine`, `made_at` (seconds since 1970), `runs_on` (device, dtype, threads, kernels) say what it holds for; the errors are
    of single steps, see `fit.Fit`."""

    model: str
    vocabulary: int
    max_length: int
    kv_token_bytes: float
    kv_bytes: float
    costs: CostModel
    machine: str
    runs_on: dict[str, Any]
    made_at: float
    steps: int
    median_error: float
    p95_error: float

    def device(self) -> Device:
        model = SimulatedModel(name=self.model, vocabulary=self.vocabulary, max_length=self.max_length)
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.made_at))
        return Device(
            model=model,
            costs=self.costs,
            kv_token_bytes=self.kv_token_bytes,
            kv_bytes=self.kv_bytes,
            source=f"calibration of {self.machine}, {when} UTC",
            facts=dict(self.runs_on),
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises ConfigError when the file is not there or no calibration."""
        try:
            return TypeAdapter(cls).validate_python(json.loads(path.read_text()))
        except FileNotFoundError:
            raise ConfigError(f"{path} is not there: `hasten calibrate` makes it") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except ValueError as error:
            fault = str(error)
        raise ConfigError(f"{path} is no calibration ({fault}); `hasten calibrate` makes one")


def grid(max_length: int, max_rows: int) -> list[Scenario]:
    """The scenarios of one round."""
    longest = max(1, max_length - DECODED - 1)
    prompts = [p for p in (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096) if p < longest]
    alone = [Scenario(count=1, prompt=p, output=2) for p in [*prompts, longest]]
    decode = [
        Scenario(count=count, prompt=prompt, output=DECODED)
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for prompt in (16, longest // 8, longest // 2, longest)
        if count <= max_rows and prompt >= 16 and count * prompt <= CONTEXT_TOKENS
    ]
    # Few at a time, so that prompts are computed beside decoding sequences.
    mixed = [
        Scenario(count=12, prompt=max(1, longest // 16), output=16, apart_s=0.004),
        Scenario(count=8, prompt=max(1, longest // 4), output=24, apart_s=0.02),
        Scenario(count=24, prompt=max(1, longest // 40), output=12, apart_s=0.002),
    ]
    return alone + decode + mixed


def measure(built: Built, *, rounds: int = ROUNDS, budget_s: float = 120.0, progress: Progress | None = None) -> Calibration:
    """Calibrate an idle engine in about `budget_s` seconds. Raises ConfigError when that is too little for this model."""
    shapes, seconds = collect(built, rounds=rounds, budget_s=budget_s, progress=progress)
    copy_s, copy_token_s = copies(built)
    try:
        fitted = fit(shapes, seconds, copy_s=copy_s, copy_token_s=copy_token_s)
    except ValueError as error:
        raise ConfigError(f"{budget_s:g} seconds are too few to calibrate this model: {error}") from None
    return of(built, fitted)


def collect(
    built: Built, *, rounds: int = ROUNDS, budget_s: float = 120.0, progress: Progress | None = None
) -> tuple[Floats, Floats]:
    """Run the grid on an idle engine: shapes [n, 5] and seconds [n] of its steps. Scenarios that would not fit into their share
    of `budget_s` are left out."""
    engine, config = built.engine, built.parts.config
    pool, limit = built.parts.books.pool, config.scheduling.queue_limit
    most = min(config.scheduling.max_rows, limit if limit is not None else config.scheduling.max_rows)
    scenarios = [one for one in grid(min(engine.max_length, pool.blocks * pool.block_size), most) if one.count <= most]
    began = time.perf_counter()
    logs: list[tuple[Floats, Floats]] = []
    _run(built, Scenario(count=1, prompt=scenarios[0].prompt, output=2))
    for number in range(rounds):
        for i, scenario in enumerate(_affordable(scenarios, built, budget_s / rounds)):
            if progress is not None:
                progress(
                    f"round {number + 1}: {scenario.count} × {scenario.prompt} tokens", (number + i / len(scenarios)) / rounds
                )
            logs.append(_run(built, scenario))
        if time.perf_counter() - began > budget_s:
            break
    return np.concatenate([shape for shape, _ in logs]), np.concatenate([took for _, took in logs])


def of(built: Built, fitted: Fit) -> Calibration:
    """The calibration of a built engine with an already fitted cost model."""
    model, memory = built.parts.model, built.parts.memory
    return Calibration(
        model=built.parts.config.model.path,
        vocabulary=model.vocabulary,
        max_length=model.max_length,
        kv_token_bytes=memory.block_bytes / memory.block_size,
        kv_bytes=memory.nbytes,
        costs=fitted.costs,
        machine=this_machine(),
        runs_on=dict(built.parts.executor.describe()) if built.parts.executor is not None else {},
        made_at=time.time(),
        steps=fitted.steps,
        median_error=fitted.median_error,
        p95_error=fitted.p95_error,
    )


def _affordable(scenarios: list[Scenario], built: Built, budget_s: float) -> Iterator[Scenario]:
    """Cheapest first, as long as the time taken so far suggests that there is room."""
    began, done = time.perf_counter(), 0
    for scenario in sorted(scenarios, key=lambda s: s.tokens):
        spent = time.perf_counter() - began
        if done and spent + spent / done * scenario.tokens > budget_s:
            return
        yield scenario
        done += scenario.tokens


def _run(built: Built, scenario: Scenario) -> tuple[Floats, Floats]:
    """Run a scenario; its steps. None of its prompts is found in the prefix cache, whatever ran before."""
    engine = built.engine
    salt = engine.events.counts[Kind.ARRIVED]
    rng = np.random.default_rng(scenario.tokens)
    sampling = SamplingParams(max_tokens=scenario.output, temperature=0.0, ignore_eos=True)
    first = len(engine.events)
    began = engine.clock.now()
    added = 0
    while added < scenario.count or engine.unfinished:
        while added < scenario.count and (not engine.unfinished or engine.clock.now() >= began + added * scenario.apart_s):
            prompt = rng.integers(1, built.parts.model.vocabulary, scenario.prompt)
            name = f"calibrate-{salt}-{added}"
            engine.add(Request(id=name, prompt=prompt, sampling=sampling, cache_salt=name))
            added += 1
        engine.step()
    return steps_of(engine.events.columns(first))


def copies(built: Built) -> tuple[float, float]:
    """(seconds of a copy between the tiers, seconds per token of it), 0 without a host tier; pool and tier must be idle.

    The same blocks are copied in one run and block by block, so that the two terms can be told apart."""
    memory = built.parts.memory
    if not memory.host_blocks:
        return 0.0, 0.0
    books = built.parts.books
    blocks = books.pool
    most = min(64, memory.host_blocks, books.available)
    if books.reuse is not None and most > blocks.free:
        books.reuse.evict(most - blocks.free)  # what the grid left in the prefix cache
    held = sorted(blocks.take(most))
    work, seconds = [], []
    for _ in range(5):
        for size in sorted({min(most, count) for count in (1, 4, 16, 64)}):
            for places in (range(size), range(size - 1, -1, -1)):
                runs = runs_of(held[:size], places)
                for copy in (memory.copy_out, memory.copy_in):
                    handle = copy(runs)
                    handle.wait()
                    work.append((len(runs), size * memory.block_size))
                    seconds.append(handle.seconds)
    blocks.drop(held)
    took = np.array(seconds)
    scaled = np.array(work) / took[:, None]  # relative errors count, else the largest copies alone would
    copy_s, token_s = np.linalg.lstsq(scaled, np.ones(len(took)), rcond=None)[0].tolist()
    if copy_s < 0:
        return 0.0, float(np.median(took / np.array(work)[:, 1]))
    if token_s < 0:
        return float(np.median(took / np.array(work)[:, 0])), 0.0
    return copy_s, token_s


def this_machine() -> str:
    """Its processor, and how many cores of it this process may use."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hasten" / "calibrations"


def default_path(model: str, runs_on: dict[str, Any]) -> Path:
    """Where the calibration of a model on this machine is kept: in the cache folder, a file for each way of running it."""
    facts = [this_machine(), model, *(str(runs_on.get(k)) for k in ("device", "dtype", "threads", "kernels"))]
    facts += ["deterministic"] if runs_on.get("deterministic") else []
    return _folder() / (re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(facts)).strip("-").lower() + ".json")


def here(model: str, config: EngineConfig) -> Calibration:
    """The newest calibration of a model on this machine that agrees with what `config` says of device, dtype and threads.
    Raises ConfigError when there is none."""
    asked: dict[str, Any] = {
        "device": config.model.device,
        "threads": config.executor.threads,
        "deterministic": config.executor.deterministic,
    }
    if config.model.dtype != "auto":
        asked["dtype"] = config.model.dtype
    found: list[Calibration] = []
    broken: list[str] = []
    for path in sorted(_folder().glob("*.json")):
        try:
            found.append(Calibration.load(path))
        except ConfigError as error:  # of another version of hasten, say: it must not hide the ones that are good
            broken.append(str(error))
    fitting = [
        one
        for one in found
        if one.machine == this_machine()
        and one.model == model
        and all(value is None or one.runs_on.get(name) == value for name, value in asked.items())
    ]
    if not fitting:
        plain = {"device": "cpu", "deterministic": False, "threads": None}
        how = "".join(f" --{name} {value}" for name, value in asked.items() if plain.get(name, "") != value)
        how = how.replace("--deterministic True", "--set executor.deterministic=true")
        also = f"; left out: {'; '.join(broken)}" if broken else ""
        raise ConfigError(
            f"this machine is not calibrated for {model}: `hasten calibrate {model}{how}` does it in two minutes{also}"
        )
    return max(fitting, key=lambda one: one.made_at)
