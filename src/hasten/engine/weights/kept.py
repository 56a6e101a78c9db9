"""Packed weights kept on disk between starts, so that a second start maps them instead of rounding and packing again.

A file a model and form, in safetensors format, written under another name first, so a file that is there is whole. The oldest
make room for new ones."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hasten.kernels.cpu import native
from hasten.kernels.cpu.packing import PackedWeight

ABANDONED_S = 24 * 3600.0
LEAST_BYTES = 64 << 20
"""Smaller models are packed again, which takes less time than a file is worth."""


def folder() -> Path:
    """Where packed weights are kept: HASTEN_CACHE, or `hasten` where caches of this user lie."""
    if chosen := os.environ.get("HASTEN_CACHE"):
        return Path(chosen).expanduser() / "packed"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hasten" / "packed"


@dataclass(slots=True)
class KeptWeights:
    """The packed weights of one model by name. `form`: what else than the model decides about them. `most_bytes`: of all
    files together."""

    form: Any
    most_bytes: int
    _path: Path | None = None
    _found: dict[str, PackedWeight] = field(default_factory=dict)
    _fresh: dict[str, PackedWeight] = field(default_factory=dict)
    _writer: threading.Thread | None = None

    def open(self, fingerprint: str) -> None:
        """Map the file of the model of that fingerprint, if there is one and it is in order."""
        key = json.dumps([fingerprint, self.form, native.INTERFACE], sort_keys=True, default=str)
        self._path, self._found = folder() / f"{xxhash.xxh3_128(key.encode()).hexdigest()}.safetensors", {}
        try:
            file: Any = safe_open(str(self._path), "pt")
            said = json.loads((file.metadata() or {})["weights"])
            self._found = {
                name: PackedWeight(file.get_tensor(name), **{**parts, "shape": tuple(parts["shape"])})
                for name, parts in said.items()
            }
            os.utime(self._path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass  # as good as none: it will be written anew

    def find(self, name: str) -> PackedWeight | None:
        return self._found.get(name)

    def add(self, name: str, weight: Any) -> None:
        """Remember a weight for `write`, if it is packed by the native kernels."""
        if isinstance(weight, PackedWeight):
            self._fresh[name] = weight

    def write(self) -> None:
        """Write what was added unless a file was found, in a thread: nobody waits for it but the end of the process."""
        fresh, self._fresh = self._fresh, {}
        total = sum(weight.nbytes for weight in fresh.values())
        if self._path is None or self._found or not LEAST_BYTES <= total <= self.most_bytes:
            return
        self._writer = threading.Thread(target=self._write, args=(self._path, fresh, total), name="hasten-kept-weights")
        self._writer.start()

    def wait(self) -> None:
        """Until what `write` began is on disk."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, path: Path, weights: dict[str, PackedWeight], total: int) -> None:
        said = {}
        for name, weight in weights.items():
            said[name] = {part.name: getattr(weight, part.name) for part in fields(weight) if part.name != "panels"}
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}")  # nobody else's
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make_room(path.parent, self.most_bytes - total)
            if shutil.disk_usage(path.parent).free < 2 * total:
                return
            save_file({name: w.panels for name, w in weights.items()}, unfinished, metadata={"weights": json.dumps(said)})
            os.replace(unfinished, path)
        except (OSError, SafetensorError):  # a full or read-only disk costs the next start some seconds, nothing else
            unfinished.unlink(missing_ok=True)


def make_room(where: Path, most_bytes: int) -> None:
    """Remove the files not used for longest until the rest has at most so many bytes, and what killed writers left."""
    for file in where.glob(".*"):
        if file.stat().st_mtime < time.time() - ABANDONED_S:
            file.unlink(missing_ok=True)
    files = sorted(where.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        most_bytes -= file.stat().st_size
        if most_bytes < 0:
            file.unlink(missing_ok=True)
