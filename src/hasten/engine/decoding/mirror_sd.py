"""Mirror speculative decoding: the draft model rolls out what may come next while the served model still verifies.

"Mirror Speculative Decoding: Breaking the Serial Barrier in LLM Inference" (2025). When a pass of the served model has come to
its exit layer, the last norm and the head are applied to what it has so far. That says what landings are likely: how many
drafted tokens will be accepted, and which token comes behind them. For each landing the draft rolls out a continuation, all
of them in one batch, on a core of its own (`drafts/aside.py`), while the served model computes its other layers. If
verification lands on one of them, its continuation is the next draft, at no wait; if not, the draft is made afresh, as by
`draft-model`. The draft's KV of a landing is a fork of the sequence's; losers are dropped, the winner takes its place.

Exact, as every proposer: what is guessed never changes a token. A step costs, beside the served model's pass, the head over the
drafted rows once more, and what of a rollout was not over in time; the draft computes `branches` times as many tokens, most of
which are thrown away.

Where it differs from the paper: acceptance is that of `draft-model`, whose draws share the request's random numbers; so for
sampled requests what those numbers draw from the exit's logits counts as much as all else that they say. What the draft's core
has left to do nothing with, the served model uses (`share`). Speculative streaming needs a draft trained to say several
tokens a pass; what stands in for it (`stream`) are tokens that followed where the text stood before, which the draft reads
behind its own token in one pass and keeps as far as it draws the same.

Where that cannot work (one core, a device that is not the CPU, more sequences than `sequences`, a thread that died), drafts are
made serially; `counts` says how often, and why.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hasten.engine import speculate
from hasten.engine.decoding.draft_model import Common, DraftModel
from hasten.engine.executors.base import StepResult
from hasten.engine.sequence import Draft, Sequence, Span
from hasten.engine.technique import ConfigError, Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.base import Row
    from hasten.engine.decoding.drafts.aside import Rollout
    from hasten.engine.decoding.drafts.drafter import Line
    from hasten.engine.decoding.drafts.landing import Chances, Landing, Likely
    from hasten.engine.events import Event
    from hasten.engine.executors.local import Look

_log = logging.getLogger(__name__)
NAME = "mirror-sd"
OWN = -1
TRUST = 0.5
"""Of what a sampled request's random number draws from the exit's logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Common):
    afresh: Annotated[int, Field(ge=1, le=32)] | None = None
    """Tokens drafted one after the other where a landing was missed, which nothing hides; None: as many as `length`."""
    branches: Annotated[int, Field(ge=1, le=32)] = field(default=2, metadata={"search": (1, 3, 4, 8)})
    """Landings that continuations are rolled out for, of all sequences together; each gets at least one."""
    exit: Annotated[int, Field(ge=0)] | None = None
    """Blocks of the served model after which landings are guessed; None: half of them; 0: before the first, from what the draft
    thought alone."""
    shortlist: Annotated[int, Field(ge=0, le=64)] = 16
    """Of how many tokens, the likeliest to the draft at each place, the exit is asked; 0: of all, and what the draft thought of
    them does not count. Quantised weights are asked of all."""
    stream: Annotated[int, Field(ge=0, le=8)] = 0
    """Tokens of earlier text that the draft reads behind its own in one pass."""
    sequences: Annotated[int, Field(ge=1, le=32)] = 4
    """With more that decode in a step, drafts are made serially."""
    share: bool = True
    """The served model computes on the draft's core too while the draft does not."""


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """A landing, `tokens` behind the first `known` of its sequence, and the line that is rolled out behind it. `rank`: how many
    of its sequence seemed likelier to the exit; OWN: the draft goes on behind all it had guessed, and its line's first token is
    the landing's last."""

    known: int
    tokens: tuple[int, ...]
    line: Line
    rank: int

    def is_true(self, sequence: Sequence) -> bool:
        """Whether the sequence has landed here, or may have, as long as the landing's last token is not drawn."""
        own = self.line.tokens[:1] if self.rank == OWN else []
        behind = tuple(sequence.tokens[self.known :].tolist())
        if self.rank == OWN and not own:
            return behind[:-1] == self.tokens
        return behind == (*self.tokens, *own)

    @property
    def draft(self) -> list[int]:
        """What comes behind the landing."""
        return self.line.tokens[1 if self.rank == OWN else 0 :]

    @property
    def likely(self) -> list[Likely]:
        return self.line.likely[1 if self.rank == OWN else 0 :]


class MirrorSD(DraftModel):
    """`counts`: what happened so far. `rollouts`, `branches`; `hits` and `misses`, of sequences that had branches; `dropped`
    rollouts, whose sequence ended or was split; `serial: WHY`, steps without a rollout. `seconds`: `rolled` out by the thread,
    `waited` of these by the engine, taken by the `exit`, and by drafts made `afresh`."""

    def __init__(self, parts: Parts, options: Options) -> None:
        if options.exit == 0 and not options.shortlist:
            raise ConfigError(f"{NAME}: with exit=0 the draft's likeliest tokens are all there is; shortlist=0 keeps none")
        keep = options.shortlist if options.exit == 0 or parts.config.weights.store == "dense" else 0
        super().__init__(parts, options, stream=options.stream, keep=keep, name=NAME)
        from hasten.engine.decoding.drafts.aside import Aside
        from hasten.engine.decoding.drafts.landing import landings

        self.counts: Counter[str] = Counter()
        self.seconds = dict.fromkeys(("rolled", "waited", "exit", "afresh"), 0.0)
        self.landed: Counter[tuple[int | None, bool]] = Counter()
        """Hits and misses by the rank that the exit gave the landing (None: it did not), and whether it was the draft's own."""
        self.guess: Callable[..., list[Landing]] = landings
        self.serial = reason_against(parts)
        """Why drafts are made serially from now on, or None."""
        self._options = options
        self._afresh = min(options.afresh or options.length, options.length)
        self._sampler = parts.config.make(parts.config.decoding.sampler, parts)  # its own: the draft's is the thread's
        self._aside = Aside()
        self._rollout: Rollout | None = None
        self._branches: list[_Branch] = []
        self._windows: dict[int, Line] = {}
        """By sequence, how its draft that is verified now was made."""
        self._eos = parts.eos
        self._all = _threads(parts)
        blocks = len(parts.model.blocks)
        self._exit = options.exit if options.exit is not None else max(1, blocks // 2)
        if self._exit >= blocks > 1:
            raise ConfigError(f"{NAME}: exit={self._exit} leaves nothing to hide behind; the model has {blocks} blocks")
        parts.facts["mirror_exit"] = self._exit
        if self.serial is not None:
            _log.warning("%s drafts serially: %s", NAME, self.serial)
            parts.facts["mirror_serial"] = self.serial
            return
        executor: Any = parts.executor
        executor.watch(self._look, range(self._exit, blocks) if options.share else (self._exit,))
        parts.memory.on_close(self.close)

    def close(self) -> None:
        """End the thread."""
        self._drop()
        self._aside.close()

    # -- in the middle of a pass ----------------------------------------------------------------------------------------

    def _look(self, look: Look) -> None:
        if self.serial is not None:
            return
        try:
            if look.done == self._exit:
                self._begin(look)
            elif self._rollout is None or self._rollout.over:
                self._use(busy=False)
        except Exception as failure:
            _log.exception("%s: the exit failed", NAME)
            self._give_up(f"the exit failed: {failure}")

    def _begin(self, look: Look) -> None:
        """Post what may come next."""
        self._drop()
        found: list[tuple[Span, range]] = []
        at = 0
        for span in look.batch.spans:
            at += len(span.logits)
            if span.samples and span.parents is None and self._reaches_on(span):
                found.append((span, range(at - 1 - span.drafts, at)))
        if not found:
            return
        if len(found) > self._options.sequences:
            self.counts["serial: many sequences"] += 1
            return
        began = time.perf_counter()
        each = max(1, self._options.branches // len(found))
        for span, rows in found:
            self._branch(span, look, rows, each)
        self.seconds["exit"] += time.perf_counter() - began
        if self._branches:
            from hasten.engine.decoding.drafts.aside import Rollout

            self._rollout = Rollout(self._drafter, [branch.line for branch in self._branches])
            self._use(busy=True)
            self._aside.post(self._rollout)
            self.counts["rollouts"] += 1
            self.counts["branches"] += len(self._branches)

    def _reaches_on(self, span: Span) -> bool:
        """Whether the draft follows the sequence and could read it behind all that is drafted."""
        last = int(span.positions[-1]) + 1 + self._drafter.length
        return self.twins.follows(span.sequence) and last < self.second.model.max_length

    def _branch(self, span: Span, look: Look, wanted: range, most: int) -> None:
        """Make branches of a span's likeliest landings. `wanted`: its rows among those that are wanted of the pass."""
        from hasten.engine.decoding.drafts.drafter import Line

        seq, sampling = span.sequence, span.sequence.request.sampling
        draft = span.draft.tokens.tolist() if span.draft is not None else []
        rows, length = speculate.rows(span, 0), self._drafter.length
        chances, drawn, trust = self._chances(span, look, wanted, draft, rows)
        rank = 0
        for accepted, token in self.guess(chances, draft, drawn, 4 * most, trust):
            if rank == most:
                break
            if token >= self.second.model.vocabulary:  # the draft cannot read it
                continue
            if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
                continue
            state = _fork(rows[accepted].constraint)
            if state is not None:
                try:
                    state.advance(token)
                except ValueError:
                    continue
            tokens = (*draft[:accepted], token)
            line = Line(self.twins.branch(seq, tokens), length, length, state)
            self._branches.append(_Branch(seq.length, tokens, line, rank))
            rank += 1
        if draft:
            line = Line(self.twins.branch(seq, draft), length + 1, length + 1, _fork(rows[-1].constraint))
            self._branches.append(_Branch(seq.length, tuple(draft), line, OWN))

    def _chances(
        self, span: Span, look: Look, wanted: range, draft: list[int], rows: list[Row]
    ) -> tuple[Seq[Chances], list[int], float]:
        """What may come after each of a span's rows; what is drawn there; and how much that counts."""
        from hasten.engine.decoding.drafts.landing import of_both, of_draft, of_exit

        seq, sampling = span.sequence, span.sequence.request.sampling
        line = self._windows.get(seq.id)
        if draft and line is not None and line.likely and line.tokens[: len(draft)] == draft:
            likely = line.likely[: len(draft)]
            if self._exit == 0:
                return of_draft(likely), [-1] * len(draft), 0.0
            tokens = sorted({token for row in likely for token, _ in row})
            return of_both(look.logits(wanted[:-1], tokens), tokens, likely), [-1] * len(draft), 0.0
        if self._exit == 0:
            return [], [], 0.0
        logits = look.logits(wanted, None)
        drawn, trust = [-1] * len(rows), 0.0
        if sampling.temperature > 0 or sampling.reshapes_logits or seq.constraint is not None:
            drawn, trust = self._sampler.draw(StepResult(logits), rows).tokens, TRUST
        return of_exit(logits, draft, self._options.branches + 1), drawn, trust

    # -- afterwards -----------------------------------------------------------------------------------------------------

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        from hasten.engine.decoding.drafts.drafter import Line

        found = self._gather(sequences)
        if self.serial is None:
            self._use(busy=False)
        else:
            self.counts["serial: " + self.serial] += 1
        lines = []
        for seq, twin, most in zip(sequences, self.twins.follow(sequences), budgets, strict=True):
            line = Line(twin, most, self._afresh, seq.constraint)
            if branch := found.get(seq.id):
                line.tokens, line.likely = branch.draft[:most], branch.likely[:most]
            lines.append(line)
        afresh = [line for line in lines if not line.tokens]
        if afresh:
            began = time.perf_counter()
            self._draft(afresh)
            self.seconds["afresh"] += time.perf_counter() - began
        self._windows = {line.twin.id: line for line in lines}
        return [line.draft() for line in lines]

    def _gather(self, sequences: Seq[Sequence]) -> dict[int, _Branch]:
        """The branches of those that landed where one is, by the sequence's number. The thread drops the other
        branches; of a right one the rest is waited for, which takes no longer than drafting it here."""
        asked = {seq.id: seq for seq in sequences}
        branched: dict[int, list[_Branch]] = {}
        for branch in self._branches:
            if branch.line.twin.id in asked:
                branched.setdefault(branch.line.twin.id, []).append(branch)
        right = [branch for id, each in branched.items() for branch in each if branch.is_true(asked[id])]
        self._settle(right)
        found: dict[int, _Branch] = {}
        for id, each in branched.items():
            true = {branch.rank: branch for branch in each if branch in right and branch.is_true(asked[id])}
            rank = min((rank for rank in true if rank != OWN), default=None)
            self.landed[rank, OWN in true] += 1
            self.counts["hits" if true else "misses"] += 1
            if true and self.serial is None:
                found[id] = true[OWN if rank is None else rank]
        return found

    def _settle(self, right: Seq[_Branch]) -> None:
        """Have the draft back from the thread, with nothing left of the branches but of those that are `right`."""
        rollout, self._rollout = self._rollout, None
        branches, self._branches = self._branches, []
        if rollout is None:  # it never came to one
            for branch in branches:
                self.twins.drop(branch.line.twin)
            return
        began = time.perf_counter()
        rollout.only([branch.line for branch in right])
        try:
            self._aside.wait(rollout)
        except RuntimeError as failure:
            rollout.failure = failure
        self.seconds["waited"] += time.perf_counter() - began
        self.seconds["rolled"] += max(0.0, rollout.ended_s - rollout.began_s)
        for branch in sorted(branches, key=lambda branch: branch.rank):  # the draft's own may turn out wrong: others after it
            if branch in right and rollout.failure is None:
                self.twins.adopt(branch.line.twin)
            else:
                self.twins.drop(branch.line.twin)
        if rollout.failure is not None:
            self.second.books.take_copies()  # into blocks that nobody holds any more
            self._give_up(f"drafting aside failed: {type(rollout.failure).__name__}: {rollout.failure}")

    def _drop(self) -> None:
        if self._rollout is not None:
            self.counts["dropped"] += 1
        self._settle(())

    def _ended(self, event: Event) -> None:
        self._drop()
        super()._ended(event)

    def _forked(self, event: Event) -> None:
        self._drop()
        super()._forked(event)

    # -- cores ----------------------------------------------------------------------------------------------------------

    def _use(self, *, busy: bool) -> None:
        """Leave the draft its core, while it is `busy` or always."""
        from hasten.kernels.cpu.native import use_threads

        use_threads(self._all - 1 if busy or not self._options.share else self._all)

    def _give_up(self, reason: str) -> None:
        if self.serial is None:
            self.serial = reason
            _log.error("%s drafts serially from now on: %s", NAME, reason)
            self._drop()
            from hasten.kernels.cpu.native import use_threads

            use_threads(self._all)


def _fork(state: Any) -> Any:
    """A constraint's state for the thread, which nobody else uses; None for none."""
    return state.fork() if state is not None else None


def _threads(parts: Parts) -> int:
    """Of the served model and the draft together."""
    from hasten.engine.build import physical_cores

    return min(parts.config.executor.threads or physical_cores(), physical_cores())


def reason_against(parts: Parts) -> str | None:
    """Why nothing can be drafted beside a pass here, or None."""
    from hasten.engine.executors.local import LocalExecutor
    from hasten.kernels.cpu import CpuKernels

    if not isinstance(parts.executor, LocalExecutor) or not isinstance(parts.kernels, CpuKernels):
        return "it needs the native kernels of a CPU"
    if len(parts.model.blocks) < 2:
        return "the served model has one block"
    if _threads(parts) < 2:
        return "there is no second core"
    return None


TECHNIQUE = Technique(
    name=NAME,
    seam="decoding",
    summary="a draft model on a core of its own guesses on while the served model still verifies its last guesses",
    exact=True,
    sets={"decoding.proposers": (NAME,)},
    options=Options,
    make=MirrorSD,
    paper="Mirror Speculative Decoding: Breaking the Serial Barrier in LLM Inference (2025)",
    conflicts={"draft-model": "both load a draft model; mirror-sd drafts as draft-model does where it cannot do better"},
)
