"""What the claims about batching rules have in common: traffic in which long prompts meet steady decoding, this machine
calibrated, and the highest rate that keeps a target between tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.lab.claims.sides import Side, Sides
from hasten.lab.workloads.base import TimedRequest, Workload

if TYPE_CHECKING:
    from hasten.lab.bench.run import Run
    from hasten.lab.claims.virtual import Virtual
    from hasten.lab.planning.devices import Device

TRACE = "azure-llm-2023-conv"
CONTEXT = 8192
QUEUE_S = 2.0
"""Capacity is the highest rate that also keeps the median time from due to first scheduled at most this, over the later half of
the requests: a rate that cannot last must not pass because its queue was short at first."""
Progress = Callable[[str, float], None]


def steady_and_long(
    decoders: int, tokens: int, prompts: int, every_s: float, low: int, high: int, seed: int, output: int = 16
) -> Workload:
    """`decoders` clients that ask for short answers, one after the other, about `tokens` tokens in all each; meanwhile a prompt
    of `low` to `high` tokens comes every `every_s` seconds, `prompts` of them, each for `output` tokens."""
    random = np.random.default_rng(seed)
    made: list[TimedRequest] = []
    for client in range(decoders):
        left, before = tokens, ""
        while left > 0:
            # Lengths of their own, so that clients do not begin anew together.
            length = min(left, int(random.integers(100, 300)))
            left -= length
            id = f"client {client}, {left} left"
            parents = (before,) if before else ()
            made.append(TimedRequest(id=id, arrival_s=0.0, prompt_tokens=16, output_tokens=length, parents=parents))
            before = id
    for number in range(prompts):
        at_s = (number + 0.5 + 0.3 * random.uniform(-1, 1)) * every_s
        length = int(random.integers(low, high + 1))
        made.append(TimedRequest(id=f"prompt {number}", arrival_s=at_s, prompt_tokens=length, output_tokens=output))
    return Workload(
        name="steady decoding and long prompts",
        requests=made,
        source=f"{decoders} clients in turn, {tokens} tokens each; {prompts} prompts of {low} to {high} tokens, seed {seed}",
    )


def long_ones(work: Workload) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which requests of `steady_and_long` are the long prompts: bool [n]."""
    return np.array([request.id.startswith("prompt") for request in work])


@dataclasses.dataclass(slots=True)
class Machine:
    """This machine as calibrated: `device` predicts it, `common` are the settings of every engine on it, costs included."""

    device: Device
    common: tuple[str, ...]
    bare: tuple[str, ...]
    """`common` without the costs, for simulations."""

    @classmethod
    def calibrate(cls, common: Sequence[str], folder: str, budget_s: float, progress: Progress) -> Machine:
        """Measure the built-in model under `common`; the calibration is kept in `folder`."""
        from hasten.engine.build import build
        from hasten.engine.config import EngineConfig
        from hasten.lab.planning import calibrate

        progress("calibrating", 0.0)
        built = build(EngineConfig.build(set_=list(common)))
        try:
            calibrate.collect(built, rounds=1, budget_s=budget_s / 3)  # warms up
            found = calibrate.measure(built, rounds=2, budget_s=budget_s)
        finally:
            built.engine.executor.close()
        path = Path(folder) / "calibration.json"
        found.save(path)
        return cls(found.device(), (*common, f"executor.costs={path}"), tuple(common))

    def rounds(
        self, sides: Sequence[Side], workload: Callable[[int], Workload], count: int, progress: Progress
    ) -> Iterator[tuple[dict[str, Run], dict[str, Run]]]:
        """The runs of each round by side, measured in turns, and predicted on the same arrivals."""
        from hasten.engine.config import EngineConfig
        from hasten.lab.planning.simulate import simulate

        engines = Sides(sides, common=self.common)
        try:
            for runs in engines.rounds(workload, count, progress):
                predicted = {
                    side.name: simulate(
                        runs[side.name].workload,
                        self.device,
                        EngineConfig.build(with_=side.with_, set_=[*self.bare, *side.set_]),
                        name=side.name,
                    )
                    for side in sides
                }
                yield runs, predicted
        finally:
            engines.close()


def decode_only_s(device: Device, rows: int, context: int) -> float:
    """Predicted seconds of a step in which `rows` sequences of `context` tokens each get one token."""
    read = rows * (context + 1)
    return device.costs.step(StepShape(rows, rows, rows, read, read))


def prompt_s(device: Device, tokens: int) -> float:
    """Predicted seconds of a prompt that runs whole and alone."""
    return device.costs.step(StepShape(tokens, 1, 1, tokens, span_pairs(tokens, 0)))


def trace(requests: int, first: int) -> Workload:
    """`requests` successive requests of the trace from the `first` on; those beyond the model's context left out."""
    from hasten.lab.workloads import load
    from hasten.lab.workloads.transform import cut

    whole = load(TRACE)
    fitting = [r for r in whole if r.prompt_tokens + r.output_tokens < CONTEXT]
    whole = dataclasses.replace(whole, requests=fitting)
    return cut(whole, first, first + requests)


def capacity(
    sides: Virtual, name: str, work: Callable[[int], Workload], seconds: float, tbt_s: float, start: float, tolerance: float
) -> float:
    """The highest rate, in requests per second, at which a side keeps the 99th percentile of the time between tokens at most
    `tbt_s` and the median queueing time at most `QUEUE_S`; searched from `start` within `tolerance`. `work(count)`: so many
    requests; arrivals of `seconds` are replayed at each rate. 0 where not even a 16th of `start` keeps them."""
    from hasten.lab.bench.metrics import requests, summary
    from hasten.lab.bench.saturation import Probe, search
    from hasten.lab.workloads.transform import scale_load

    def measure(rate: float) -> Probe:
        run = sides.replay(name, scale_load(work(max(20, round(rate * seconds))), rate))
        queue_s = requests(run).queue_s
        late = float(np.median(queue_s[len(queue_s) // 2 :]))
        return Probe(rate, float(summary(run)["gap_p99_s"] <= tbt_s and late <= QUEUE_S))

    return search(measure, start, attainment=1.0, tolerance=tolerance).rate
