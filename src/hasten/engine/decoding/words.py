"""Speculation in a word, as `--speculate ngram` says it: which proposers that switches on."""

from __future__ import annotations

from typing import Any

from hasten.engine.technique import ConfigError

OFF = "off"
WORDS: dict[str, tuple[str, str | None]] = {
    "ngram": ("prompt-lookup", None),
    "suffix": ("suffix-tree", None),
    "draft": ("draft-model", "model"),
    "mirror": ("mirror-sd", "model"),
}
"""The technique of each word, and which of its knobs takes what may stand behind a colon (as in `word:value`), if any does."""


def proposers(text: str) -> dict[str, dict[str, Any]]:
    """Techniques and their knobs, in the order in which they are asked; none for `off`. Raises ConfigError."""
    if text.strip() == OFF:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for part in text.split(","):
        word, colon, value = part.strip().partition(":")
        if word not in WORDS:
            known = ", ".join([OFF, *WORDS])
            raise ConfigError(
                f"speculate: {part.strip()!r} is not one of {known}; several are chained with commas, {OFF} stands alone"
            )
        technique, knob = WORDS[word]
        if colon and (knob is None or not value):
            form = word if knob is None else f"{word} or {word}:{knob.upper()}"
            raise ConfigError(f"speculate: {part.strip()!r} should be written {form}")
        if technique in found:
            raise ConfigError(f"speculate: {word} is named twice")
        found[technique] = {knob: value} if knob is not None and value else {}
    return found
