"""`hasten train testbed`: tokenizer, texts, recipe and run put together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer

from hasten.lab.testbed import material
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.registry import find
from hasten.lab.testbed.tokenizer import tokens_of, train_tokenizer
from hasten.lab.training.recipe import TASKS, recipe_for
from hasten.lab.training.train import Run

LESSONS_A_TASK = 400
LESSON_TOKENS = 480
ANSWERS_COUNT = 10


def run(
    model: str, out: Path, *,
    init: Path | None = None, tokens: int | None = None, minutes: float | None = None, data: Path | None = None,
    tokenizer: Path | None = None, teacher: Path | None = None, device: str = "cpu", workers: int = 0,
    threads: int | None = None,
) -> None:  # fmt: skip
    """See the command's help. Raises ValueError for an unknown model, a device that is not here or a teacher with another
    tokenizer, FileNotFoundError for a missing folder."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: cpu and cuda are supported")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device here")
    chosen = recipe_for(model, device)
    if tokens is not None:
        chosen = replace(chosen, tokens=tokens)
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True, highlight=False)
    words = _tokenizer(out, tokenizer or init or teacher, data)
    if teacher is not None and _tokenizer(teacher, teacher, data).get_vocab() != words.get_vocab():
        raise ValueError(f"the teacher {teacher} has another tokenizer")
    console.print("reading the texts")
    texts = material.load(partial(tokens_of, words), data, packages=True)
    training = Run(out, chosen, words, texts, init=init, teacher=teacher, device=device, workers=workers, say=console.print)
    parameters = sum(p.numel() for p in training.net.parameters())
    console.print(f"{model}: {parameters / 1e6:.2f} M parameters, {chosen.tokens / 1e6:.0f} M tokens to train on in all")
    training.train(60 * minutes if minutes else float("inf"))


def _tokenizer(out: Path, given: Path | None, data: Path | None) -> Tokenizer:
    """The run's own tokenizer, if it has one yet; the given one; or one trained on texts and lessons."""
    for folder in (out, given):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if given is not None:
        raise FileNotFoundError(f"{given} has no tokenizer.json")
    texts = material.load(len, data)
    return train_tokenizer(_samples(texts))


def _samples(texts: Material) -> Iterator[str]:
    """What the tokenizer learns from: all training texts, and lessons of every task. Answers count more: a word that an answer
    writes without a space before it should be a token like the spaced one that it is copied from."""
    yield from (document.text for document in texts.training)
    rng = random.Random("tokenizer")
    for name in TASKS:
        for _ in range(LESSONS_A_TASK):
            lesson = find(name).easier(rng, LESSON_TOKENS).lesson(rng, texts)
            yield "".join(piece.text for piece in lesson)
            yield from [piece.text for piece in lesson if piece.learn] * ANSWERS_COUNT
