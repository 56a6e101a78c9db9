"""How long planning a step takes with many running and many waiting, by the processor's clock: what scheduling itself costs.

The engine is simulated, so nothing but planning is worth timing: the loop, the books and the policies are the real ones. The
traffic gives policies all they may look at: applications with workflows and stages, tenants, priorities, objectives and lengths
of all sizes. Answers end and are replaced throughout, so that what learns from events does, and its time counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.config import EngineConfig
from hasten.engine.loop import Engine
from hasten.engine.request import SLO, AppContext, Request, SamplingParams

RUNNING = 256
WAITING = (0, 125, 250, 500, 1000, 2000)
STEPS = 200
_SLOS = (SLO(), SLO(ttft_s=1.0, tpot_s=0.1), SLO(deadline_s=30.0))


@dataclass(frozen=True, slots=True)
class Planning:
    """Seconds float64 [steps] that planning took in each step, while about `running` sequences ran and `waiting` waited."""

    running: int
    waiting: int
    seconds: npt.NDArray[np.float64]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p99_s(self) -> float:
        return float(np.percentile(self.seconds, 99))


def measure(config: EngineConfig, waiting: int, *, running: int = RUNNING, steps: int = STEPS, seed: int = 0) -> Planning:
    """Plan `steps` steps of `config`'s policies, its `max_rows` set to `running`, with a queue that is kept at `waiting`."""
    config = config.model_copy(deep=True)
    config.scheduling.max_rows = running
    config.scheduling.queue_limit = None
    engine = _engine(config)
    make = _Traffic(seed)
    while engine.unfinished < running:
        engine.add(make.request())
        engine.step()
    seconds = np.empty(steps)
    for step in range(-2, steps):  # all that wait come at once in the first step, which is none of those that are measured
        while engine.unfinished < running + waiting:
            engine.add(make.request())
        before = engine.stats()["planning_seconds_total"]
        engine.step()
        if step >= 0:
            seconds[step] = engine.stats()["planning_seconds_total"] - before
    return Planning(running, waiting, seconds)


def sweep(
    config: EngineConfig, waiting: Sequence[int] = WAITING, advance: Callable[[str], None] = lambda label: None
) -> list[Planning]:
    """`measure` at each length of the queue."""
    found = []
    for count in waiting:
        advance(f"{count} waiting")
        found.append(measure(config, count))
    return found


def picture(found: dict[str, Sequence[Planning]]) -> bytes:
    """PNG: the median of each configuration against the length of the queue; of a few also the 99th percentile."""
    from hasten.lab.claims.picture import axes, png

    figure, (plot,) = axes(1, height=3.8)
    for number, (name, points) in enumerate(found.items()):
        queue = [point.waiting for point in points]
        style = ("-", "--", "-.")[number // 10 % 3]  # there are ten colours
        (line,) = plot.plot(queue, [1e3 * p.median_s for p in points], style, marker="o", markersize=3, label=name)
        if len(found) <= 4:
            plot.plot(queue, [1e3 * p.p99_s for p in points], ":", color=line.get_color())
    dotted = " (dotted: 99th percentile)" if len(found) <= 4 else ", median"
    plot.set(xlabel=f"waiting ({RUNNING} running)", ylabel=f"ms to plan a step{dotted}", ylim=(0, None))
    plot.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return png(figure)


def _engine(config: EngineConfig) -> Engine:
    from hasten.lab.planning.devices import on_hardware
    from hasten.lab.planning.hardware import profile
    from hasten.lab.planning.shapes import shape

    return on_hardware(shape("llama-3-8b"), profile("h100")).engine(config, single_steps=True)


class _Traffic:
    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._count = 0

    def request(self) -> Request:
        number, random = self._count, self._random
        self._count += 1
        workflow = number // 4
        return Request(
            id=str(number),
            prompt=random.integers(0, 1000, int(np.clip(random.lognormal(5.0, 0.8), 8, 2000))),
            sampling=SamplingParams(
                max_tokens=int(np.clip(random.lognormal(5.5, 0.8), 16, 2000)), temperature=0, ignore_eos=True
            ),
            slo=_SLOS[number % len(_SLOS)],
            app=AppContext(application=f"app{workflow % 5}", workflow=str(workflow), stage=f"stage{number % 4}"),
            tenant=f"tenant{workflow % 7}",
            priority=number % 3,
        )
