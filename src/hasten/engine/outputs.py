"""What comes back: increments of a sequence while it runs, and the whole answer when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.engine.decoding.base import TokenLogprobs

GRAMMAR_REFUSED = "the constraint is refused: "
"""How the error of a request begins whose grammar turned out to be none after it was accepted."""


class QueueFull(RuntimeError):
    """The engine holds as many unfinished requests as its queue limit allows; try again later."""


class EngineDead(RuntimeError):
    """The engine process ended; the message says why."""


@dataclass(slots=True)
class TokenDelta:
    """New tokens of sequence `index` of a request, as the loop commits them (no text yet).

    `finish`: None while it goes on, else stop, length, cancelled, error or rejected; `error` says what went wrong.
    `reused`: prompt tokens whose KV was found in a cache. `drafted`, `accepted`: tokens that were guessed for these, and
    how many of them are among these. `prompt_logprobs` comes once, with the first delta of index 0; its first entry is None,
    since nothing predicts the first token."""

    request_id: str
    index: int
    tokens: list[int]
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    reused: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    last: bool = False
    """Nothing more comes of this request."""
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Delta:
    """The same with its text: whole characters only, with nothing of a stop string in it. `tokens` may be ahead of `text`
    while a character or a possible stop string is incomplete. `finish` as in `TokenDelta`."""

    request_id: str
    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    reused: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Choice:
    """One finished sequence; `error` says what went wrong where `finish` is error."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Completion:
    """One finished request; `choices` by index. Times in seconds: to the first token, and per token after it (mean). `drafted`,
    `accepted`: tokens of all its sequences that were guessed, and that were guessed right."""

    request_id: str
    prompt_tokens: list[int]
    choices: list[Choice]
    reused: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    drafted: int = 0
    accepted: int = 0

    @property
    def text(self) -> str:
        return self.choices[0].text
