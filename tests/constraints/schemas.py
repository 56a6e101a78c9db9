"""What a schema's grammar allows, by text: for the tests of `constraints.schema`."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import numpy as np

from hasten.engine.decoding.constraints.machine import CompiledGrammar, State
from hasten.engine.decoding.constraints.schema import compile_schema
from hasten.lab.bench.maskbench import accepts, byte_vocabulary

vocabulary = cache(byte_vocabulary)


def compiled(schema: Any, **options: Any) -> CompiledGrammar:
    return CompiledGrammar(compile_schema(schema, **options), vocabulary())


def accepted(schema: Any, texts: list[str], **options: Any) -> list[str]:
    """Those of the texts that the grammar allows."""
    grammar = compiled(schema, **options)
    return [text for text in texts if accepts(grammar, text.encode())]


def allows(grammar: CompiledGrammar, value: Any) -> bool:
    return accepts(grammar, json.dumps(value, ensure_ascii=False).encode())


def legal(state: State) -> list[int]:
    """Legal bytes."""
    mask = np.zeros(vocabulary().words, np.int32)
    state.fill(mask)
    return [token for token in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() if token < 256]


def walk(grammar: CompiledGrammar, seed: int, patience: int = 60, steps: int = 3000) -> str | None:
    """A text written by taking legal bytes by chance, after `patience` of them those that lead to an end if there are any.
    None: it did not end. AssertionError: there was no way on."""
    draw, state, text = random.Random(seed), grammar.start(), bytearray()
    for step in range(steps):
        choices = legal(state)
        if state.ended and (not choices or draw.random() < 0.5):
            return text.decode()
        assert choices, f"no way on after {bytes(text)!r}"
        closing = [byte for byte in choices if byte in b'"]}']
        plain = [byte for byte in choices if 0x20 < byte < 0x7F and byte != 0x5C]
        pool = closing if closing and (step > patience or draw.random() < 0.3) else plain or choices
        text.append(draw.choice(pool))
        state.advance(text[-1])
    return None
