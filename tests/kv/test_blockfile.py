"""Block files: what was written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.kv.base import ReuseKey
from hasten.engine.kv.blockfile import (
    FIXED_BYTES,
    Head,
    Packed,
    Plane,
    Unusable,
    file_name,
    name_after,
    pack,
    read_chunk,
    read_head,
    root,
    write_file,
)
from hasten.engine.kv.codecs import RAW, codec
from hasten.engine.kv.folder import Folder

MOST = 1 << 20


def chunk(blocks: int = 2, size: int = 8, seed: int = 0, dtype: str = "float32") -> tuple[Head, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    planes = tuple(Plane(site, part, (2, size, 3), dtype) for site in (0, 1) for part in "kv")
    tokens = rng.integers(0, 1000, blocks * size).astype(np.int32)
    parent = root(ReuseKey("w", tenant="t", salt="s"))
    head = Head(name_after(parent, tokens), parent, parent, 0, tokens, size, planes, RAW, weights="w", tenant="t")
    arrays = [
        rng.integers(0, 256, (blocks, *p.shape, p.stored.itemsize)).astype(np.uint8).view(p.stored)[..., 0] for p in planes
    ]
    return head, arrays


def bytes_of(packed: Packed) -> bytes:
    return packed.prefix + bytes(packed.payload)


def read(data: bytes) -> tuple[Head, bytes]:
    return read_chunk(io.BytesIO(data), MOST)


@settings(max_examples=30)
@given(
    st.integers(1, 5), st.sampled_from([1, 8]), st.integers(0, 99), st.sampled_from(["float32", "bfloat16", "int8", "uint64"])
)
def test_planes_come_back_bit_for_bit(blocks: int, size: int, seed: int, dtype: str) -> None:
    head, planes = chunk(blocks, size, seed, dtype)
    got, payload = read(bytes_of(pack(head, codec(RAW).encode(planes, head))))
    assert got.says(head) and got.codec == RAW and (got.weights, got.tenant) == ("w", "t")
    for a, b in zip(codec(RAW).decode(payload, got), planes, strict=True):
        assert a.shape == b.shape and a.tobytes() == b.tobytes()


def test_every_flipped_bit_and_every_truncation_is_noticed() -> None:
    head, planes = chunk(1, 1)
    whole = bytes_of(pack(head, codec(RAW).encode(planes, head)))
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            with pytest.raises(Unusable):
                read(bytes(damaged))
        with pytest.raises(Unusable):
            read(whole[:at])
    read(whole)


def test_other_versions_and_foreign_files_are_told_apart() -> None:
    head, planes = chunk()
    whole = bytearray(bytes_of(pack(head, codec(RAW).encode(planes, head))))
    whole[8] += 1
    with pytest.raises(Unusable, match="version 2"):
        read(bytes(whole))
    with pytest.raises(Unusable, match="no KV blocks"):
        read(b"\x7fELF" + bytes(200))
    with pytest.raises(Unusable, match="most that it can have"):
        read_chunk(io.BytesIO(bytes_of(pack(head, bytes(100)))), 99)


def test_a_well_formed_lie_is_noticed() -> None:
    """Checksums right, but the tokens are not those of the name: a collision, or a peer that makes things up."""
    head, planes = chunk()
    payload = codec(RAW).encode(planes, head)
    other = head.tokens.copy()
    other[0] += 1
    for nonsense in (b"[" * 100_000, b"{}", b"\xff", b"null"):
        with pytest.raises(Unusable, match="cannot be read"):
            Head.from_bytes(nonsense)
    with pytest.raises(Unusable, match="not those that the name"):
        read(bytes_of(pack(replace(head, tokens=other), payload)))
    with pytest.raises(Unusable, match="whole blocks"):
        lie = head.tokens[:-1]
        read(bytes_of(pack(replace(head, tokens=lie, name=name_after(head.parent, lie)), payload)))
    with pytest.raises(Unusable, match="planes of"):
        Plane(0, "k", (1,), "complex64")
    got, _ = read(bytes_of(pack(head, payload[:-1])))
    with pytest.raises(Unusable, match="bytes of planes"):
        codec(RAW).decode(payload[:-1], got)


def test_a_head_made_to_hurt_is_unusable_like_any_other() -> None:
    for said in (b"[" * 100_000, b'{"name":' * 50_000, b"null", b'{"name":1}'):
        with pytest.raises(Unusable):
            Head.from_bytes(said)


def test_a_file_that_comes_in_pieces_is_not_taken_for_one_cut_short(tmp_path: Path) -> None:
    """Network file systems give what they have."""
    head, planes = chunk(64, 32)
    whole = bytes_of(pack(head, codec(RAW).encode(planes, head)))
    path = tmp_path / file_name(head.name, RAW)
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(whole))
    writer.start()
    got, _ = Folder(tmp_path).get(head.name, RAW, MOST)
    writer.join()
    assert got.says(head) and path.exists()


@given(
    st.lists(st.sampled_from(["weights", "adapter", "program", "tenant", "salt", "context"]), min_size=1, max_size=6), st.data()
)
def test_whatever_kv_depends_on_gives_another_name(fields: list[str], data: st.DataObject) -> None:
    base = {"weights": "w", "adapter": "a", "program": "p", "tenant": "t", "salt": "s", "context": "c"}
    changed = dict(base)
    for field in fields:
        changed[field] = data.draw(st.text(max_size=4))

    def name(of: dict[str, str]) -> bytes:
        return root(ReuseKey(*[of[f] for f in list(base)[:-1]]), of["context"])

    assert (name(changed) == name(base)) == (changed == base)
    # Moving a character from one field to the next must not give the same name.
    assert root(ReuseKey("w", "ab", "", "", "")) != root(ReuseKey("w", "a", "b", "", ""))


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    head, planes = chunk()
    packed = pack(head, codec(RAW).encode(planes, head))
    path = tmp_path / file_name(head.name, head.codec)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FIXED_BYTES + 10, hard))  # the disk is full in the middle
    try:
        with pytest.raises(OSError):
            write_file(path, packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []
    write_file(path, packed)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with path.open("rb") as stream:
        got, length, _ = read_head(stream)
        assert got.says(head) and length == len(packed.payload)


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    """A process that writes chunk after chunk is killed at some moment: every file with a chunk's name is whole."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.kv.test_blockfile import chunk
        from hasten.engine.kv.blockfile import file_name, pack, write_file
        from hasten.engine.kv.codecs import RAW, codec
        print("ready", flush=True)
        seed = 0
        while True:
            head, planes = chunk(64, 32, seed)
            write_file(Path(sys.argv[1]) / file_name(head.name, RAW), pack(head, codec(RAW).encode(planes, head)))
            seed += 1
    """)
    for turn in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])},
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 30
        while not any(tmp_path.glob("*.kv")) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.005 + 0.003 * turn)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    files = list(tmp_path.glob("*.kv"))
    assert files
    for path in files:
        with path.open("rb") as stream:
            read_chunk(stream, 1 << 28)
