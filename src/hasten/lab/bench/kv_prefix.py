"""KV of a prefix taken out of an engine, changed, and put back: what a stored cache does to answers and likelihoods."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hasten.engine.batch import BatchBuilder
from hasten.engine.kv.base import ReuseKey
from hasten.engine.kv.view import View
from hasten.engine.llm import LLM
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Sequence, Span
from hasten.lab.testbed.evaluate import material_for
from hasten.lab.testbed.material import Material

Planes = list[npt.NDArray[Any]]
"""Keys and values of site after site, [blocks, kv heads, block size, dim]; bfloat16 as its bit patterns, uint16."""


class PrefixLab:
    """Around an LLM with prefix caching, idle between calls."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.books = llm.parts.books
        self.memory = llm.parts.memory
        self.size: int = self.books.pool.block_size
        self.cos_sin: npt.NDArray[np.float32] = llm.parts.model.sites[0].cos_sin.numpy()
        self._key = ReuseKey(llm.parts.model.fingerprint)
        self._reuse = self.books.reuse

    @cached_property
    def material(self) -> Material:
        """What questions are made of; reading it takes seconds."""
        return material_for(self.llm)

    def whole(self, length: int) -> int:
        """The tokens of as many whole blocks as fit into `length`."""
        return length // self.size * self.size

    def compute(self, tokens: Seq[int]) -> None:
        """Have the KV of `tokens`, whole blocks, in the cache; what is there already is not computed again."""
        self.llm.generate([[*tokens, tokens[0]]], SamplingParams(max_tokens=1, temperature=0))

    def read(self, tokens: Seq[int], start: int = 0) -> Planes:
        """Cached KV of tokens [start, len(tokens)), whole blocks."""
        blocks = self._found(tokens)
        wanted = torch.tensor(blocks[start // self.size :])
        planes = [_numpy(plane[wanted]) for plane in self.memory.planes]
        self.books.pool.drop(blocks)
        return planes

    def plant(self, tokens: Seq[int], planes: Planes, start: int = 0) -> None:
        """Have `planes` in the cache as the KV of tokens [start, len(tokens)); that of those before is there already."""
        view = View()
        if start:
            view.add_blocks(self._found(tokens[:start]), self.size, start, 0)
        self.books.append(view, np.arange(start, len(tokens), dtype=np.int32))
        blocks = torch.from_numpy(view.runs[start // self.size :, 0].astype(np.int64))
        for plane, held in zip(self.memory.planes, planes, strict=True):
            plane[blocks] = _torch(held, plane.dtype)
        self._reuse.insert(self._key, np.asarray(tokens, np.int32), view)
        self.books.close(view)

    def forget(self) -> None:
        self._reuse.evict(self.books.pool.blocks)

    def nats(self, tokens: Seq[int], cached: int, last: int | None = None) -> float:
        """Of the `last` tokens (None: from cached + 1 on), all read behind the `cached` ones, whose KV is in the cache."""
        request = Request(id="nats", prompt=np.asarray(tokens, np.int32), sampling=SamplingParams(max_tokens=1))
        seq = Sequence(-1, request, 0, 0, self._key, 0.0)
        seq.view.add_blocks(self._found(tokens[:cached]), self.size, cached, 0)
        read, positions, segments = seq.piece(cached, len(tokens))
        slots = self.books.append(seq.view, positions)
        span = Span(seq, len(read), read, positions, segments, slots, logits=list(range(len(read) - 1)))
        logits = self.llm.engine.executor.submit(BatchBuilder().build([span])).wait().logits.float()
        self.books.close(seq.view)
        chosen = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(read[1:].astype(np.int64))[:, None])
        return -float(chosen[-last if last else 0 :].sum())

    def _found(self, tokens: Seq[int]) -> list[int]:
        """The blocks of `tokens`, referenced once more. Raises LookupError when they are not all cached."""
        wanted = np.asarray([*tokens, 0], np.int32)  # a look-up never covers the last token
        found = self._reuse.match(self._key, wanted, len(tokens))
        blocks = [] if not found else found[0].runs[:, 0].tolist()
        if len(blocks) * self.size != len(tokens):
            self.books.pool.drop(blocks)
            raise LookupError(f"{len(blocks) * self.size} of {len(tokens)} tokens are cached")
        return blocks


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _torch(array: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
