"""A quick look at what a network in training can do: the share of held-out answers it would give token for token."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from hasten.lab.testbed.document import END_OF_TEXT, END_OF_TURN
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Task
from hasten.lab.testbed.tasks.registry import notation
from hasten.lab.training.net import Llama

SHORT = (
    "recall:pairs=4",
    "recall",
    "recall:pairs=16,length=480",
    "needle:length=480",
    "dialogue",
    "tracing:length=0",
    "tracing:length=480",
    "tracing:length=480,steps=false",
    "copying",
    "rules",
    "arithmetic",
    "arithmetic:steps=false",
    "json",
    "calls",
    "sql",
    "python",
)
LONG = ("recall:pairs=16,length=2048", "needle:length=4096", "needle:length=8000", "tracing:length=1024")


@torch.no_grad()
def probe(net: Llama, tokenizer: Tokenizer, material: Material, tasks: Sequence[Task], n: int = 24) -> dict[str, float]:
    """Share of n held-out examples of each task whose every answer token is the most likely one (given the ones before)."""
    scores: dict[str, float] = {}
    device = next(net.parameters()).device
    for task in tasks:
        right = 0
        for number in range(n):
            example = task.example(random.Random(f"probe/{notation(task)}/{number}"), "held-out", material)
            prompt = tokenizer.encode(example.prompt, add_special_tokens=False).ids
            end = END_OF_TURN if example.messages else END_OF_TEXT
            answer = tokenizer.encode(example.answer + end, add_special_tokens=False).ids
            with torch.autocast(device.type, torch.bfloat16):
                logits = net(torch.tensor([prompt + answer], device=device), last=len(answer) + 1)[0, :-1]
            right += bool((logits.argmax(-1).cpu() == torch.tensor(answer)).all())
        scores[notation(task)] = right / n
    return scores
