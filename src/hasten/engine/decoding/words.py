"""Speculation in a word, as `--speculate ngram` says it: which techniques that switches on."""

from __future__ import annotations

from typing import Any

from hasten.engine.technique import ConfigError

OFF = "off"
AUTO = "auto"
GOVERNOR = "smart-spec"
WORDS: dict[str, tuple[str, str | None]] = {
    "ngram": ("prompt-lookup", None),
    "suffix": ("suffix-tree", None),
    "draft": ("draft-model", "model"),
    "mirror": ("mirror-sd", "model"),
    "medusa": ("medusa", "path"),
}
"""The technique of each word, and which of its knobs takes what may stand behind a colon (as in `word:value`), if any does."""


def techniques(text: str) -> dict[str, dict[str, Any]]:
    """Techniques and their knobs, proposers in the order in which they are asked; none for `off`. `auto` drafts what pays of
    what the other words propose, or of `ngram` if it stands alone. Raises ConfigError."""
    if text.strip() == OFF:
        return {}
    if text.strip() == AUTO:
        return techniques(f"{AUTO},ngram")
    found: dict[str, dict[str, Any]] = {}
    for part in text.split(","):
        word, colon, value = part.strip().partition(":")
        if word == AUTO and not colon and GOVERNOR not in found:
            found[GOVERNOR] = {}
            continue
        if word not in WORDS:
            known = ", ".join([AUTO, OFF, *WORDS])
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
