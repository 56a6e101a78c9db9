"""Tiers of KV against dropping what the device has no room for, on the Mooncake trace.

Every side has the same pool, which holds a quarter of the different KV that the trace makes. Dropping is this engine's default:
the prefix tree loses what it evicts. The tiers hold all of the working set, in host memory, or a quarter there and all on disk.
An engine with all the memory says what could be had at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.sides import share
from hasten.lab.claims.tiers_runs import (
    CONTEXT,
    COST,
    DISK,
    DISK_RATE,
    DROP,
    HOST,
    LOAD,
    POOL_SHARE,
    REAL_FACTOR,
    ROOM,
    Simulated,
    guards,
    real,
    simulate,
)

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run

LOADS = (0.3, 0.5, 0.85)


def run(setting: Setting) -> Outcome:
    parts, rounds, loads = (8, 1, ()) if setting.quick else (4, 4, LOADS)
    setting.progress("equal tokens", 0.0)
    held = guards(setting.seed, 10 if setting.quick else 24)
    virtual = simulate(parts, rounds, loads, share(setting.progress, 0.1, 0.6))
    samples: dict[str, list[float]] = {}
    for stem, name in (("host", HOST), ("disk", DISK), ("cost-aware", COST), ("room", ROOM)):
        samples[f"{stem}-ttft"] = _ratios(virtual, name, "ttft_mean_s")
    samples["host-p99"] = _ratios(virtual, HOST, "ttft_p99_s")
    samples["disk-p99"] = _ratios(virtual, DISK, "ttft_p99_s")
    samples["disk-latency"] = _ratios(virtual, DISK, "e2e_mean_s")
    for stem, name in (("dropping", DROP), ("host", HOST), ("disk", DISK), ("room", ROOM)):
        samples[f"{stem}-found"] = [100 * of[name]["prefix_hit_rate"] for of in virtual.figures]
    point, note = real(*((300, 1) if setting.quick else (40, 3)), setting.quick, share(setting.progress, 0.6, 1.0))
    for stem, name in (("host", HOST), ("disk", DISK)):
        samples[f"real-{stem}-ttft"] = point.ratios(DROP, name, "ttft_mean_s")
        samples[f"real-{stem}-error"] = [100 * point.error_of_ratio(DROP, name, "ttft_mean_s")]
    samples["error"] = [100 * point.error("e2e_mean_s")]
    kept = ("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "e2e_mean_s", "prefix_hit_rate", "output_tokens_per_s")
    return Outcome(
        samples=samples,
        guards=held,
        notes=[
            f"virtual: {len(virtual.first[DROP].workload)} requests in the first round, {virtual.rate:.1f} a second, "
            f"{LOAD:.0%} of what dropping sustains",
            f"working sets (what is between its first and its last use, when that is most): {_sizes(virtual.sets)}; all KV "
            f"that the rounds make, which the largest tier of a side holds: {_sizes(virtual.made)}",
            note,
        ],
        details={
            "virtual": [{name: {f: of[name][f] for f in kept} for name in of} for of in virtual.figures],
            "loads": virtual.at,
            "real": {"measured": point.measured, "predicted": point.predicted},
        },
        pictures=_picture(virtual),
    )


def _sizes(found: list[float]) -> str:
    return ", ".join(f"{size / 1e9:.3g}" for size in found) + " GB"


def _ratios(virtual: Simulated, name: str, figure: str) -> list[float]:
    return [of[DROP][figure] / of[name][figure] for of in virtual.figures]


def _picture(virtual: Simulated) -> dict[str, bytes]:
    from hasten.lab.bench.metrics import requests
    from hasten.lab.claims.picture import axes, png

    figure, (waits, *others) = axes(2 if virtual.at else 1)
    first: dict[str, Run] = virtual.first
    for name in (DROP, DISK, HOST, ROOM):
        waited = np.sort(requests(first[name]).ttft_s)
        waits.step(waited, 100 * (1 - np.arange(len(waited)) / len(waited)), where="post", label=name)
    waits.set(xlabel="time to first token, s", ylabel="requests that wait longer, %", xscale="log")
    waits.legend(frameon=False)
    for name, at in virtual.at.items():
        (loads,) = others
        points = sorted({**at, LOAD: virtual.figures[0][name]["ttft_mean_s"]}.items())
        loads.plot([100 * load for load, _ in points], [seconds for _, seconds in points], marker="o", label=name)
        loads.set(xlabel="load, % of what dropping sustains", ylabel="mean time to first token, s", yscale="log")
    return {"tiered": png(figure)}


def _reported(name: str, what: str, unit: str = "x") -> Requirement:
    return Requirement(name=name, what=what, unit=unit)


CLAIM = Claim(
    name="tiered",
    title="KV that moves to host memory and disk against KV that is dropped",
    paper="Mooncake: Trading More Storage for Less Computation (Qin et al., FAST 2025), whose trace it is; the tiers are this "
    "engine's own",
    workload=f"one in four conversations of the Mooncake trace, lengths scaled to a context of {CONTEXT}, at {LOAD:.0%} of "
    f"what dropping sustains; KV memory {POOL_SHARE:.0%} of the working set; Llama-3 8B on a simulated H100, whose host link "
    f"gives 51 GB/s, with a disk of {DISK_RATE / 1e9:g} GB/s; for real the built-in model, lengths x {REAL_FACTOR:g}",
    baseline="the same pool with the prefix tree alone (the default): what it evicts is computed again",
    technique="tiered in chunks of 128 tokens (64 for real): host memory for the whole working set, or for as much as the pool "
    "with all of it on disk",
    requirements=(
        Requirement(name="host-ttft", what="mean TTFT, dropping over host memory", unit="x", at_least=1.5),
        Requirement(name="disk-ttft", what="mean TTFT, dropping over host memory and disk", unit="x", at_least=1.5),
        _reported("cost-aware-ttft", "the same with cost-aware retention"),
        _reported("room-ttft", "mean TTFT, dropping over a pool for all of it: the most that could be had"),
        _reported("host-p99", "99th percentile of TTFT, dropping over host memory"),
        _reported("disk-p99", "99th percentile of TTFT, dropping over host memory and disk"),
        _reported("disk-latency", "mean end-to-end time, dropping over host memory and disk"),
        _reported("dropping-found", "prompt tokens found, dropping", "%"),
        _reported("host-found", "prompt tokens found, host memory", "%"),
        _reported("disk-found", "prompt tokens found, host memory and disk", "%"),
        _reported("room-found", "prompt tokens found, a pool for all of it", "%"),
        _reported("real-host-ttft", "for real: mean TTFT, dropping over host memory"),
        _reported("real-disk-ttft", "for real: mean TTFT, dropping over host memory and disk"),
        _reported("real-host-error", "error of the first ratio's prediction", "%"),
        _reported("real-disk-error", "error of the second ratio's prediction", "%"),
        _reported("error", "error of the predicted mean end-to-end time, all sides", "%"),
    ),
    run=run,
    simulated=True,
)
