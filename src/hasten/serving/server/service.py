"""What all endpoints share: the engine, the settings, and the requests being answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hasten.engine.decoding.constraints.tools import format_of
from hasten.engine.kv.parallel import positions_saved
from hasten.engine.request import BadRequest
from hasten.serving.server.errors import too_long, unavailable, unknown_model
from hasten.serving.server.grammars import Grammars
from hasten.serving.server.logprobs import Pieces
from hasten.serving.server.metrics import Metrics
from hasten.serving.server.settings import Settings

if TYPE_CHECKING:
    from hasten.engine.async_engine import AsyncEngine
    from hasten.serving.server.answer import Answer

_LONG_TEXT = 8192
"""Characters above which a text is encoded in a thread, so that other clients' streams do not stutter."""


class Service:
    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.name: str = settings.served_name or str(engine.info["model"])
        self.max_length: int = engine.info["max_length"]
        self.pieces = Pieces(engine.tokenizer)
        self.grammars = Grammars(engine.prepares_grammars)
        template = engine.chat_template
        self.tool_format = format_of("\n".join(template.sources.values()) if template is not None else "")
        self.created = int(time.time())
        self.draining = False
        self.answers: set[Answer] = set()

    def check_open(self) -> None:
        """Raise 503 when nothing can be answered."""
        if self.draining:
            raise unavailable("the server is shutting down", "shutting_down")
        if not self.engine.alive:
            raise unavailable("the engine is not running")

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise unknown_model(name, self.name)

    async def encode(self, text: str, param: str, *, special: bool) -> list[int]:
        """Token ids of `text`, or 400 when they do not fit. `special`: with what the model puts before any text."""
        tokens = await self.encode_piece(text, special=special)
        self.check_length(tokens, param)
        return tokens

    async def encode_piece(self, text: str, *, special: bool = False) -> list[int]:
        """As `encode`, however many they are."""
        tokenizer = self.engine.tokenizer
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=special)
        return tokenizer.encode(text, add_special_tokens=special)

    def check_length(self, tokens: list[int], param: str, chunks: Sequence[tuple[int, int]] = ()) -> None:
        if not tokens:
            raise BadRequest("the prompt must hold at least one token", param)
        saved = positions_saved(chunks) if self.engine.info.get("contexts_beside") else 0
        if len(tokens) - saved >= self.max_length:
            raise too_long(len(tokens), self.max_length, param)

    def model_card(self) -> dict[str, Any]:
        """The entry of /v1/models, with the facts of the engine beside what OpenAI sends."""
        info = self.engine.info
        facts = {k: v for k, v in info.items() if isinstance(v, str | int | float | bool | None) and k != "model"}
        facts["chat_template"] = self.engine.chat_template is not None
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "hasten"}
        return {**card, "max_model_len": self.max_length, "engine": facts}

    async def drain(self) -> None:
        """Take nothing new, let running requests finish within the grace time, then end the rest with an error."""
        self.draining = True
        until_s = time.monotonic() + self.settings.grace_s
        while self.answers and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        for answer in list(self.answers):
            answer.abort(unavailable("the server is shutting down and the grace time is over", "shutting_down"))
        until_s = time.monotonic() + 2.0  # for those last words to be sent
        while self.answers and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
