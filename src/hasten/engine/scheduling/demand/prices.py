"""What a call's tokens cost the engine: its share of full steps, in seconds of the cost model.

A busy engine's steps are full, so a token's service is the price of a full step divided by its tokens, whether it is a
prompt's or an output's; on top comes what depends on context: an output token reads all before it, a prompt is read again by
each of its chunks. Order matters when the engine is busy; what a step costs with few rows in it is nobody's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.engine.executors.cost import StepShape
from hasten.engine.scheduling.base import View

_PROBE = 1 << 20


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds: `token_s` of a token, `draw_s` more of one that is an output, `read_s` for a cached token it reads, `pair_s`
    of a pair of query and key, `step_s` of a full step of `step_tokens` tokens."""

    token_s: float
    draw_s: float
    read_s: float
    pair_s: float
    step_s: float
    step_tokens: int

    @classmethod
    def of(cls, view: View, step_tokens: int) -> Prices:
        tokens = max(1, min(step_tokens, view.limits.tokens))

        def price(rows: int = 0, heads: int = 0, cached: int = 0, pairs: int = 0) -> float:
            return view.price(StepShape(tokens, rows, heads, cached, pairs))

        bare = price()
        return cls(
            token_s=bare / tokens,
            draw_s=(price(rows=64, heads=64) - bare) / 64,
            read_s=(price(cached=_PROBE) - bare) / _PROBE,
            pair_s=(price(pairs=_PROBE) - bare) / _PROBE,
            step_s=bare,
            step_tokens=tokens,
        )

    def prompt(self, tokens: Any) -> Any:
        """Seconds of computing a prompt, or so many tokens of it; numbers or arrays."""
        return tokens * (self.token_s + tokens * (self.pair_s + self.read_s / self.step_tokens) / 2)

    def output(self, prompt: Any, tokens: Any) -> Any:
        """Seconds of decoding so many tokens behind a prompt."""
        return tokens * (self.token_s + self.draw_s + (self.read_s + self.pair_s) * (prompt + tokens / 2))

    def decoded(self, context: Any) -> Any:
        """Seconds of one output token behind `context` tokens; a number or an array."""
        return self.token_s + self.draw_s + (self.read_s + self.pair_s) * context
