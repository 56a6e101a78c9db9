"""Hermes against first come, first served by application, on generated applications and on text-to-SQL workflows.

All sides run the same batching, the chunk of which is searched for the baseline, on the virtual clock; one point is run for
real. Demand is learned from runs that are not tested on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims import hermes_parts as parts
from hasten.lab.claims import hermes_report as report
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.hermes_parts import (
    CHUNKS,
    FEW_ROWS,
    HERMES,
    LOAD,
    MEAN,
    ORACLE,
    PER_APPLICATION,
    PER_CALL,
    ROWS,
    SHUFFLED,
    SRPT,
    WORKLOADS,
)
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.hermes_parts import Material
    from hasten.lab.claims.virtual import Point

SLOWEST = 1.5
"""How much worse than under the baseline the worst slowdown may be."""
PROFILE = 600


def run(setting: Setting) -> Outcome:
    workflows, rounds, most = (30, 1, 15) if setting.quick else (150, 3, None)
    samples: dict[str, list[float]] = {requirement.name: [] for requirement in CLAIM.requirements}
    tell = share(setting.progress, 0.0, 0.75)
    chunk = 512 if setting.quick else _chunk(setting.seed)
    slowdowns: dict[str, list[float]] = {}
    figures: list[dict[str, Any]] = []
    shown: dict[str, dict[str, Run]] = {}
    cold: list[dict[str, Any]] = []
    first: Material | None = None
    for number in range(rounds):
        seed = setting.seed + number
        for place, name in enumerate(WORKLOADS):
            generated = name == "templates"
            material = parts.templates(workflows, PROFILE, seed) if generated else parts.text2sql(seed, most)
            first = first or material
            sides = [side for side in parts.ALL if generated or side != MEAN]
            virtual = parts.sides(material, chunk, seed, ROWS, sides)
            work = parts.at_load(virtual, material.test)
            runs = {}
            for turn, side in enumerate(sides):
                tell(f"round {number + 1} of {rounds}, {name}: {side}", (2 * number + place + turn / 8) / (2 * rounds))
                runs[side] = virtual.replay(side, work, seed)
            shown.setdefault(name, runs)
            figures.append({"workload": name, "rate": report.rate(work), **_score(name, runs, samples)})
            alone = virtual.replay(PER_APPLICATION, parts.alone(work), seed)
            for side in (PER_APPLICATION, HERMES):
                slowdown = parts.completions(runs[side]) / parts.completions(alone)
                slowdowns.setdefault(side, []).append(float(np.nanmax(slowdown)))
            if generated:
                cold.append(_cold(material, work, chunk, samples))
        if number == 0 and not setting.quick:
            figures.append(_few_rows(setting.seed, chunk))
    point, equal = _real(setting, share(setting.progress, 0.75, 1.0))
    for name, real in (("real", True), ("real-predicted", False)):
        samples[name] = [100 * (1 - ratio) for ratio in point.ratios(HERMES, PER_APPLICATION, "workflow_mean_s", real=real)]
    samples["real-error"] = [100 * point.error("workflow_mean_s")]
    worst = {side: max(found) for side, found in slowdowns.items()}
    assert first is not None
    return Outcome(
        samples=samples,
        guards=[
            equal,
            Guard(
                "worst slowdown",
                worst[HERMES] <= SLOWEST * worst[PER_APPLICATION],
                f"completion over that in an idle engine, worst application of all rounds: {HERMES} {worst[HERMES]:.1f}, "
                f"{PER_APPLICATION} {worst[PER_APPLICATION]:.1f} (at most {SLOWEST} times as much)",
            ),
        ],
        notes=report.notes(figures, cold, chunk),
        details={"chunk": chunk, "rounds": figures, "cold starts": cold, "slowdowns": slowdowns},
        pictures=report.pictures(shown, first.demand),
    )


def _score(name: str, runs: dict[str, Run], samples: dict[str, list[float]]) -> dict[str, Any]:
    """Add a round's figures to the samples; all of them for the result's details."""
    took = {side: parts.completions(run) for side, run in runs.items()}
    mean = {side: float(np.nanmean(values)) for side, values in took.items()}
    p95 = {side: float(np.nanpercentile(values, 95)) for side, values in took.items()}
    longest = {side: float(np.nanmax(values)) for side, values in took.items()}
    add = {
        f"{name}-mean": 100 * (1 - mean[HERMES] / mean[PER_APPLICATION]),
        f"{name}-p95": 100 * (1 - p95[HERMES] / p95[PER_APPLICATION]),
        f"{name}-max": longest[HERMES] / longest[PER_APPLICATION],
        f"{name}-gain": 100 * (mean[PER_APPLICATION] - mean[HERMES]) / (mean[PER_APPLICATION] - mean[ORACLE]),
        f"{name}-srpt": mean[SRPT] / mean[HERMES],
        f"{name}-call": mean[PER_CALL] / mean[HERMES],
        f"{name}-shuffled": mean[SHUFFLED] / mean[PER_APPLICATION],
    }
    if MEAN in mean:
        add[f"{name}-shortest-mean"] = mean[MEAN] / mean[HERMES]
    for requirement, value in add.items():
        samples[requirement].append(value)
    return {"mean_s": mean, "p95_s": p95, "max_s": longest}


def _few_rows(seed: int, chunk: int) -> dict[str, Any]:
    """Text-to-SQL on an engine that takes few sequences at once, where more queues."""
    sides = (PER_APPLICATION, HERMES, ORACLE)
    material = parts.text2sql(seed)
    virtual = parts.sides(material, chunk, seed, FEW_ROWS, sides)
    work = parts.at_load(virtual, material.test)
    took = {side: float(np.nanmean(parts.completions(virtual.replay(side, work, seed)))) for side in sides}
    return {"workload": f"text2sql with {FEW_ROWS} rows", "rate": report.rate(work), "mean_s": took}


def _cold(material: Material, work: Any, chunk: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    found = parts.cold_starts(material, work, chunk)
    waited = {name: one.cost.waited_s for name, one in found.items()}
    samples["cold"].append(waited["when needed"] / max(waited["hints"], 1e-9))
    samples["cold-kept"].append(waited["kept"] / max(waited["hints"], 1e-9))
    cost = found["hints"].cost
    samples["waste"].append(cost.idle_s / cost.invocations)
    return {
        name: {"mean_s": one.mean_s, "waited_s": one.cost.waited_s, "idle_s": one.cost.idle_s, "uses": one.cost.invocations}
        | {"cold_waits": one.cost.cold_waits, "early": one.cost.early}
        for name, one in found.items()
    }


def _chunk(seed: int) -> int:
    """The chunk with which the baseline does best, on arrivals that are not tested on."""
    material = parts.templates(100, 50, seed + 1000)
    mean, work = {}, None
    for chunk in CHUNKS:
        virtual = parts.sides(material, chunk, seed, ROWS, (PER_APPLICATION,))
        work = work or parts.at_load(virtual, material.test)
        mean[chunk] = float(np.nanmean(parts.completions(virtual.replay(PER_APPLICATION, work, seed))))
    return min(mean, key=lambda chunk: mean[chunk])


def _real(setting: Setting, progress: Any) -> tuple[Point, Guard]:
    """The real point, and that both sides give the same tokens."""
    from hasten.lab.claims.virtual import REAL, real_point

    material = parts.small(setting.seed, 8 if setting.quick else 24)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demand.json"
        material.demand.save(file)
        both = [Side(PER_APPLICATION, ("application-fcfs",)), Side(HERMES, (f"hermes:graphs={file}",))]
        point = real_point(
            both,
            lambda number: parts.small(setting.seed + number, 8 if setting.quick else 40).test,
            ["workflow_mean_s", "workflow_p95_s"],
            progress,
            load=LOAD,
            rounds=1 if setting.quick else 2,
            common=(*REAL, "scheduling.max_rows=8"),
            calibration_s=1.0 if setting.quick else 6.0,
        )
        return point, equal_tokens(both, parts.small(setting.seed, 3).test, common=("executor.threads=1",))


def _requirements() -> tuple[Requirement, ...]:
    saved = "mean completion, saved against FCFS by application"
    out = [
        Requirement(
            name="templates-mean",
            what=f"applications: {saved}",
            paper="over 70 % lower mean completion than existing systems",
            unit="%",
            at_least=30,
        ),
        Requirement(name="templates-p95", what="the same of the 95th percentile", paper="over 80 % lower P95", unit="%"),
        Requirement(name="templates-max", what="applications: slowest of all, hermes over FCFS by application", unit="x"),
        Requirement(name="text2sql-max", what="text-to-SQL: the same", unit="x"),
        Requirement(name="text2sql-mean", what=f"text-to-SQL: {saved}", unit="%"),
        Requirement(name="text2sql-p95", what="the same of the 95th percentile", unit="%"),
        Requirement(
            name="text2sql-gain",
            what="text-to-SQL: share of what oracle SRPT by application saves",
            unit="%",
            at_least=80,
        ),
        Requirement(name="templates-gain", what="applications: the same", unit="%"),
    ]
    for name, words in zip(WORKLOADS, ("applications", "text-to-SQL"), strict=True):
        out += [
            Requirement(
                name=f"{name}-srpt", what=f"{words}: mean completion, SRPT by call (oracle) over hermes", unit="x", at_least=1.0
            ),
            Requirement(name=f"{name}-call", what=f"{words}: the same of FCFS by call", unit="x"),
            Requirement(
                name=f"{name}-shuffled",
                what=f"{words}: mean completion, hermes with useless demand over FCFS by application",
                unit="x",
                at_most=1.1,
            ),
        ]
    return (
        *out,
        Requirement(
            name="templates-shortest-mean",
            what="applications: mean completion, shortest mean over hermes",
            unit="x",
            at_least=1.0,
        ),
        Requirement(
            name="cold", what="seconds waited for cold tools, started when needed over by hints", unit="x", at_least=2.0
        ),
        Requirement(name="waste", what="what hints cost: idle seconds of tools for each use", unit=" s"),
        Requirement(name="cold-kept", what="seconds waited, tools kept as long as hints cost a use over hints", unit="x"),
        Requirement(name="real", what=f"for real, small applications: {saved}", unit="%"),
        Requirement(name="real-predicted", what="the same as simulation predicts it", unit="%"),
        Requirement(name="real-error", what="error of the predicted mean completions", unit="%", at_most=15),
    )


CLAIM = Claim(
    name="hermes",
    title="Hermes: Gittins order over demand graphs",
    paper="Efficient Serving of LLM Applications with Probabilistic Demand Modeling (Hermes, 2025)",
    workload=f"Llama-3.1 8B on a simulated H100 at {LOAD:.0%} load: five generated kinds of applications (service times with a "
    f"CV of 1 or more, most of two modes; 150 runs tested, {PROFILE} others learned from), and the 184 workflows of two "
    "text-to-SQL traces (half learned from, the other half tested); one point for real with the built-in model, prompts "
    f"{parts.PROMPTS} and outputs {parts.OUTPUTS} times as short",
    baseline=f"application-fcfs with stall-free batching, its chunk the best of {', '.join(map(str, CHUNKS))} by mean "
    "completion; also FCFS by call, shortest mean, SRPT by call and by application that know all lengths",
    technique="hermes (order, preemption, memory by rank) with default knobs",
    requirements=_requirements(),
    run=run,
    simulated=True,
)
