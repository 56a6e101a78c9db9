"""What the claims about batching rules have in common: traffic in which long prompts meet decoding, and this machine
calibrated."""

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
    from hasten.lab.planning.devices import Device

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


def uniform(requests: int, rate: float, low: int, high: int, output: float, seed: int) -> Workload:
    """Poisson arrivals at `rate` a second, prompts of uniform lengths and outputs of normal ones (deviation 30 %)."""
    from hasten.lab.workloads.generate import arrivals

    random = np.random.default_rng(seed)
    at_s = arrivals(random, requests, rate)
    made = [
        TimedRequest(id=str(i), arrival_s=float(t), prompt_tokens=p, output_tokens=o)
        for i, (t, (p, o)) in enumerate(zip(at_s, _lengths(random, requests, low, high, output), strict=True))
    ]
    return Workload(name="prompts of all lengths", requests=made, source=f"Poisson at {rate:g}/s, seed {seed}")


def closed(clients: int, each: int, low: int, high: int, output: float, seed: int) -> Workload:
    """The same lengths, from `clients` that send their next request, of `each`, when the last has been answered."""
    random = np.random.default_rng(seed)
    made: list[TimedRequest] = []
    for client in range(clients):
        for turn, (p, o) in enumerate(_lengths(random, each, low, high, output)):
            parents = (f"{client}, {turn - 1}",) if turn else ()
            made.append(TimedRequest(id=f"{client}, {turn}", arrival_s=0.0, prompt_tokens=p, output_tokens=o, parents=parents))
    return Workload(name="clients in turn", requests=made, source=f"{clients} clients, {each} requests each, seed {seed}")


def _lengths(random: np.random.Generator, count: int, low: int, high: int, output: float) -> list[tuple[int, int]]:
    prompts = random.integers(low, high + 1, count)
    outputs = np.clip(random.normal(output, 0.3 * output, count), 8, None).astype(int)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


def at_once(work: Workload) -> Workload:
    return dataclasses.replace(work, requests=[dataclasses.replace(request, arrival_s=0.0) for request in work])


def variation(run: Run) -> float:
    """Coefficient of variation of the tokens of a pass while requests wait that have not been started."""
    from hasten.lab.bench.metrics import requests, steps

    found = steps(run)
    tokens = found.tokens[found.end_s < float(requests(run).scheduled_s.max())]
    return float(tokens.std() / tokens.mean())


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
        self,
        sides: Sequence[Side],
        workload: Callable[[int], Workload],
        count: int,
        progress: Progress,
        names: Callable[[int], Sequence[str]] | None = None,
    ) -> Iterator[tuple[dict[str, Run], dict[str, Run]]]:
        """The runs of each round by side, measured in turns, and predicted on the same arrivals. `names(round)`: who runs."""
        from hasten.engine.config import EngineConfig
        from hasten.lab.planning.simulate import simulate

        engines = Sides(sides, common=self.common)
        try:
            for runs in engines.rounds(workload, count, progress, names):
                predicted = {
                    side.name: simulate(
                        runs[side.name].workload,
                        self.device,
                        EngineConfig.build(with_=side.with_, set_=[*self.bare, *side.set_]),
                        name=side.name,
                    )
                    for side in sides
                    if side.name in runs
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
