"""What a model reads while its rounding is calibrated: stretches of a file, or of the texts that the testbed trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from hasten.engine.config import ModelConfig
from hasten.engine.models import ModelShape, context_length, read_json, resolve
from hasten.engine.technique import ConfigError
from hasten.engine.text import Tokenizer, load_text
from hasten.lab.testbed.document import END_OF_TURN, Document

TOKENS = 512
"""Of a stretch, or as many as a model with a shorter context can read."""
STRETCHES = 64
CHARACTERS_A_TOKEN = 8
"""More than most texts have, so that so many characters rarely hold too few tokens."""


def of_file(model: str, path: Path, count: int = STRETCHES, seed: int = 0) -> list[list[int]]:
    """Token ids of `count` stretches from random places of a text. Raises ConfigError for a file that is not there, is no
    UTF-8 text, or holds less than one stretch."""
    tokenizer, tokens = _of_model(model)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"the text {path} cannot be read: {reason}") from None
    if len(tokenizer.encode(text[: tokens * CHARACTERS_A_TOKEN])) < tokens:
        raise ConfigError(f"the text {path} is shorter than one stretch of {tokens} tokens")
    return _stretches([text], tokenizer, count, tokens, seed)


def of_documents(model: str, documents: Sequence[Document], count: int = STRETCHES, seed: int = 0) -> list[list[int]]:
    """The same from documents, each drawn as often as it is long. Conversations are left out where the tokenizer does not know
    their marks."""
    tokenizer, tokens = _of_model(model)
    talks = len(tokenizer.encode(END_OF_TURN, add_special_tokens=False)) == 1
    texts = [d.text for d in documents if talks or "<|" not in d.text]
    return _stretches(texts, tokenizer, count, tokens, seed)


def _of_model(model: str) -> tuple[Tokenizer, int]:
    """Its tokenizer and how long its stretches are: the context has to hold one token more."""
    shape = ModelShape.parse(read_json(resolve(model) / "config.json"))
    return load_text(ModelConfig(path=model))[0], min(TOKENS, context_length(shape, None) - 1)


def _stretches(texts: Sequence[str], tokenizer: Tokenizer, count: int, tokens: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    ends = list(accumulate(map(len, texts)))
    found: list[list[int]] = []
    while len(found) < count:
        stretch: list[int] = []
        while len(stretch) < tokens:  # short documents follow one another
            text = rng.choices(texts, cum_weights=ends)[0]
            start = rng.randrange(max(1, len(text) - tokens * CHARACTERS_A_TOKEN + 1))
            stretch += tokenizer.encode(text[start : start + tokens * CHARACTERS_A_TOKEN])
        found.append(stretch[:tokens])
    return found
