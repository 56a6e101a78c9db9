"""Shortest remaining processing time first, by predicted lengths.

SRPT minimises the mean time in a system with one server (Schrage, A Proof of the Optimality of the Shortest Remaining
Processing Time Discipline, 1968). Here the processing time left is a prediction in seconds: what is left of the prompt, by
the cost model, and the mean of what is left of the output (`View.remaining_output`), token by token beside those that run
now. Whether a shorter one takes the KV of a longer one that already runs is the batching's knob `preempt`; without it the
order decides who is admitted, whose prompt goes first and who yields when memory is short. Exact. O(1) a key.

Where this differs from the theorem: the server is shared, so an engine's steps, not its work, are what a sequence takes;
lengths are guessed; and keys are renewed at the edges of buckets of produced tokens (each half as wide again as the last),
looked for every `EVERY` steps, not at every token. Long requests could wait for ever: `scheduling.patience_s` is set with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.executors.cost import StepShape, span_pairs
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique

EVERY = 16
"""Steps between two looks at who has reached an edge."""
OLDEST = 32
"""Keys that are renewed at each look because they are the oldest: of those that wait while lengths are learned."""
CHUNK = 512
"""Tokens of a prompt whose marginal cost stands for the others'."""


def _edges() -> list[int]:
    out = [1]
    while out[-1] < 1 << 22:
        out.append(max(out[-1] + EVERY, out[-1] * 3 // 2))
    return out


EDGES = _edges()
"""Numbers of produced tokens at which a key is renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    by: Literal["time", "work"] = field(default="time", metadata={"search": ("work",)})
    """`time`: the seconds until it would end if it were always served, which counts how long it holds its row and its KV.
    `work`: the seconds by which it lengthens the engine's steps."""


class SRPT:
    stale_on = frozenset({Kind.FIRST_TOKEN, Kind.PREEMPTED})
    lifetime_s = math.inf
    learns_from = frozenset({Kind.STEP, Kind.FINISHED, Kind.FAILED})

    def __init__(self, options: Options) -> None:
        self._by = options.by
        self._steps = 0
        self._bucket: dict[int, int] = {}
        """Bucket of produced tokens when each sequence's key was found, the oldest key first; -1 within the prompt."""
        self._prompt_token_s = 0.0
        self._token_s = 0.0

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        if not self._token_s:
            self._price(view)
        out = np.empty(len(stale))
        for i, seq in enumerate(stale):
            self._bucket.pop(seq.id, None)
            self._bucket[seq.id] = _bucket(seq)
            remaining = view.remaining_output(seq)
            # A prompt being computed has one token more to come than it has decode steps left.
            known = seq.remaining - 1
            out[i] = known * self._prompt_token_s + float(remaining.sum()) / len(remaining) * self._token_s
        return out

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is not Kind.STEP:
            self._bucket.pop(event.sequence, None)
            return ()
        self._steps += 1
        if self._steps % EVERY:
            return ()
        self._price(view)
        passed = [
            seq.id
            for seq in view.in_state(State.RUNNING)
            if (known := self._bucket.get(seq.id)) is not None and known != _bucket(seq)
        ]
        return passed + list(islice(self._bucket, OLDEST))

    def _price(self, view: View) -> None:
        """Seconds of a token of prompt and of output, beside those that decode now."""
        decoding = [seq.length for seq in view.in_state(State.RUNNING) if seq.decoding]
        rows, cached = max(1, len(decoding)), max(1, sum(decoding))
        step = view.price(StepShape(rows, rows, rows, cached, cached))
        more = StepShape(rows + CHUNK, rows + 1, rows, cached + CHUNK, cached + span_pairs(CHUNK, 0))
        self._prompt_token_s = (view.price(more) - step) / CHUNK
        self._token_s = step
        if self._by == "work":
            mean = cached // rows
            one_more = StepShape(rows + 1, rows + 1, rows + 1, cached + mean, cached + mean)
            self._token_s = view.price(one_more) - step

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until it next looks who has reached an edge."""
        return EVERY - self._steps % EVERY


def _bucket(seq: Sequence) -> int:
    return bisect_right(EDGES, seq.output_length) if seq.remaining == 1 else -1


TECHNIQUE = Technique(
    name="srpt",
    seam="scheduling",
    summary="shortest predicted remaining processing time first",
    exact=True,
    sets={"scheduling.order": "srpt", "scheduling.patience_s": 60.0},
    options=Options,
    make=lambda context, options: SRPT(options),
    paper="A Proof of the Optimality of the Shortest Remaining Processing Time Discipline (Schrage, 1968)",
)
