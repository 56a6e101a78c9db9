"""A model on a device, as far as simulation goes: the cost of its steps and the KV blocks that fit.

Either computed from a hardware profile's published figures (a machine we do not have), or taken from a calibration (the machine
we stand on, see `calibrate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.engine.config import EngineConfig
from hasten.engine.executors.cost import CostModel, roofline
from hasten.engine.executors.recorded import Recording
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.loop import Engine
from hasten.engine.scheduling.base import Order
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError
from hasten.lab.planning.hardware import Hardware
from hasten.lab.planning.shapes import ModelFacts

MEMORY_SHARE = 0.9
"""Share of a device's memory that weights and KV take together; the rest is for activations and the runtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`kv_bytes`: memory for KV when none is asked for, None: as much as the engine's rows can use; `kv_limit_bytes`: most that
    may be asked for, None: not known. `kv_token_bytes`: KV of one token. `source`: what the times rest on, for reports."""

    model: SimulatedModel
    costs: CostModel
    kv_token_bytes: float
    kv_bytes: float | None
    kv_limit_bytes: float | None = None
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def blocks(self, config: EngineConfig) -> int:
        """KV blocks of an engine with this configuration."""
        block_bytes = self.kv_token_bytes * config.kv.block_size
        if (asked := config.kv.memory_bytes) is not None:
            if self.kv_limit_bytes is not None and asked > self.kv_limit_bytes:
                raise ConfigError(f"kv.memory_bytes={asked}: beside {self.model.name} {self.kv_limit_bytes:.0f} are left")
            return int(asked // block_bytes)
        most = config.scheduling.max_rows * -(-self.length(config) // config.kv.block_size)
        if self.kv_bytes is None:
            return most
        return min(most, int(self.kv_bytes // block_bytes))

    def length(self, config: EngineConfig) -> int:
        return min(config.model.max_length or self.model.max_length, self.model.max_length)

    def engine(
        self,
        config: EngineConfig,
        *,
        speed: float = 1.0,
        single_steps: bool = False,
        order: Order | None = None,
        recording: Recording | None = None,
    ) -> Engine:
        """A simulated engine; `order` instead of the configuration's, `recording` as `simulated_engine` takes it. Raises
        ConfigError for what is not modelled, or does not fit."""
        model = SimulatedModel(name=self.model.name, vocabulary=self.model.vocabulary, max_length=self.length(config))
        block_bytes = self.kv_token_bytes * config.kv.block_size
        return simulated_engine(
            config,
            model,
            self.costs,
            blocks=self.blocks(config),
            host_blocks=int(config.kv.host_bytes // block_bytes),
            block_bytes=int(block_bytes),
            speed=speed,
            single_steps=single_steps,
            order=order,
            recording=recording,
            facts={"simulated on": self.source, **self.facts},
        )


def on_hardware(model: ModelFacts, hardware: Hardware) -> Device:
    """A model on one device of a hardware profile. Raises ConfigError when its weights do not fit."""
    kv_bytes = MEMORY_SHARE * hardware.memory_bytes - model.weight_bytes
    if kv_bytes <= 0:
        raise ConfigError(
            f"{model.name} needs {model.weight_bytes / 2**30:.0f} GiB for its weights, and {MEMORY_SHARE:.0%} of a "
            f"{hardware.name} is {MEMORY_SHARE * hardware.memory_bytes / 2**30:.0f} GiB"
        )
    costs = roofline(
        read_bytes=model.read_bytes,
        flops_per_token=model.flops_per_token,
        head_flops=model.head_flops,
        kv_bytes_per_token=model.kv_bytes_per_token,
        attention_flops=model.attention_flops,
        overhead_s=hardware.overhead_s,
        bandwidth=hardware.read_rate,
        rate=hardware.matmul_rate,
        attention_rate=hardware.attention_rate,
        copy_s=2 * model.layers * hardware.copy_call_s,  # keys and values of a layer are copied apart
        copy_token_s=model.kv_bytes_per_token / hardware.host_rate,
    )
    return Device(
        model=SimulatedModel(name=model.name, vocabulary=model.vocabulary, max_length=model.max_length),
        costs=costs,
        kv_token_bytes=model.kv_bytes_per_token,
        kv_bytes=kv_bytes,
        kv_limit_bytes=kv_bytes,
        source=f"published figures of {hardware.name}",
        facts={"hardware": hardware.name, "dtype": model.dtype},
    )
