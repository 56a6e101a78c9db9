"""What the claim `hermes` tells beside its figures: notes and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims import hermes_parts as parts
from hasten.lab.claims.hermes_parts import CHUNKS, FEW_ROWS, HERMES, LOAD, PER_APPLICATION, WORKLOADS

if TYPE_CHECKING:
    from hasten.engine.scheduling.demand.store import Demand
    from hasten.lab.bench.run import Run


def rate(work: Any) -> float:
    """Workflows per second."""
    roots = [request.arrival_s for request in work if not request.parents]
    return len({request.workflow for request in work}) / max(roots[-1], 1e-9)


def notes(figures: list[dict[str, Any]], cold: list[dict[str, Any]], chunk: int) -> list[str]:
    def spread(name: str, figure: str) -> str:
        rounds = [one[figure] for one in figures if one["workload"] == name]
        return ", ".join(f"{side} {np.median([one[side] for one in rounds]):.1f}" for side in rounds[0])

    waste = [one["hints"] for one in cold]
    few = [one for one in figures if one["workload"] not in WORKLOADS]
    return [
        *(f"{name}: median over rounds of the mean completion in s: {spread(name, 'mean_s')}" for name in WORKLOADS),
        *(f"{name}: the same of the 95th percentile: {spread(name, 'p95_s')}" for name in WORKLOADS),
        *(
            "text-to-SQL workflows spend most of their time decoding, side by side, and are alike: hardly anything queues at "
            f"this load, and even an oracle saves little; on an engine that takes only {FEW_ROWS} sequences at once, at "
            f"{LOAD:.0%} of what that sustains, mean completion in s: "
            + ", ".join(f"{side} {took:.1f}" for side, took in one["mean_s"].items())
            for one in few
        ),
        f"all sides take chunks of {chunk} tokens, the best of {', '.join(map(str, CHUNKS))} for the baseline; load is a "
        "share of what the baseline sustains with everything waiting, between a quarter and three quarters of the work",
        f"hints: {np.median([one['early'] for one in waste]):.0f} early starts for "
        f"{np.median([one['uses'] for one in waste]):.0f} uses; tools take "
        + ", ".join(f"{name} {seconds:g} s" for name, seconds in parts.WARM_S.items())
        + " to start; kept instances, which may serve any run, are kept for the idle seconds that hints cost a use",
        "SRPT by call is an oracle here: it knows every call's length",
    ]


def pictures(shown: dict[str, dict[str, Run]], demand: Demand) -> dict[str, bytes]:
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
