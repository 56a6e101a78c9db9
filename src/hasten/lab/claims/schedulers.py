"""Every order with every batching rule, on three kinds of traffic at three loads: which wins where, and what the search picks.

No paper claims this; it is the table that a person needs who must choose. Policies that learn beforehand (demand graphs) learn
from the half of the traffic that is not replayed; those that learn as they go begin with nothing. Nobody is told a length.
What a search for goodput picks from the table is judged on fresh requests: on those it was picked by it cannot lose.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.base import Claim, Guard, Outcome, Requirement, Setting
from hasten.lab.claims.sides import share

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.lab.bench.run import Run
    from hasten.lab.planning.devices import Device
    from hasten.lab.workloads.base import Workload

LOADS = (0.6, 0.85, 1.1)
PICKED_AT = 0.85
DEFAULT = ("fcfs", "stall-free")
LENGTHS = "length-similarity"
"""Every pair has it, so that orders which want to know lengths learn them while they serve."""
LIMIT = 2048
"""Of every output: what requests really produce is told to nobody."""
WARMED = ("hermes", "hexgen")
"""Orders with a `graphs` knob."""
FIGURES = ("ttft_mean_s", "ttft_p99_s", "gap_mean_s", "gap_p99_s", "done_mean_s", "done_p99_s", "goodput")
TTFT_S, TPOT_S, SLACK = 2.0, 0.05, 4.0
"""Objectives: of single requests, and of workflows as a multiple of the mean time of one in an idle engine."""


@dataclass(slots=True)
class Traffic:
    """`test` is replayed by all pairs, `fresh` by the default and what was picked; `graphs`: file of demand graphs learned from
    other traffic, None where there are no workflows."""

    name: str
    test: Workload
    fresh: Workload
    graphs: Path | None


def run(setting: Setting) -> Outcome:
    from hasten.lab.claims.virtual import h100

    device = h100()
    loads = (PICKED_AT,) if setting.quick else LOADS
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    judged: dict[str, dict[str, dict[str, float]]] = {}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = _traffic(setting, Path(folder))
        for place, traffic in enumerate(kinds):
            tell = share(setting.progress, place / len(kinds), (place + 1) / len(kinds))
            table[traffic.name], judged[traffic.name], said = _table(traffic, device, loads, tell)
            refused |= said
    samples = {requirement.name: list[float]() for requirement in CLAIM.requirements}
    for name, by_load in table.items():
        at, fresh = by_load[f"{PICKED_AT:.0%}"], judged[name]
        plain = at[_pair(*DEFAULT)]
        samples[f"{name}-mean"].append(plain["done_mean_s"] / min(one["done_mean_s"] for one in at.values()))
        samples[f"{name}-p99"].append(plain["done_p99_s"] / min(one["done_p99_s"] for one in at.values()))
        samples[f"{name}-goodput"].append(100 * (fresh["picked"]["goodput"] - fresh["default"]["goodput"]))
    return Outcome(
        samples=samples,
        guards=[_own(table)],
        notes=_notes(table, refused),
        details={"table": table, "fresh": judged, "refused": refused},
        pictures={f"{name}": _picture(by_load) for name, by_load in table.items()},
    )


def pick(at: dict[str, dict[str, float]]) -> str:
    """What a search that knows the whole table takes: the most goodput, and of equals the least mean completion."""
    return min(at, key=lambda pair: (-round(at[pair]["goodput"], 3), at[pair]["done_mean_s"]))


def _traffic(setting: Setting, folder: Path) -> list[Traffic]:
    from hasten.engine.request import SLO
    from hasten.lab import workloads
    from hasten.lab.planning.demand import halves, learn
    from hasten.lab.workloads.transform import cut, fit_context, mix

    count = 60 if setting.quick else 500
    single = SLO(ttft_s=TTFT_S, tpot_s=TPOT_S)
    found = []
    for name, spec in (("azure", "azure-llm-2023-conv"), ("mooncake", "mooncake-conversation")):
        size = count if name == "azure" else count // 2
        work = _with(fit_context(cut(workloads.load(spec), 0, 2 * size), 8192), single)
        found.append(Traffic(name, cut(work, 0, size), cut(work, size), None))
    whole = mix(*(workloads.load(f"text2sql-workflow-{name}") for name in ("trace1", "financial")))
    learned, tested = halves(fit_context(whole, 8192))
    size = 6 if setting.quick else 45
    file = folder / "demand.json"
    learn(learned).save(file)
    found.append(Traffic("text2sql", _workflows(tested, 0, size), _workflows(tested, size, 2 * size), file))
    return found


def _with(work: Workload, slo: Any) -> Workload:
    requests = [dataclasses.replace(request, slo_class="all") for request in work]
    return dataclasses.replace(work, requests=requests, slos={"all": slo})


def _workflows(work: Workload, begin: int, end: int) -> Workload:
    names = list(dict.fromkeys(request.workflow for request in work))[begin:end]
    return dataclasses.replace(work, requests=[request for request in work if request.workflow in names])


def parts(setting: str) -> list[str]:
    """The techniques that decide a scheduling setting on their own or as a preset, the default first."""
    from hasten.engine.technique import all_techniques
    from hasten.lab.planning.tune import EXPERIMENTS

    by_value: dict[Any, str] = {}
    for technique in sorted(all_techniques(), key=lambda t: (not t.default, len(t.sets))):
        if setting in technique.sets and technique.name not in EXPERIMENTS:
            by_value.setdefault(technique.sets[setting], technique.name)
    return list(by_value.values())


def _pair(order: str, batching: str) -> str:
    return f"{order} + {batching}"


def configs(graphs: Path | None) -> tuple[dict[str, EngineConfig], dict[str, str]]:
    """Every pair's configuration, and why those that cannot run together are refused."""
    from hasten.engine.config import EngineConfig
    from hasten.engine.technique import ConfigError

    out, refused = {}, {}
    for order in parts("scheduling.order"):
        for batching in parts("scheduling.batching"):
            knobs = f":graphs={graphs}" if order in WARMED and graphs is not None else ""
            try:
                out[_pair(order, batching)] = EngineConfig.build(with_=[f"{order}{knobs}", batching, LENGTHS])
            except ConfigError as error:
                refused[_pair(order, batching)] = str(error)
    return out, refused


def _table(
    traffic: Traffic, device: Device, loads: tuple[float, ...], progress: Callable[[str, float], None]
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, float]], dict[str, str]]:
    """Figures by load and pair; on fresh requests those of the default and of what is picked; why pairs are refused."""
    from hasten.lab.bench.saturation import throughput
    from hasten.lab.workloads.transform import scale_load

    found, refused = configs(traffic.graphs)
    plain = found[_pair(*DEFAULT)]
    full = throughput(lambda crowd: _replay(device, plain, crowd), traffic.test)
    work, fresh = traffic.test, traffic.fresh
    if work.has_stages:
        from hasten.engine.request import SLO

        idle = done(_replay(device, plain, scale_load(work, full / 40)))
        slo = SLO(deadline_s=SLACK * float(idle.mean()))
        work, fresh = _with(work, slo), _with(fresh, slo)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for i, load in enumerate(loads):
        at = out[f"{load:.0%}"] = {}
        offered = scale_load(work, load * full)
        for j, (pair, config) in enumerate(found.items()):
            progress(f"{traffic.name} at {load:.0%}: {pair}", (i + j / len(found)) / len(loads))
            at[pair] = _figures(_replay(device, config, offered))
    offered = scale_load(fresh, PICKED_AT * full)
    both = {"default": plain, "picked": found[pick(out[f"{PICKED_AT:.0%}"])]}
    return out, {name: _figures(_replay(device, config, offered)) for name, config in both.items()}, refused


def _replay(device: Device, config: EngineConfig, work: Workload) -> Run:
    from hasten.lab.bench.drive import replay
    from hasten.lab.claims.virtual import sound

    return sound(replay(device.engine(config), work, limit=LIMIT))


def done(run: Run) -> Any:
    """Seconds that each workflow took, or each request where there are none: float64."""
    from hasten.lab.bench import metrics

    table = metrics.requests(run)
    return metrics.workflows(run, table) if run.workload.has_stages else table.e2e_s


def _figures(run: Run) -> dict[str, float]:
    from hasten.engine.events import Kind
    from hasten.lab.bench import metrics

    all_ = metrics.summary(run)
    took_s = done(run)
    out = {name: all_[name] for name in FIGURES if name in all_}
    out["plans_refused"] = float((run.columns["kind"] == Kind.PLAN_REFUSED).sum())
    out |= {"done_mean_s": float(took_s.mean()), "done_p99_s": float(np.percentile(took_s, 99))}
    if run.workload.has_stages:  # a workflow keeps its deadline or not, as a whole
        limit = next(iter(run.workload.slos.values())).deadline_s
        assert limit is not None
        out["goodput"] = float((took_s <= limit).mean())
    return out


def _own(table: dict[str, Any]) -> Guard:
    """Every step was planned by the pair it is reported of, not by the first-come plan that replaces a refused one."""
    cells = [one for by_load in table.values() for at in by_load.values() for one in at.values()]
    refused = sum(one["plans_refused"] for one in cells)
    return Guard("every plan is its pair's own", refused == 0, f"{refused:.0f} plans refused in {len(cells)} runs")


def _notes(table: dict[str, Any], refused: dict[str, str]) -> list[str]:
    out = [
        f"goodput: share of requests with a first token within {TTFT_S:g} s and {1e3 * TPOT_S:g} ms a token; of workflows that "
        f"are done within {SLACK:g} times the mean time of one in an idle engine",
    ]
    for name, by_load in table.items():
        picks = "; ".join(f"at {load} {pick(at)} ({at[pick(at)]['goodput']:.0%})" for load, at in by_load.items())
        out.append(f"{name}, what a search for goodput picks: {picks}")
    out += [f"{pair} is refused: {reason}" for pair, reason in refused.items()]
    return out


def _picture(by_load: dict[str, dict[str, dict[str, float]]]) -> bytes:
    """Mean completion relative to the default's, one map a load: greener is sooner."""
    from hasten.lab.claims.picture import axes, png

    orders, batchings = parts("scheduling.order"), parts("scheduling.batching")
    figure, plots = axes(len(by_load), height=0.32 * len(orders) + 1.6)
    for number, (plot, (load, at)) in enumerate(zip(plots, by_load.items(), strict=True)):
        plain = at[_pair(*DEFAULT)]["done_mean_s"]
        cells = np.array(
            [[at[p]["done_mean_s"] / plain if (p := _pair(o, b)) in at else np.nan for b in batchings] for o in orders]
        )
        plot.imshow(np.log2(cells), cmap="RdYlGn_r", vmin=-1.5, vmax=1.5, aspect="auto")
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                text = f"{value:.2f}" if np.isfinite(value) else "–"
                plot.text(x, y, text, ha="center", va="center", fontsize=7)
        plot.set_xticks(range(len(batchings)), batchings, rotation=30, ha="right", fontsize=7)
        plot.set_yticks(range(len(orders)), orders if number == 0 else [""] * len(orders), fontsize=7)
        plot.set_title(f"mean completion at {load} load, default = 1", fontsize=8)
        plot.grid(False)
    return png(figure)


def _requirements() -> tuple[Requirement, ...]:
    out = []
    for name in ("azure", "mooncake", "text2sql"):
        out += [
            Requirement(
                name=f"{name}-mean", what=f"{name} at 85 % load: mean completion, default over the best pair", unit="x"
            ),
            Requirement(name=f"{name}-p99", what=f"{name} at 85 % load: p99 completion, default over the best pair", unit="x"),
            Requirement(
                name=f"{name}-goodput",
                what=f"{name} at 85 % load: what a search picks, its goodput above the default's on fresh requests, in points",
                unit="%",
                at_least=0.0,
            ),
        ]
    return tuple(out)


CLAIM = Claim(
    name="schedulers",
    title="Which scheduler for which traffic",
    paper="own",
    workload="The first 500 requests of the Azure 2023 conversation trace, 250 of Mooncake's and 45 text-to-SQL workflows, at "
    "60, 85 and 110 % of what the default sustains; Llama-3 8B on a simulated H100",
    baseline="The default: first come, first served, with stall-free chunks",
    technique="Every order with every batching rule that the registry has",
    requirements=_requirements(),
    run=run,
    simulated=True,
)
