"""From documents to batches of token windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer

from hasten.lab.testbed.document import Document
from hasten.lab.testbed.tokenizer import END_OF_TEXT

# How often a document of each kind appears in one pass (once where not named). Prose is scarce, so it is repeated; sums
# and source are plentiful.
REPEATS: dict[str, float] = {
    "essay": 4.0,
    "chat: essay": 3.0,
    "encyclopaedia": 4.0,
    "chat: encyclopaedia": 4.0,
    "play": 1.0,
    "chat: sums": 0.5,
    "python": 0.7,
    "chat: python": 0.8,
    "fill in the middle": 0.3,
    "reference": 2.0,
    "chat: reference": 2.0,
    "small talk": 3.0,
}


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[np.ndarray]:
    """Each document as token ids [n] uint16, ending with the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch_fast([d.text for d in documents], add_special_tokens=False)
    return [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]


def token_stream(encoded: list[np.ndarray], documents: list[Document], rng: np.random.Generator) -> np.ndarray:
    """One pass over the documents in random order as one array of token ids [n] uint16.

    A repeat of 2.3 means twice, and a third time for a random 30 % of the documents.
    """
    wanted = np.array([REPEATS.get(d.kind, 1.0) for d in documents])
    times = np.floor(wanted + rng.random(len(documents))).astype(int)
    order = rng.permutation(np.repeat(np.arange(len(documents)), times))
    return np.concatenate([encoded[i] for i in order])


class Windows:
    """Endless batches of consecutive windows of the token stream; each pass is drawn and shuffled anew."""

    def __init__(self, encoded: list[np.ndarray], documents: list[Document], seed: int) -> None:
        self._encoded = encoded
        self._documents = documents
        self._rng = np.random.default_rng(seed)
        self._stream = np.empty(0, dtype=np.uint16)
        self._next = 0

    def draw(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and the tokens that follow them, each [rows, length] int64.

        The rows of a batch are neighbours in a shuffled stream of short documents, so they are as good as random.
        """
        needed = rows * length + 1
        while len(self._stream) - self._next < needed:
            more = token_stream(self._encoded, self._documents, self._rng)
            self._stream = np.concatenate([self._stream[self._next :], more])
            self._next = 0
        flat = torch.from_numpy(self._stream[self._next : self._next + needed].astype(np.int64))
        self._next += needed - 1
        return flat[:-1].view(rows, length), flat[1:].view(rows, length)


def held_out_windows(encoded: list[np.ndarray], length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets [1, n] (n <= length) that cover each document once, never crossing into the next."""
    for tokens in encoded:
        for start in range(0, len(tokens) - 1, length):
            piece = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
            yield piece[None, :-1], piece[None, 1:]
