"""The last part of building an engine, the same around a real executor and a simulated one. No torch is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hasten.engine.attention.base import AttentionPolicy
from hasten.engine.batch import Batch
from hasten.engine.clock import Clock
from hasten.engine.config import EngineConfig
from hasten.engine.context_linking import ContextLinker
from hasten.engine.decoding.base import Policies, Proposer, Sampler
from hasten.engine.decoding.chain import chained
from hasten.engine.events import EventLog
from hasten.engine.executors.base import Executor
from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.kv.base import ContextRepair, Tiered
from hasten.engine.kv.books import Books
from hasten.engine.kv.boundaries import Boundaries
from hasten.engine.kv.chunks import ChunkStore
from hasten.engine.kv.host import HostTier
from hasten.engine.kv.parallel import ParallelLinker
from hasten.engine.kv.plain_chunks import PlainChunks
from hasten.engine.kv.retention import LRU, RETENTIONS, Retention
from hasten.engine.kv.variants import PerRepair
from hasten.engine.ledger import Ledger
from hasten.engine.linking import Linker
from hasten.engine.loop import Engine
from hasten.engine.scheduling.base import Limits, Order
from hasten.engine.sequence import Span
from hasten.engine.technique import ConfigError, find


class Served(Protocol):
    """What the loop must know of the model. `fingerprint`: equal ones may share KV."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def max_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


class Parts(Protocol):
    """What every policy may be made from; a real engine's offers more (`build.Parts`)."""

    @property
    def config(self) -> EngineConfig: ...
    @property
    def eos(self) -> frozenset[int]: ...
    @property
    def model(self) -> Served: ...
    @property
    def books(self) -> Books: ...
    @property
    def kv_context(self) -> str: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def events(self) -> EventLog: ...


def assemble(
    parts: Parts,
    executor: Executor,
    *,
    lock: Any,
    host_blocks: int,
    sampler: Sampler | None = None,
    proposer: Proposer | None = None,
    order: Order | None = None,
    build_batch: Callable[[list[Span]], Batch] | None = None,
    steady: bool = False,
) -> Engine:
    """The loop and its policies around an executor; `sampler` and `order` instead of the configuration's, `proposer` after
    those of the configuration, `build_batch` and `steady` as `Engine` takes them."""
    config = parts.config
    tier = None
    if host_blocks:
        allocator = config.make(config.kv.allocator, host_blocks)
        tier = HostTier(host_blocks, config.kv.block_size, executor, allocator, by_block=config.kv.copies == "blocks")
    linker = None
    if config.kv.boundaries and config.kv.repair is None:
        raise ConfigError(f"kv.boundaries={config.kv.boundaries} needs a repair of chunks: --with mpic, say")
    if config.kv.repair is not None:
        linker = make_linker(config, parts, executor)
        parts.books.chunks = linker.store
    ledger = Ledger(
        parts.books,
        tier,
        executor.attention,
        parts.events,
        parts.clock,
        parts.model.fingerprint,
        keep_copies=config.kv.keep_copies,
        linker=linker,
    )

    def policy(name: str | None) -> Any:
        return config.make(name, parts) if name is not None else None

    proposers = [*(policy(name) for name in _proposers(config)), *([proposer] if proposer is not None else [])]
    if config.decoding.governor is not None and not proposers:
        raise ConfigError(f"{config.decoding.governor} decides how much is drafted, and nothing drafts: name a proposer too")
    decoding = Policies(
        sampler=sampler if sampler is not None else policy(config.decoding.sampler),
        constraint=policy(config.decoding.constraint),
        proposer=chained(proposers),
        governor=policy(config.decoding.governor),
        controller=policy(config.decoding.controller),
    )
    return Engine(
        executor=executor,
        ledger=ledger,
        lock=lock,
        clock=parts.clock,
        events=parts.events,
        order=order if order is not None else policy(config.scheduling.order),
        batching=policy(config.scheduling.batching),
        residency=policy(config.scheduling.residency),
        lengths=policy(config.scheduling.lengths),
        decoding=decoding,
        limits=Limits(config.scheduling.max_tokens, config.scheduling.max_rows),
        max_length=parts.model.max_length,
        eos=parts.eos,
        queue_limit=config.scheduling.queue_limit,
        patience_s=config.scheduling.patience_s,
        build_batch=build_batch,
        steady=steady,
    )


def make_linker(config: EngineConfig, parts: Parts, executor: Executor) -> Linker:
    """What reuses chunks of prompts. Raises ConfigError."""
    if isinstance(parts.books.reuse, Tiered):
        raise ConfigError(
            f"kv.reuse={config.kv.reuse} and kv.repair={config.kv.repair} cannot run together: chunks lie in the pool only"
        )

    def price(tokens: int) -> float:
        return executor.price(StepShape(tokens, 1, 0, tokens, span_pairs(tokens, 0)))

    name, pool, kv = config.kv.repair or "", parts.books.pool, config.kv
    length, context = parts.model.max_length, parts.kv_context

    def store(usual: Retention, variants: int = 1) -> ChunkStore:
        retention = usual if kv.chunk_retention is None else RETENTIONS[kv.chunk_retention]()
        return ChunkStore(pool, retention, kv.chunk_share, variants)

    technique = find(name)
    if technique.sets.get("kv.repair") != name:
        raise ConfigError(f"kv.repair={name}: {name} repairs no chunks")
    if technique.seam == "attention":
        if config.attention.policy != name:
            raise ConfigError(
                f"kv.repair={name} and attention.policy={config.attention.policy} cannot run together: chunks beside each "
                f"other are read by {name} alone"
            )
        if kv.boundaries:
            raise ConfigError(
                f"kv.repair={name} and kv.boundaries={kv.boundaries} cannot run together: pieces of one text do not stand "
                "beside each other"
            )
        return ParallelLinker(parts.books, store(LRU()), PlainChunks("none"), price, length, context)
    repair = config.make(name, parts)
    in_context = isinstance(repair, ContextRepair)
    for what in [f"kv.repair={name}"] * in_context + [f"kv.boundaries={kv.boundaries}"] * bool(kv.boundaries):
        if config.executor.deterministic:
            raise ConfigError(
                f"{what} and executor.deterministic=true cannot run together: what is computed, and so the answer, depends on "
                "what earlier requests left"
            )
    boundaries = Boundaries(kv.boundaries) if kv.boundaries else None
    if isinstance(repair, ContextRepair):
        kept = store(PerRepair(), repair.variants)
        return ContextLinker(parts.books, kept, repair, price, length, context, boundaries)
    return Linker(parts.books, store(LRU()), repair, price, length, context, boundaries)


def _proposers(config: EngineConfig) -> list[str]:
    """In the order in which they are asked."""
    forced = config.decoding.forced
    return [*([forced] if forced is not None else []), *config.decoding.proposers]


def require(config: EngineConfig, attention: AttentionPolicy) -> None:
    """Refuse what the attention policy's store cannot do, naming both sides."""
    if config.decoding.drafts_if_possible and not {"truncate", "tree"} <= attention.supports:
        config.decoding.proposers, config.decoding.governor = (), None
    drafts = _proposers(config)
    needs = [
        (config.kv.reuse is not None, "prefix", f"kv.reuse={config.kv.reuse}"),
        (config.kv.repair is not None, "link", f"kv.repair={config.kv.repair}"),
        (config.kv.host_bytes > 0, "swap", f"kv.host_bytes={config.kv.host_bytes}"),
        (bool(drafts), "truncate", ", ".join(drafts)),
        (bool(config.decoding.proposers), "tree", ", ".join(config.decoding.proposers)),
    ]
    for wanted, feature, setting in needs:
        if wanted and feature not in attention.supports:
            raise ConfigError(f"{config.attention.policy} and {setting} cannot run together: its store does no {feature}")
