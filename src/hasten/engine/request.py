"""What was asked: a request, its sampling parameters, its service level and its place in an application.

Everything here is immutable and validated on construction: a bad value raises `BadRequest`, which names the field, before
any engine state exists for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_LOGPROBS = 20
"""Most alternatives a request may ask for per token (the limit of the OpenAI API)."""


class BadRequest(ValueError):
    """The request cannot be served as asked; `param` names the field at fault (None: the request as a whole)."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[type[BadRequest], tuple[str, str | None]]:
        return (type(self), (self.message, self.param))


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise BadRequest(f"{name} must be a number, got {value!r}", name)
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise BadRequest(f"{name} must be in {bracket}{low:g}, {high:g}], got {value!r}", name)


def _count(name: str, value: Any, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadRequest(f"{name} must be an integer, got {value!r}", name)
    if not low <= value <= high:
        limit = f"at least {low}" if high == 2**31 - 1 else f"between {low} and {high}"
        raise BadRequest(f"{name} must be {limit}, got {value!r}", name)


def _ranges(name: str, ranges: Any, end: int) -> tuple[tuple[int, int], ...]:
    """`ranges` as pairs of plain integers, ascending, disjoint, not empty and within [0, end)."""
    try:
        pairs = tuple((int(start), int(stop)) for start, stop in ranges)
    except (TypeError, ValueError):
        raise BadRequest(f"{name} must be ranges [start, stop) of tokens, got {ranges!r}", name) from None
    at = 0
    for start, stop in pairs:
        if not at <= start < stop:
            raise BadRequest(f"{name} must ascend without overlap, got [{start}, {stop})", name)
        at = stop
    if at > end:
        raise BadRequest(f"{name} must end before the prompt's last token, whose logits are wanted", name)
    return pairs


def _schema(schema: dict[str, Any]) -> Any:
    from hasten.engine.decoding.constraints.spec import ConstraintSpec

    try:
        return ConstraintSpec.of_schema(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"constraint is no JSON Schema: {error}", "constraint") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are drawn and when it ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off; the three filters apply in that order, after the
    temperature. Penalties act on the raw logits: repetition (multiplicative, over prompt and output; Keskar et al., 2019),
    presence and frequency (additive, over the output, as in the OpenAI API). `max_tokens` None means until the context is
    full. `constraint`: a `ConstraintSpec` (decoding/constraints/spec.py), or a dict that is a JSON Schema. `logprobs` asks for
    the chosen token's log-probability and that many alternatives, taken from the raw logits. `speculate`: most tokens drafted
    in a step for each sequence, 0 for none; None leaves it to the engine. It changes no token.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraint: Any = None
    speculate: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _count("max_tokens", self.max_tokens, 1)
        _count("min_tokens", self.min_tokens, 0)
        _number("temperature", self.temperature, 0.0, 100.0)
        _count("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _count("n", self.n, 1, 128)
        if self.seed is not None:
            _count("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _count(name, value, 0, MAX_LOGPROBS)
        if self.speculate is not None:
            _count("speculate", self.speculate, 0)
        if isinstance(self.constraint, dict):
            object.__setattr__(self, "constraint", _schema(self.constraint))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise BadRequest("stop must hold non-empty strings", "stop")
        for token in self.stop_token_ids:
            _count("stop_token_ids", token, 0)
        for token, bias in self.logit_bias.items():
            _count("logit_bias", token, 0)
            _number("logit_bias", bias, -100.0, 100.0)

    @property
    def reshapes_logits(self) -> bool:
        """True when penalties, bias or `min_tokens` change the row of logits before it is drawn from."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SLO:
    """Service-level objective, all in seconds: time to first token, time per output token, whole-response deadline."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "deadline_s"):
            if (value := getattr(self, name)) is not None:
                _number(name, value, 0.0, math.inf, open_low=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """Where a request stands in an application: which workflow, which stage of it, after which requests."""

    application: str = ""
    workflow: str = ""
    stage: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt that is put together from several. `content`: text, or token ids.

    `cache`: a document, an example, a tool's result, something that may stand in many prompts and reads the same in all of
    them. An engine that reuses chunks (`kv.repair`) computes it once, keeps it and uses it wherever it stands, which is faster
    and not quite the same as reading it in its place; any other engine takes no notice."""

    content: str | Seq[int]
    cache: bool = False

    def __post_init__(self) -> None:
        if not len(self.content):
            raise BadRequest("a segment must hold at least one token", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing asked of the engine.

    `prompt` is int32 [n] token ids, n >= 1. `priority`: lower is more urgent. `arrival_s` is in the engine clock's time; None
    lets the engine stamp it on intake. `cache_salt` separates prefix caches: only equal salts and tenants share KV.
    `ends_after`: a replay's output ends after so many tokens, as if the model had ended it there; unlike a limit
    (`SamplingParams.max_tokens`) nobody is told beforehand (policies must not look). `chunks`: ranges [start, stop) of the
    prompt that may be reused wherever they stand (`Segment.cache`), ascending; the last token, whose logits are wanted, is in
    none.
    """

    id: str
    prompt: npt.NDArray[Any]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    slo: SLO = field(default_factory=SLO)
    app: AppContext = field(default_factory=AppContext)
    tenant: str = ""
    adapter: str | None = None
    priority: int = 0
    cache_salt: str = ""
    arrival_s: float | None = None
    ends_after: int | None = None
    chunks: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _count("priority", self.priority, -(2**31))
        if self.ends_after is not None:
            _count("ends_after", self.ends_after, 1)
        raw = np.asarray(self.prompt)
        if raw.ndim != 1 or raw.size == 0:
            raise BadRequest("the prompt must hold at least one token", "prompt")
        if raw.dtype.kind not in "iu":
            raise BadRequest(f"the prompt must hold integer token ids, got {raw.dtype}", "prompt")
        if int(raw.min()) < 0 or int(raw.max()) > 2**31 - 1:
            raise BadRequest("the prompt holds a token id out of range", "prompt")
        prompt = raw.astype(np.int32)
        prompt.flags.writeable = False
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "chunks", _ranges("chunks", self.chunks, len(prompt) - 1))
