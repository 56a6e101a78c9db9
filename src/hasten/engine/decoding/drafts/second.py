"""A second model beside the served one: its weights, a KV pool of its own with its own books, and an executor over both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import functional as F

from hasten.engine import models
from hasten.engine.attention.paged import PagedAttention
from hasten.engine.config import ModelConfig
from hasten.engine.decoding.constraints.policy import tokenizer_of
from hasten.engine.depth.all_blocks import AllBlocks
from hasten.engine.executors.local import LocalExecutor
from hasten.engine.kv.books import Books
from hasten.engine.kv.pool import BlockPool
from hasten.engine.kv.prefix_tree import PrefixTree
from hasten.engine.memory import SHARE, Memory, block_bytes, free_bytes
from hasten.engine.technique import ConfigError
from hasten.engine.text import load_text
from hasten.engine.weights.stores import stores_of

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.executors.base import StepResult
    from hasten.engine.executors.step import Model
    from hasten.engine.sequence import Sequence


@dataclass(slots=True)
class SecondModel:
    """`served`: size of the served model's vocabulary. The tokens of both have the same ids, but tables of weights are often
    padded, each to a size of its own."""

    memory: Memory
    books: Books
    executor: LocalExecutor
    served: int

    def reads(self, sequence: Sequence) -> bool:
        """Whether it has a row for every token of the sequence."""
        size = self.model.vocabulary
        return size >= self.served or bool((sequence.tokens < size).all())

    def fitted(self, result: StepResult) -> StepResult:
        """Its logits as if its vocabulary were as large as the served model's: tokens that it does not know get -infinity."""
        missing = self.served - result.logits.shape[1]
        if missing:  # a negative pad crops
            result = replace(result, logits=F.pad(result.logits, (0, missing), value=-inf))
        return result

    @property
    def model(self) -> Model:
        return self.memory.model


def load(parts: Parts, config: ModelConfig, store: str, memory_bytes: int | None, who: str) -> SecondModel:
    """The model that `config` names, with weights in the stores of the technique `store`. Its tokenizer must be the served
    model's. `memory_bytes`: of its pool; None: as many blocks as the served model's, if a share of the free memory holds them.
    `who`: the technique that asks. Raises ConfigError."""
    folder = models.resolve(config.path, weights=config.load_format != "dummy")
    shape = models.ModelShape.parse(models.read_config(folder))
    _same_vocabulary(parts, config, folder, shape.vocabulary)
    length = min(parts.model.max_length, shape.longest)
    model = models.load(config, stores_of(parts.config, store, parts.kernels), parts.model.device, length)
    size = parts.config.kv.block_size
    memory = Memory(model, _blocks(parts, model, memory_bytes, who), size)
    pool = BlockPool(memory.blocks, size)
    books = Books(pool, PrefixTree(pool) if parts.config.kv.reuse is not None else None)
    executor = parts.config.executor
    return SecondModel(
        memory,
        books,
        LocalExecutor(
            memory,
            parts.kernels,
            PagedAttention(),
            AllBlocks(),
            deterministic=executor.deterministic,
            native=executor.native,
        ),
        parts.model.vocabulary,
    )


def _same_vocabulary(parts: Parts, config: ModelConfig, folder: Path, vocabulary: int) -> None:
    """Token ids must mean the same to both."""
    served = parts.model.vocabulary
    dummy = config.load_format == "dummy"
    if vocabulary != served and (dummy or max(tokenizer_of(parts).ids.values(), default=0) >= min(vocabulary, served)):
        raise ConfigError(
            f"{config.path} cannot draft for {parts.config.model.path}: it has {vocabulary:,} tokens, not {served:,}; a draft "
            "model shares the tokenizer of the model it drafts for"
        )
    if dummy:
        return
    here, there = (path / "tokenizer.json" for path in (models.resolve(parts.config.model.path), folder))
    if here.is_file() and there.is_file() and here.read_bytes() == there.read_bytes():
        return
    if tokenizer_of(parts).ids != load_text(config)[0].ids:
        raise ConfigError(
            f"{config.path} cannot draft for {parts.config.model.path}: their tokenizers give other numbers to the same text"
        )


def _blocks(parts: Parts, model: Model, asked_bytes: int | None, who: str) -> int:
    """How many blocks its pool gets of the memory that the served model's pools leave."""
    each = block_bytes(model, parts.config.kv.block_size)
    free = free_bytes(model.device)
    if model.device.type == "cpu":  # pages that nobody has touched yet still count as free
        free -= parts.memory.nbytes + sum(plane.nbytes for plane in parts.memory.host_planes)
    if asked_bytes is None:
        blocks = min(parts.memory.blocks, int(SHARE * free) // each)
        if blocks < 1:
            raise ConfigError(f"{who}: the served model's KV leaves no memory for the draft's; make kv.memory_bytes smaller")
        return blocks
    if asked_bytes < each:
        raise ConfigError(f"{who}: memory_bytes={asked_bytes} holds no block; one takes {each} bytes")
    if asked_bytes > free:
        raise ConfigError(f"{who}: memory_bytes={asked_bytes} is more than the {max(0, free)} bytes that are free")
    return asked_bytes // each
