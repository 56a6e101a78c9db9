"""`flashforge`: attention that reads shared keys once, against the paged kernel that reads them once for each sequence.

Kernel calls and decode steps are timed in turns over the same KV pool; the bytes are counted in the kernels. Greedy tokens are
compared through the whole engine.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.flashforge_sides import Bench, Steps
from hasten.lab.claims.flashforge_steps import LONGEST, SIZE, apart, common_prompt, of_trace, skewed_tree
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.kernels.cpu import CpuKernels

HEADS, KV_HEADS = 16, 8
"""Of Qwen3-0.6B."""
SCALE = 4
"""The trace's lengths are divided by this, so that the KV of a window fits the memory."""
MEMORY = 6 << 30
FIRST = 1000
"""Of the trace: where its windows begin."""


def run(setting: Setting) -> Outcome:
    from hasten import kernels as kernel_library
    from hasten.kernels.cpu import CpuKernels

    kernels = kernel_library.load("cpu")
    if not isinstance(kernels, CpuKernels):
        raise RuntimeError("the claim flashforge compares native kernels, and none is built (make native)")
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    details: dict[str, Any] = {}
    guards = [_equal_tokens(setting, share(setting.progress, 0.0, 0.2))]
    _kernels(kernels, setting, samples, details, share(setting.progress, 0.2, 0.5))
    _steps(setting, samples, details, share(setting.progress, 0.5, 1.0))
    shares = [figure["keys"] / figure["unlike"] for figure in details["trace"]]
    return Outcome(
        samples=samples,
        guards=guards,
        shortfall={
            "trace": "requests of the conversation trace that decode at the same time share one block of 512 tokens, the "
            f"system prompt: read once, {100 * (1 - 1 / median(shares)):.0f} % fewer keys are read; what a conversation shares "
            "with its own earlier turns is not being decoded any more",
            "cost": "the rounds differ by more than the cost itself; the interval says how much",
        },
        notes=[
            "KV of made-up contents: no prompt is computed, and what a step takes does not depend on what the keys are",
            f"the trace: windows of 16 requests as they follow each other, those of more than {LONGEST} tokens left out, all "
            f"decoding at once, lengths divided by {SCALE}; with 4 answers to a prompt: windows of 8",
            f"planning anew took {1e3 * median(details['planning_s']):.2f} ms, a step of the same tree "
            f"{1e6 * median(details['keeping_s']):.0f} µs",
        ],
        details=details,
    )


def _kernels(
    kernels: CpuKernels, setting: Setting, samples: dict[str, list[float]], details: dict[str, Any], progress: Any
) -> None:
    """Attention alone: the two cases of the entry, and one node that dominates."""
    rounds = 3 if setting.quick else 9
    rng = np.random.default_rng(setting.seed)
    cases = {"prompt": common_prompt(rng), "tree": skewed_tree(rng)}
    progress("filling caches", 0.0)
    bench = Bench(kernels, HEADS, KV_HEADS, max(step.blocks for step in cases.values()))
    details["seconds"], details["planning_s"], details["keeping_s"] = {}, [], []
    for number, (name, step) in enumerate(cases.items()):
        planner = bench.planner()
        for turn in range(rounds):
            progress(f"attention, {name}: round {turn + 1} of {rounds}", (number + turn / rounds) / 3)
            of = bench.compare(step, {"paged": None, "flashforge": planner})
            (paged, paged_bytes, want), (mine, my_bytes, got) = of["paged"], of["flashforge"]
            samples[name].append(paged / mine)
            details["seconds"].setdefault(name, []).append({"paged": paged, "flashforge": mine})
            samples["difference"].append(float((want - got).abs().max()))
            samples[f"{name}-bytes"] = [paged_bytes / my_bytes]
            for which, one in (("planning_s", bench.planner()), ("keeping_s", planner)):
                host = step.index().on_host()
                began = time.perf_counter()
                one.plan(host)
                details[which].append(time.perf_counter() - began)
    # One KV head (multi-query attention): with more, the heads alone give every thread something to do.
    narrow = Bench(kernels, 8, 1, cases["prompt"].blocks)
    sides: dict[str, Any] = {"whole": narrow.planner(split=False), "split": narrow.planner()}
    for turn in range(rounds):
        progress(f"balance: round {turn + 1} of {rounds}", (2 + turn / rounds) / 3)
        of = narrow.compare(cases["prompt"], sides)
        samples["balance"].append(of["whole"][0] / of["split"][0])


def _steps(setting: Setting, samples: dict[str, list[float]], details: dict[str, Any], progress: Any) -> None:
    """Whole decode steps: of Qwen3-0.6B's shape, and for the cost of the small built-in model, whose steps are short."""
    import json
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from hasten.lab.claims.quantized import SHAPE

    rounds, turns = (3, 1) if setting.quick else (7, 3)
    rng = np.random.default_rng(setting.seed)
    progress("random weights of Qwen3-0.6B's shape", 0.0)
    with TemporaryDirectory(prefix="hasten-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        large = Steps(folder, ("model.load_format=dummy", "model.dtype=bfloat16", f"kv.memory_bytes={MEMORY}"))
    details["trace"], details["steps"] = [], []
    for turn in range(rounds):
        progress(f"steps: round {turn + 1} of {rounds}", 0.1 + 0.7 * turn / rounds)
        first = FIRST * (1 + setting.seed % 5) + 32 * turn
        window = of_trace(first, 16, SCALE)
        details["trace"].append({"first": first, "keys": window.entries, "unlike": window.blocks * SIZE})
        cases = {
            "step": common_prompt(rng),
            "trace": window,
            "answers": of_trace(first, 8, SCALE, answers=4),
        }
        for name, step in cases.items():
            took = large.seconds(step, turns if name == "step" else 2 * turns)  # the shorter, the more often
            samples[name].append(took["paged"] / took["flashforge"])
            details["steps"].append({"case": name, **took})
    large.close()
    small = Steps(None, ("model.dtype=bfloat16", "kv.memory_bytes=500000000", "executor.threads=1"))
    for turn in range(2 * rounds + 1):
        progress(f"cost: round {turn + 1}", 0.8 + 0.2 * turn / (2 * rounds + 1))
        took = small.seconds(apart(rng), 30, time.process_time)
        samples["cost"].append(100 * (took["flashforge"] / took["paged"] - 1))
    small.close()


def _equal_tokens(setting: Setting, progress: Any) -> Guard:
    """Greedy tokens through the engine, float32, paged against flashforge: where a request's first differ, it is a tie."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig
    from hasten.engine.request import Request, SamplingParams

    rng = np.random.default_rng(setting.seed)
    groups, tokens = (2, 24) if setting.quick else (6, 64)
    given: dict[str, dict[str, list[tuple[int, float]]]] = {}
    forests = 0
    requests = []
    common = rng.integers(16, 8000, 700)
    for group in range(groups):
        branch = rng.integers(16, 8000, 300)
        for number in range(4):
            prompt = np.concatenate([common, branch, rng.integers(16, 8000, 20 + 30 * number)]).astype(np.int32)
            sampling = SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=2, ignore_eos=True)
            requests.append(Request(id=f"{group}-{number}", prompt=prompt, sampling=sampling))
    for number, name in enumerate(("paged", "flashforge")):
        progress(f"greedy tokens, {name}", number / 2)
        settings = ["model.dtype=float32", f"kv.block_size={SIZE}", "kv.memory_bytes=500000000"]
        engine = build(EngineConfig.build(None, with_=[name], set_=settings)).engine
        policy: Any = engine.executor.attention
        plan = policy.before_step

        def counted(index: Any, plan: Any = plan) -> None:
            nonlocal forests
            plan(index)
            forests += index.forest is not None

        policy.before_step = counted
        engine.add(requests[0])
        out = engine.run()  # so that the others find the common prompt computed
        for request in requests[1:]:
            engine.add(request)
        of: dict[str, list[tuple[int, float]]] = {}
        for delta in [*out, *engine.run()]:
            if delta.error is not None:
                raise RuntimeError(f"a request failed: {delta.error}")
            for token, scores in zip(delta.tokens, delta.logprobs, strict=True):
                assert scores is not None  # they were asked for
                (_, best), (_, second) = scores.top[:2]
                of.setdefault(delta.request_id, []).append((token, (best - second) / max(abs(best), 1e-9)))
        given[name] = of
        engine.executor.close()
    ties = wrong = 0
    for request_id, want in given["paged"].items():
        got = given["flashforge"].get(request_id, [])
        at = next((i for i, pair in enumerate(zip(want, got, strict=False)) if pair[0][0] != pair[1][0]), None)
        if at is None:
            wrong += len(want) != len(got)
        elif want[at][1] <= 1e-4:
            ties += 1
        else:
            wrong += 1
    detail = (
        f"{len(requests)} requests of {tokens} tokens, {forests} steps with a forest, {ties} ties, {wrong} unequal; float32"
    )
    return Guard("equal tokens", not wrong and forests > 0, detail)


CLAIM = Claim(
    name="flashforge",
    title="Shared keys read once",
    paper="FlashForge: Ultra-Efficient Prefix-Aware Attention for LLM Decoding (2025)",
    workload="32 decoding requests that share a prompt of 8,192 tokens, 128 to 512 tokens of their own, or a skewed tree of "
    "three levels (6,144, 512 to 2,048, 256 to 1,024 tokens); attention of one layer of Qwen3-0.6B in float32, and whole steps "
    "of its shape in bfloat16 (random weights), also for windows of Mooncake's conversation trace",
    baseline="paged attention, request by request, the same kernels",
    technique="flashforge, costs measured in the process",
    requirements=(
        Requirement(
            name="prompt",
            what="attention over a shared prompt, paged over flashforge",
            paper="1.9x on average over FlashDecoding (GPU)",
            unit="x",
            at_least=3.0,
        ),
        Requirement(name="tree", what="attention over the skewed tree, paged over flashforge", unit="x", at_least=3.0),
        Requirement(
            name="prompt-bytes",
            what="bytes of KV read, shared prompt, paged over flashforge",
            paper="120.9x fewer memory accesses on average over FlashDecoding",
            unit="x",
            at_least=10.0,
        ),
        Requirement(name="tree-bytes", what="the same, skewed tree", unit="x", at_least=10.0),
        Requirement(
            name="balance",
            what="one KV head and one node that dominates, two threads: whole nodes over split ones",
            unit="x",
            at_least=1.4,
        ),
        Requirement(name="difference", what="largest difference of an output, float32", at_most=1e-4),
        Requirement(
            name="step",
            what="whole decode step over a shared prompt, paged over flashforge",
            paper="TPOT 3.8x better than vLLM's",
            unit="x",
            at_least=1.5,
        ),
        Requirement(
            name="trace",
            what="whole decode step, windows of Mooncake's conversation trace, paged over flashforge",
            unit="x",
            at_least=1.0,
        ),
        Requirement(
            name="answers",
            what="the same with 4 answers to a prompt at a time",
            unit="x",
            at_least=1.1,
        ),
        Requirement(name="cost", what="more CPU time of a step when nothing is shared", unit="%", at_most=3.0),
    ),
    run=run,
)
