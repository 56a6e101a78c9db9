"""Text in and out: tokenising, chat templates, incremental detokenising. Importing this costs no torch."""

from __future__ import annotations

from hasten.engine.config import ModelConfig
from hasten.engine.models.checkpoint import resolve
from hasten.engine.text.chat import ChatTemplate
from hasten.engine.text.detokenizer import Detokenizer
from hasten.engine.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Tokenizer", "load_text"]


def load_text(config: ModelConfig) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer and chat template (None where it has none) of the model that `config` names. Raises ModelError.

    With `load_format=dummy` a folder needs no tokenizer: bytes then stand for themselves."""
    dummy = config.load_format == "dummy"
    folder = resolve(config.path, weights=not dummy)
    if folder.is_file():
        from hasten.engine.text.gguf import load_gguf_text

        return load_gguf_text(folder)
    if dummy and not (folder / "tokenizer.json").is_file():
        return Tokenizer.of_bytes(), None
    tokenizer = Tokenizer.load(folder)
    return tokenizer, ChatTemplate.load(folder, tokenizer.special_tokens)
