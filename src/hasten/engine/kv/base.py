"""The kv seam: who owns which block, what of a request's KV already exists, and where blocks go when memory is short.

The books (`pool`, `view`, `books`) are the core's and hold no tensors: a block is a number. What may vary sits behind the
protocols here. Invariants every implementation keeps:

- a block is free, or its reference count is the number of views and caches that hold it; nobody writes a block whose count
  is above one (the books copy it first);
- KV found for a request was computed by the same weights, adapter and depth program, under the same tenant and salt
  (`ReuseKey`), from the same tokens at the positions stated, or, where a request marked chunks, from a chunk's tokens by
  themselves (`Repair`) or behind other chunks (`ContextRepair`);
- a block that an unfinished transfer writes is neither read nor freed; one that it reads may be let go of, but whoever gets it
  waits for that transfer, and only for it, before writing (`BlockPool`);
- transfers take place in the order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hasten.engine.kv.blockfile import Head
    from hasten.engine.kv.retention import Facts
    from hasten.engine.kv.variants import Notes
    from hasten.engine.kv.view import View

Ints = npt.NDArray[np.int32]


class NoBlocks(Exception):
    """The pool cannot give the blocks asked for; the books are unchanged."""


class Dearer(Exception):
    """A store has the chunk, but by now computing it is sooner done than fetching it."""


@dataclass(frozen=True, slots=True)
class ReuseKey:
    """Everything but the tokens that KV depends on, or that must not be shared across."""

    weights: str
    adapter: str = ""
    program: str = ""
    tenant: str = ""
    salt: str = ""


class Readiness(Enum):
    READY = "ready"
    LOADING = "loading"
    RECOMPUTE = "recompute"


@runtime_checkable
class Handle(Protocol):
    """A transfer under way. `done` never blocks; `wait` blocks and raises what went wrong, every time. `seconds`: how long the
    copying itself took, 0 until it is done. `ends_s`: engine time when it is worth looking again: on a virtual clock when it is
    over, on a real one infinity, as only looking tells."""

    @property
    def seconds(self) -> float: ...
    @property
    def ends_s(self) -> float: ...
    def done(self) -> bool: ...
    def wait(self) -> None: ...


class Load(Protocol):
    """KV that slower tiers hold, to be fetched into the pool for one sequence. Found, it holds and costs nothing: it may be
    forgotten, and of what was found something may have gone when it is begun."""

    def begin(self) -> Ints:
        """Take blocks and start. Their runs, as in `Found.runs`: of fewer tokens than the span where it is not all there any
        more. Once. Raises NoBlocks, with nothing changed."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more: what has not set out for the pool stays where it is. `done` may be true at once."""
        ...

    def done(self) -> bool:
        """Nothing will write the blocks any more. Never blocks."""
        ...

    def wait(self) -> None:
        """Until `done`. Raises nothing: what went wrong shows in `end`."""
        ...

    def stirs(self) -> bool:
        """Some part of it has got further since it was last settled. Never blocks and changes nothing."""
        ...

    @property
    def ends_s(self) -> float:
        """As `Handle.ends_s`, of whatever comes next."""
        ...

    def end(self) -> int:
        """How many tokens of the span, from its beginning, are there. Once, when it is done."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """KV of tokens [start, stop) of a prompt. READY spans name the blocks that hold it, one entry per run of slots: `runs`
    int32 [r, 4] as in `View.runs`. The blocks are already referenced on the caller's behalf. LOADING spans, which come last,
    hold none: `load` does when it is begun."""

    start: int
    stop: int
    readiness: Readiness
    runs: Ints
    load: Load | None = None


class Shift(NamedTuple):
    """A block of dense KV to be copied: the first slot of `source` stands at position `came_from`, that of `target` at
    `goes_to`, the others at those that follow."""

    source: int
    target: int
    came_from: int
    goes_to: int


class Allocator(Protocol):
    """Which free block to hand out. Owns the free list and nothing else. `together`: blocks that a cache should give up at a
    time, for what comes free to lie together."""

    @property
    def together(self) -> int: ...

    def take(self, count: int, near: int = -1) -> list[int]:
        """`count` free blocks (the caller checked that there are so many), close to block `near` if it can."""
        ...

    def give(self, blocks: Seq[int]) -> None: ...

    @property
    def free(self) -> int: ...


class Reuse(Protocol):
    """Finds KV that already exists. `match` gives spans in ascending order that do not overlap; what lies between them is
    computed. It never covers the last token of the prompt: its logits are wanted."""

    def match(self, key: ReuseKey, tokens: Ints, limit: int) -> list[Found]: ...
    def insert(self, key: ReuseKey, tokens: Ints, view: View) -> None:
        """Offer the KV of `tokens`, all computed and held by `view` (entry i is token i)."""
        ...

    def evict(self, count: int) -> int:
        """Give up to `count` blocks back to the pool; the number given."""
        ...


@dataclass(frozen=True, slots=True)
class Linked:
    """A chunk of a prompt, tokens [start, stop)."""

    start: int
    stop: int


class Repair(Protocol):
    """Of chunks that are computed by themselves: which of their tokens are computed once more, now that something stands before
    them.

    They run through the layers together with all tokens between the chunks, each attending to whatever stands before it in the
    assembled view: to what is computed again as it is then, to the others as they were computed by themselves. What is said
    must not depend on what was found in a cache: a request's output depends on the request alone."""

    def anew(self, chunks: Seq[Linked]) -> Seq[tuple[int, int]]:
        """Ranges of tokens, within `chunks` (ascending, disjoint). If this raises, everything is computed again."""
        ...


@runtime_checkable
class ContextRepair(Protocol):
    """Of chunks that are computed where they first stand, behind others: what is kept of them, which of it is reused elsewhere,
    and which of its tokens are computed once more there.

    What is said depends on what was found, and so does a request's output: an engine that promises equal answers to equal
    requests (`executor.deterministic`) refuses this kind. `variants`: most that are kept of one chunk."""

    @property
    def variants(self) -> int: ...

    @property
    def stop_after(self) -> int | None:
        """In how many layers in a row a chunk must be ranked `low` before its mending ends; None: it goes through all."""
        ...

    def low(self, mass: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Bool [chunks]: which chunks of a prompt a layer ranks low. `mass` float32 [chunks]: of what the text behind the last
        chunk attends to the share that lies in each, mean of its tokens and of heads. If this raises, mending goes on."""
        ...

    def note(self, front: Seq[bytes], sizes: Seq[int], mass: npt.NDArray[np.float32]) -> Notes:
        """A chunk was computed. `front`: names of the chunks before it, in order; `sizes` in tokens of these and, last, its
        own; `mass` float32 [tokens, len(sizes)]: of what each of its tokens attends to the share that lies in each, mean of
        heads and layers."""
        ...

    def choose(self, front: Seq[bytes], name: bytes, kept: Seq[Notes]) -> tuple[int, Ints] | None:
        """Which of the variants `kept`, at least one, takes the place of the chunk `name` behind the chunks `front`, and which
        of its tokens, by number within it, are computed again; None: it is computed anew, and kept as another variant. If this
        raises, everything is computed."""
        ...


@runtime_checkable
class Tiered(Reuse, Protocol):
    """A `Reuse` that keeps KV in slower tiers too and moves it by itself."""

    def settle(self, wait: bool = False) -> bool:
        """Take note of transfers that are over, once a step; whether some read the pool. `wait`: for one of those."""
        ...

    @property
    def moving(self) -> bool:
        """Some transfer reads or writes the pool."""
        ...

    def counts(self) -> dict[str, float]:
        """What it did so far, for metrics."""
        ...

    def audit(self) -> None:
        """AssertionError when its books are wrong (tests, debugging)."""
        ...

    def close(self) -> None:
        """Finish what is under way and write what is to be kept."""
        ...


class Store(Protocol):
    """A place of chunks beyond host memory, which they reach and leave through blocks of the second pool. Called by the
    engine's thread; the work is done elsewhere."""

    def holds(self, name: bytes) -> int | None:
        """Bytes that fetching the chunk moves; None when it is not there. Never blocks."""
        ...

    def fetch(self, wanted: Head, blocks: Seq[int]) -> Handle:
        """Start bringing the chunk called `wanted.name` into blocks of the second pool. What comes is checked against `wanted`
        (whose codec says nothing): `wait` raises for everything else, and what the blocks then hold is of no account."""
        ...

    def keep(self, head: Head, blocks: Seq[int], facts: Facts) -> Handle | None:
        """Start storing a chunk that lies in blocks of the second pool; None when it will not be."""
        ...

    def used(self, name: bytes) -> None:
        """A look-up used the chunk, wherever it was found."""
        ...

    def lose(self, name: bytes) -> None:
        """What it has under this name is no good, or could not be stored."""
        ...

    def seconds(self, nbytes: int) -> float:
        """Predicted, from now on, of fetching so many bytes."""
        ...

    def audit(self) -> None: ...
    def close(self) -> None: ...


class Tier(Protocol):
    """A slower place for blocks. Transfers are asynchronous and take place in order."""

    @property
    def room(self) -> int:
        """Blocks that `take` would still give."""
        ...

    def take(self, count: int, near: int = -1) -> list[int]:
        """Places for `count` blocks, close to place `near` if it can. Raises NoBlocks when there is no room."""
        ...

    def put(self, blocks: Seq[int], stored: Seq[int]) -> Handle:
        """Start copying pool `blocks` to places `stored`."""
        ...

    def get(self, stored: Seq[int], blocks: Seq[int]) -> Handle:
        """Start copying `stored` back into pool `blocks`; the copy here stays until `forget`."""
        ...

    def forget(self, stored: Seq[int]) -> None: ...
    def audit(self, stored: Iterable[int]) -> None:
        """AssertionError unless exactly the places `stored` are taken (tests, debugging)."""
        ...


class Eviction(Protocol):
    """Which cached block to lose first."""

    def score(self, last_used: int, hits: int, depth: int) -> float:
        """Lower goes first. `last_used` counts look-ups, `hits` how often it was found, `depth` blocks before it."""
        ...
