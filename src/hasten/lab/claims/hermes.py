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
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.hermes_parts import HERMES, LOAD, MEAN, ORACLE, PER_APPLICATION, PER_CALL, SHUFFLED, SRPT
from hasten.lab.claims.sides import Side, equal_tokens, share

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.hermes_parts import Material
    from hasten.lab.claims.virtual import Point
    from hasten.lab.planning.demand import Demand

CHUNKS = (256, 512, 1024, 2048)
SLOWEST = 1.5
"""How much worse than under the baseline the worst slowdown may be."""
_WORKLOADS = ("templates", "text2sql")


def run(setting: Setting) -> Outcome:
    workflows, times, rounds = (60, 1, 1) if setting.quick else (200, 2, 3)
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
        for place, name in enumerate(_WORKLOADS):
            material = parts.templates(workflows, 300, seed) if name == "templates" else parts.text2sql(times, seed)
            first = first or material
            virtual = parts.sides(material.demand, chunk, seed)
            work = parts.at_load(virtual, material.test)
            runs = {}
            for turn, side in enumerate(virtual.configs):
                tell(f"round {number + 1} of {rounds}, {name}: {side}", (2 * number + place + turn / 8) / (2 * rounds))
                runs[side] = virtual.replay(side, work, seed)
            shown.setdefault(name, runs)
            figures.append({"workload": name, "rate": _rate(work), **_score(name, runs, samples)})
            alone = virtual.replay(PER_APPLICATION, parts.alone(work), seed)
            for side in (PER_APPLICATION, HERMES):
                worst = float(np.nanmax(parts.completions(runs[side]) / parts.completions(alone)))
                slowdowns.setdefault(side, []).append(worst)
            if name == "templates":
                cold.append(_cold(material, work, chunk, samples))
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
        notes=_notes(figures, cold, chunk),
        details={"chunk": chunk, "rounds": figures, "cold starts": cold, "slowdowns": slowdowns},
        pictures=_pictures(shown, first.demand),
    )


def _score(name: str, runs: dict[str, Run], samples: dict[str, list[float]]) -> dict[str, Any]:
    """Add a round's figures to the samples; all of them for the result's details."""
    took = {side: parts.completions(run) for side, run in runs.items()}
    mean = {side: float(np.nanmean(values)) for side, values in took.items()}
    p95 = {side: float(np.nanpercentile(values, 95)) for side, values in took.items()}
    add = {
        f"{name}-mean": 100 * (1 - mean[HERMES] / mean[PER_APPLICATION]),
        f"{name}-p95": 100 * (1 - p95[HERMES] / p95[PER_APPLICATION]),
        f"{name}-gain": 100 * (mean[PER_APPLICATION] - mean[HERMES]) / (mean[PER_APPLICATION] - mean[ORACLE]),
        f"{name}-srpt": mean[SRPT] / mean[HERMES],
        f"{name}-call": mean[PER_CALL] / mean[HERMES],
        f"{name}-shuffled": mean[SHUFFLED] / mean[PER_APPLICATION],
        f"{name}-shortest-mean": mean[MEAN] / mean[HERMES],
    }
    for requirement, value in add.items():
        samples[requirement].append(value)
    return {"mean_s": mean, "p95_s": p95, "max_s": {side: float(np.nanmax(values)) for side, values in took.items()}}


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
    rate_of = parts.at_load(parts.sides(material.demand, 512, seed), material.test)
    mean = {}
    for chunk in CHUNKS:
        run = parts.sides(material.demand, chunk, seed).replay(PER_APPLICATION, rate_of, seed)
        mean[chunk] = float(np.nanmean(parts.completions(run)))
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


def _rate(work: Any) -> float:
    """Workflows per second."""
    roots = [request.arrival_s for request in work if not request.parents]
    return len({request.workflow for request in work}) / max(roots[-1], 1e-9)


def _notes(figures: list[dict[str, Any]], cold: list[dict[str, Any]], chunk: int) -> list[str]:
    def spread(name: str, figure: str) -> str:
        rounds = [one[figure] for one in figures if one["workload"] == name]
        return ", ".join(f"{side} {np.median([one[side] for one in rounds]):.1f}" for side in rounds[0])

    waste = [one["hints"] for one in cold]
    return [
        *(f"{name}: median over rounds of the mean completion in s: {spread(name, 'mean_s')}" for name in _WORKLOADS),
        *(f"{name}: the same of the 95th percentile: {spread(name, 'p95_s')}" for name in _WORKLOADS),
        f"all sides take chunks of {chunk} tokens, the best of {', '.join(map(str, CHUNKS))} for the baseline; load is a "
        "share of what the baseline sustains with everything waiting, between a quarter and three quarters of the work",
        f"hints: {np.median([one['early'] for one in waste]):.0f} early starts for "
        f"{np.median([one['uses'] for one in waste]):.0f} uses; tools take "
        + ", ".join(f"{name} {seconds:g} s" for name, seconds in parts.WARM_S.items())
        + " to start; an instance that was kept for a fixed time may serve any run, and is kept as long as costs what hints do",
        "SRPT by call is an oracle here: it knows every call's length",
    ]


def _pictures(shown: dict[str, dict[str, Run]], demand: Demand) -> dict[str, bytes]:
    from hasten.lab.claims.picture import axes, png
    from hasten.lab.planning.demand_picture import picture

    figure, found = axes(len(shown), height=3.8)
    for plot, (name, runs) in zip(found, shown.items(), strict=True):
        for side, run in runs.items():
            values = np.sort(parts.completions(run))
            style = {HERMES: "-", PER_APPLICATION: "-"}.get(side, ":")
            plot.step(values, np.arange(1, len(values) + 1) / len(values) * 100, style, where="post", label=side, linewidth=1.4)
        plot.set(xlabel="completion of an application, s", ylabel="applications, %", xscale="log", ylim=(0, 104), title=name)
    found[0].legend(frameon=False, fontsize=7)
    return {"hermes": png(figure), "hermes-graphs": picture(list(demand.graphs.values()))}


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
    for name, words in zip(_WORKLOADS, ("applications", "text-to-SQL"), strict=True):
        out += [
            Requirement(
                name=f"{name}-srpt", what=f"{words}: mean completion, SRPT by call (oracle) over hermes", unit="x", at_least=1.0
            ),
            Requirement(name=f"{name}-call", what=f"{words}: the same of FCFS by call", unit="x"),
            Requirement(
                name=f"{name}-shortest-mean",
                what=f"{words}: the same of shortest mean",
                unit="x",
                at_least=1.0 if name == "templates" else None,
            ),
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
            name="cold", what="seconds waited for cold tools, started when needed over by hints", unit="x", at_least=2.0
        ),
        Requirement(name="waste", what="what hints cost: idle seconds of tools for each use", unit=" s"),
        Requirement(name="cold-kept", what="seconds waited, tools kept for as many idle seconds over hints", unit="x"),
        Requirement(name="real", what=f"for real, small applications: {saved}", unit="%"),
        Requirement(name="real-predicted", what="the same as simulation predicts it", unit="%"),
        Requirement(name="real-error", what="error of the predicted mean completions", unit="%", at_most=15),
    )


CLAIM = Claim(
    name="hermes",
    title="Hermes: Gittins order over demand graphs",
    paper="Efficient Serving of LLM Applications with Probabilistic Demand Modeling (Hermes, 2025)",
    workload=f"Llama-3.1 8B on a simulated H100 at {LOAD:.0%} load: five generated kinds of applications (service times with a "
    "CV of 1 or more, most of two modes; 200 runs tested, 300 others learned from), and the 184 workflows of two text-to-SQL "
    "traces (half learned from, the other half tested, twice over); one point for real with the built-in model and "
    "applications a twelfth as long",
    baseline=f"application-fcfs with stall-free batching, its chunk the best of {', '.join(map(str, CHUNKS))} by mean "
    "completion; also FCFS by call, shortest mean, SRPT by call and by application that know all lengths",
    technique="hermes (order, preemption, memory by rank) with default knobs",
    requirements=_requirements(),
    run=run,
    simulated=True,
)
