"""The wire between processes that share KV: frames over TCP, and the client's calls.

A frame is `u32 length | u8 kind | body`, little-endian. The server speaks first with a nonce; the client answers with the
nonce's HMAC under the shared token, and the server with WELCOME or nothing. Then calls, one at a time:

    LIST   u64 since            -> NAMES  u64 now, then [32 bytes name, u64 bytes, u8 length, codec] ...
    GET    name, codec          -> CHUNK  a block file's bytes, or MISSING
    PUT    a block file's bytes -> DONE or REFUSED reason
    DROP   name, codec          -> DONE or MISSING

Nothing is encrypted: the token keeps strangers out, not eyes. Whoever knows it may read all KV that is served, and is believed
that the KV it gives is that of the tokens it names: checksums and names prove the rest.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

from hasten.engine.kv.blockfile import Head, Packed, Unusable, read_chunk

_LENGTH = struct.Struct("<IB")
_U64 = struct.Struct("<Q")
NONCE_BYTES = 32
SMALL = 1 << 16
"""Most bytes of a frame that carries no chunk and no list."""


class Kind(IntEnum):
    NONCE = 0
    HELLO = 1
    WELCOME = 2
    LIST = 3
    NAMES = 4
    GET = 5
    CHUNK = 6
    MISSING = 7
    PUT = 8
    DONE = 9
    REFUSED = 10
    DROP = 11


class PeerError(OSError):
    """The other side is gone, too slow, a stranger, or not what it should be."""


class Closed(PeerError, ConnectionError):
    """The other side closed the connection."""


class Wire:
    """One connection. Every call has `timeout_s` in all, however slowly bytes drip."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._socket = sock
        self._timeout_s = timeout_s
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: Kind, *parts: bytes | memoryview) -> None:
        """Raises OSError."""
        self._socket.settimeout(self._timeout_s)
        self._socket.sendall(_LENGTH.pack(sum(map(len, parts)), kind))
        for part in parts:
            self._socket.sendall(part)

    def receive(self, most_bytes: int, *, patience_s: float | None = None) -> tuple[Kind, bytes]:
        """The next frame. Raises PeerError when it is longer than `most_bytes`, or does not come in time (`patience_s`: for its
        first byte, where that differs)."""
        began = time.monotonic()
        self._socket.settimeout(self._timeout_s if patience_s is None else patience_s)
        first = self._socket.recv(1)
        if not first:
            raise Closed("the other side closed the connection")
        deadline = self._timeout_s + (began if patience_s is None else time.monotonic())
        length, kind = _LENGTH.unpack(first + self._exactly(_LENGTH.size - 1, deadline))
        if length > most_bytes:
            raise PeerError(f"a frame of {length} bytes where {most_bytes} are the most")
        try:
            return Kind(kind), self._exactly(length, deadline)
        except ValueError:
            raise PeerError(f"a frame of unknown kind {kind}") from None

    def _exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray(count)
        at = 0
        with memoryview(data) as view:
            while at < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerError(f"only {at} of {count} bytes came in {self._timeout_s:g} s")
                self._socket.settimeout(left)
                try:
                    got = self._socket.recv_into(view[at:])
                except TimeoutError:
                    continue
                if not got:
                    raise Closed(f"the other side closed the connection after {at} of {count} bytes")
                at += got
        return bytes(data)

    def close(self) -> None:
        self._socket.close()


def proof(token: str, nonce: bytes) -> bytes:
    return hmac.new(token.encode(), nonce, hashlib.sha256).digest()


@dataclass(frozen=True, slots=True)
class Offer:
    """A chunk that a peer has. `nbytes` of its file."""

    name: bytes
    codec: str
    nbytes: int


def split_address(address: str) -> tuple[str, int]:
    """`host:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"a peer's address is host:port, got {address!r}")
    return host.strip("[]"), int(port)


class PeerClient:
    """Calls to one server, one at a time. Raises PeerError or another OSError when it cannot be reached, does not know the
    token, or any call fails; the connection is of no use then."""

    def __init__(self, address: str, token: str, timeout_s: float = 5.0) -> None:
        self._wire = Wire(socket.create_connection(split_address(address), timeout=timeout_s), timeout_s)
        try:
            nonce = self._expect(Kind.NONCE)
            self._wire.send(Kind.HELLO, proof(token, nonce))
            self._expect(Kind.WELCOME)
        except BaseException:
            self.close()
            raise

    def _expect(self, wanted: Kind, most_bytes: int = SMALL) -> bytes:
        kind, body = self._wire.receive(most_bytes)
        if kind is not wanted:
            raise PeerError(f"{wanted.name} was expected, not {kind.name}")
        return body

    def list(self, since: int = 0) -> tuple[int, list[Offer]]:
        """(what to ask with the next time, chunks that came since)."""
        self._wire.send(Kind.LIST, _U64.pack(since))
        body = self._expect(Kind.NAMES, 1 << 28)
        try:
            (now,) = _U64.unpack_from(body)
            return now, list(_read_offers(body))
        except (struct.error, UnicodeDecodeError) as error:
            raise PeerError(f"a list that cannot be read: {error}") from None

    def get(self, name: bytes, codec: str, most_bytes: int) -> tuple[Head, bytes] | None:
        """A chunk, checked as from disk; None when it is not there. Raises Unusable too."""
        self._wire.send(Kind.GET, name, codec.encode())
        kind, body = self._wire.receive(most_bytes + SMALL + (1 << 24))
        if kind is Kind.MISSING:
            return None
        if kind is not Kind.CHUNK:
            raise PeerError(f"CHUNK was expected, not {kind.name}")
        stream = io.BytesIO(body)
        head, payload = read_chunk(stream, most_bytes)
        if stream.read(1) or (head.name, head.codec) != (name, codec):
            raise Unusable("the peer sent something else than it was asked for")
        return head, payload

    def put(self, packed: Packed) -> None:
        """Raises PeerError with the server's reason when it does not take the chunk."""
        self._wire.send(Kind.PUT, packed.prefix, packed.payload)
        kind, body = self._wire.receive(SMALL)
        if kind is not Kind.DONE:
            raise PeerError(body.decode(errors="replace") or f"DONE was expected, not {kind.name}")

    def drop(self, name: bytes, codec: str) -> bool:
        """Whether it was there."""
        self._wire.send(Kind.DROP, name, codec.encode())
        kind, _ = self._wire.receive(SMALL)
        if kind not in (Kind.DONE, Kind.MISSING):
            raise PeerError(f"DONE was expected, not {kind.name}")
        return kind is Kind.DONE

    def close(self) -> None:
        self._wire.close()


def pack_offers(now: int, offers: list[Offer]) -> bytes:
    parts = [_U64.pack(now)]
    for offer in offers:
        said = offer.codec.encode()
        parts += [offer.name, _U64.pack(offer.nbytes), bytes([len(said)]), said]
    return b"".join(parts)


def _read_offers(body: bytes) -> list[Offer]:
    offers, at = [], _U64.size
    while at < len(body):
        name = body[at : at + 32]
        (nbytes,) = _U64.unpack_from(body, at + 32)
        length = body[at + 40] if at + 40 < len(body) else 256
        said = body[at + 41 : at + 41 + length]
        if len(said) != length:
            raise struct.error("it ends in the middle of an entry")
        offers.append(Offer(name, said.decode(), nbytes))
        at += 41 + length
    return offers
