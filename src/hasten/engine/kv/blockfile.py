"""KV block files: a chunk of consecutive blocks of one prefix, as it lies on disk and goes over a wire.

A chunk is named by a hash over its tokens and the name of the chunk before it; the first one's takes in everything else that
its KV depends on or must not be shared across (`root`). So a name spells a whole prefix. Tokens and names are stored and
compared all the same: a look-up that meets a stranger under its name finds nothing.

    "hastenKV"  magic
    u32         VERSION
    u32         length of the head in bytes
    u64         length of the payload in bytes
    u64         xxh3 of the payload
    u64         xxh3 of all of the above and of the head
    head        JSON (`Head`), UTF-8
    payload     what the codec made of the planes

All numbers are little-endian. Every field is covered by a checksum, and nothing is believed before it was checked: whatever
is damaged, cut short, of another version or of another program raises `Unusable`, and the caller computes the KV instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from hasten.engine.kv.base import Ints, ReuseKey

MAGIC = b"hastenKV"
VERSION = 1
SUFFIX = ".kv"
_FIXED = struct.Struct("<8sIIQQ")
_SUM = struct.Struct("<Q")
FIXED_BYTES = _FIXED.size + _SUM.size
MOST_HEAD_BYTES = 1 << 24
_STORED = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int8": "|i1",
    "int16": "<i2",
    "uint8": "|u1",
    "uint64": "<u8",
}
"""numpy types in which elements of a plane are handed on; those of bfloat16 are their bit patterns."""


class Unusable(Exception):
    """These bytes are no chunk that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of a site's store, block axis left out. `site`: which pass through a layer; `part`: what it holds there, as
    `k` or `v`; `shape` of one block; `dtype` by torch's name."""

    site: int
    part: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in _STORED:
            raise Unusable(f"planes of {self.dtype} cannot be stored")

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of a numpy array that holds such a plane."""
        return np.dtype(_STORED[self.dtype])

    @property
    def nbytes(self) -> int:
        """Of one block."""
        return int(np.prod(self.shape)) * self.stored.itemsize


def root(key: ReuseKey, context: str = "") -> bytes:
    """The name before the first chunk: 32 bytes that differ whenever the key does, or `context`, what else the KV of this
    engine depends on (how weights are stored, which attention ran)."""
    parts = [key.weights, key.adapter, key.program, key.tenant, key.salt, context]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def name_after(parent: bytes, tokens: Ints) -> bytes:
    """The name, 32 bytes, of the chunk that holds `tokens` behind the chunk called `parent`. Collisions of this hash cannot be
    made on purpose, so a tenant cannot plant a chunk under another prefix's name."""
    return hashlib.sha256(parent + np.ascontiguousarray(tokens, dtype="<i4").tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a chunk without reading its payload. `name`, `parent`, `root`: see `name_after`; `start`: tokens of the
    prefix before it; `tokens` int32 [blocks * block_size]; `weights`, `adapter`, `tenant`: of its `ReuseKey`, for people and
    for dropping (the salt is a secret and only within the root). `codec`: what turned the planes into the payload; it names
    the least exact one that the KV went through on its way."""

    name: bytes
    parent: bytes
    root: bytes
    start: int
    tokens: Ints
    block_size: int
    planes: tuple[Plane, ...]
    codec: str
    weights: str = ""
    adapter: str = ""
    tenant: str = ""

    @property
    def blocks(self) -> int:
        return len(self.tokens) // self.block_size

    @property
    def plain_bytes(self) -> int:
        """Of the planes as they are in memory."""
        return self.blocks * sum(plane.nbytes for plane in self.planes)

    def says(self, other: Head) -> bool:
        """Whether both hold KV of the same tokens at the same place, in planes of the same kind; the codec may differ."""
        return (
            self.name == other.name
            and self.parent == other.parent
            and self.root == other.root
            and self.start == other.start
            and self.block_size == other.block_size
            and self.planes == other.planes
            and np.array_equal(self.tokens, other.tokens)
        )

    def to_bytes(self) -> bytes:
        fields = {
            "name": self.name.hex(),
            "parent": self.parent.hex(),
            "root": self.root.hex(),
            "start": self.start,
            "tokens": self.tokens.tolist(),
            "block_size": self.block_size,
            "planes": [[p.site, p.part, list(p.shape), p.dtype] for p in self.planes],
            "codec": self.codec,
            "weights": self.weights,
            "adapter": self.adapter,
            "tenant": self.tenant,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Raises Unusable."""
        try:
            got = json.loads(data)
            head = cls(
                name=bytes.fromhex(got["name"]),
                parent=bytes.fromhex(got["parent"]),
                root=bytes.fromhex(got["root"]),
                start=int(got["start"]),
                tokens=np.array(got["tokens"], dtype=np.int32),
                block_size=int(got["block_size"]),
                planes=tuple(Plane(int(s), str(p), tuple(map(int, shape)), str(d)) for s, p, shape, d in got["planes"]),
                codec=str(got["codec"]),
                weights=str(got["weights"]),
                adapter=str(got["adapter"]),
                tenant=str(got["tenant"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Unusable(f"the head cannot be read: {error}") from None
        if head.block_size < 1 or head.tokens.ndim != 1 or not len(head.tokens) or len(head.tokens) % head.block_size:
            raise Unusable("the head does not name whole blocks")
        if head.name != name_after(head.parent, head.tokens):
            raise Unusable("the tokens are not those that the name stands for")
        return head


@dataclass(frozen=True, slots=True)
class Packed:
    """A chunk as bytes: `prefix` (everything before the payload) and the payload."""

    prefix: bytes
    payload: bytes | memoryview

    @property
    def nbytes(self) -> int:
        return len(self.prefix) + len(self.payload)


def pack(head: Head, payload: bytes | memoryview) -> Packed:
    said = head.to_bytes()
    fixed = _FIXED.pack(MAGIC, VERSION, len(said), len(payload), xxhash.xxh3_64_intdigest(payload))
    return Packed(fixed + _SUM.pack(xxhash.xxh3_64_intdigest(fixed + said)) + said, payload)


def read_head(stream: BinaryIO) -> tuple[Head, int, int]:
    """(head, payload bytes, payload checksum) from a stream that stands at a chunk; it then stands at the payload. Raises
    Unusable."""
    fixed = _exactly(stream, FIXED_BYTES)
    magic, version, length, payload, checksum = _FIXED.unpack_from(fixed)
    (expected,) = _SUM.unpack_from(fixed, _FIXED.size)
    if magic != MAGIC:
        raise Unusable("these are no KV blocks of hasten")
    if version != VERSION:
        raise Unusable(f"written in version {version} of the format, this program reads {VERSION}")
    if length > MOST_HEAD_BYTES:
        raise Unusable(f"a head of {length} bytes is not to be believed")
    said = _exactly(stream, length)
    if xxhash.xxh3_64_intdigest(fixed[: _FIXED.size] + said) != expected:
        raise Unusable("the head is damaged")
    return Head.from_bytes(said), payload, checksum


def read_chunk(stream: BinaryIO, most_bytes: int) -> tuple[Head, bytes]:
    """Head and payload, checked. Raises Unusable, also for payloads of more than `most_bytes`."""
    head, length, checksum = read_head(stream)
    if length > most_bytes:
        raise Unusable(f"a payload of {length} bytes where {most_bytes} are the most that it can have")
    payload = _exactly(stream, length)
    if xxhash.xxh3_64_intdigest(payload) != checksum:
        raise Unusable("the payload is damaged")
    return head, payload


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise Unusable(f"it ends after {len(data)} of {count} bytes")
    return data


def write_file(path: Path, packed: Packed) -> None:
    """Write a chunk so that at any time there is either all of it under `path` or nothing: under another name first, made
    durable, then renamed. Raises OSError, leaving nothing behind that counts."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(packed.prefix)
            file.write(packed.payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_name(name: bytes, codec: str) -> str:
    return f"{name.hex()}.{codec}{SUFFIX}"


def name_of(file: str) -> tuple[bytes, str] | None:
    """(name, codec) of a file that is called as `file_name` says; None for others."""
    if not file.endswith(SUFFIX):
        return None
    hexadecimal, dot, codec = file[: -len(SUFFIX)].partition(".")
    if not dot or len(hexadecimal) != 64 or set(hexadecimal) - set("0123456789abcdef") or not codec:
        return None
    return bytes.fromhex(hexadecimal), codec


Planes = Seq[npt.NDArray[Any]]
"""One array [blocks, *plane.shape] of type `plane.stored` for each of `Head.planes`, in their order."""
