"""Idealised runtime: a request's time as arithmetic, from few measurements (2023), and what contention does to a comparison.

Six systems (three sizes of model, each with float32 and with bfloat16 product kernels) answer one request at a time. The form
is fitted on few points and judged on others; then a second, busy process shares the core, and the systems are ranked by raw and
by denoised times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting

if TYPE_CHECKING:
    from hasten.engine.loop import Engine
    from hasten.lab.bench.ideal import Ideal, Point

SIZES: dict[str, dict[str, int]] = {
    "16M": {"hidden_size": 320, "num_hidden_layers": 12, "num_attention_heads": 5, "intermediate_size": 880},
    "33M": {"hidden_size": 448, "num_hidden_layers": 14, "num_attention_heads": 7, "intermediate_size": 1232},
}
"""Shapes with random weights, beside the built-in model (9 M parameters)."""
DTYPES = ("float32", "bfloat16")
ALIKE = 0.1
"""Systems whose isolated times differ by less than this share are not ranked against each other."""
BUSY_S, IDLE_S = 0.5, 1.0
"""Mean lengths of the second process's busy and idle stretches."""
FAR = (1024, 64)
"""The query that tells the context term from a constant one."""

Query = tuple[int, int]
"""Prompt and output tokens."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: the queries of the fit, how many are held out, a `long` output, and how often each is repeated."""

    fit: tuple[Query, ...]
    held_out: int
    long: Query
    isolated: int
    contended: int
    rounds: int


def plan(quick: bool) -> Plan:
    # All of the twenty that are allowed, most of them on F: kernels change their way between lengths.
    few = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    prompts, outputs = ((1, 8, 64, 128), (8, 24)) if quick else (few, (8, 24, 48))
    further = [(p, o) for p in (prompts[0], prompts[-1]) for o in outputs]
    fit = (*((p, 1) for p in prompts), *further)
    return Plan(fit, 3 if quick else 6, (16, 800 if quick else 1800), *((2, 4, 3) if quick else (2, 6, 3)))


def held_out(what: Plan, seed: int) -> list[Query]:
    """Queries drawn anew each round, prompts and outputs log-uniform over the range of the fit, so that none was looked at when
    the fit's lengths were chosen."""
    rng = np.random.default_rng([seed, 77])
    longest = (max(p for p, _ in what.fit), max(o for _, o in what.fit))
    out: list[Query] = []
    while len(out) < what.held_out:
        prompt, output = np.exp(rng.uniform(0.0, np.log(longest))).round().astype(int).tolist()
        if (prompt, output) not in what.fit:
            out.append((prompt, output))
    return out


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.ideal import denoise, fit

    what = plan(setting.quick)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    rounds: list[dict[str, Any]] = []
    caught = 0
    spreads: list[float] = []
    with _systems() as systems:
        for name, engine in systems.items():
            setting.progress(f"warming up {name}", 0.0)
            for query in ((8, 4), (what.fit[-1][0], 4)):
                _seconds(engine, query, 0)
        for number in range(what.rounds):
            tell = _part(setting, number, what.rounds)
            seed = setting.seed + number
            tell("alone", 0.0)
            alone = _measure(systems, what.fit, what.isolated, seed)
            isolated = {name: fit(denoise(points)) for name, points in alone.items()}
            tell("held out", 0.25)
            held = _measure(systems, held_out(what, seed), what.isolated, seed + 1000)
            errors = np.concatenate([isolated[name].errors(denoise(points)) for name, points in held.items()])
            samples["held-out"].append(100 * float(np.median(errors)))
            samples["held-out-worst"].append(100 * float(errors.max()))
            tell("a long output", 0.4)
            linear, context = _long(systems["9M bfloat16"], what, alone["9M bfloat16"], seed)
            samples["long-linear"].append(100 * linear)
            samples["long-context"].append(100 * context)
            tell("beside a busy process", 0.5)
            with _busy(seed):
                crowded = _measure(systems, what.fit, what.contended, seed)
            recovered = {name: fit(denoise(points)) for name, points in crowded.items()}
            tell("alone again", 0.9)  # what drifted between the two is not the busy process's doing
            again = _measure(systems, what.fit, what.isolated, seed + 2000)
            alone = {name: [*alone[name], *again[name]] for name in systems}
            isolated = {name: fit(denoise(points)) for name, points in alone.items()}
            spreads += [spread for points in alone.values() for spread in _spreads(points)]
            raw, mended = _rankings(what.fit, alone, crowded, recovered)
            samples["raw-ranking"].append(raw)
            samples["denoised-ranking"].append(mended)
            off = {name: abs(recovered[name].token_s / isolated[name].token_s - 1) for name in systems}
            samples["token-time"].append(100 * max(off.values()))
            rounds.append(_details(isolated, recovered, crowded))
            caught += sum(_caught(alone[name], crowded[name]) for name in systems)
    count = len(what.fit)
    escape = (
        f"of {what.rounds * len(rounds[0]) * count} queries beside the busy process {caught} had no repeat within "
        f"{ALIKE:.0%} of the fastest one alone"
    )
    noise = (
        f"the machine itself: the slowest of a query's repeats alone took {np.median(spreads):.0%} longer than the fastest "
        f"in the median, {np.percentile(spreads, 95):.0%} in the 95th percentile"
    )
    return Outcome(
        samples=samples,
        guards=[Guard("few measurements", count <= 20, f"{count} queries a system for the fit, at most 20 allowed")],
        shortfall={
            "held-out": noise,
            "held-out-worst": noise,
            "token-time": escape,
            "denoised-ranking": escape,
        },
        notes=[
            f"seeds {setting.seed} to {setting.seed + what.rounds - 1}; each query alone {what.isolated} times (the fastest "
            f"counts), beside the busy process {what.contended} times",
            f"fit: prompts and outputs {', '.join(f'{p}/{o}' for p, o in what.fit)}; held out: {what.held_out} queries drawn "
            "anew each round, log-uniform over that range",
            f"the busy process computes for {BUSY_S:g} s and sleeps for {IDLE_S:g} s on average, exponential, on the engine's "
            "core",
            "the form holds for requests alone on the machine and while attention is small: an output of "
            f"{what.long[1]} tokens is where it fails",
        ],
        details={"rounds": rounds},
    )


def _part(setting: Setting, number: int, of: int) -> Callable[[str, float], None]:
    return lambda what, share: setting.progress(f"round {number + 1} of {of}: {what}", (number + share) / of)


# -- the systems -------------------------------------------------------------------------------------------------------


@contextmanager
def _systems() -> Iterator[dict[str, Engine]]:
    """The six engines by name, smallest first."""
    from hasten.engine.build import build
    from hasten.engine.config import BUILTIN, EngineConfig

    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        paths = {"9M": BUILTIN} | {name: _shape(Path(folder) / name, shape) for name, shape in SIZES.items()}
        engines = {}
        for name, path in paths.items():
            for dtype in DTYPES:
                settings = [f"model.dtype={dtype}", "executor.threads=1", "kv.reuse=none", "kv.memory_bytes=40000000"]
                if path != BUILTIN:
                    settings.append("model.load_format=dummy")
                engines[f"{name} {dtype}"] = build(EngineConfig.build(path, set_=settings)).engine
        try:
            yield engines
        finally:
            for engine in engines.values():
                engine.executor.close()


def _shape(folder: Path, shape: dict[str, int]) -> str:
    """A checkpoint folder without weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8192,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **shape,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


# -- measuring ---------------------------------------------------------------------------------------------------------


def _seconds(engine: Engine, query: Query, seed: int) -> float:
    """Seconds from handing over a request, alone in the engine, to its last token."""
    from hasten.engine.request import Request, SamplingParams

    prompt, output = query
    tokens = np.random.default_rng([seed, prompt, output]).integers(16, engine.executor.vocabulary, prompt)
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    request = Request(id="query", prompt=tokens.astype(np.int32), sampling=sampling)
    began = time.perf_counter()
    engine.add(request)
    deltas = engine.run()
    seconds = time.perf_counter() - began
    if sum(len(delta.tokens) for delta in deltas) != output:
        raise RuntimeError(f"a query of {prompt} and {output} tokens failed: {deltas[-1].error}")
    return seconds


def _measure(systems: dict[str, Engine], queries: Sequence[Query], repeats: int, seed: int) -> dict[str, list[Point]]:
    """Points by system, all repeats; a system's repeats lie far apart in time."""
    points: dict[str, list[Point]] = {name: [] for name in systems}
    for repeat in range(repeats):
        for name, engine in systems.items():
            points[name] += [(*query, _seconds(engine, query, seed + repeat)) for query in queries]
    return points


def _long(engine: Engine, what: Plan, points: list[Point], seed: int) -> tuple[float, float]:
    """Relative errors for the long output: of the linear form, and with the context term, which needs one far query more."""
    from hasten.lab.bench.ideal import denoise, fit

    far = [
        (prompt, output, _seconds(engine, (prompt, output), seed + i))
        for i in range(what.isolated)
        for prompt, output in (FAR, (FAR[0], 1))
    ]
    measured: list[Point] = [(*what.long, _seconds(engine, what.long, seed))]
    linear, context = fit(denoise(points)), fit(denoise([*points, *far]), context=True)
    return float(linear.errors(measured)[0]), float(context.errors(measured)[0])


_WORK = """
import random, sys, time
rng = random.Random(int(sys.argv[1]))
busy_s, idle_s = map(float, sys.argv[2:])
while True:
    until = time.perf_counter() + rng.expovariate(1 / busy_s)
    while time.perf_counter() < until:
        sum(range(1000))
    time.sleep(rng.expovariate(1 / idle_s))
"""


@contextmanager
def _busy(seed: int) -> Iterator[None]:
    """A second process that computes now and then; both processes on one core where the system can bind them."""
    bound = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if bound else set()
    if bound:
        os.sched_setaffinity(0, {max(cores)})  # the child inherits it
    other = subprocess.Popen([sys.executable, "-c", _WORK, str(seed), str(BUSY_S), str(IDLE_S)])
    try:
        yield
    finally:
        other.kill()
        other.wait()
        if bound:
            os.sched_setaffinity(0, cores)


# -- comparing ---------------------------------------------------------------------------------------------------------


def _rankings(
    queries: Sequence[Query], alone: dict[str, list[Point]], crowded: dict[str, list[Point]], fitted: dict[str, Ideal]
) -> tuple[float, float]:
    """Agreement (Kendall's tau, mean over the queries) with the ranking of the systems alone: of the first raw time of each
    beside the busy process, and of what the denoised fit says."""
    from hasten.lab.bench.ideal import denoise

    raw, mended = [], []
    for query in queries:
        true = {name: next(t for p, o, t in denoise(points) if (p, o) == query) for name, points in alone.items()}
        first = {name: next(t for p, o, t in points if (p, o) == query) for name, points in crowded.items()}
        raw.append(agreement(true, first))
        mended.append(agreement(true, {name: float(ideal.seconds(*query)) for name, ideal in fitted.items()}))
    return float(np.mean(raw)), float(np.mean(mended))


def _caught(alone: list[Point], crowded: list[Point]) -> int:
    """Queries of a system whose fastest repeat beside the busy process is slower than alone."""
    from hasten.lab.bench.ideal import denoise

    return sum(t > (1 + ALIKE) * quiet for (*_, t), (*_, quiet) in zip(denoise(crowded), denoise(alone), strict=True))


def _spreads(points: list[Point]) -> list[float]:
    """How much longer the slowest repeat of each query took than its fastest, as a share."""
    times: dict[Query, list[float]] = {}
    for prompt, output, seconds in points:
        times.setdefault((prompt, output), []).append(seconds)
    return [max(found) / min(found) - 1 for found in times.values()]


def agreement(true: dict[str, float], other: dict[str, float]) -> float:
    """Kendall's tau of two orders, from -1 to 1, over the pairs that differ by more than ALIKE in the true one (Kendall, 1938);
    1 where no pair does."""
    score = pairs = 0
    for one, two in combinations(true, 2):
        if abs(true[one] - true[two]) > ALIKE * min(true[one], true[two]):
            pairs += 1
            score += 1 if (true[one] < true[two]) == (other[one] < other[two]) else -1
    return score / pairs if pairs else 1.0


def _details(isolated: dict[str, Ideal], recovered: dict[str, Ideal], crowded: dict[str, list[Point]]) -> dict[str, Any]:
    """The fits, and the contention that raw times hold: their mean over the denoised times'."""
    out = {}
    for name, ideal in isolated.items():
        raw = np.array([seconds for _, _, seconds in crowded[name]])
        quiet = np.array([float(recovered[name].seconds(p, o)) for p, o, _ in crowded[name]])
        out[name] = {
            "token_ms": 1e3 * ideal.token_s,
            "recovered_token_ms": 1e3 * recovered[name].token_s,
            "first_ms": {str(int(p)): 1e3 * t for p, t in zip(ideal.prompts.tolist(), list(ideal.first_s), strict=True)},
            "r2": ideal.r2,
            "worst_in_fit": ideal.worst,
            "contention": float((raw / quiet).mean()),
        }
    return out


CLAIM = Claim(
    name="idealized-runtime",
    title="A request's time from few measurements",
    paper="Cheaply Evaluating Inference Efficiency Metrics for Autoregressive Transformer Models (Narayanan et al., 2023)",
    workload="single requests on six systems: the built-in model (9 M parameters) and two random ones (16 M, 33 M), each with "
    "float32 and bfloat16 product kernels, one thread",
    baseline="raw times, one measurement a query, beside a busy process",
    technique="T = F(p) + g (o - 1), fitted on at most 20 queries a system; denoised: the fastest repeat of each query",
    requirements=(
        Requirement(
            name="held-out",
            what="error on held-out queries, median",
            paper="ten models, by 5 prompt lengths and up to 64 output tokens",
            unit="%",
            at_most=5.0,
        ),
        Requirement(name="held-out-worst", what="error on held-out queries, worst of all systems", unit="%", at_most=15.0),
        Requirement(
            name="raw-ranking",
            what="order of the systems by raw times beside a busy process (Kendall's tau; 1: as alone)",
            at_most=0.95,
        ),
        Requirement(name="denoised-ranking", what="the same by denoised times", at_least=1.0),
        Requirement(name="token-time", what="g recovered beside a busy process, worst error", unit="%", at_most=10.0),
        Requirement(name="long-linear", what="error for a long output, linear form", unit="%"),
        Requirement(name="long-context", what="error for a long output, with the context term", unit="%", at_most=10.0),
    ),
    run=run,
)
