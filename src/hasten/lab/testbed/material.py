"""What tasks are made of: running text to hide things in, Python functions, and documents, each divided by split.

Everything comes through `corpus.py` (the folder that HASTEN_DATA names, and the interpreter's own library). Without such a
folder the running text is generated (`words.py`), so every task works on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from hasten.lab.testbed import words
from hasten.lab.testbed.document import Document

PROSE = ("essay", "encyclopaedia")
LEAST_SENTENCES, GENERATED_SENTENCES = 200, 4000
Split = Literal["train", "held-out"]
T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """Texts by split, and `count`, which says how many tokens a text takes in the tokenizer at hand."""

    count: Callable[[str], int]
    training: Sequence[Document] = ()
    held_out: Sequence[Document] = ()
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """`make()`, done the first time that this key is asked for and kept: what tasks derive from the documents."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def documents(self, split: Split, *kinds: str) -> list[Document]:
        """The documents of some kinds (all, when none is named)."""
        return [d for d in (self.training if split == "train" else self.held_out) if not kinds or d.kind in kinds]

    def filler(self, rng: random.Random, split: Split, tokens: int) -> list[str]:
        """Consecutive sentences of running text, `tokens` tokens long or a little less; never the same for both splits."""
        pool = self.once(("sentences", split), lambda: self._pool(split))
        at = rng.randrange(len(pool))
        chosen: list[str] = []
        while True:
            sentence, length = pool[at % len(pool)]
            if length > tokens:
                return chosen
            chosen.append(sentence)
            tokens -= length
            at += 1

    def _pool(self, split: Split) -> list[tuple[str, int]]:
        """Sentences with their lengths in tokens."""
        texts = [s for d in self.documents(split, *PROSE) for s in sentences(d.text)]
        # Models train on both, to know the generated text too where there is no other.
        if split == "train" or len(texts) < LEAST_SENTENCES:
            rng = random.Random(split)
            texts += [words.sentence(rng) for _ in range(GENERATED_SENTENCES)]
        return [(s, self.count(" " + s)) for s in texts]


def sentences(text: str) -> list[str]:
    """A text's sentences of ordinary length, headings left out."""
    found = (s.strip() for p in text.split("\n") if not p.startswith("#") for s in re.split(r"(?<=[a-z][.?!]) (?=[A-Z])", p))
    return [s for s in found if 20 <= len(s) <= 300]


def load(count: Callable[[str], int], folder: Path | None = None, packages: bool = False) -> Material:
    """The texts in `folder` (default: what HASTEN_DATA names) and in the interpreter's library; without a folder, only the
    latter. packages: and what installed packages hold, for training."""
    from hasten.lab.testbed import corpus

    try:
        texts = corpus.data_folder(folder)
    except FileNotFoundError:
        if folder is not None:
            raise
        texts = None
    return Material(count, *corpus.split(texts, packages))
