"""Prefix caching on against off: conversations and agents whose prompts repeat what was said before.

Off is the same engine with `kv.reuse=none`. A second comparison, where no two prompts share anything, says what the look-ups
and the bookkeeping cost those who gain nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side, Sides, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

LOAD = 0.7
COMMON = ("kv.block_size=16", "kv.memory_bytes=300000000", "executor.threads=1")
"""KV for over 100,000 tokens, several times what a round holds. One thread, as nobody else's work then disturbs the figures."""
ON, OFF = "on", "off"
SIDES = (Side(ON), Side(OFF, set_=("kv.reuse=none",)))


def shared_workload(flows: int, rate: float, seed: int) -> Workload:
    """As many conversations as agents' workflows, `rate` of each a second."""
    from hasten.lab.workloads.agents import agents
    from hasten.lab.workloads.conversations import conversations
    from hasten.lab.workloads.transform import mix

    talk = conversations(
        rate=rate, conversations=flows, turns=4.0, message=60.0, answer=20.0, system=256, think_s=0.5, longest=1900, seed=seed
    )
    work = agents(
        rate=rate, workflows=flows, rounds=2.0, width=3.0, system=512, task=200.0, written=20.0, tool_s=0.1, longest=1900,
        seed=seed,
    )  # fmt: skip
    return mix(talk, work)


def unshared_workload(requests: int, seed: int) -> Workload:
    """Prompts of about the same length, no two alike, all at once."""
    from hasten.lab.workloads.generate import poisson

    return poisson(
        rate=1e6, requests=requests, prompt=500, prompt_sigma=0.5, output=30, output_sigma=0.5, longest=1000, seed=seed
    )


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.workloads.compare import reuse_share

    flows, unshared, rounds = (2, 12, 3) if setting.quick else (20, 40, 5)
    tell = share(setting.progress, 0.0, 0.2)
    tell("equal tokens", 0.0)
    guard = equal_tokens(SIDES, shared_workload(1 if setting.quick else 4, 2.0, setting.seed), common=COMMON)
    engines = Sides(SIDES, common=COMMON)
    tell("capacity without the cache", 0.5)
    engines.replay(ON, unshared_workload(8, setting.seed + 1000))
    pilot = shared_workload(flows, 1e3, setting.seed + 1001)
    rate = LOAD * flows / _busy_s(engines.replay(OFF, pilot)[0])
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    figures: list[dict[str, Any]] = []
    for runs in engines.rounds(
        lambda number: shared_workload(flows, rate, setting.seed + number), rounds, share(setting.progress, 0.2, 0.75)
    ):
        of = {name: summary(run) for name, run in runs.items()}
        work = runs[ON].workload
        samples["ttft"].append(of[OFF]["ttft_mean_s"] / of[ON]["ttft_mean_s"])
        samples["ttft-p99"].append(of[OFF]["ttft_p99_s"] / of[ON]["ttft_p99_s"])
        samples["latency"].append(of[OFF]["e2e_mean_s"] / of[ON]["e2e_mean_s"])
        samples["computed"].append(_computed(runs[OFF]) / _computed(runs[ON]))
        samples["found"].append(100 * of[ON]["prefix_hit_rate"] / reuse_share(work))
        figures.append(
            {
                "requests": len(work),
                "reuse_share": reuse_share(work),
                **{
                    name: {
                        "ttft_mean_s": of[name]["ttft_mean_s"],
                        "ttft_p99_s": of[name]["ttft_p99_s"],
                        "computed_tokens": _computed(run),
                        "valid": bool(of[name]["valid"]),
                    }
                    for name, run in runs.items()
                },
            }
        )
    for runs in engines.rounds(
        lambda number: unshared_workload(unshared, setting.seed + number), rounds, share(setting.progress, 0.75, 1.0)
    ):
        samples["cost"].append(100 * (runs[ON].cpu_s / runs[OFF].cpu_s - 1))
    engines.close()
    return Outcome(
        samples=samples,
        guards=[guard],
        shortfall={
            "ttft": "prompts are short here: their computation is a small part of the time to the first token",
            "computed": "outputs and what is new in each prompt are computed on both sides",
            "found": "parallel calls of a stage start before the first of them has computed what they share, and the last, "
            "partly filled block of a prompt is not shared",
            "cost": "the rounds differ by more than the cost itself; the interval says how much",
        },
        notes=[
            f"load: {rate:.2f} conversations and as many workflows a second, {LOAD:.0%} of what the engine without the cache "
            f"can do; {sum(figure['requests'] for figure in figures)} requests in {rounds} rounds",
            "answers in later prompts are made up by the workload, so the KV of the engine's own answers is never found again: "
            "real conversations reuse more",
            "cost: CPU seconds of the process, which has one computing thread, for the same requests",
        ],
        details={"rate": rate, "rounds": figures},
    )


def _busy_s(run: Run) -> float:
    """Seconds the engine was stepping."""
    from hasten.lab.bench.metrics import steps

    return float(steps(run).took_s.sum())


def _computed(run: Run) -> float:
    """Tokens computed, outputs included."""
    from hasten.lab.bench.metrics import steps

    return float(steps(run).tokens.sum())


CLAIM = Claim(
    name="prefix-caching",
    title="Prefix caching on against off",
    paper="SGLang: Efficient Execution of Structured Language Model Programs (Zheng et al., 2024), whose RadixAttention it is, "
    "block by block",
    workload="built-in model; conversations (means: 4 turns, 60-token messages, 20-token answers, a system prompt of 256) and "
    f"agents' workflows (2 rounds of 3 parallel calls, system prompt of 512) at {LOAD:.0%} of capacity; for the cost: prompts "
    "of median 500 tokens, no two alike",
    baseline="the plain engine with kv.reuse=none, blocks of 16, one thread",
    technique="prefix-tree (the default), blocks of 16, one thread, memory for all prompts of a round",
    requirements=(
        Requirement(
            name="ttft",
            what="mean TTFT, off over on",
            paper="up to 6.4x throughput, of the whole system, on agents, reasoning and chat",
            unit="x",
            at_least=2.0,
        ),
        Requirement(name="ttft-p99", what="99th percentile of TTFT, off over on", unit="x"),
        Requirement(name="latency", what="mean end-to-end latency, off over on", unit="x"),
        Requirement(name="computed", what="tokens computed, outputs included, off over on", unit="x", at_least=2.0),
        Requirement(name="found", what="of the tokens that an unlimited cache would hold, found", unit="%", at_least=90.0),
        Requirement(name="cost", what="more CPU time when nothing is shared", unit="%", at_most=3.0),
    ),
    run=run,
)
