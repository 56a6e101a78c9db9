"""Replays a workload on a virtual clock: on this machine as it was calibrated, or on hardware known by published figures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from hasten.engine.config import EngineConfig, parse_with
from hasten.engine.scheduling.demand.store import Demand
from hasten.engine.technique import ConfigError
from hasten.lab.bench.drive import Progress, replay
from hasten.lab.bench.run import Run
from hasten.lab.planning import hardware, shapes
from hasten.lab.planning.devices import Device, on_hardware
from hasten.lab.planning.fleet import replay_fleet
from hasten.lab.workloads.base import Workload
from hasten.serving.cluster.base import Dispatcher
from hasten.serving.cluster.hexgen import HexGenDispatcher
from hasten.serving.cluster.least_outstanding import LeastOutstanding
from hasten.serving.cluster.round_robin import RoundRobin

HERE = "here"
"""The hardware name that stands for this machine's calibration."""


def _hexgen(alpha: str = "0.5", graphs: str = "") -> Dispatcher:
    return HexGenDispatcher(float(alpha), Demand.load(graphs) if graphs else None)


DISPATCHERS: dict[str, Callable[..., Dispatcher]] = {
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "hexgen": _hexgen,
}


def device(model: str, on: str, config: EngineConfig) -> Device:
    """The device that `on` names: `here`, a calibration's file, a hardware profile or a file of one. Raises ConfigError."""
    if on == HERE:
        from hasten.lab.planning.calibrate import here  # needs torch, which a published device does not

        return here(model, config).device()
    if on.endswith(".json") and Path(on).is_file() and '"costs"' in Path(on).read_text(encoding="utf-8"):
        from hasten.lab.planning.calibrate import Calibration

        return Calibration.load(Path(on)).device()
    dtype = config.model.dtype if config.model.dtype != "auto" else "bfloat16"
    return on_hardware(shapes.shape(model, dtype), hardware.profile(on))


def dispatcher(text: str) -> Dispatcher:
    """From `name:knob=value:...`. Raises ConfigError for a name or knob that is not known, and for bad values."""
    name, knobs = parse_with(text)
    if name not in DISPATCHERS:
        raise ConfigError(f"no dispatcher is called {name!r}; known: {', '.join(DISPATCHERS)}")
    make = DISPATCHERS[name]
    known = inspect.signature(make).parameters
    if unknown := [knob for knob in knobs if knob not in known]:
        raise ConfigError(f"{name} has no knob called {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    try:
        return make(**knobs)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def simulate(
    workload: Workload,
    on: Device,
    config: EngineConfig,
    *,
    speeds: Sequence[float] = (1.0,),
    dispatch: str | Dispatcher = "least-outstanding",
    name: str = "",
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Replay `workload` on one simulated engine for each of `speeds` (relative to the device), all with the same configuration.
    `limit`: as `drive.replay` takes it. Raises ConfigError."""
    if not speeds or any(not 0 < speed < float("inf") for speed in speeds):
        raise ConfigError(f"speeds must be positive numbers, one an engine, got {list(speeds)}")
    if len(speeds) == 1:
        return replay(on.engine(config, speed=speeds[0]), workload, name=name, seed=seed, limit=limit, progress=progress)
    engines = [on.engine(config, speed=speed) for speed in speeds]
    chosen = dispatcher(dispatch) if isinstance(dispatch, str) else dispatch
    return replay_fleet(engines, chosen, workload, speeds=speeds, name=name, seed=seed, limit=limit, progress=progress)
