"""A draft model: a small model that shares the tokenizer guesses the next tokens, the served model checks them all in one pass.

Speculative decoding (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023; Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling", 2023). All sequences draft together, one batch of the
draft for each depth; what the draft has not seen of a sequence (its prompt, tokens that it had not guessed) is computed in the
first of these, prompts in chunks, so that a long one holds up nobody. Each sequence has a twin in a KV pool of the draft's own
(`drafts/twins.py`). A step costs the draft `length` passes of one token a sequence.

Exact, and here this differs from the papers: they accept a drafted token with probability min(1, p/q) and draw again from what
is left of p; here the served model draws as it would have without drafts, and a guess survives if it is what was drawn. Greedy
and sampled text is therefore that of plain decoding, token for token. To be right often, the draft draws with the same key
through the same sampler, penalties, bias and grammar included: a race between tokens (`Kernels.sample`), which makes draws from
like distributions fall together nearly as often as the papers' sum of min(p, q) (measured by the claim `draft-model`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hasten.engine.batch import BatchBuilder
from hasten.engine.config import BUILTIN, BUILTINS, ModelConfig
from hasten.engine.decoding.base import PREPARING, Row
from hasten.engine.events import Kind
from hasten.engine.executors.cost import StepShape
from hasten.engine.kv.base import NoBlocks
from hasten.engine.sequence import Draft, Sequence, Span
from hasten.engine.technique import ConfigError, Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.drafts.twins import Twin
    from hasten.engine.events import Event
    from hasten.engine.executors.base import StepResult

BUILTIN_DRAFT = next(name for name in BUILTINS if name != BUILTIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str = ""
    """As `model.path`; empty: `builtin-draft` for the built-in model."""
    length: Annotated[int, Field(ge=1, le=32)] = field(default=4, metadata={"search": (2, 3, 6, 8)})
    """Tokens drafted one after the other."""
    branches: Annotated[int, Field(ge=1, le=8)] = 1
    """Tokens tried at each depth: the drawn one, and the likeliest others, which nothing is drafted behind."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Tokens of prompts that the draft computes in a step, of all sequences together."""
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Of the draft's KV pool; None: as many blocks as the served model has, or a share of the memory that is left."""
    weights: str = "dense"
    """The technique that stores its weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(slots=True)
class _Line:
    """A draft in the making. `most`: nodes that it may have; `state`: the constraint's after `tokens`."""

    sequence: Sequence
    twin: Twin
    most: int
    state: Any
    tokens: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    """(depth, token) of what else is tried."""

    def draft(self) -> Draft | None:
        if not self.tokens:
            return None
        sides = self.sides[: self.most - len(self.tokens)]
        tokens = np.array(self.tokens + [token for _, token in sides], dtype=np.int32)
        if not sides:
            return Draft(tokens)
        chain = range(-1, len(self.tokens) - 1)
        return Draft(tokens, np.array([*chain, *(depth - 1 for depth, _ in sides)], dtype=np.int32))


class DraftModel:
    """A proposer."""

    def __init__(self, parts: Parts, options: Options) -> None:
        from hasten.engine.decoding.drafts.second import load
        from hasten.engine.decoding.drafts.twins import Twins

        served = parts.config.model
        path = options.model or (BUILTIN_DRAFT if served.path == BUILTIN else "")
        if not path:
            raise ConfigError(f"draft-model: which model drafts for {served.path}? Name it: draft-model:model=NAME_OR_PATH")
        config = ModelConfig(path=path, load_format=served.load_format, dtype=options.dtype, device=served.device)
        second = load(parts, config, options.weights, options.memory_bytes)
        self.twins = Twins(second.books, second.model.fingerprint)
        self.second = second
        self._options = options
        self._few = options.length + 1
        """Tokens that a sequence may be ahead of its twin after a step with drafts."""
        self._eos = parts.eos
        self._sampler = parts.config.make(parts.config.decoding.sampler, parts)
        self._kernels = parts.kernels
        self._builder = BatchBuilder()
        parts.events.subscribe(self._ended, (Kind.FINISHED, Kind.FAILED))
        parts.events.subscribe(self._forked, (Kind.FORKED,))
        parts.facts |= {
            "draft_model": path,
            "draft_weights": second.model.active_weights,
            "draft_weight_bytes": second.model.weight_bytes,
            "draft_kv_blocks": second.memory.blocks,
            "draft_kv_bytes": second.memory.nbytes,
        }

    def _ended(self, event: Event) -> None:
        self.twins.forget(event.sequence)

    def _forked(self, event: Event) -> None:
        self.twins.fork(int(event.a), event.sequence)

    # -- the proposer ---------------------------------------------------------------------------------------------------

    def lookahead(self, sequence: Sequence) -> int:
        options, behind = self._options, self._behind(sequence)
        if not self._reaches(sequence):
            return 0
        if behind > self._few + options.chunk:  # it is asked, so that the twin gets on, but will have nothing to say
            return 1
        return options.length * options.branches

    def evidence(self, sequence: Sequence) -> str | None:
        return PREPARING if self._behind(sequence) > self._few else None

    def price(self, sequences: int, tokens: int, length: int) -> float:
        cached = tokens + sequences
        return length * self.second.executor.price(StepShape(sequences, sequences, sequences, cached, cached))

    def _behind(self, sequence: Sequence) -> int:
        """Tokens of the sequence that have no KV here."""
        return sequence.length - self.twins.computed(sequence)

    def _reaches(self, sequence: Sequence) -> bool:
        """Whether the draft could read the sequence if it had all of its memory."""
        length, pool = sequence.length + self._options.length, self.second.books.pool
        last = int(sequence.positions[-1]) + self._options.length
        return last < self.second.model.max_length and length <= pool.blocks * pool.block_size

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        twins = self.twins.follow(sequences)
        lines = [_Line(seq, twin, most, seq.constraint) for seq, twin, most in zip(sequences, twins, budgets, strict=True)]
        try:
            self._draft(lines)
        except Exception:  # what of their KV was computed is not known
            for twin in twins:
                self.twins.lose(twin)
            self.second.books.take_copies()
            raise
        return [line.draft() for line in lines]

    def _draft(self, lines: list[_Line]) -> None:
        going = self._computed(self._next(lines))
        while going:
            going = self._computed([(line, 1) for line in going])

    def _next(self, lines: list[_Line]) -> list[tuple[_Line, int]]:
        """How many tokens of each sequence to compute first. Of a request's sequences one computes the prompt for all."""
        left, found, busy = self._options.chunk, [], set()
        for line in lines:
            twin, count = line.twin, line.twin.remaining
            if count > self._few:
                if not left or twin.request.id in busy or not self.twins.make_room(twin, count + self._options.length):
                    continue
                busy.add(twin.request.id)
                count = min(count, left)
                left -= count
            found.append((line, count))
        return found

    def _computed(self, counts: list[tuple[_Line, int]]) -> list[_Line]:
        """Compute so many tokens of each twin in one batch, draw a guess where none is left; the lines that go on."""
        spans, twins, drawn = [], [], []
        for line, count in counts:
            twin = line.twin
            ((start, stop),) = twin.next_ranges(count)
            tokens, positions, segments = twin.piece(start, stop)
            try:
                slots = self.twins.append(twin, positions)
            except NoBlocks:
                continue
            last = stop == twin.length
            spans.append(Span(twin, count, tokens, positions, segments, slots, logits=[count - 1] if last else []))
            twins.append(twin)
            if last:
                drawn.append(line)
        if not spans:
            return []
        executor = self.second.executor
        executor.copy_blocks(self.second.books.take_copies())
        result = executor.submit(self._builder.build(spans)).wait()
        for twin, span in zip(twins, spans, strict=True):
            twin.computed(span.count)
            if span.count > self._few:
                self.twins.keep(twin)
        return self._guess(drawn, result) if drawn else []

    def _guess(self, lines: list[_Line], result: StepResult) -> list[_Line]:
        """Draw the next token of each line as the served model will; the lines that go on."""
        rows = [Row(line.sequence, i, tuple(line.tokens), line.state) for i, line in enumerate(lines)]
        tokens = self._sampler.draw(result, rows).tokens
        others = self._likeliest(result) if self._options.branches > 1 else [[]] * len(lines)
        going = []
        for line, token, likely in zip(lines, tokens, others, strict=True):
            depth = len(line.tokens)
            line.sides += [(depth, other) for other in likely if other != token][: self._options.branches - 1]
            if token < 0:
                continue
            line.tokens.append(token)
            if len(line.tokens) < min(line.most, self._options.length) and self._goes_on(line, token):
                line.twin.append(token)
                going.append(line)
        return going

    def _likeliest(self, result: StepResult) -> list[list[int]]:
        most = min(self._options.branches, self.second.model.vocabulary)
        likeliest: list[list[int]] = self._kernels.top_logprobs(result.logits, most)[1].tolist()
        return likeliest

    def _goes_on(self, line: _Line, token: int) -> bool:
        """Whether anything may follow `token`, and the constraint's state if so."""
        sampling = line.sequence.request.sampling
        if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
            return False
        if line.state is not None:
            line.state = line.state.fork()
            try:
                line.state.advance(token)
            except ValueError:
                return False
        return True


TECHNIQUE = Technique(
    name="draft-model",
    seam="decoding",
    summary="a small model guesses the next tokens, which the served one then checks together",
    exact=True,
    sets={"decoding.proposers": ("draft-model",)},
    options=Options,
    make=DraftModel,
    paper="Fast Inference from Transformers via Speculative Decoding (2023)",
)
