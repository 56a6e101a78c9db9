"""A folder of block files: list, get, put and drop chunks. Safe to use from several threads and processes at once.

A file is there whole or not at all (`blockfile.write_file`), and is checked whenever it is read. What turns out damaged, cut
short or written in another version is deleted: it can be computed again, and would be met again. Files that are not called as
chunks are left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hasten.engine.kv.blockfile import Head, Packed, Unusable, file_name, name_of, read_chunk, read_head, write_file

_LEFT_S = 3600.0
"""Age from which on a half-written file belongs to nobody who still writes it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk in the folder. `nbytes` of the file; `used_s`: when it was last used, by the machine's clock."""

    head: Head
    nbytes: int
    used_s: float


class Folder:
    """Raises OSError when it cannot be made."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _file(self, name: bytes, codec: str) -> Path:
        return self.path / file_name(name, codec)

    def names(self) -> list[tuple[float, int, bytes, str]]:
        """(when it was last used, bytes, name, codec) of every chunk by what its file is called, the least recently used first.
        Reads no file."""
        files = []
        with os.scandir(self.path) as found:
            for item in found:
                with suppress(OSError):
                    called = name_of(item.name)
                    if called is not None:
                        stat = item.stat()
                        files.append((stat.st_mtime, stat.st_size, *called))
                    elif item.name.startswith(".") and item.name.endswith(".part"):
                        self._clear_up(item.path, item.stat().st_mtime)
        return sorted(files)

    def list(self) -> Iterator[Stored]:
        """All chunks that seem in order, the least recently used first. Reads heads only."""
        for used_s, nbytes, name, codec in self.names():
            head = self._head(self._file(name, codec), nbytes)
            if head is not None and (head.name, head.codec) == (name, codec):  # else somebody renamed it
                yield Stored(head, nbytes, used_s)

    def _clear_up(self, path: str, used_s: float) -> None:
        """Delete what a process that is gone left half written."""
        if time.time() - used_s > _LEFT_S:
            os.unlink(path)

    def _head(self, path: Path, nbytes: int) -> Head | None:
        try:
            with path.open("rb", buffering=4096) as stream:
                head, payload, _ = read_head(stream)
                if stream.tell() + payload != nbytes:
                    raise Unusable(f"it has {nbytes} bytes instead of {stream.tell() + payload}")
        except Unusable:
            self._delete(path)
            return None
        except OSError:
            return None
        return head

    def _delete(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink()

    def get(self, name: bytes, codec: str, most_bytes: int) -> tuple[Head, bytes]:
        """A chunk, checked, whose payload has at most `most_bytes`. Raises Unusable and OSError, as FileNotFoundError."""
        path = self._file(name, codec)
        try:
            with path.open("rb") as stream:
                head, payload = read_chunk(stream, most_bytes)
            if (head.name, head.codec) != (name, codec):
                raise Unusable("it holds another chunk than its name says")
        except Unusable:
            self._delete(path)
            raise
        with suppress(OSError):
            os.utime(path)
        return head, payload

    def has(self, name: bytes, codec: str) -> bool:
        return self._file(name, codec).exists()

    def put(self, head: Head, packed: Packed) -> None:
        """Store a chunk; an older one of the same name and codec is replaced. Raises OSError."""
        write_file(self._file(head.name, head.codec), packed)

    def drop(self, name: bytes, codec: str) -> bool:
        """Delete a chunk; whether it was there. Raises OSError."""
        try:
            self._file(name, codec).unlink()
        except FileNotFoundError:
            return False
        return True
