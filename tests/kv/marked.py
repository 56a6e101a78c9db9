"""Requests whose prompts have chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.engine.request import Request, SamplingParams


def marked(id: str, documents: Sequence[list[int]], *pieces: int | list[int], **sampling: Any) -> Request:
    """`pieces`: numbers of documents, which are chunks, and lists of tokens, which are not."""
    prompt: list[int] = []
    chunks = []
    for piece in pieces:
        start = len(prompt)
        prompt += documents[piece] if isinstance(piece, int) else piece
        if isinstance(piece, int):
            chunks.append((start, len(prompt)))
    return Request(id=id, prompt=np.array(prompt), sampling=SamplingParams(**sampling), chunks=tuple(chunks))
