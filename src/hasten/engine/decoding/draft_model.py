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
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from hasten.engine.config import BUILTIN, BUILTINS, ModelConfig
from hasten.engine.decoding.base import PREPARING
from hasten.engine.events import Kind
from hasten.engine.executors.cost import StepShape
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.technique import ConfigError, Technique

if TYPE_CHECKING:
    from hasten.engine.build import Parts
    from hasten.engine.decoding.drafts.drafter import Line
    from hasten.engine.events import Event
    from hasten.engine.executors.base import StepResult

BUILTIN_DRAFT = next(name for name in BUILTINS if name != BUILTIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every technique with a draft model is asked."""

    model: str = ""
    """As `model.path`; empty: `builtin-draft` for the built-in model."""
    length: Annotated[int, Field(ge=1, le=32)] = field(default=4, metadata={"search": (2, 3, 6, 8)})
    """Tokens drafted one after the other."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Tokens of prompts that the draft computes in a step, of all sequences together."""
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Of the draft's KV pool; None: as many blocks as the served model has, or a share of the memory that is left."""
    weights: str = "dense"
    """The technique that stores its weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Common):
    branches: Annotated[int, Field(ge=1, le=8)] = 1
    """Tokens tried at each depth: the drawn one, and the likeliest others, which nothing is drafted behind."""


class DraftModel:
    """A proposer. `width`, `stream`, `keep`: as `Drafter` takes them; `name`: the technique's."""

    def __init__(
        self, parts: Parts, options: Common, *, width: int = 1, stream: int = 0, keep: int = 0, name: str = "draft-model"
    ) -> None:
        from hasten.engine.decoding.drafts.drafter import Drafter
        from hasten.engine.decoding.drafts.second import load
        from hasten.engine.decoding.drafts.twins import Twins

        served = parts.config.model
        path = options.model or (BUILTIN_DRAFT if served.path == BUILTIN else "")
        if not path:
            raise ConfigError(f"{name}: which model drafts for {served.path}? Name it: {name}:model=NAME_OR_PATH")
        config = ModelConfig(path=path, load_format=served.load_format, dtype=options.dtype, device=served.device)
        second = load(parts, config, options.weights, options.memory_bytes, name)
        self.twins = Twins(second.books, second.model.fingerprint)
        self.second = second
        self._most = options.length * width
        sampler = parts.config.make(parts.config.decoding.sampler, parts)
        self._drafter = Drafter(
            second,
            self.twins,
            sampler,
            parts.kernels,
            parts.eos,
            length=options.length,
            chunk=options.chunk,
            width=width,
            stream=stream,
            keep=keep,
        )
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
        drafter, behind = self._drafter, self._behind(sequence)
        if not self._reaches(sequence):
            return 0
        if behind > drafter.few + drafter.chunk:  # it is asked, so that the twin gets on, but will have nothing to say
            return 1
        return self._most

    def evidence(self, sequence: Sequence) -> str | None:
        return PREPARING if self._behind(sequence) > self._drafter.few else None

    def price(self, sequences: int, tokens: int, length: int) -> float:
        cached = tokens + sequences
        return length * self.second.executor.price(StepShape(sequences, sequences, sequences, cached, cached))

    def _behind(self, sequence: Sequence) -> int:
        """Tokens of the sequence that have no KV here."""
        return sequence.length - self.twins.computed(sequence)

    def _reaches(self, sequence: Sequence) -> bool:
        """Whether the draft could read the sequence if it had all of its memory."""
        length, pool = sequence.length + self._drafter.length, self.second.books.pool
        last = int(sequence.positions[-1]) + self._drafter.length
        fits = last < self.second.model.max_length and length <= pool.blocks * pool.block_size
        return fits and self.second.reads(sequence)

    def propose(self, sequences: Seq[Sequence], budgets: Seq[int], last: StepResult | None) -> list[Draft | None]:
        from hasten.engine.decoding.drafts.drafter import Line

        twins = self.twins.follow(sequences)
        length = self._drafter.length
        lines = [Line(twin, most, length, seq.constraint) for seq, twin, most in zip(sequences, twins, budgets, strict=True)]
        self._draft(lines)
        return [line.draft() for line in lines]

    def _draft(self, lines: list[Line]) -> None:
        try:
            self._drafter.draft(lines)
        except Exception:  # what of their KV was computed is not known
            for line in lines:
                self.twins.lose(line.twin)
            self.second.books.take_copies()
            raise


TECHNIQUE = Technique(
    name="draft-model",
    seam="decoding",
    summary="a small model guesses the next tokens, which the served one then checks together",
    exact=True,
    sets={"decoding.proposers": ("draft-model",)},
    options=Options,
    make=lambda parts, options: DraftModel(parts, options, width=options.branches),
    paper="Fast Inference from Transformers via Speculative Decoding (2023)",
)
