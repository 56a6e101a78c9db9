"""Grammars kept on disk between starts: what the front end took long over is read back instead of compiled again.

A file holds a checksum and the grammar's blob, under a name made of what was asked for and of the front end's own sources. What
follows from a vocabulary is not kept: it is made as it is needed, in microseconds."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path
from typing import Any

import xxhash

LEAST_S = 0.02
"""Compiling that takes less is done again: nobody would notice."""
MOST_FILES = 256

_DIGEST = 16


def folder() -> Path:
    """HASTEN_CACHE, or `hasten` where caches of this user lie."""
    if chosen := os.environ.get("HASTEN_CACHE"):
        return Path(chosen).expanduser() / "grammars"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hasten" / "grammars"


def find(key: Any) -> bytes | None:
    """The blob kept under `key`, if there is one and it is whole."""
    path = _path(key)
    try:
        content = path.read_bytes()
        os.utime(path)  # the oldest go first
    except OSError:
        return None
    blob = content[_DIGEST:]
    return blob if content[:_DIGEST] == xxhash.xxh3_128_digest(blob) else None


def keep(key: Any, blob: bytes) -> None:
    """A full or read-only disk costs the next start some milliseconds, nothing else."""
    path = _path(key)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[: max(0, len(files) - MOST_FILES + 1)]:
            file.unlink(missing_ok=True)
        unfinished.write_bytes(xxhash.xxh3_128_digest(blob) + blob)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):  # there may be no folder at all
            unfinished.unlink(missing_ok=True)


def _path(key: Any) -> Path:
    return folder() / xxhash.xxh3_128_hexdigest(f"{_sources()} {key!r}".encode("utf-8", "surrogatepass"))


@functools.cache
def _sources() -> str:
    """Changes with the front end."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return " ".join(f"{file.name}:{(stat := file.stat()).st_size}:{stat.st_mtime_ns}" for file in files)
