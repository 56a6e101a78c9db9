"""Frames: which sequences run is decided once in many steps, by the order's keys and by likeness of length.

The batching rule of JITServe (Zhang et al., 2025). Every `frame` steps the `pool` times m best of all sequences, waiting,
running or swapped, are sorted by length and a window of m slides over them; the one whose keys add up to least becomes the
frame. Who is overdue (`scheduling.patience_s`) is in it whatever its length. Calls of a workflow that is short of time are
added. Members of the frame have the first right to rows and memory: a running sequence outside it pauses when a member
needs its row, and gives up its KV when a member needs that. Otherwise the steps of a frame are plain chunked prefill: every
running sequence decodes while there are rows, and what is left of the token budget goes to prompts in the order's rank,
whoever they belong to, so that a frame never leaves a step half empty. When steps take longer than the tightest pace a
member asks for, m shrinks by `shrink` rows, and grows again when they do not.

Exact. O(sequences) a step, O(n log n + n m) for the n = pool m candidates of a frame.

The rule reads nothing but keys, so it serves any order; with one that knows no service levels it means the least sum of keys.
Its grouping by length pays where a kernel runs a batch at the pace of its longest row. Kernels here take ragged batches, so
that a step costs what its tokens cost in whatever company (`pool=1` groups by rank alone). Where it differs from the released
code: members may displace others in every step of a frame rather than in its first one, others pause instead of being swapped
as a rule, and siblings that are missing join at the cost of the least valued member rather than beyond m.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from hasten.engine.events import Event
from hasten.engine.scheduling import framing
from hasten.engine.scheduling.base import StepPlan, View, rank
from hasten.engine.scheduling.framed_step import FramedStep
from hasten.engine.scheduling.objectives import deadline_s, is_compound
from hasten.engine.scheduling.pace import Pace
from hasten.engine.sequence import Sequence, State
from hasten.engine.technique import Technique

_MOST = 1e30
"""Keys beyond this count as this, so that sums stay numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    chunk: int = field(default=512, metadata={"search": (64, 128, 256, 1024, 2048)})
    """Tokens of a step while anything decodes; without decodes a step takes all that `limits.tokens` allows."""
    watermark: float = 0.01
    """Share of the blocks kept free when admitting, for the running ones to grow into."""
    frame: int = 50
    """Steps of a frame."""
    pool: float = field(default=2.0, metadata={"search": (1.0,)})
    """Candidates of a frame, in multiples of its rows."""
    shrink: int = 8
    """Rows by which the frame shrinks, or grows again, as the pace of the steps demands."""


class Frames:
    learns_from = Pace.LEARNS_FROM

    def __init__(self, options: Options) -> None:
        for name in ("chunk", "frame", "shrink"):
            if getattr(options, name) < 1:
                raise ValueError(f"frames: {name} must be at least 1, got {getattr(options, name)}")
        if not 1 <= options.pool < math.inf:
            raise ValueError(f"frames: pool must be a number from 1 on, got {options.pool}")
        if not 0 <= options.watermark < 1:
            raise ValueError(f"frames: watermark must be a share from 0 to below 1, got {options.watermark}")
        self._options = options
        self._pace = Pace(options.frame)
        self._over = True
        self._members: set[int] = set()
        self._rows: int | None = None
        """m; None until the engine's limits are known."""

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        self._over |= self._pace.learn(event)
        return ()

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until the frame is over. Whoever waits lacks rows, memory or rank, and decoding changes none of them."""
        return self._pace.left

    def compose(self, ranked: Seq[Sequence], view: View) -> StepPlan:
        if self._over:
            self._replan(ranked, view)
            self._over = False
        options = self._options
        rows = self._rows or view.limits.rows
        return FramedStep(self._members, rows, options.chunk, options.watermark, view).compose(ranked)

    # -- the frame ------------------------------------------------------------------------------------------------------

    def _replan(self, ranked: Seq[Sequence], view: View) -> None:
        away = view.in_state(State.SWAPPED, State.LEAVING, State.LOADING)
        most = view.limits.rows
        rows = min(self._rows or most, most)
        pool = math.ceil(self._options.pool * rows)
        found = sorted([*ranked[:pool], *away], key=lambda seq: rank(seq, view))[:pool]
        # Memory may hold fewer than there are rows: then it is memory that a member has a right to.
        width = min(rows, max(1, self._held(found, view)))
        found = found[: math.ceil(self._options.pool * width)]
        values = -np.clip([view.order_key(seq) for seq in found], -_MOST, _MOST)
        lengths = np.array([seq.length for seq in found], dtype=np.int64)
        # Whoever is overdue is a member, in whatever company: windows of like lengths could leave it out for ever.
        overdue = min(width, sum(view.order_key(seq) == -math.inf for seq in found))
        like = framing.window(values[overdue:], lengths[overdue:], width - overdue) + overdue if overdue < width else ()
        chosen = [*range(overdue), *map(int, like)]
        compound = [found[number] for number in chosen if is_compound(found[number])]
        if compound and len(ranked) + len(away) > width:
            chosen, found = self._with_siblings(chosen, found, compound, width, view)
        self._members = {found[number].id for number in chosen}
        self._rows = self._resized([found[number] for number in chosen], most)

    def _held(self, found: Seq[Sequence], view: View) -> int:
        """How many of these, best rank first, memory holds with the tokens that a frame adds."""
        size, frame = view.block_size, self._options.frame
        blocks = np.cumsum([-(-(seq.length + frame) // size) for seq in found])
        return int(np.searchsorted(blocks, (1 - self._options.watermark) * view.total_blocks, side="right"))

    def _with_siblings(
        self, chosen: list[int], found: list[Sequence], compound: Seq[Sequence], rows: int, view: View
    ) -> tuple[list[int], list[Sequence]]:
        """The members with as many calls of their workflows as these need in a frame, and the candidates they number."""
        known = {seq.id for seq in found}
        workflows = {id(workflow): workflow for seq in compound if (workflow := view.workflow(seq))}
        live = [seq for workflow in workflows.values() for seq in workflow.live.values() if seq.id not in known]
        found = found + [seq for seq in live if is_compound(seq)]
        of = [id(view.workflow(seq)) if is_compound(seq) else None for seq in found]
        values = -np.clip([view.order_key(seq) for seq in found], -_MOST, _MOST)
        by_workflow = {id(view.workflow(seq)): seq for seq in compound}
        return framing.add_siblings(chosen, of, values, lambda k, n: self._short(by_workflow[k], n, view), rows), found

    def _short(self, call: Sequence, inside: int, view: View) -> int:
        interval_s = self._pace.interval_s
        if interval_s is None:
            return 0
        left = sum(float(view.remaining_output(seq)[-1]) for seq in view.workflow(call).live.values())
        frame = self._options.frame
        return framing.siblings_short(left, deadline_s(call, view) - view.now, frame * interval_s, frame, inside)

    def _resized(self, members: Seq[Sequence], most: int) -> int:
        """m for the frame after this one."""
        rows = min(self._rows or most, most)
        interval_s = self._pace.interval_s
        if interval_s is None:
            return rows
        tightest_s = min((s.request.slo.tpot_s for s in members if s.request.slo.tpot_s is not None), default=math.inf)
        step = self._options.shrink
        return max(1, rows - step) if interval_s > tightest_s else min(most, rows + step)


TECHNIQUE = Technique(
    name="frames",
    seam="scheduling",
    summary="who runs is decided a frame at a time, by rank and by likeness of length",
    exact=True,
    sets={"scheduling.batching": "frames"},
    options=Options,
    make=lambda context, options: Frames(options),
    paper="JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025",
)
