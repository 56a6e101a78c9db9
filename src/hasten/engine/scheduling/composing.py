"""Composing a step: what the batching rules that mix decodes and pieces of prompts have in common.

`stall_free`: every sequence that decodes gets its token; what is left of the budget goes to prompts that are begun, then to
waiting ones while their whole prompts fit in memory; the last of them is cut. `by_rank` does the same with rows and memory
given by rank, so that a waiting sequence may take the place of a running one (see displacing.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from hasten.engine.scheduling.base import StepPlan, View, Work, WorkKind, rank
from hasten.engine.scheduling.displacing import Tenure, victims
from hasten.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of a step: `beside` decodes (at least one of them for prompts) and `alone`. `watermark`: share of the blocks kept
    free when admitting beside others, for those to grow into. `fits`: only what has memory goes into the step, decodes too;
    otherwise the residency finds it for whoever runs."""

    beside: int
    alone: int
    watermark: float = 0.0
    fits: bool = False


def compose(ranked: Seq[Sequence], view: View, budget: Budget, tenure: Tenure | None) -> StepPlan:
    """`by_rank` with a tenure, else `stall_free`."""
    return stall_free(ranked, view, budget) if tenure is None else by_rank(ranked, view, budget, tenure)


def returning(view: View) -> tuple[float, float, int] | None:
    """The best rank of those whose KV lies in the slower tier: they come back before anybody of worse rank is admitted. (Those
    on their way back have their memory.)"""
    return min((rank(seq, view) for seq in view.in_state(State.SWAPPED)), default=None)


def for_drafts(served: int, prompts: bool, beside: int, view: View) -> int:
    """Tokens that drafts may take of a step in which so many sequences decode: all that is left where there are no `prompts` to
    compute, else half of what is left of the tokens of such a step, so that neither waits for the other."""
    limit = view.limits.tokens
    return max(0, min(beside, limit) - served) // 2 if prompts else limit - served


def decode(seq: Sequence, view: View, spare: int) -> Work:
    """The next token of a sequence that decodes, and of what it would have verified with it `spare` tokens at most."""
    drafts = min(view.lookahead(seq), spare)
    return Work(seq, 1, WorkKind.VERIFY if drafts else WorkKind.DECODE, drafts)


def decodes(running: Seq[Sequence], view: View, prompts: bool, beside: int) -> tuple[list[Work], list[Sequence]]:
    """One token for each sequence that decodes, within the limits of a step, and then what speculation adds (`for_drafts`); and
    the sequences whose prompts are begun."""
    decoding: list[Sequence] = []
    begun: list[Sequence] = []
    for seq in running:
        (decoding if seq.decoding else begun).append(seq)
    served = decoding[: min(view.limits.rows, view.limits.tokens)]
    spare = for_drafts(len(served), prompts, beside, view)
    works = []
    for seq in served:
        works.append(decode(seq, view, spare))
        spare -= works[-1].drafts
    return works, begun


def _running(ranked: Seq[Sequence]) -> tuple[list[Sequence], bool]:
    """Who runs, and whether there are prompts to compute, of running sequences or waiting ones."""
    running = [seq for seq in ranked if seq.state is State.RUNNING]
    return running, len(running) < len(ranked) or not all(seq.decoding for seq in running)


def stall_free(ranked: Seq[Sequence], view: View, budget: Budget) -> StepPlan:
    running, prompts = _running(ranked)
    works, begun = decodes(running, view, prompts, budget.beside)
    plan = StepPlan(works)
    free = view.free_blocks
    if budget.fits:
        plan.work, free = _that_fit(plan.work, free, view)
    if len(plan.work) == len(ranked):
        return plan  # nobody waits
    tokens = _for_prompts(plan.work, view, budget)
    rows = view.limits.rows - len(plan.work)
    if not budget.fits:
        free -= view.blocks_for(plan.work)
    for seq in begun:
        if rows and tokens:
            need = view.blocks_needed(seq, seq.remaining)
            if budget.fits and need > free:
                return plan  # nor does anybody behind it overtake
            count = min(seq.remaining, tokens)
            plan.work.append(Work(seq, count, WorkKind.PREFILL))
            free -= need
            tokens -= count
            rows -= 1
    reserve = int(budget.watermark * view.total_blocks) if plan.work else 0
    ahead = returning(view)
    for seq in ranked:
        if not rows or not tokens:
            break
        if seq.state is not State.WAITING:
            continue
        if ahead is not None and ahead < rank(seq, view):
            break  # an empty plan leaves all the memory to those that come back
        before = view.free_blocks
        remaining = view.open(seq)
        free -= before - view.free_blocks  # reused blocks nobody read until now are no longer evictable
        need = view.blocks_needed(seq, remaining)
        if need + reserve > free:
            break  # nobody behind overtakes: small prompts would starve a large one
        count = min(remaining, tokens)
        plan.work.append(Work(seq, count, WorkKind.PREFILL))
        free -= need
        tokens -= count
        rows -= 1
    return plan


def by_rank(ranked: Seq[Sequence], view: View, budget: Budget, tenure: Tenure) -> StepPlan:
    running, prompts = _running(ranked)
    works, begun = decodes(running, view, prompts, budget.beside)
    if len(works) == len(ranked):
        return StepPlan(works)
    return _ByRank(running, works, view, budget, tenure).compose(ranked, len(begun))


class _ByRank:
    """One step in the making. Decodes are in it; prompts join by rank and may push out what is worse."""

    def __init__(self, running: list[Sequence], works: list[Work], view: View, budget: Budget, tenure: Tenure) -> None:
        self._running = running
        self._decodes = works
        self._prompts: list[Work] = []
        self._view = view
        self._tenure = tenure
        self._tokens = _for_prompts(works, view, budget)
        self._free = view.free_blocks - view.blocks_for(works)
        self._reserve = int(budget.watermark * view.total_blocks)
        self._gone: set[int] = set()
        """Numbers of those that yield their memory: no work for them in this step."""

    def compose(self, ranked: Seq[Sequence], begun: int) -> StepPlan:
        """`begun`: how many of `ranked` are in the middle of their prompts."""
        view = self._view
        ahead = returning(view)
        admitting = True
        for seq in ranked:
            if self._tokens <= 0 or not (admitting or begun):
                break
            if seq.state is State.WAITING:
                if admitting and not self._row_for(seq):
                    break
                admitting = admitting and (ahead is None or rank(seq, view) < ahead) and self._admit(seq)
            elif not seq.decoding:
                begun -= 1
                if seq.id not in self._gone:
                    if not self._row_for(seq):
                        break
                    self._go_on(seq)
        return StepPlan(self._decodes + self._prompts)

    def _row_for(self, seq: Sequence) -> bool:
        if len(self._decodes) + len(self._prompts) < self._view.limits.rows:
            return True
        return bool(self._decodes) and self._view.order_key(self._decodes[-1].sequence) > self._view.order_key(seq)

    def _admit(self, seq: Sequence) -> bool:
        """Plan a piece of a waiting prompt if memory for all of it is free or can be taken from worse ranks; False when nobody
        behind it may be admitted either."""
        view = self._view
        before = view.free_blocks
        remaining = view.open(seq)
        self._free -= before - view.free_blocks  # reused blocks nobody read until now are no longer evictable
        need = view.blocks_needed(seq, remaining)
        reserve = self._reserve if self._decodes or self._prompts else 0
        if not self._make_room(seq, need + reserve):
            return False
        self._plan(seq, min(remaining, self._tokens), need)
        return True

    def _go_on(self, seq: Sequence) -> None:
        """Plan the next piece of a prompt that is begun; without memory it keeps what it has and waits."""
        need = self._view.blocks_needed(seq, seq.remaining)
        # If nothing else runs the residency must find the memory, whoever has it.
        if self._make_room(seq, need) or not (self._decodes or self._prompts):
            self._plan(seq, min(seq.remaining, self._tokens), need)

    def _make_room(self, seq: Sequence, need: int) -> bool:
        short = need - self._free
        if short <= 0:
            return True
        chosen = victims(self._running, short, seq, self._view, self._tenure, self._gone)
        if not chosen or short <= self._view.leaving_blocks:
            return False  # what is on its way out will be enough: nobody else need go
        self._gone |= {victim.id for victim in chosen}
        self._free += sum(self._view.blocks_freed(victim) for victim in chosen)
        given_up = [work for work in self._decodes if work.sequence.id in self._gone]
        self._decodes = [work for work in self._decodes if work.sequence.id not in self._gone]
        for work in given_up:
            self._regain(work)
        return True

    def _regain(self, work: Work) -> None:
        """What a decode had that is in the step no longer."""
        self._tokens += work.count + work.drafts
        self._free += _blocks(work, self._view)

    def _plan(self, seq: Sequence, count: int, need: int) -> None:
        if len(self._decodes) + len(self._prompts) == self._view.limits.rows:
            self._regain(self._decodes.pop())
        self._prompts.append(Work(seq, count, WorkKind.PREFILL))
        self._free -= need
        self._tokens -= count


def _for_prompts(works: Seq[Work], view: View, budget: Budget) -> int:
    """Tokens that are left for prompts beside these decodes."""
    used = sum(work.count + work.drafts for work in works)
    left = view.limits.tokens - used
    return min(left, max(1, budget.beside - used)) if works else min(left, budget.alone)


def _that_fit(works: Seq[Work], free: int, view: View) -> tuple[list[Work], int]:
    """The works that have memory, without their drafts where those lack it, and what is left of it."""
    kept = []
    for work in works:
        need = _blocks(work, view)
        if need > free and work.drafts:
            work = Work(work.sequence, work.count, WorkKind.DECODE)
            need = _blocks(work, view)
        if need <= free:
            kept.append(work)
            free -= need
    return kept, free


def _blocks(work: Work, view: View) -> int:
    return view.blocks_needed(work.sequence, work.count + work.drafts)
