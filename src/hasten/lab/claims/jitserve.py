"""JITServe (2025): token goodput under mixed service levels near and beyond saturation, when lengths have to be guessed.

Chats that stream, long answers by a deadline and workflows of several calls by a deadline share one simulated engine. All sides
get the same arrivals and the same budget of a step; those that ask for lengths learn them, from nothing, within the run. None
ages its requests, since ageing serves what is late already; what that costs, what an oracle of lengths would give and what each
part does is measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.jitserve_mix import AGENT, CHAT, REPORT, generated, objectives
from hasten.lab.claims.jitserve_sides import (
    AGED,
    BASELINES,
    CHUNKS,
    EDF,
    FCFS,
    JIT,
    LAS,
    LENGTHS,
    LIMIT,
    ORACLE,
    ORDER,
    OVERLOAD,
    PAPER,
    PATIENCE_S,
    REPORT_S,
    SCORED,
    SRPT,
    STAGE_S,
    TPOT_S,
    TTFT_S,
    UNSERVED_S,
    WORK,
    Served,
    at_load,
    curve_of,
    engines_of,
    kept,
    lead,
    on_traces,
    served,
    tuned,
)
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Point
    from hasten.lab.workloads.base import Workload

SHORT = 1 / 8
"""Lengths on the built-in model, as a share of those simulated."""


def run(setting: Setting) -> Outcome:
    from hasten.lab.bench.metrics import steps

    workflows, rounds = (24, 3) if setting.quick else (160, 3)
    slos = objectives(TTFT_S, TPOT_S, REPORT_S, STAGE_S)
    tell = setting.progress
    tell("equal tokens", 0.0)
    guard = _equal(setting.seed)
    first = generated(workflows // 2, slos, setting.seed)
    chunk, tokens_s, tried = tuned(first, CHUNKS[1:2] if setting.quick else CHUNKS, share(tell, 0.05, 0.15))
    engines = engines_of(chunk)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    rows: list[dict[str, Served]] = []
    last: dict[str, Run] = {}
    for number in range(rounds):
        work = at_load(generated(workflows, slos, setting.seed + number), OVERLOAD, tokens_s)
        # What is reported only runs once; any baseline may be the best of its round.
        names = [name for name in engines.configs if not number or name not in (ORDER, PAPER, AGED)]
        last = {}
        for turn, name in enumerate(names):
            tell(f"round {number + 1} of {rounds}: {name}", 0.15 + 0.5 * (number + turn / len(names)) / rounds)
            last[name] = engines.replay(name, work, setting.seed + number)
        rows.append({name: served(one) for name, one in last.items()})
        _compare(rows[-1], samples)
    curve = curve_of(engines, first, tokens_s, rows[0], share(tell, 0.65, 0.8), quick=setting.quick)
    samples["light"].append(lead(curve[min(curve)]))
    samples["heavy"].append(lead(curve[max(curve)]))
    tell("on the traces", 0.8)
    traces = on_traces(2 if setting.quick else 12, setting.seed)
    samples["traces"].append(lead(traces))
    point = _real(setting, float(np.mean(steps(last[JIT]).took_s)))
    samples["real"] += point.ratios(JIT, FCFS, "token_goodput")
    samples["real-error"].append(100 * point.error("token_goodput"))
    counters = {name: (sum(row[name].unserved for row in rows if name in row), rows[0][name].longest_s) for name in rows[0]}
    return Outcome(
        samples=samples,
        guards=[guard, _all_served(rows[0][AGED])],
        shortfall={
            **_reasons(rows),
            "real-error": f"its load is too high to tell much: for real {_most(point):.0%} of the tokens are in time at best, "
            "and of so small a share little is a large part",
        },
        notes=[
            "token goodput: the share of all output tokens that came in time, of streams each token by its own time, of "
            "reports and of workflows all or none",
            f"load 1: {tokens_s:.0f} output tokens/s, which FCFS commits while more keeps coming than it can serve; chunks of "
            f"{chunk} tokens (goodput of FCFS at load 1 by chunk: "
            + (", ".join(f"{size}: {good:.1%}" for size, good in tried.items()) or "not searched")
            + ")",
            f"without a token for {UNSERVED_S:g} s after they came, of all rounds (longest wait in the first): "
            + ", ".join(f"{name} {count} ({longest_s:.0f} s)" for name, (count, longest_s) in counters.items()),
            "the mix was chosen so that answers, whose lengths nobody knows, are most of the work; on the traces prompts are, "
            "whose lengths are known, and an order that weighs work does nearly all there is to do",
        ],
        details={
            "tokens_s": tokens_s,
            "chunk": chunk,
            "chunks": tried,
            "rounds": [{name: kept(one) for name, one in row.items()} for row in rows],
            "loads": {str(load): {name: kept(one) for name, one in row.items()} for load, row in curve.items()},
            "traces": {name: kept(one) for name, one in traces.items()},
            "real": {"rate": point.rate, "measured": point.measured, "predicted": point.predicted},
        },
        pictures=_picture(curve, rows[0]),
    )


def _compare(row: Mapping[str, Served], samples: dict[str, list[float]]) -> None:
    samples["best"].append(lead(row))
    samples["oracle"].append(100 * row[JIT].share / row[ORACLE].share)
    samples["share"].append(100 * row[JIT].share)
    for requirement, name in (("fcfs", FCFS), ("edf", EDF), ("srpt", SRPT), ("work", WORK), ("las", LAS)):
        if name in row:
            samples[requirement].append(row[JIT].share / row[name].share)
    for requirement, name in (("order", ORDER), ("paper", PAPER), ("aged", AGED)):
        if name in row:
            samples[requirement].append(100 * row[name].share / row[JIT].share)


def _equal(seed: int) -> Guard:
    """Small frames and little memory, so that rows and KV change hands."""
    from hasten.lab.workloads.transform import scale_lengths, scale_load

    slos = objectives(0.05, 0.01, 0.5, 0.25)
    work = scale_load(scale_lengths(generated(4, slos, seed), SHORT), 200.0)
    jitserve = "jitserve,goodput-density:frame=8,frames:frame=8:chunk=64:pool=1.5:shrink=1,capped-swaps:swap_from=16"
    wanted = [Side("plain"), Side(JIT, (jitserve, LENGTHS)), Side(EDF, ("edf",)), Side(LAS, ("least-attained:quantum=50",))]
    little = (
        "kv.memory_bytes=12000000",
        "kv.host_bytes=20000000",
        "kv.block_size=16",
        "kv.reuse=none",
        "scheduling.max_rows=8",
    )
    return equal_tokens(wanted, work, common=("executor.threads=1", "model.max_length=2048", *little))


def _all_served(aged: Served) -> Guard:
    detail = f"with patience_s={PATIENCE_S:g} at load {OVERLOAD:g} the longest wait for a first token is {aged.longest_s:.0f} s"
    return Guard("nobody is never served", aged.unserved == 0, detail)


def _real(setting: Setting, step_s: float) -> Point:
    """Both sides for real beyond what FCFS does with everything at once: lengths an eighth as long, times as many steps of
    this machine as they are of the simulated one (a step of which takes `step_s`)."""
    from hasten.lab.bench.metrics import steps
    from hasten.lab.claims.sides import Sides
    from hasten.lab.claims.virtual import REAL, real_point
    from hasten.lab.workloads.transform import scale_lengths, scale_load

    tell = share(setting.progress, 0.88, 1.0)
    common = (*REAL, "kv.reuse=none", "scheduling.max_rows=64")
    workflows, rounds = (10, 1) if setting.quick else (50, 2)
    plain, jit = Side(FCFS, ("stall-free:chunk=256",)), Side(JIT, ("jitserve,frames:chunk=256", SCORED, LENGTHS))

    def work(slos: Mapping[str, Any], number: int) -> Workload:
        return scale_lengths(generated(workflows, slos, setting.seed + 100 + number), SHORT)

    tell("a step for real", 0.0)
    engines = Sides([plain], common=common)
    crowd = scale_load(work(objectives(1.0, 1.0, 1.0, 1.0), 0), 1e6)
    took_s = steps(engines.replay(FCFS, crowd)[0]).took_s
    engines.close()
    pace = float(np.median(took_s)) / step_s
    slos = objectives(TTFT_S * pace * SHORT, TPOT_S * pace, REPORT_S * pace * SHORT, STAGE_S * pace * SHORT)
    return real_point(
        [plain, jit], lambda number: work(slos, number), ["token_goodput"], tell,
        load=OVERLOAD, rounds=rounds, common=common, calibration_s=3.0 if setting.quick else 6.0, limit=LIMIT // 8,
    )  # fmt: skip


def _most(point: Point) -> float:
    """The largest share of tokens in time of any side and round."""
    return max(value for of in point.measured.values() for value in of["token_goodput"])


def _reasons(rows: list[dict[str, Served]]) -> dict[str, str]:
    first = rows[0]
    best = max(BASELINES, key=lambda name: first[name].share)
    of, mine = first[best].of_class, first[JIT].of_class
    parts = ", ".join(f"{name} {of[name]:.0%} against {mine[name]:.0%}" for name in mine)
    had = first[best].share
    return {
        "best": f"the best baseline, {best}, has {had:.0%} of the tokens in time, so that all of them in time would be "
        f"{1 / had:.2f}x, and JITServe with all lengths known is {first[ORACLE].share / had:.2f}x; in time under it and under "
        f"JITServe: {parts}. At this load a sixth of the work has to be left out, and to give least to the longest leaves out "
        "little more. A lead of 1.3 needs baselines that have at most 77 % in time: a heavier "
        "or longer overload, or objectives that say more than size does"
    }


def _picture(curve: Mapping[float, Mapping[str, Served]], overload: Mapping[str, Served]) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png

    figure, (by_load, by_class) = axes(2)
    for name in (*BASELINES, JIT):
        points = [(load, 100 * row[name].share) for load, row in curve.items()]
        by_load.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2.2 if name == JIT else 1.2)
    by_load.set(xlabel="load", ylabel="output tokens in time, %", ylim=(0, 104))
    by_load.legend(frameon=False)
    names = [*BASELINES, JIT, ORACLE]
    at = np.arange(len(names))
    for shift, part in ((-0.27, CHAT), (0.0, REPORT), (0.27, AGENT)):
        by_class.bar(at + shift, [100 * overload[name].of_class[part] for name in names], width=0.25, label=part)
    by_class.set(ylabel=f"in time at load {OVERLOAD:g}, % of class", ylim=(0, 104))
    by_class.set_xticks(at, names, rotation=30, ha="right")
    by_class.legend(frameon=False)
    return {"jitserve": png(figure)}


CLAIM = Claim(
    name="jitserve",
    title="Just enough service for mixed objectives under uncertain lengths",
    paper="JITServe: SLO-aware LLM Serving with Imprecise Request Information (Zhang et al., NSDI 2026)",
    workload="Llama-3 8B on a simulated L4; a third of the output tokens each: chats that stream (TTFT "
    f"{TTFT_S:g} s, {1e3 * TPOT_S:g} ms a token), reports whole within {REPORT_S:g} s, workflows of about eight calls in "
    f"five stages within {STAGE_S:g} s a stage; generated lengths, unknown beforehand; Poisson arrivals of {OVERLOAD:g} times "
    "the output tokens a second that FCFS serves while requests wait",
    baseline="FCFS, EDF, predicted SRPT by time and by work, least attained service, all with stall-free chunks of as many "
    "tokens as are best for FCFS",
    technique=f"jitserve with {LENGTHS}, the same chunks, only output tokens counting, defaults otherwise",
    simulated=True,
    requirements=(
        Requirement(
            name="best",
            what=f"token goodput at load {OVERLOAD:g}, JITServe over the best baseline",
            paper="1.4x to 6.3x service goodput against state-of-the-art designs",
            unit="x",
            at_least=1.3,
        ),
        Requirement(name="oracle", what="the same, share of a run with all lengths known", unit="%", at_least=85.0),
        Requirement(name="share", what="output tokens in time", unit="%"),
        Requirement(name="fcfs", what="over FCFS", unit="x"),
        Requirement(name="edf", what="over EDF", unit="x"),
        Requirement(name="srpt", what="over predicted SRPT", unit="x"),
        Requirement(name="work", what="over predicted SRPT that weighs work, not time", unit="x"),
        Requirement(name="las", what="over least attained service", unit="x"),
        Requirement(name="light", what="over the best baseline at load 0.8", unit="x"),
        Requirement(name="heavy", what="over the best baseline at load 2.2", unit="x"),
        Requirement(
            name="traces", what="over the best baseline with the lengths of traces, where prompts are the work", unit="x"
        ),
        Requirement(name="order", what="what is left with the order alone (no frames, no capped swaps)", unit="%"),
        Requirement(
            name="paper",
            what="what is left with the density as published (per time, upper quantiles)",
            unit="%",
        ),
        Requirement(name="aged", what=f"what is left with ageing ({PATIENCE_S:g} s)", unit="%"),
        Requirement(
            name="real",
            what=f"for real on the built-in model, over FCFS at {OVERLOAD:g} times what it does with everything at once",
            unit="x",
        ),
        Requirement(name="real-error", what="error of the simulation's token goodput there", unit="%", at_most=15.0),
    ),
    run=run,
)
