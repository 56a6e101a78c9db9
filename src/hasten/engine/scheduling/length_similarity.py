"""Output lengths of the most similar prompts.

The last outputs of each application are kept with a sketch of their prompts (`lengths/sketch.py`). For a new prompt each of
them has a say: the `nearest` ones by their likeness, exp(likeness / `SHARPNESS`), the others by 1, as a background that
counts where nothing is alike. Likeness is the cosine of the sketches, more for the same stage, less the more the prompts
differ in length. The answer is refined with every token: outputs that were shorter than what has been produced have no say
any more.

This is kernel regression (Nadaraya, 1964; Watson, 1964) over the nearest neighbours, for a whole distribution in place of a
mean. Exact. O(kept x width) once a prompt, then O(bins) a question that is new; memory is bounded by `memory` outputs of some
1 kB an application, and `APPLICATIONS` of those.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.engine.request import Request
from hasten.engine.scheduling.lengths.saved import Arrays, Floats, Learning
from hasten.engine.scheduling.lengths.sketch import WIDTH, sketch
from hasten.engine.scheduling.lengths.survival import BINS, bin_of, lengths
from hasten.engine.technique import Technique

APPLICATIONS = 32
"""Most applications; the one that learned least recently is forgotten."""
CHANCE = 0.2
"""Cosine that sketches of unlike prompts may have."""
SHARPNESS = 0.1
SAME_STAGE = 0.5
FARTHER = 1.0
"""Likeness lost for each e-fold between the prompts' lengths."""
BACKGROUND = 0.01
"""What each output has to say, whatever its prompt."""
_CACHED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    memory: int = 1024
    """Outputs kept of an application; a new one takes the place of the oldest."""
    nearest: int = 64
    """How many of them count by their likeness."""
    file: str = ""
    """Where what was learned is kept; empty: nowhere."""


class Store:
    """The last outputs of an application: a ring of rows, of which `count` are filled."""

    COLUMNS = ("sketches", "log_prompts", "stages", "bins", "ended")

    def __init__(self, memory: int) -> None:
        self.sketches: npt.NDArray[np.float32] = np.zeros((memory, WIDTH), dtype=np.float32)
        self.log_prompts: npt.NDArray[np.float32] = np.zeros(memory, dtype=np.float32)
        self.stages: npt.NDArray[np.int64] = np.zeros(memory, dtype=np.int64)
        self.bins: npt.NDArray[np.int64] = np.zeros(memory, dtype=np.int64)
        self.ended: npt.NDArray[np.bool_] = np.zeros(memory, dtype=bool)
        self.count = 0
        self.next = 0
        self.names: dict[str, int] = {}
        """Numbers of the stages; more than there are rows are never told apart."""

    def stage(self, name: str) -> int:
        if len(self.names) >= len(self.stages) and name not in self.names:
            return -1
        return self.names.setdefault(name, len(self.names))

    def add(self, vector: npt.NDArray[np.float32], request: Request, output: int, ended: bool) -> None:
        row = self.next
        self.sketches[row] = vector
        self.log_prompts[row] = np.log(len(request.prompt))
        self.stages[row] = self.stage(request.app.stage)
        self.bins[row] = bin_of(output)
        self.ended[row] = ended
        self.next = (row + 1) % len(self.stages)
        self.count = max(self.count, row + 1)

    def weights(self, vector: npt.NDArray[np.float32], request: Request, nearest: int) -> Floats:
        """float64 [2, BINS]: how much each bin's outputs have to say, ended and cut short."""
        n = self.count
        alike = np.maximum(self.sketches[:n] @ vector - CHANCE, 0.0)
        alike -= FARTHER * np.abs(self.log_prompts[:n] - np.log(len(request.prompt)))
        alike += SAME_STAGE * (self.stages[:n] == self.names.get(request.app.stage, -2))
        say = np.full(n, BACKGROUND)
        best = np.argpartition(alike, n - nearest)[n - nearest :] if nearest < n else np.arange(n)
        say[best] += np.exp(alike[best] / SHARPNESS)
        bins, ended = self.bins[:n], self.ended[:n]
        return np.stack([np.bincount(bins, say * ended, BINS), np.bincount(bins, say * ~ended, BINS)])


@dataclass(slots=True)
class _Asked:
    """A prompt that was asked about: its sketch, how much had been learned when `weights` were found, and the last answer,
    with the bin of what had been produced then."""

    request: Request
    vector: npt.NDArray[np.float32]
    age: int = -1
    place: int = -1
    weights: Floats = field(default_factory=lambda: np.empty(0))
    lengths: Floats = field(default_factory=lambda: np.empty(0))


class LengthSimilarity(Learning):
    name = "length-similarity"

    def __init__(self, options: Options) -> None:
        for knob in ("memory", "nearest"):
            if getattr(options, knob) < 1:
                raise ValueError(f"length-similarity: {knob} must be at least 1, got {getattr(options, knob)}")
        self._options = options
        self._stores: OrderedDict[str, Store] = OrderedDict()
        self._learned = 0
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        """By request."""
        super().__init__(options.file)

    def observe(self, request: Request, output: int, *, ended: bool) -> None:
        asked = self._asked.get(request.id)
        vector = asked.vector if asked is not None and asked.request is request else sketch(request.prompt)
        if request.sampling.n == 1:
            self._asked.pop(request.id, None)
        name = request.app.application
        store = self._stores.get(name)
        if store is None:
            store = self._stores[name] = Store(self._options.memory)
        store.add(vector, request, output, ended)
        self._stores.move_to_end(name)
        if len(self._stores) > APPLICATIONS:
            self._stores.popitem(last=False)
        self._learned += 1

    def predict(self, request: Request, produced: int) -> Floats | None:
        store = self._stores.get(request.app.application)
        if store is None:
            if not self._stores:
                return None
            store = next(reversed(self._stores.values()))  # a new application: what was seen last
        age = self._learned if self._learned < 256 else self._learned // 64
        place = bin_of(produced + 1)
        asked = self._asked.get(request.id)
        if asked is None or asked.request is not request:
            asked = self._asked[request.id] = _Asked(request, sketch(request.prompt))
            if len(self._asked) > _CACHED:
                self._asked.popitem(last=False)
        if asked.age != age:
            asked.weights = store.weights(asked.vector, request, self._options.nearest)
        if asked.age != age or asked.place != place:
            asked.age, asked.place = age, place
            asked.lengths = lengths(asked.weights, produced)
        return np.maximum(asked.lengths - produced, 1.0)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        meta = {"learned": self._learned, "applications": list(self._stores)}
        meta["stages"] = [store.names for store in self._stores.values()]
        arrays: dict[str, npt.NDArray[Any]] = {}
        for number, store in enumerate(self._stores.values()):
            order = (np.arange(store.count) + (store.next if store.count == len(store.stages) else 0)) % store.count
            for column in Store.COLUMNS:  # the oldest first
                arrays[f"{column}-{number}"] = getattr(store, column)[order]
        return meta, arrays

    def restore(self, meta: dict[str, Any], arrays: Arrays) -> None:
        stores: OrderedDict[str, Store] = OrderedDict()
        for number, (name, stages) in enumerate(zip(meta["applications"], meta["stages"], strict=True)):
            store = stores[name] = Store(self._options.memory)
            for column in Store.COLUMNS:
                kept = arrays[f"{column}-{number}"][-self._options.memory :]
                getattr(store, column)[: len(kept)] = kept
                store.count = len(kept)
            if store.count and not 0 <= store.bins.min() <= store.bins.max() < BINS:
                raise ValueError("a length is out of range")
            store.next = store.count % self._options.memory
            store.names = {str(stage): int(key) for stage, key in stages.items()}
        self._stores, self._learned = stores, int(meta["learned"])
        self._asked.clear()


TECHNIQUE = Technique(
    name="length-similarity",
    seam="scheduling",
    summary="output lengths of the application's most similar earlier prompts",
    exact=True,
    sets={"scheduling.lengths": "length-similarity"},
    options=Options,
    make=lambda context, options: LengthSimilarity(options),
)
