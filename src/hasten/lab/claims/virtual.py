"""Sides of a claim on the virtual clock, at the scale of a trace, and the same once for real, with the error of prediction.

The simulated machine is one whose costs are published figures (`device`), so that anybody gets the same numbers; the real point
is this machine and a model small enough for it, simulated after its own calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.engine.loop import Engine
    from hasten.engine.scheduling.base import Order
    from hasten.lab.bench.run import Run
    from hasten.lab.planning.devices import Device
    from hasten.lab.workloads.base import Workload

REAL = ("executor.threads=1", "model.max_length=2048")
"""Settings of a real point. One thread: a second one waits whenever a neighbour takes a core, which nothing could predict."""
AT_ONCE = 1e6
"""A rate at which all requests wait from the start."""


def h100() -> Device:
    """Llama-3 8B on a simulated H100: what trace-scale claims run on unless they say otherwise."""
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    return on_hardware(shape("llama-3-8b"), profile("h100"))


class Virtual:
    """Simulates each side on `device` (None: `h100`) with the settings `common` to all; every run has a fresh engine.

    `attend(name, engine)` is called before each run: to teach a policy, or to listen to its hints. `limit`: of every output,
    whose true length no policy is told (`drive.replay`). `orders`: of a side, what makes its order for a workload instead of
    the configuration's, for orders that know what no engine can."""

    def __init__(
        self,
        sides: Sequence[Side],
        *,
        device: Device | None = None,
        common: Sequence[str] = (),
        attend: Callable[[str, Engine], None] = lambda name, engine: None,
        limit: int | None = None,
        orders: Mapping[str, Callable[[Workload], Order]] | None = None,
    ) -> None:
        self.device = device if device is not None else h100()
        self.configs = {side.name: _config(side, common) for side in sides}
        self._attend = attend
        self._limit = limit
        self._orders = orders or {}

    def replay(self, name: str, workload: Workload, seed: int = 0) -> Run:
        """Raises RuntimeError when a request failed."""
        from hasten.lab.bench.drive import replay

        made = self._orders.get(name)
        engine = self.device.engine(self.configs[name], order=made(workload) if made is not None else None)
        self._attend(name, engine)
        return sound(replay(engine, workload, name=name, seed=seed, limit=self._limit))

    def saturation(self, name: str, workload: Workload, seed: int = 0) -> float:
        """Requests per second of a side when all of `workload` comes at once: what a load is a share of."""
        from hasten.lab.bench.saturation import throughput

        return throughput(lambda crowd: self.replay(name, crowd, seed), workload)

    def sustained(self, name: str, workload: Workload, seed: int = 0) -> float:
        """The same while requests wait: without the end, when the last long outputs run alone and most of the engine idles."""
        from hasten.lab.claims.flover import sustained
        from hasten.lab.workloads.transform import scale_load

        run = self.replay(name, scale_load(workload, AT_ONCE), seed)
        return sustained(run) * len(workload) / sum(request.output_tokens for request in workload)

    def rounds(
        self, workload: Callable[[int], Workload], count: int, progress: Callable[[str, float], None]
    ) -> Iterator[dict[str, Run]]:
        """The runs of each round by side on the same arrivals, `workload(round)`."""
        for number in range(count):
            work = workload(number)
            runs = {}
            for turn, name in enumerate(self.configs):
                progress(f"round {number + 1} of {count}: {name}", (number + turn / len(self.configs)) / count)
                runs[name] = self.replay(name, work, number)
            yield runs


@dataclass(slots=True)
class Point:
    """Sides measured for real, and predicted by simulation: figures of `metrics.summary` by side, one value a round."""

    rate: float
    """Requests per second of the rounds."""
    measured: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    predicted: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def ratios(self, of: str, to: str, figure: str, *, real: bool = True) -> list[float]:
        """`figure` of side `of` divided by that of side `to`, a round each."""
        found = self.measured if real else self.predicted
        return [a / b for a, b in zip(found[of][figure], found[to][figure], strict=True)]

    def error(self, figure: str) -> float:
        """Median over sides and rounds of the prediction's absolute error, relative to what was measured."""
        pairs = [
            abs(p / m - 1)
            for name in self.measured
            for m, p in zip(self.measured[name][figure], self.predicted[name][figure], strict=True)
        ]
        return float(np.median(pairs))

    def error_of_ratio(self, of: str, to: str, figure: str) -> float:
        """The same of the ratio of two sides."""
        both = zip(self.ratios(of, to, figure), self.ratios(of, to, figure, real=False), strict=True)
        return float(np.median([abs(predicted / measured - 1) for measured, predicted in both]))


def real_point(
    sides: Sequence[Side],
    workload: Callable[[int], Workload],
    figures: Sequence[str],
    progress: Callable[[str, float], None],
    *,
    load: float = 0.85,
    rate: float | None = None,
    rounds: int = 2,
    model: str | None = None,
    common: Sequence[str] = REAL,
    calibration_s: float = 6.0,
    limit: int | None = None,
    attend: Callable[[str, Engine], None] = lambda name, engine: None,
    summarise: Callable[[Run], Mapping[str, float]] | None = None,
) -> Point:
    """Replay `workload(round)`, scaled to `rate` requests per second (None: to `load` of what the first side sustains), on a
    real engine of each side in turns; then simulate the same arrivals with costs fitted to calibrations of the first side made
    between the runs. Lengths must fit the engine's context. `limit` and `attend` are as `Virtual` takes them; `attend` is
    called before each run, real or simulated. `summarise` makes the figures of a run (None: `metrics.summary`). Raises
    RuntimeError when a request failed."""
    from hasten.engine.build import build
    from hasten.lab.bench import metrics
    from hasten.lab.bench.drive import replay
    from hasten.lab.bench.saturation import throughput
    from hasten.lab.planning import calibrate
    from hasten.lab.planning.fit import fit
    from hasten.lab.workloads.transform import scale_load

    summary = summarise if summarise is not None else metrics.summary
    configs = {side.name: _config(side, common, model) for side in sides}
    built = {name: build(config) for name, config in configs.items()}
    first = next(iter(built.values()))
    try:
        calibrate.collect(first, rounds=1, budget_s=calibration_s / 2)  # warms up
        if rate is None:
            rate = load * throughput(lambda crowd: replay(first.engine, crowd, limit=limit), workload(0))
        point = Point(rate)
        ran: list[tuple[str, Run]] = []
        steps: list[Any] = []
        for number in range(rounds):
            work = scale_load(workload(number), point.rate)
            turns = list(built)[:: 1 if number % 2 == 0 else -1]
            for turn, name in enumerate(turns):
                progress(f"for real, round {number + 1} of {rounds}: {name}", (number + turn / len(turns)) / rounds)
                steps.append(calibrate.collect(first, rounds=1, budget_s=calibration_s))
                attend(name, built[name].engine)
                ran.append((name, sound(replay(built[name].engine, work, name=name, seed=number, limit=limit))))
        steps.append(calibrate.collect(first, rounds=1, budget_s=calibration_s))
        copy_s, copy_token_s = calibrate.copies(first)
        shapes, seconds = (np.concatenate([part[k] for part in steps]) for k in (0, 1))
        device = calibrate.of(first, fit(shapes, seconds, copy_s=copy_s, copy_token_s=copy_token_s)).device()
    finally:
        for one in built.values():
            one.engine.executor.close()
    for name, run in ran:
        engine = device.engine(configs[name])
        attend(name, engine)
        simulated = summary(sound(replay(engine, run.workload, name=name, limit=limit)))
        real = summary(run)
        for figure in figures:
            point.measured.setdefault(name, {}).setdefault(figure, []).append(real[figure])
            point.predicted.setdefault(name, {}).setdefault(figure, []).append(simulated[figure])
    return point


def _config(side: Side, common: Sequence[str], model: str | None = None) -> EngineConfig:
    from hasten.engine.config import EngineConfig

    return EngineConfig.build(model, with_=side.with_, set_=[*common, *side.set_])


def sound(run: Run) -> Run:
    """The run, if none of its requests failed. Raises RuntimeError."""
    if run.errors:
        number, error = next(iter(run.errors.items()))
        raise RuntimeError(
            f"{run.name}: {len(run.errors)} requests of {run.workload.name} failed, the first, {number}: {error}"
        )
    return run
