"""FastSwitch (2024): cheap context switches under changing priorities, against block-by-block swapping that steps wait for.

Every side runs the same scheduler: priorities from one trace, memory by priority. They differ in how KV moves. The baseline
swaps as vLLM did when the paper was written: a copy a block and layer, steps wait until all are done, everything is sent every
time. The three parts of FastSwitch are added to it one by one, and taken from the whole one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from collections.abc import Callable

    from hasten.engine.kv.host import Traffic
    from hasten.lab.bench.run import Run
    from hasten.lab.workloads.base import Workload

LOAD = 0.7
POOL_SHARE = 0.4
CONVERSATIONS, QUICK = 160, 60
HOST_BYTES = 64_000_000_000
TRACE = "priority-trace"
SYNC = "follow-order:transfers=sync"
BY_BLOCK = ("kv.copies=blocks",)

ROOM, BASELINE, FAST = "all the memory", "block by block", "fastswitch"
SIDES = (
    Side(BASELINE, (TRACE, SYNC), BY_BLOCK),
    Side("+ groups", (TRACE, SYNC, "block-groups")),
    Side("+ overlap", (TRACE, "follow-order"), BY_BLOCK),
    Side("+ kept copies", (TRACE, SYNC), (*BY_BLOCK, "kv.keep_copies=true")),
    Side("no groups", (TRACE, "follow-order"), (*BY_BLOCK, "kv.keep_copies=true")),
    Side("no overlap", (TRACE, "fastswitch", SYNC)),
    Side("no kept copies", (TRACE, "follow-order", "block-groups")),
    Side(FAST, (TRACE, "fastswitch")),
)
PLAIN = Side("plain", (TRACE,))
"""The default residency: memory by arrival, swaps beside steps, a copy a run of blocks. It does not follow the priorities."""
REAL_SIDES = (SIDES[0], SIDES[-1])


def workload(conversations: int, rate: float, seed: int) -> Workload:
    """Turns as long as those of LMSYS-Chat-1M, five to a conversation; `rate` conversations a second."""
    from hasten.lab.workloads.conversations import conversations as made

    return made(rate=rate, conversations=conversations, turns=5, think_s=5, longest=8192, seed=seed)


def short_workload(conversations: int, rate: float, seed: int) -> Workload:
    """The same for the small model: contexts of up to 2,000 tokens."""
    from hasten.lab.workloads.conversations import conversations as made

    return made(
        rate=rate, conversations=conversations, turns=3, message=60, answer=100, think_s=1, longest=2000, system=64, seed=seed
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """`rate`: requests per second at `LOAD` of what an engine with all the memory sustains; `blocks`: the most that it then
    holds of KV blocks, those only cached not counted."""

    rate: float
    blocks: float


def demand(replay: Callable[[Workload], Run], saturation: float, work: Workload) -> Demand:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.workloads.transform import scale_load

    run = replay(scale_load(work, LOAD * saturation))
    assert run.total_blocks is not None
    return Demand(LOAD * saturation, summary(run)["kv_peak"] * run.total_blocks)


def ratios(of: dict[str, dict[str, float]], traffic: dict[str, Traffic], name: str) -> dict[str, float]:
    """How much better side `name` is than the baseline, by requirement's stem."""
    base, one = of[BASELINE], of[name]
    b, o = traffic[BASELINE], traffic[name]
    return {
        "calls": (b.calls_out + b.calls_in) / (o.calls_out + o.calls_in),
        "bytes": 100 * (1 - o.blocks_out / b.blocks_out),
        "ttft": base["ttft_p99_s"] / one["ttft_p99_s"],
        "tbt": base["gap_p999_s"] / one["gap_p999_s"],
    }


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import summary
    from hasten.lab.claims.virtual import Virtual, h100
    from hasten.lab.workloads.transform import scale_load

    conversations, rounds = (QUICK, 1) if setting.quick else (CONVERSATIONS, 3)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    guards = guard(setting)
    device = h100()
    tell = share(setting.progress, 0.1, 0.7)
    tell("demand", 0.0)
    work = workload(conversations, 1.0, setting.seed)
    roomy = Virtual([Side(ROOM)], device=device)
    need = demand(lambda w: roomy.replay(ROOM, w), roomy.saturation(ROOM, work), work)
    block_size = roomy.configs[ROOM].kv.block_size
    pool_bytes = int(POOL_SHARE * need.blocks * block_size * device.kv_token_bytes)
    common = (f"kv.memory_bytes={pool_bytes}", f"kv.host_bytes={HOST_BYTES}")
    traffic: dict[str, Traffic] = {}

    def attend(name: str, engine: Any) -> None:
        traffic[name] = engine.executor.traffic  # counts on while the engine runs

    sides = (*SIDES, PLAIN)
    virtual = Virtual(sides if not setting.quick else (SIDES[0], SIDES[-1]), device=device, common=common, attend=attend)
    figures: list[dict[str, Any]] = []
    first: dict[str, Run] = {}
    counted: dict[str, Traffic] = {}

    def arriving(number: int) -> Workload:
        return scale_load(workload(conversations, 1.0, setting.seed + number), need.rate)

    for runs in virtual.rounds(arriving, rounds, tell):
        of = {name: summary(run) for name, run in runs.items()}
        if not first:
            first, counted = runs, dict(traffic)
        found = {name: ratios(of, traffic, name) for name in runs if name in traffic and name not in (BASELINE, PLAIN.name)}
        for stem, value in found[FAST].items():
            samples[stem].append(value)
        if PLAIN.name in of:
            samples["ttft-plain"].append(of[PLAIN.name]["ttft_p99_s"] / of[FAST]["ttft_p99_s"])
            samples["tbt-plain"].append(of[PLAIN.name]["gap_p999_s"] / of[FAST]["gap_p999_s"])
        for name in found:
            if name != FAST:
                samples[f"{_slug(name)}-ttft"].append(found[name]["ttft"])
                samples[f"{_slug(name)}-tbt"].append(found[name]["tbt"])
        kept = ("ttft_p50_s", "ttft_p99_s", "gap_p99_s", "gap_p999_s", "e2e_mean_s", "output_tokens_per_s", "preemptions")
        figures.append({name: {f: of[name][f] for f in kept} | _counts(traffic[name]) for name in of})
    point, real_traffic, notes = _real(setting, share(setting.progress, 0.7, 1.0))
    for stem, figure in (("real-ttft", "ttft_p99_s"), ("real-tbt", "gap_p999_s")):
        samples[stem] = point.ratios(BASELINE, FAST, figure)
        samples[f"{stem}-error"] = [100 * point.error_of_ratio(BASELINE, FAST, figure)]
    samples["error"] = [100 * point.error("e2e_mean_s")]
    b, o = real_traffic[BASELINE], real_traffic[FAST]
    samples["real-calls"] = [(b.calls_out + b.calls_in) / (o.calls_out + o.calls_in)]
    samples["real-bytes"] = [100 * (1 - o.blocks_out / b.blocks_out)]
    return Outcome(
        samples={name: values for name, values in samples.items() if values},
        guards=guards,
        notes=[
            f"virtual: {need.rate:.1f} requests/s, {LOAD:.0%} of what an engine with all the memory sustains; it holds at most "
            f"{need.blocks * block_size:,.0f} tokens of KV, of which {POOL_SHARE:.0%} fit here ({pool_bytes / 1e9:.1f} GB)",
            *notes,
            "calls are counted where copies are made: on the virtual clock a run of blocks in all layers is one call, on the "
            "real engine each layer's keys and values are calls of their own, on both sides",
        ],
        details={"rounds": figures, "real": {"measured": point.measured, "predicted": point.predicted}},
        pictures=_picture(first, counted),
    )


def guard(setting: Setting) -> list[Guard]:
    """Equal tokens on all sides, and KV that came back as it left."""
    from hasten.lab.bench.kv_checks import KVChecks

    checks: dict[str, KVChecks] = {}

    def attend(name: str, engine: Any) -> None:
        checks[name] = KVChecks(engine)

    setting.progress("equal tokens", 0.0)
    sides = [Side(ROOM, (), ("kv.memory_bytes=50000000",)), *(SIDES if not setting.quick else REAL_SIDES)]
    work = short_workload(4 if setting.quick else 10, 20.0, setting.seed)
    common = ("executor.threads=1", "model.max_length=2048", "kv.memory_bytes=9000000", "kv.host_bytes=200000000")
    tokens = equal_tokens(sides, work, common=common, attend=attend)
    compared = {name: one.compared for name, one in checks.items() if name != ROOM}
    wrong = sum(len(one.wrong) for one in checks.values())
    each = ", ".join(f"{name}: {count}" for name, count in compared.items())
    detail = f"{wrong} differ of {sum(compared.values())} sequences that came back ({each})"
    return [tokens, Guard("KV as it left", wrong == 0 and min(compared.values()) > 0, detail)]


def _real(setting: Setting, tell: Callable[[str, float], None]) -> tuple[Any, dict[str, Traffic], list[str]]:
    """The built-in model on this machine: two sides measured and predicted."""
    from hasten.lab.bench.saturation import throughput
    from hasten.lab.claims.sides import Sides
    from hasten.lab.claims.virtual import REAL, real_point

    conversations, rounds = (16, 1) if setting.quick else (40, 3)
    work = short_workload(conversations, 1.0, setting.seed)
    room = Side(ROOM, (), ("kv.memory_bytes=400000000",))
    common = (*REAL, "kv.host_bytes=400000000")
    memories: list[Any] = []
    engines = Sides([room], common=common, attend=lambda name, engine: memories.append(engine.executor.memory))
    tell("for real: demand", 0.0)
    engines.replay(ROOM, work)
    need = demand(lambda w: engines.replay(ROOM, w)[0], throughput(lambda w: engines.replay(ROOM, w)[0], work), work)
    engines.close()
    pool = int(POOL_SHARE * need.blocks * memories[0].nbytes / memories[0].blocks)
    traffic: dict[str, Traffic] = {}

    def attend(name: str, engine: Any) -> None:
        traffic.setdefault(name, engine.executor.traffic)  # the real engine's: the simulated one comes after it

    sides = [room, *(Side(s.name, s.with_, (*s.set_, f"kv.memory_bytes={pool}")) for s in REAL_SIDES)]
    point = real_point(
        sides,
        lambda number: short_workload(conversations, 1.0, setting.seed + number),
        ["ttft_p99_s", "gap_p999_s", "e2e_mean_s"],
        tell,
        rate=need.rate,
        rounds=rounds,
        common=common,
        calibration_s=3.0 if setting.quick else 6.0,
        attend=attend,
    )
    note = (
        f"for real: the built-in model, {need.rate:.1f} requests/s, {pool / 1e6:.1f} MB of KV; errors are medians of relative "
        "errors of the prediction"
    )
    return point, traffic, [note]


def _counts(traffic: Traffic) -> dict[str, int]:
    return {
        "calls_out": traffic.calls_out,
        "blocks_out": traffic.blocks_out,
        "calls_in": traffic.calls_in,
        "blocks_in": traffic.blocks_in,
    }


def _slug(name: str) -> str:
    return name.replace("+ ", "with ").replace(" ", "-")


def _picture(runs: dict[str, Run], traffic: dict[str, Traffic]) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import gaps, requests
    from hasten.lab.claims.picture import axes, png

    figure, (ttft, tbt, moved) = axes(3)
    shown = [name for name in (BASELINE, "+ groups", "+ overlap", "+ kept copies", FAST) if name in runs]
    for name in shown:
        waited = np.sort(requests(runs[name]).ttft_s)
        ttft.step(waited, 100 * (1 - np.arange(len(waited)) / len(waited)), where="post", label=name)
        between = np.sort(gaps(runs[name]))
        tbt.step(between, 100 * (1 - np.arange(len(between)) / len(between)), where="post", label=name)
    ttft.set(xlabel="time to first token, s", ylabel="requests that wait longer, %", xscale="log", yscale="log")
    tbt.set(xlabel="time between tokens, s", ylabel="gaps that are longer, %", xscale="log", yscale="log", ylim=(0.01, 100))
    ttft.legend(frameon=False)
    at = np.arange(len(shown))
    moved.bar(at - 0.2, [traffic[n].calls_out + traffic[n].calls_in for n in shown], 0.4, label="copy calls")
    moved.bar(at + 0.2, [traffic[n].blocks_out for n in shown], 0.4, label="blocks sent out")
    moved.set(yscale="log")
    moved.set_xticks(at, shown, rotation=25, ha="right")
    moved.legend(frameon=False)
    return {"fastswitch": png(figure)}


def _reported(name: str, what: str, unit: str = "x") -> Requirement:
    return Requirement(name=name, what=what, unit=unit)


CLAIM = Claim(
    name="fastswitch",
    title="Cheap KV context switches under changing priorities",
    paper="FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving (Shen et al., 2024)",
    workload="conversations of five turns (messages and answers as in LMSYS-Chat-1M), "
    f"at {LOAD:.0%} of what an engine with all the memory sustains; Markov priorities drawn every 25 to 50 steps; KV memory "
    f"{POOL_SHARE:.0%} of the demand; Llama-3 8B on a simulated H100, and for real the built-in model with shorter turns",
    baseline="the same scheduler (priority-trace, follow-order), with a copy a block, steps that wait for copies, and all of a "
    "sequence sent each time: block-by-block synchronous swapping, as in vLLM",
    technique="fastswitch: block groups, copies beside steps, copies that stay",
    requirements=(
        Requirement(name="calls", what="copy calls, baseline over fastswitch", unit="x", at_least=8.0),
        Requirement(name="bytes", what="fewer bytes out", unit="%", at_least=30.0),
        Requirement(
            name="ttft",
            what="99th percentile of TTFT, baseline over fastswitch",
            paper="1.4x to 11.2x better tail TTFT and TBT than vLLM",
            unit="x",
            at_least=1.5,
        ),
        Requirement(name="tbt", what="99.9th percentile of TBT, baseline over fastswitch", unit="x", at_least=1.5),
        *(
            _reported(f"{_slug(side.name)}-{stem}", f"{what}, baseline over {side.name}")
            for side in SIDES[1:-1]
            for stem, what in (("ttft", "99th percentile of TTFT"), ("tbt", "99.9th percentile of TBT"))
        ),
        _reported("ttft-plain", "99th percentile of TTFT, the default residency over fastswitch"),
        _reported("tbt-plain", "99.9th percentile of TBT, the default residency over fastswitch"),
        _reported("real-calls", "for real: copy calls, baseline over fastswitch"),
        _reported("real-bytes", "for real: fewer bytes out", "%"),
        _reported("real-ttft", "for real: 99th percentile of TTFT, baseline over fastswitch"),
        _reported("real-tbt", "for real: 99.9th percentile of TBT, baseline over fastswitch"),
        _reported("real-ttft-error", "error of its prediction", "%"),
        _reported("real-tbt-error", "error of the TBT ratio's prediction", "%"),
        _reported("error", "error of the predicted mean end-to-end time, all sides", "%"),
    ),
    run=run,
    simulated=True,
)
