"""The header of a GGUF file: its metadata, and where each tensor lies. No torch is needed to read it.

Follows the GGUF specification (ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian. Names and block sizes of tensor
types come from the `gguf` package. Its reader is not used: it makes numpy arrays of every token, 10 s for a vocabulary of
150,000 with its merges where this takes 0.1 s, and says of a file cut short only that some index is wrong.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

from hasten.engine.models.checkpoint import Entry
from hasten.engine.models.config import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The codes of `struct` by the number of a value's type."""
_STRING, _ARRAY = 8, 9
_MOST_SIDES, _LONGEST_NAME = 4, 64


@dataclass(frozen=True, slots=True)
class Header:
    """`metadata` by key; `tensors` by their names in the file, with sides in torch's order: [out, in]."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]

    @property
    def architecture(self) -> str:
        return f"{self.metadata.get('general.architecture')!s:.32}"

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `{architecture}.key`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def size(self, key: str, default: int | None = None) -> int:
        """The value of `{architecture}.key`, which counts something. Raises ModelError."""
        value = self.get(key, default)
        if value is None:
            raise ModelError(f"{self.file}: its metadata lack {self.architecture}.{key}")
        if not isinstance(value, int) or value < 1:  # a list: layers of unlike sizes
            raise ModelError(f"{self.file}: {self.architecture}.{key} must be an integer of at least 1, got {value!r:.60}")
        return value


def package() -> ModuleType:
    """The `gguf` package. Raises ModelError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"GGUF files need the package gguf: pip install 'hasten[gguf]' ({error})") from None
    return gguf


def read_header(file: Path) -> Header:
    """Read and check the header of `file`. Raises ModelError for a file that is no GGUF, broken or cut short."""
    gguf = package()
    types = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _read(file, _Cursor(data, 4), types)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    except struct.error:
        raise ModelError(f"{file} is cut short: its header does not fit into its {size} bytes") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is broken: its header cannot be read ({error})") from None
    end = max((entry.stop for entry in header.tensors.values()), default=0)
    if size < end:
        raise ModelError(f"{file} is cut short: its header calls for {end} bytes, it has {size}")
    return header


def _read(file: Path, cursor: _Cursor, types: Mapping[int, tuple[str, int, int]]) -> Header:
    version = cursor.take("I")
    if version not in (2, 3):
        note = ": it is big-endian" if version and version & 0xFFFF == 0 else f" ({version})"
        raise ModelError(f"{file} is a GGUF file of another version{note}; readable: versions 2 and 3, little-endian")
    tensors, pairs = cursor.take("Q"), cursor.take("Q")
    metadata = {}
    for _ in range(pairs):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.take("I"))
    if metadata.get("split.count", 1) > 1:
        raise ModelError(f"{file} is one of {metadata['split.count']} parts of a model: merge them (llama-gguf-split --merge)")
    found = [_tensor(file, cursor, types) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if alignment not in (8 << i for i in range(16)):
        raise ValueError(f"an alignment of {alignment} bytes")
    if strays := [name for name, _, _, start, _ in found if start % alignment]:
        raise ValueError(f"{strays[0]} does not begin at a multiple of {alignment} bytes")
    base = -(-cursor.at // alignment) * alignment
    entries = {
        name: Entry(file, dtype, shape, base + start, base + start + nbytes) for name, dtype, shape, start, nbytes in found
    }
    return Header(file, metadata, entries)


def _tensor(
    file: Path, cursor: _Cursor, types: Mapping[int, tuple[str, int, int]]
) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, first byte after the header, and bytes."""
    name, sides = cursor.string(), cursor.take("I")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a tensor is called {name[:_LONGEST_NAME]!r}")
    if not 0 < sides <= _MOST_SIDES:
        raise ValueError(f"the tensor {name} has {sides} sides")
    shape = tuple(cursor.take("Q") for _ in range(sides))[::-1]
    kind, start = cursor.take("I"), cursor.take("Q")
    if kind not in types:
        raise ModelError(f"{file}: {name} is stored in a type unknown to the package gguf (number {kind}); is it up to date?")
    dtype, block, block_bytes = types[kind]
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} in blocks of {block}: {name}")
    return name, dtype, shape, start, prod(shape) // block * block_bytes


class _Cursor:
    """Reads one value after another. Raises struct.error where the file ends."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        # A vocabulary has hundreds of thousands: a tight loop.
        data, at, found, length = self.data, self.at, [], struct.Struct("<Q")
        for _ in range(count):
            (size,) = length.unpack_from(data, at)
            at += 8 + size
            if at > len(data):
                raise struct.error("past the end")
            found.append(str(data[at - size : at], "utf-8", "replace"))
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        kind, count = self.take("I"), self.take("Q")
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY:
            return [self.value(kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"an array of the unknown type {kind}")
        if count > len(self.data):  # a code of `struct` that long would be refused for another reason
            raise struct.error("past the end")
        values = list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.at))
        self.at += struct.calcsize(f"<{count}{_SCALARS[kind]}")
        return values
