"""An engine on a virtual clock: the same loop, books and policies as `build`, with an executor that only takes time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.engine.assemble import assemble, require
from hasten.engine.clock import VirtualClock
from hasten.engine.config import EngineConfig
from hasten.engine.events import EventLog
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.recorded import RecordedDraft, RecordedSampler, Recording
from hasten.engine.executors.simulated import SimulatedExecutor, SimulatedModel, SimulatedSampler, spans_only
from hasten.engine.executors.simulated_tiers import SimulatedPool, SimulatedStore
from hasten.engine.kv.books import Books
from hasten.engine.kv.pool import BlockPool
from hasten.engine.loop import Engine
from hasten.engine.scheduling.base import Order
from hasten.engine.technique import ConfigError

_MODELLED: dict[str, tuple[Any, ...]] = {
    "attention.policy": ("flashforge", "paged"),
    "weights.store": ("dense",),
    "depth.policy": ("all-blocks",),
    "kv.repair": (None,),
    "decoding.sampler": ("lossless",),
    "decoding.proposers": ((),),
    "decoding.forced": (None,),
    "decoding.controller": (None,),
}
"""What the cost model knows the price of. Keys that sequences share it counts for each."""
_LOOKING = (("prompt-lookup",), ("suffix-tree",), ("prompt-lookup", "suffix-tree"), ("suffix-tree", "prompt-lookup"))
"""Proposers that need nothing but tokens."""


@dataclass(slots=True)
class SimulatedParts:
    """What policies are made from (`assemble.Parts`)."""

    config: EngineConfig
    model: SimulatedModel
    books: Books
    clock: VirtualClock
    events: EventLog
    executor: SimulatedExecutor
    block_bytes: int
    """0: not known."""
    eos: frozenset[int] = frozenset()

    kv_context = ""

    def second_pool(self, nbytes: int) -> SimulatedPool:
        """As many blocks in host memory as `nbytes` hold. Raises ConfigError."""
        if not self.block_bytes or nbytes < self.block_bytes:
            raise ConfigError(f"{self.model.name}: {nbytes} bytes of host memory hold no block of {self.block_bytes} bytes")
        return SimulatedPool(self.executor, nbytes // self.block_bytes, self.block_bytes)

    def stores(self, second: SimulatedPool, options: Any, price: Any, retention: Any, codec_name: str) -> list[SimulatedStore]:
        """A disk of the rate stated. Raises ConfigError for a peer."""
        if options.peer:
            raise ConfigError("tiered: peer: what a peer has cannot be simulated")
        if not options.disk:
            return []
        return [SimulatedStore(self.clock, options.disk_bytes, retention(), options.disk_rate)]


def simulated_engine(
    config: EngineConfig,
    model: SimulatedModel,
    costs: CostModel,
    *,
    blocks: int,
    host_blocks: int = 0,
    speed: float = 1.0,
    single_steps: bool = False,
    order: Order | None = None,
    facts: Mapping[str, Any] | None = None,
    block_bytes: int = 0,
    recording: Recording | None = None,
) -> Engine:
    """An engine whose steps take what `costs` says, divided by `speed`, with `blocks` blocks of KV. `single_steps`: never
    advance steps together (the events are the same). `order`: instead of the configuration's, for orders that know what no
    engine can. `block_bytes`: of a block's KV, for parts that have a budget of bytes. `recording`: of all
    requests that there will be, so that proposers have something to look at; its draft model is asked after them. Raises
    ConfigError for techniques whose cost is not modelled."""
    for path, known in _MODELLED.items():
        section, field = path.split(".")
        if path == "decoding.proposers" and recording is not None:
            known = (*known, *_LOOKING)
        if (found := getattr(getattr(config, section), field)) not in known:
            raise ConfigError(f"{path}={found} cannot be simulated: the cost model does not know what it costs")
    if blocks < 1:
        raise ConfigError(f"{model.name}: no memory is left for KV")
    # No tokens are drawn, so there is nothing to constrain: requests that ask for it are refused.
    config = config.model_copy(deep=True)
    config.decoding.constraint = None
    clock = VirtualClock()
    pool = BlockPool(blocks, config.kv.block_size, config.make(config.kv.allocator, blocks))
    executor = SimulatedExecutor(model, costs, clock, config.kv.block_size, speed=speed, facts=dict(facts or {}))
    parts = SimulatedParts(config, model, Books(pool), clock, EventLog(keep=None), executor, block_bytes)
    require(config, executor.attention)
    if config.kv.reuse is not None:
        parts.books.reuse = config.make(config.kv.reuse, parts)
    return assemble(
        parts,
        executor,
        lock=threading.RLock(),
        host_blocks=host_blocks,
        sampler=RecordedSampler(recording) if recording is not None else SimulatedSampler(model.vocabulary),
        proposer=RecordedDraft(recording, clock, model.vocabulary) if recording is not None and recording.draft else None,
        order=order,
        build_batch=spans_only,
        steady=not single_steps,
    )
