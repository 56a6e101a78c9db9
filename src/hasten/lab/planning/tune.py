"""Searches the configuration that serves a workload best under its objectives: by simulation first, then on the real engine.

The space is made of what exists: every technique that decides a scheduling part, alone or as a preset of several, with the
values its knobs say are worth trying (`metadata={"search": ...}` of the knob's field), the engine's limits, block size, prefix
caching and number format. The search is coordinate descent from the configuration given: each dimension in turn is set to its
best value, until a round changes nothing or time is up. An option makes way for one that decides otherwise what it decides.
Real runs then decide between the three best and where it began.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from hasten.engine.config import EngineConfig
from hasten.engine.request import SLO
from hasten.engine.technique import ConfigError, Technique, all_techniques, find
from hasten.lab.bench import metrics
from hasten.lab.bench.run import Run
from hasten.lab.planning.devices import Device
from hasten.lab.planning.simulate import simulate
from hasten.lab.workloads.base import Workload

Progress = Callable[[str, float], None]
DeviceOf = Callable[[EngineConfig], Device | None]
"""The device that simulates a configuration, None where nothing is known of it."""

FIELDS: dict[str, tuple[Any, ...]] = {
    "scheduling.preempt": (False, True),
    "scheduling.max_tokens": (512, 1024, 2048, 4096),
    "scheduling.max_rows": (8, 16, 32, 64, 128, 256),
    "kv.block_size": (16, 32, 64),
    "kv.reuse": ("prefix-tree", None),
    "model.dtype": ("float32", "bfloat16"),
}
"""Settings and the values that are tried for them."""

POLICIES = ("scheduling.order", "scheduling.batching", "scheduling.residency", "scheduling.lengths")
"""Settings that techniques decide; one that decides several is an option of the first."""

EXPERIMENTS = ("priority-trace", "length-oracle")
"""Techniques that nobody serves with: an experiment's cause, and lengths that nobody can know."""

BEST = 3
"""Configurations that real runs confirm."""


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a dimension: a setting's value, or a technique with its knobs as in --with."""

    dimension: str
    value: Any
    technique: str | None = None

    @property
    def sets(self) -> Mapping[str, Any]:
        """All settings that it decides."""
        return {self.dimension: self.value} if self.technique is None else find(self.name).sets

    @property
    def name(self) -> str:
        """Of its technique, without knobs; empty for a setting."""
        return (self.technique or "").partition(":")[0]

    def __str__(self) -> str:
        return self.technique if self.technique is not None else f"{self.dimension}={self.value}"


@dataclass(slots=True)
class Candidate:
    """A configuration: the options that differ from where the search began, by dimension, and what became of it. `score` sorts:
    higher is better."""

    options: dict[str, Option] = field(default_factory=dict)
    simulated: dict[str, float] = field(default_factory=dict)
    score: float = 0.0
    real: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(str(option) for option in self.options.values()) or "as given"

    def config(self, base: EngineConfig) -> EngineConfig:
        """`base` with the options; a technique of it that decides what one of them decides makes way."""
        base = base.model_copy(deep=True)
        for name in list(base.techniques):
            if any(option.name == name or _clash(option.sets, find(name).sets) for option in self.options.values()):
                del base.techniques[name]
        return EngineConfig.build(
            base=base,
            with_=[o.technique for o in self.options.values() if o.technique is not None],
            set_={o.dimension: o.value for o in self.options.values() if o.technique is None},
        )

    @property
    def goodput(self) -> float:
        """Median share of requests that kept the objectives in the real runs."""
        return median(one["goodput"] for one in self.real)


@dataclass(slots=True)
class Tuned:
    """What a search found. `tried` all simulated candidates, best first; `confirmed` those with real runs, the one it began
    with included; `winner` one of them; `effects`: for each option of the winner, the simulated goodput without it."""

    began: Candidate
    tried: list[Candidate]
    confirmed: list[Candidate]
    winner: Candidate
    effects: dict[str, float]
    runs: dict[str, Run]
    refused: dict[str, str]


def dimensions(config: EngineConfig, techniques: Sequence[Technique] | None = None) -> dict[str, list[Option]]:
    """The options of each dimension. Techniques that are approximate, need others or only serve experiments are left out."""
    out: dict[str, list[Option]] = {path: [] for path in POLICIES}
    for technique in techniques if techniques is not None else all_techniques():
        path = next((path for path in POLICIES if path in technique.sets), None)
        if path is None or not technique.exact or technique.requires or technique.name in EXPERIMENTS:
            continue
        out[path] += [Option(path, technique.sets[path], text) for text in _with_knobs(technique)]
    out = {path: options for path, options in out.items() if len(options) > 1}
    for path, values in FIELDS.items():
        out[path] = [Option(path, value) for value in values]
    return out


def _with_knobs(technique: Technique) -> list[str]:
    """The technique as it is, and with each value that a knob of its says is worth trying."""
    texts = [technique.name]
    for knob in fields(technique.options) if technique.options is not None else ():
        texts += [f"{technique.name}:{knob.name}={value}" for value in knob.metadata.get("search", ()) if value != knob.default]
    return texts


def score(figures: dict[str, float], slo: SLO) -> float:
    """Share of requests that kept the objectives; a small bonus for how far the 95th percentiles stay below breaks ties."""
    limits = {"ttft_p95_s": slo.ttft_s, "tpot_p95_s": slo.tpot_s, "e2e_p95_s": slo.deadline_s}
    ratios = [figures[key] / limit for key, limit in limits.items() if limit is not None and figures.get(key) is not None]
    slack = sum(1 / (1 + ratio) for ratio in ratios) / len(ratios) if ratios else 0.0
    return figures["goodput"] + 0.01 * slack


def limit_of(workload: Workload) -> int:
    """`max_tokens` of every request while it is tuned for: as many as the longest output has, so that no order is told a
    request's true length by its limit, which no client would know."""
    return max(request.output_tokens for request in workload)


def search(
    workload: Workload, slo: SLO, base: EngineConfig, device_of: DeviceOf, *, budget_s: float, progress: Progress
) -> tuple[list[Candidate], dict[str, str]]:
    """Coordinate descent by simulation; candidates best first (the one it began with among them), and why options were refused.
    Raises ConfigError when the configuration given cannot be simulated."""
    ends = time.perf_counter() + budget_s
    seen: dict[str, Candidate] = {}
    refused: dict[str, str] = {}

    def judge(candidate: Candidate) -> Candidate:
        if candidate.name in seen:
            return seen[candidate.name]
        config = candidate.config(base)
        device = device_of(config)
        if device is None:
            raise ConfigError("nothing is known of this machine in that format: calibrate it with --dtype")
        run = simulate(workload, device, config, limit=limit_of(workload))
        candidate.simulated = metrics.summary(run, slo)
        candidate.score = score(candidate.simulated, slo)
        seen[candidate.name] = candidate
        return candidate

    best = judge(Candidate())
    space = dimensions(base)
    total = sum(map(len, space.values()))
    changed = True
    while changed and time.perf_counter() < ends:
        changed = False
        done = 0
        for options in space.values():
            for option in options:
                done += 1
                if time.perf_counter() >= ends:
                    break
                progress(f"simulating {option}", done / total)
                candidate = Candidate(_with(best.options, option, base))
                try:
                    judged = judge(candidate)
                except ConfigError as refusal:
                    refused[str(option)] = str(refusal)
                    continue
                if judged.score > best.score + 1e-9:
                    best, changed = judged, True
    return sorted(seen.values(), key=lambda one: -one.score), refused


def _clash(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """They decide a setting differently."""
    return any(one[path] != other[path] for path in one.keys() & other.keys())


def _with(options: dict[str, Option], option: Option, base: EngineConfig) -> dict[str, Option]:
    """`options` with one more; one that says what the configuration given says already is none."""
    out = {path: other for path, other in options.items() if path != option.dimension and not _clash(other.sets, option.sets)}
    default = option.technique is None or (":" not in option.technique and not base.techniques.get(option.name))
    sections = ((path.split("."), value) for path, value in option.sets.items())
    if not (default and all(getattr(getattr(base, section), name) == value for (section, name), value in sections)):
        out[option.dimension] = option
    # In one order, whatever order they were found in: equal configurations have equal names.
    return dict(sorted(out.items()))


def effects(winner: Candidate, workload: Workload, slo: SLO, base: EngineConfig, device_of: DeviceOf) -> dict[str, float]:
    """Simulated goodput of the winner without each of its options."""
    out = {}
    for path, option in winner.options.items():
        without = Candidate({p: o for p, o in winner.options.items() if p != path})
        config = without.config(base)
        device = device_of(config)
        if device is not None:
            run = simulate(workload, device, config, limit=limit_of(workload))
            out[str(option)] = metrics.summary(run, slo)["goodput"]
    return out


def tune(
    workload: Workload,
    slo: SLO,
    base: EngineConfig,
    device_of: DeviceOf,
    replay: Callable[[EngineConfig, str, int], Run],
    *,
    budget_s: float,
    rounds: int = 2,
    progress: Progress = lambda what, share: None,
) -> Tuned:
    """Search for `budget_s` seconds, confirm with `rounds` real runs of each of the best (alternating), and choose.

    `replay(config, name, round)` runs the workload for real, with `limit_of` it. The winner is what did best for real among
    those with at least the goodput of the configuration given."""
    tried, refused = search(workload, slo, base, device_of, budget_s=budget_s, progress=progress)
    began = next(one for one in tried if not one.options)
    confirmed = [began, *[one for one in tried if one.options and one.score > began.score][:BEST]]
    runs: dict[str, Run] = {}
    for number in range(rounds):
        order = confirmed if number % 2 == 0 else confirmed[::-1]
        for i, candidate in enumerate(order):
            progress(f"round {number + 1} for real: {candidate.name}", (number + i / len(order)) / rounds)
            run = replay(candidate.config(base), candidate.name, number)
            candidate.real.append(metrics.summary(run, slo))
            runs[candidate.name] = run
    kept = [one for one in confirmed if one.goodput >= began.goodput]
    # max keeps the first of equals, which is the configuration given.
    winner = max(kept, key=lambda one: median(score(figures, slo) for figures in one.real))
    return Tuned(
        began=began,
        tried=tried,
        confirmed=confirmed,
        winner=winner,
        effects=effects(winner, workload, slo, base, device_of),
        runs=runs,
        refused=refused,
    )


def toml(tuned: Tuned, base: EngineConfig, about: Sequence[str]) -> str:
    """The winner as a configuration file, with what is known of it in comments. `base`: what the search began with."""
    config = tuned.winner.config(base)
    plain = EngineConfig()
    lines = [f"# {line}" for line in about]
    for section in (name for name in EngineConfig.model_fields if name != "techniques"):
        changed = {name: value for name, value in getattr(config, section) if value != getattr(getattr(plain, section), name)}
        if changed:
            lines += ["", f"[{section}]", *(f"{name} = {_value(value)}" for name, value in changed.items())]
    for name, knobs in config.techniques.items():
        lines += ["", f"[techniques.{name}]", *(f"{knob} = {_value(value)}" for knob, value in knobs.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value in TOML; None, which TOML lacks, as the text that stands for it in settings."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's strings are TOML's, but for one character that JSON does not escape.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
