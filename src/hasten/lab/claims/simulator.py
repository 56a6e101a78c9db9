"""The simulator against the engine it simulates: the same trace slices, replayed for real and on the virtual clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.engine.build import build
from hasten.engine.config import EngineConfig
from hasten.lab import workloads
from hasten.lab.bench import metrics
from hasten.lab.bench.drive import replay
from hasten.lab.bench.run import LAG_LIMIT_S, Run
from hasten.lab.bench.saturation import throughput
from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.planning import calibrate
from hasten.lab.planning.devices import Device, on_hardware
from hasten.lab.planning.fit import fit, predict
from hasten.lab.planning.hardware import profile
from hasten.lab.planning.shapes import shape
from hasten.lab.planning.simulate import simulate
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.transform import cut, fit_context, scale_load

TRACES = {"azure": "azure-llm-2023-conv", "mooncake": "mooncake-conversation"}
LOADS = (0.4, 0.7, 0.9)
METRICS = ("ttft_s", "tpot_s", "e2e_s")
REQUESTS, QUICK_REQUESTS = 120, 24
SETTINGS = ("executor.threads=1", "model.max_length=2048")
"""One thread: two wait for each other whenever somebody else takes one of their cores, and a shared machine's neighbours are
nothing that a simulator could foresee."""

Steps = tuple[Any, Any]
"""Shapes and seconds, as `calibrate.collect` gives them."""


def run(setting: Setting) -> Outcome:
    """A round: both traces at every load and all at once for real, with a calibration before each and after the last, since the
    machine drifts; then the same in simulation, with the cost model fitted to the round's calibrations."""
    config = EngineConfig.build(set_=SETTINGS)
    built = build(config)
    count, rounds = (QUICK_REQUESTS, 2) if setting.quick else (REQUESTS, 3)
    traces = {name: fit_context(cut(workloads.load(spec), 0, count), built.engine.max_length) for name, spec in TRACES.items()}
    samples: dict[str, list[float]] = {}
    details: dict[str, list[Any]] = {"rounds": [], "machine against itself": []}
    calibrate.collect(built, rounds=1, budget_s=3)  # warms up
    lag = 0.0
    for number in range(rounds):
        rates: dict[str, float] = {}
        real: dict[tuple[str, float], Run] = {}
        calibrations: list[Steps] = []
        for i, (name, work) in enumerate(traces.items()):
            for j, load in enumerate((0.0, *LOADS)):
                share = (number + (4 * i + j) / 8) / rounds
                setting.progress(f"round {number + 1} of {rounds}: calibrating", share)
                calibrations.append(calibrate.collect(built, rounds=1, budget_s=1 if setting.quick else 8))
                what = f"{name}, {load:.0%} load" if load else f"{name}, all at once"
                setting.progress(f"round {number + 1} of {rounds}: {what}", share)
                if not load:
                    rates[name] = throughput(lambda crowd: replay(built.engine, crowd), work)
                    continue
                real[name, load] = replay(built.engine, scale_load(work, load * rates[name]), seed=number)
                lag = max(lag, real[name, load].lag_p99_s)
        calibrations.append(calibrate.collect(built, rounds=1, budget_s=1 if setting.quick else 8))
        if number == rounds - 1 and not setting.quick:
            again = {name: replay(built.engine, real[name, 0.7].workload, seed=number) for name in traces}
            details["machine against itself"].append({name: _errors(again[name], real[name, 0.7]) for name in traces})
        fitted = fit(*(np.concatenate([part[k] for part in calibrations]) for k in (0, 1)))
        found = _compare(calibrate.of(built, fitted).device(), config, traces, rates, real)
        drift = [float(took.sum() / predict(fitted.costs, shapes).sum()) for shapes, took in calibrations]
        details["rounds"].append({**found, "single-step error": fitted.median_error, "pace of the calibrations": drift})
        for name in traces:
            for load in LOADS:
                key = f"{name}_{load * 100:.0f}"
                samples.setdefault(key, []).append(100 * max(found[key].values()))
            samples.setdefault(f"{name}_full", []).append(100 * found[f"{name}_full"])
    setting.progress("an hour of traffic on a simulated H100", 0.97)
    samples["hour"], same = _hour(setting.quick)
    spread = [pace for one in details["rounds"] for pace in one["pace of the calibrations"]]
    reason = f"the machine's pace drifted between {min(spread):.2f} and {max(spread):.2f} of its mean between calibrations"
    return Outcome(
        samples=samples,
        guards=[
            Guard("the replays kept to their schedule", lag <= LAG_LIMIT_S, f"99th percentile of lag {lag * 1e3:.1f} ms"),
            Guard("steps taken together give the events of single steps on 2,000 requests", same),
        ],
        shortfall={name: reason for name in samples if name != "hour"},
        details=details,
        notes=_notes(details, reason),
    )


def _compare(
    device: Device,
    config: EngineConfig,
    traces: dict[str, Workload],
    rates: dict[str, float],
    real: dict[tuple[str, float], Run],
) -> dict[str, Any]:
    """Relative errors: for loads up to 70 % the median over requests of each metric's, at 90 % that of each metric's 50th and
    99th percentile, and that of the saturation throughput."""
    out: dict[str, Any] = {}
    for name, work in traces.items():
        for load in LOADS:
            simulated = simulate(real[name, load].workload, device, config)
            kind = _errors if load < 0.9 else _quantile_errors
            out[f"{name}_{load * 100:.0f}"] = kind(simulated, real[name, load])
        full = throughput(lambda crowd: simulate(crowd, device, config), work)
        out[f"{name}_full"] = abs(full / rates[name] - 1)
    return out


def _errors(one: Run, other: Run) -> dict[str, float]:
    """Median over the requests of the absolute error of `one` relative to `other`, for each metric."""
    a, b = metrics.requests(one), metrics.requests(other)
    return {name: float(np.nanmedian(np.abs(getattr(a, name) / getattr(b, name) - 1))) for name in METRICS}


def _quantile_errors(one: Run, other: Run) -> dict[str, float]:
    a, b = metrics.requests(one), metrics.requests(other)
    return {
        f"{name} p{q}": float(abs(np.nanpercentile(getattr(a, name), q) / np.nanpercentile(getattr(b, name), q) - 1))
        for name in METRICS
        for q in (50, 99)
    }


def _hour(quick: bool) -> tuple[list[float], bool]:
    """Seconds it takes to simulate an hour of Azure's conversation traffic for an 8B model on an H100 (in quick runs parts of
    it, scaled up), and whether single steps give the same events on its first 2,000 requests."""
    whole = workloads.load(TRACES["azure"])
    device = on_hardware(shape("llama-3-8b"), profile("h100"))
    config = EngineConfig.build()
    part = cut(whole, 0, 2000)
    together = replay(device.engine(config), part)
    single = replay(device.engine(config, single_steps=True), part)
    same = all(np.array_equal(together.columns[name], single.columns[name]) for name in together.columns)
    if quick:
        other = replay(device.engine(config), cut(whole, 2000, 4000))
        return [run.wall_s * len(whole) / 2000 for run in (together, other)], same
    return [replay(device.engine(config), whole).wall_s for _ in range(2)], same


def _notes(details: dict[str, list[Any]], drift: str) -> list[str]:
    out = [
        "Each figure is the worst of TTFT, TPOT and end-to-end. Single steps were predicted with a median error of "
        + ", ".join(f"{one['single-step error']:.1%}" for one in details["rounds"])
        + f" (a round each); {drift}."
    ]
    for one in details["machine against itself"]:
        parts = [f"{name} {max(errors.values()):.1%}" for name, errors in one.items()]
        out.append(f"The machine against itself, the same replay at 70 % a second time: {', '.join(parts)}.")
    return out


def _requirements() -> tuple[Requirement, ...]:
    out = []
    for name, spec in TRACES.items():
        for load in ("40", "70"):
            what = f"{spec} at {load} % load: median error of a request's TTFT, TPOT, end-to-end"
            out.append(Requirement(name=f"{name}_{load}", what=what, unit="%", at_most=10))
        what = f"{spec} at 90 % load: error of p50 and p99 of TTFT, TPOT, end-to-end"
        out.append(Requirement(name=f"{name}_90", what=what, unit="%", at_most=20))
        out.append(Requirement(name=f"{name}_full", what=f"{spec}: error of the throughput at saturation", unit="%", at_most=5))
    hour = "an hour of Azure conversation traffic, 8B model on an H100: seconds to simulate it"
    return (*out, Requirement(name="hour", what=hour, unit="s", at_most=30))


CLAIM = Claim(
    name="simulator",
    title="The simulator predicts the engine it simulates",
    paper="own",
    workload=f"The first {REQUESTS} requests of the Azure 2023 conversation and Mooncake conversation traces, lengths scaled "
    "to 2,048 tokens, at 40, 70 and 90 % of the rate that all of them at once are served at; Mooncake "
    "with prefix reuse",
    baseline="The real engine: built-in model, default configuration with one thread, this machine",
    technique="The same loop and policies on the virtual clock, with the cost model fitted to grids of steps measured between "
    "the real runs",
    requirements=_requirements(),
    run=run,
)
