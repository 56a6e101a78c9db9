"""Language modelling: how likely held-out text is, in bits per byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from hasten.lab.testbed.document import END_OF_TEXT, Document
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Example, Lesson, Piece, Split, Task

KINDS = {"wikitext": "encyclopaedia", "essay": "essay", "python": "python"}
"""The kind of document that each source names."""
LEAST_TOKENS = 16
CHARACTERS_A_TOKEN = 6
"""More than any source has on average, so that the first guess at a stretch is rather too long than too short."""


@dataclass(frozen=True)
class Language(Task):
    """source: wikitext, essay or python. tokens: how long a stretch of text is at most."""

    name: ClassVar[str] = "language"
    about: ClassVar[str] = "bits per byte of held-out text: wikitext, essay or python"
    metrics: ClassVar[tuple[str, ...]] = ("bits_per_byte",)
    likelihood: ClassVar[bool] = True
    source: str = "wikitext"
    tokens: int = 512

    def __post_init__(self) -> None:
        if self.source not in KINDS:
            raise ValueError(f"language: source is {self.source!r}; it must be one of {', '.join(KINDS)}")
        if self.tokens < LEAST_TOKENS:
            raise ValueError(f"language: tokens is {self.tokens}; it must be at least {LEAST_TOKENS}")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        return Example(END_OF_TEXT, self._stretch(rng, split, material), max_tokens=0)

    def score(self, example: Example, output: str) -> dict[str, float]:
        """Not for this task: what a model writes by itself says nothing about likelihood. Raises TypeError."""
        raise TypeError("language is scored by the likelihood of its answers, not by what a model writes")

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        return Piece(END_OF_TEXT, False), Piece(self._stretch(rng, "train", material), True)

    def easier(self, rng: random.Random, tokens: int) -> Language:
        return replace(self, tokens=max(LEAST_TOKENS, tokens - 2))

    def _stretch(self, rng: random.Random, split: Split, material: Material) -> str:
        """Text from the start of a line, of `tokens` tokens or less (where the document ends before)."""
        documents, ends = material.once(("language", self.source, split), lambda: self._pool(split, material))
        text = rng.choices(documents, cum_weights=ends)[0].text
        # Where a document is short, all of it; otherwise from any line that leaves about enough behind it.
        start = rng.randrange(max(1, len(text) - self.tokens * CHARACTERS_A_TOKEN))
        start = text.rfind("\n", 0, start) + 1
        return _shortened(text[start : start + self.tokens * CHARACTERS_A_TOKEN], self.tokens, material.count)

    def _pool(self, split: Split, material: Material) -> tuple[list[Document], list[int]]:
        """The documents and their running total of characters: a stretch is drawn as often as there is text."""
        found = [d for d in material.documents(split, KINDS[self.source]) if d.text.strip()]
        if not found:
            raise ValueError(
                f"there is no {split} text of the source {self.source!r}: set HASTEN_DATA to the folder that has it"
            )
        return found, list(accumulate(len(d.text) for d in found))


def _shortened(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """The longest beginning of a text, up to the end of a word, that was found to take `tokens` tokens at most."""
    while (length := count(text)) > tokens:
        kept = text[: int(len(text) * min(0.99, tokens / length))]
        text = kept[: max(kept.rfind(" "), kept.rfind("\n"), 0)] or kept
    return text


TASK = Language
