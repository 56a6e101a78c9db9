"""Puts an engine together from a configuration: model, memory, policies, executor, loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten import kernels as kernel_library
from hasten.engine import models
from hasten.engine.assemble import assemble, require
from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.attention.mass import MeasuredAttention
from hasten.engine.clock import Clock, RealClock
from hasten.engine.config import EngineConfig
from hasten.engine.depth.base import Depth
from hasten.engine.events import EventLog
from hasten.engine.executors.base import Executor
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.local import LocalExecutor
from hasten.engine.executors.step import Model
from hasten.engine.host_pool import HostPool
from hasten.engine.kv.base import Reuse, Store
from hasten.engine.kv.books import Books
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.stores import make_stores
from hasten.engine.loop import Engine
from hasten.engine.memory import Memory, block_bytes, pool_blocks
from hasten.engine.technique import ConfigError, find
from hasten.engine.text.tokenizer import Tokenizer
from hasten.engine.weights.stores import stores_of
from hasten.kernels import Kernels

Progress = Callable[[float, float], None]


@dataclass(slots=True)
class Parts:
    """What policies may be made from; filled in this order, so a policy sees what was built before it."""

    config: EngineConfig
    kernels: Kernels
    eos: frozenset[int]
    depth: Depth
    model: Model
    memory: Memory
    books: Books
    clock: Clock
    events: EventLog
    executor: Executor | None = None
    tokenizer: Tokenizer | None = None
    """None: whoever needs it loads it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What policies have to say for `Built.info`."""

    @property
    def kv_context(self) -> str:
        """What KV depends on beside the weights' fingerprint: what turns weights into KV, to the last bit where that is
        promised, and how it lies in blocks."""
        config = self.config
        names = (config.weights.store, config.depth.policy, config.attention.policy)
        knobs = [config.techniques.get(name) for name in names]
        form = (config.form().name, str(self.model.dtype), config.kv.block_size)
        return json.dumps([names, knobs, form, config.executor.deterministic], sort_keys=True, default=str)

    def second_pool(self, nbytes: int) -> HostPool:
        """As many blocks in host memory as `nbytes` hold. Raises ConfigError when that is none."""
        blocks = nbytes // self.memory.block_bytes
        if not blocks:
            raise ConfigError(f"{nbytes} bytes of host memory hold no block of {self.memory.block_size} tokens")
        return self.memory.second_pool(blocks)

    def stores(self, *asked: Any) -> list[Store]:
        return make_stores(*asked)


@dataclass(slots=True)
class Built:
    """A ready engine and the facts a person wants to know of it."""

    engine: Engine
    parts: Parts
    info: dict[str, Any] = field(default_factory=dict)


def build(
    config: EngineConfig,
    *,
    eos: frozenset[int] = frozenset(),
    clock: Clock | None = None,
    progress: Progress | None = None,
    tokenizer: Tokenizer | None = None,
) -> Built:
    """Load the model and assemble the engine. Raises ConfigError for what cannot be configured, ModelError for what cannot be
    loaded. `progress(done, total)` is called with bytes loaded."""
    began = time.perf_counter()
    device = _device(config.model.device)
    torch.set_num_threads(config.executor.threads or physical_cores())
    kernels = kernel_library.load(device.type)
    deterministic = config.executor.deterministic
    store = stores_of(config, config.weights.store, kernels)
    depth: Depth = config.make(config.depth.policy)
    model = models.load(config.model, store, device, config.model.max_length, depth.sites, progress)
    form = config.form()
    blocks = pool_blocks(model, config.kv.block_size, config.scheduling.max_rows, config.kv.memory_bytes, form)
    host_blocks = config.kv.host_bytes // block_bytes(model, config.kv.block_size, form)
    if config.kv.host_bytes and not host_blocks:
        raise ConfigError(f"kv.host_bytes={config.kv.host_bytes} holds no block of {config.kv.block_size} tokens")
    memory = Memory(model, blocks, config.kv.block_size, host_blocks, form)
    books = Books(BlockPool(blocks, config.kv.block_size, config.make(config.kv.allocator, blocks)))
    parts = Parts(config, kernels, eos, depth, model, memory, books, clock or RealClock(), EventLog(), tokenizer=tokenizer)
    attention: AttentionPolicy = config.make(config.attention.policy, parts)
    require(config, attention)
    repair = find(config.attention.policy).sets.get("kv.repair", config.kv.repair)
    if repair != config.kv.repair:
        raise ConfigError(
            f"{config.attention.policy} and kv.repair={config.kv.repair} cannot run together: it reads chunks beside each "
            f"other, where kv.repair={repair} puts them"
        )
    if config.kv.repair not in (None, config.attention.policy):
        attention = MeasuredAttention(attention)
    if config.kv.repair is not None and any(site.window is not None for site in model.sites):
        raise ConfigError(
            f"kv.repair={config.kv.repair} and {config.model.path} cannot run together: with a sliding window the first tokens "
            "of a chunk, which stand for all that is before it, are out of sight for those that follow"
        )
    if config.executor.kind != "local":
        raise ConfigError(f"executor.kind={config.executor.kind!r}: only 'local' is there")
    costs = CostModel.read(config.executor.costs) if config.executor.costs is not None else None
    executor = LocalExecutor(
        memory, kernels, attention, depth, deterministic=deterministic, native=config.executor.native, costs=costs
    )
    parts.executor = executor
    try:
        if config.kv.reuse is not None:
            reuse: Reuse = config.make(config.kv.reuse, parts)
            books.reuse = reuse
        engine = assemble(parts, executor, lock=memory.lock, host_blocks=host_blocks)
    except BaseException:
        executor.close()  # a folder that was taken, a peer that is asked
        raise
    info = {
        "model": config.model.path,
        "max_length": model.max_length,
        "vocabulary": model.vocabulary,
        "kv_blocks": blocks,
        "kv_bytes": memory.nbytes,
        "weight_bytes": model.weight_bytes,
        "load_s": time.perf_counter() - began,
        **executor.describe(),
        **parts.facts,
    }
    return Built(engine, parts, info)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device={name!r}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device=cuda: torch sees no CUDA device here")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device={name!r}: cpu and cuda are supported")
    return device


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once: two threads of a core share the unit that multiplies."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
