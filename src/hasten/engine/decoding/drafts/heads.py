"""Medusa heads in a folder: `heads.safetensors` and `medusa.json`, which says what they belong to and how good they are.

Head k gives softmax(W2 (SiLU(W1 h) + h)) for the (k + 1)-th token after the one that the model itself draws from h. W1 is kept
in int8 with a scale for each row. W2 is the model's own head, or rows of it (`tokens`), unless the file has its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hasten.engine.technique import ConfigError

VERSION = 1
RANKS = 10
"""Guesses of a head whose accuracy is known."""
RECORD, WEIGHTS = "medusa.json", "heads.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """`w1` float32 [heads, width, width]; `tokens` int64 [n], ascending: all that is ever guessed (None: any token of the
    vocabulary); `w2` [heads, n, width], None where it is the model's head. `accuracies` [heads][RANKS]: how often each guess
    of a head is right. `fingerprints`: of the model they were trained on, one for each dtype that it may run in."""

    fingerprints: tuple[str, ...]
    vocabulary: int
    accuracies: tuple[tuple[float, ...], ...]
    w1: Tensor
    tokens: Tensor | None = None
    w2: Tensor | None = None
    about: Mapping[str, Any] | None = None
    """Whatever else a reader of the folder may want to know."""

    @property
    def count(self) -> int:
        return self.w1.shape[0]

    @property
    def width(self) -> int:
        return self.w1.shape[1]


def rounded(w1: Tensor) -> tuple[Tensor, Tensor]:
    """W1 [heads, width, width] as int8 levels and a scale for each row, float32 [heads, width]."""
    scales = w1.abs().amax(-1) / 127
    levels = (w1 / scales.clamp_min(1e-30)[..., None]).round().to(torch.int8)
    return levels, scales


def save(heads: Heads, folder: Path) -> None:
    """Write the folder; a reader never finds half a file, nor a record that does not fit its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    levels, scales = rounded(heads.w1)
    tensors = {"w1": levels, "w1_scales": scales}
    if heads.tokens is not None:
        tensors["tokens"] = heads.tokens.to(torch.int32)
    if heads.w2 is not None:
        tensors["w2"] = heads.w2.to(torch.bfloat16)
    payload = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    record = {
        "version": VERSION,
        "fingerprints": list(heads.fingerprints),
        "vocabulary": heads.vocabulary,
        "width": heads.width,
        "heads": heads.count,
        "accuracies": [[round(share, 5) for share in row] for row in heads.accuracies],
        "sha256": hashlib.sha256(payload).hexdigest(),
        **(heads.about or {}),
    }
    for name, content in ((WEIGHTS, payload), (RECORD, (json.dumps(record, indent=1) + "\n").encode())):
        unfinished = folder / f"{name}.part"
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / name)


def load(folder: Path) -> Heads:
    """What `save` wrote. Raises ConfigError for a folder that is missing, damaged or of another version."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        payload = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ConfigError(f"medusa: {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"medusa: {folder / RECORD} is damaged: {error}") from None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ConfigError(f"medusa: {folder / RECORD} is not the record of heads of version {VERSION}")
    if hashlib.sha256(payload).hexdigest() != record.get("sha256"):
        raise ConfigError(f"medusa: {folder / WEIGHTS} is damaged, or not the file that {RECORD} describes")
    try:
        return _heads(record, safetensors.torch.load(payload))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"medusa: {folder} holds no usable heads: {error}") from None


def _heads(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Heads:
    count, width, vocabulary = int(record["heads"]), int(record["width"]), int(record["vocabulary"])
    levels, scales, tokens, w2 = tensors["w1"], tensors["w1_scales"], tensors.get("tokens"), tensors.get("w2")
    guessed = vocabulary if tokens is None else len(tokens)
    shapes = {"w1": (levels, (count, width, width)), "w1_scales": (scales, (count, width))}
    if w2 is not None:
        shapes["w2"] = (w2, (count, guessed, width))
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, not {list(shape)}")
    ascending = tokens is None or (tokens[0] >= 0 and tokens[-1] < vocabulary and bool(tokens.diff().gt(0).all()))
    if guessed < RANKS or not ascending:
        raise ValueError("tokens are not ascending ids of its vocabulary")
    accuracies = tuple(tuple(float(share) for share in row) for row in record["accuracies"])
    right = all(len(row) == RANKS and all(0.0 <= share <= 1.0 for share in row) for row in accuracies)
    if count < 1 or len(accuracies) != count or not right:
        raise ValueError(f"accuracies are not {RANKS} shares for each of {count} heads")
    w1 = levels.float() * scales.float()[..., None]
    fingerprints = tuple(str(one) for one in record["fingerprints"])
    return Heads(fingerprints, vocabulary, accuracies, w1, None if tokens is None else tokens.long(), w2)
