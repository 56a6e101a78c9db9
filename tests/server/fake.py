"""An engine with the interface of `AsyncEngine` and no model: it says the alphabet, as fast or slow as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hasten.engine.decoding.base import TokenLogprobs
from hasten.engine.frontend import Frontend
from hasten.engine.outputs import GRAMMAR_REFUSED, Delta, EngineDead, QueueFull, TokenDelta
from hasten.engine.request import BadRequest, Request
from hasten.engine.text import ChatTemplate, Tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if shout %}!{% endif %}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz "
EURO = "€uro "


class FakeEngine:
    """Tokens are bytes. Choice i starts at letter i. Words in the prompt make it misbehave: EURO (speak of €), BOOM (fail after
    three tokens), DIE (the engine dies after three), REJECT (the scheduler refuses), NOWAY (its grammar is refused late),
    GUESS (draft two tokens a step).
    `script`: what it says instead, to its end."""

    def __init__(
        self, *, step_s: float = 0.0, queue_limit: int | None = None, max_length: int = 512, template: bool = True
    ) -> None:
        self.tokenizer = Tokenizer.of_bytes()
        self.chat_template = ChatTemplate({"default": TEMPLATE}) if template else None
        self.info: dict[str, Any] = {
            "model": "fake", "max_length": max_length, "vocabulary": 256, "dtype": "float32", "device": "cpu",
            "kernels": "none", "threads": 1, "kv_blocks": 100, "kv_bytes": 1 << 20, "load_s": 0.1, "weight_bytes": 1 << 20,
        }  # fmt: skip
        self.alive = True
        self.prepares_grammars = True
        self.step_s = step_s
        self.queue_limit = queue_limit
        self.running: set[str] = set()
        self.seen: list[Request] = []
        self.cancelled: list[str] = []
        self.most_running = 0
        self.script: str | None = None

    @classmethod
    async def start(cls, **knobs: Any) -> FakeEngine:
        return cls(**knobs)

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        if not self.alive:
            raise EngineDead("the engine process is not running")
        if self.queue_limit is not None and len(self.running) >= self.queue_limit:
            raise QueueFull(f"{len(self.running)} requests are unfinished, the limit is {self.queue_limit}")
        if int(request.prompt.max()) >= 256:
            raise BadRequest("the prompt holds a token id beyond the vocabulary of 256", "prompt")
        if not self.prepares_grammars and request.sampling.constraint is not None:
            raise BadRequest("this back end takes none", "constraint")
        self.seen.append(request)
        self.running.add(request.id)
        self.most_running = max(self.most_running, len(self.running))
        done = False
        try:
            async for delta in self._speak(request):
                yield delta
            done = True
        finally:
            self.running.discard(request.id)
            if not done:
                self.cancelled.append(request.id)

    async def _speak(self, request: Request) -> AsyncIterator[Delta]:
        sampling, prompt = request.sampling, request.prompt
        text = self.tokenizer.decode(prompt.tolist())
        source = self.tokenizer.encode(self.script or (EURO if "EURO" in text else ALPHABET))
        limit = min(sampling.max_tokens or 10**9, self.info["max_length"] - len(prompt))
        frontend = Frontend(self.tokenizer)
        frontend.open(request)
        said = 0
        going = set(range(sampling.n))
        while going:
            await asyncio.sleep(self.step_s)
            if not self.alive:
                raise EngineDead("the engine process ended")
            if said == 3 and "DIE" in text:
                self.alive = False
                raise EngineDead("the engine process ended (signal 11)")
            for index in range(sampling.n):
                token = source[(said + (index if self.script is None else 0)) % len(source)]
                over = self.script is not None and said + 1 == len(source)
                out = TokenDelta(request.id, index, [token], finish="stop" if over else "length" if said + 1 >= limit else None)
                out.drafted, out.accepted = (2, said % 2) if "GUESS" in text and sampling.speculate != 0 else (0, 0)
                if "REJECT" in text:
                    out = TokenDelta(request.id, index, [], finish="rejected", error="its deadline has passed")
                elif "NOWAY" in text:
                    out = TokenDelta(request.id, index, [], finish="error", error=f"{GRAMMAR_REFUSED}it is too hard")
                elif said == 3 and "BOOM" in text:
                    out = TokenDelta(request.id, index, [], finish="error", error="a policy raised KeyError")
                else:
                    if sampling.logprobs is not None:
                        out.logprobs = [self._logprobs(token, sampling.logprobs)]
                    if said == 0:
                        out.reused = len(prompt) // 2
                        if sampling.prompt_logprobs is not None and index == 0:
                            scored = [self._logprobs(t, sampling.prompt_logprobs) for t in prompt.tolist()[1:]]
                            out.prompt_logprobs = [None, *scored]
                delta, _ = frontend.feed(out)
                if delta is not None:
                    if delta.finish is not None:
                        going.discard(index)
                    yield delta
            said += 1

    def _logprobs(self, token: int, top: int) -> TokenLogprobs:
        best = [(token, -0.25), *((other, -2.0 - other) for other in range(top))]
        return TokenLogprobs(token, -0.25, tuple(best[:top]))

    async def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stats(self) -> dict[str, Any]:
        return {
            "running": len(self.running), "waiting": 0, "free_blocks": 90, "total_blocks": 100, "steps_total": 7,
            "tokens_total": 8, "prefix_hit_tokens": 9, "preempted_total": 0,
            "drafted_by_depth": [6, 2], "accepted_by_depth": [4, 1],
        }  # fmt: skip

    async def drain(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while self.running:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.alive = False
