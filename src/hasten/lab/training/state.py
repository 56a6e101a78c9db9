"""The state of a training run on disk: never half written, and checked before it is used.

A file is a line that names the format, a line with the SHA-256 of the rest, and the rest. It gets its name only when it is
complete on disk, and the one before it stays, so whatever happens to the newest there is one to go on from.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

HEADER = b"hasten training state 1\n"
KEPT = 2


class StateError(RuntimeError):
    """A file is not a complete, unchanged training state."""


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write `content` (tensors and plain values) as the state after `step`; of older ones, all but the last go."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{step:07d}.pt"
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        file.write(HEADER + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    for old in states(folder)[KEPT:]:
        old.unlink()
    return path


def states(folder: Path) -> list[Path]:
    """State files, the newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises StateError for anything else."""
    data = path.read_bytes()
    header, digest, payload = data[: len(HEADER)], data[len(HEADER) : len(HEADER) + 64], data[len(HEADER) + 65 :]
    if header != HEADER:
        raise StateError(f"{path} is not a training state of this version")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise StateError(f"{path} is damaged: its {len(payload):,} bytes do not have the checksum that it names")
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return content


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest state that is whole (None: there is none) and what is wrong with those that had to be passed over."""
    complaints: list[str] = []
    for path in states(folder):
        try:
            return read(path), complaints
        except StateError as error:
            complaints.append(str(error))
    return None, complaints
