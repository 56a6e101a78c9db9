"""Agent workflows: a plan, rounds of parallel calls, an answer, each stage reading what the ones before wrote.

Defaults follow the released text-to-SQL traces of HexGen-Flow (2025): about 19 calls a workflow, some in parallel. Their
lengths range from 300 to 12,000 tokens by step; here the prompt grows with the work instead, from a median task to everything
written so far. The shape (plan, rounds, answer), log-normal lengths and the exponential time of a tool are our modelling.
"""

from __future__ import annotations

import math

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.generate import arrivals, check_count, check_positive, lengths

BLOCK_TOKENS = 16
SIGMA = 0.8


def agents(
    *,
    rate: float = 0.2,
    workflows: int = 50,
    rounds: float = 4.0,
    width: float = 4.0,
    system: int = 512,
    task: float = 300.0,
    written: float = 80.0,
    tool_s: float = 0.5,
    longest: int = 16_384,
    seed: int = 0,
) -> Workload:
    """Workflows of stages with parallel calls, at `rate` a second (Poisson).

    `workflows`: how many. `rounds`, `width`: mean number of rounds (at least 1, geometric) and of calls in a round (1 +
    Poisson). `system`: tokens that all prompts of all workflows begin with. `task`, `written`: median tokens of a task and of
    what one call writes. `tool_s`: mean seconds between a round's end and the next stage. A workflow whose prompt would exceed
    `longest` goes to its answer at once, cut to fit. All calls of a stage share the blocks of what was written before it."""
    for name, value in (("task", task), ("written", written), ("tool_s", tool_s)):
        check_positive(name, value)
    for name, value in (("rounds", rounds), ("width", width)):
        if not math.isfinite(value) or value < 1:
            raise WorkloadError(f"{name} must be a number from 1 on, got {value}")
    check_count("workflows", workflows)
    check_count("system", system)
    check_count("longest", longest, low=2)
    of_arrivals, of_work = np.random.default_rng(seed).spawn(2)
    starts_s = arrivals(of_arrivals, workflows, rate)
    shared = tuple(range(system // BLOCK_TOKENS))
    first_own = len(shared)
    requests: list[TimedRequest] = []
    for number in range(workflows):
        calls = [1, *(1 + int(of_work.poisson(width - 1)) for _ in range(int(of_work.geometric(1.0 / rounds)))), 1]
        context = system + int(lengths(of_work, 1, task, SIGMA, longest)[0])
        parents: tuple[str, ...] = ()
        for depth, width_here in enumerate(calls):
            last = depth == len(calls) - 1
            delay_s = float(of_work.exponential(tool_s)) if depth else 0.0
            outputs = lengths(of_work, width_here, written, SIGMA, longest)
            # What a call reads beside the common context: its own instruction.
            own = lengths(of_work, width_here, 20.0, SIGMA, longest)
            if context + int(own.max()) + int(outputs.max()) > longest:
                if not last:
                    continue
                context = max(1, longest - int(own[0]) - int(outputs[0]))
            whole_blocks = max(0, context // BLOCK_TOKENS - len(shared))
            blocks = shared + tuple(range(first_own, first_own + whole_blocks))
            stage = "plan" if depth == 0 else "answer" if last else f"round {depth}"
            ids = []
            for call in range(width_here):
                ids.append(f"{number}.{depth}.{call}")
                prompt = min(context + int(own[call]), longest - 1)
                requests.append(
                    TimedRequest(
                        id=ids[-1],
                        arrival_s=0.0 if parents else float(starts_s[number]),
                        delay_s=delay_s if parents else 0.0,
                        prompt_tokens=prompt,
                        output_tokens=min(int(outputs[call]), longest - prompt),
                        blocks=blocks[: min(context, prompt) // BLOCK_TOKENS],
                        application="agent",
                        workflow=str(number),
                        stage=stage,
                        parents=parents,
                    )
                )
            parents = tuple(ids)
            context += int(outputs.sum())
        first_own += -(-context // BLOCK_TOKENS)
    source = (
        f"{workflows} agent workflows arriving at {rate:g}/s (Poisson), means: {rounds:g} rounds of {width:g} calls, "
        f"{tool_s:g} s of tools between stages; medians: task of {task:g} tokens, {written:g} written by a call; seed {seed}"
    )
    return Workload(name="agents", requests=requests, block_tokens=BLOCK_TOKENS, source=source)
