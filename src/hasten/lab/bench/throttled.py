"""A link of changing bandwidth: chunks served over a loopback socket no faster than a trace allows. What is measured over it is
a simulation of a network, except for the decoding and computing at its end."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from hasten.engine.kv.bitstream.streaming import GivenUp

SLICE = 1 << 14
"""Bytes that leave at once."""
_ASK, _ANSWER = struct.Struct("<H16s"), struct.Struct("<Q")
MEGABIT = 1e6 / 8


class Trace:
    """`steps`: seconds and bytes a second, one after the other, from the start again at the end."""

    def __init__(self, steps: Sequence[tuple[float, float]]) -> None:
        if not steps or any(seconds <= 0 or rate <= 0 for seconds, rate in steps):
            raise ValueError("a trace needs steps of some seconds, each with some bandwidth")
        self.steps = list(steps)
        self.seconds = sum(seconds for seconds, _ in steps)

    @classmethod
    def drawn(cls, seed: int, steps: int = 24, seconds: float = 1.5, least: float = 2, most: float = 1000) -> Trace:
        """Bandwidths between `least` and `most` megabits a second, evenly over their logarithms; every next one is drawn
        towards the one before it, as they change on real links."""
        rng = random.Random(seed)
        level = rng.random()
        drawn = []
        for _ in range(steps):
            level = min(max(level + rng.gauss(0, 0.35), 0), 1) if rng.random() < 0.8 else rng.random()
            drawn.append((seconds * rng.uniform(0.5, 1.5), MEGABIT * least * (most / least) ** level))
        return cls(drawn)

    def rate(self, at: float) -> float:
        """Bytes a second at a time."""
        at %= self.seconds
        for seconds, rate in self.steps:
            if at < seconds:
                return rate
            at -= seconds
        return self.steps[-1][1]

    def after(self, at: float, nbytes: float) -> float:
        """When `nbytes` that begin to leave at `at` have left."""
        inside = at % self.seconds
        while True:
            for seconds, rate in self.steps:
                if inside >= seconds:
                    inside -= seconds
                    continue
                if nbytes <= (seconds - inside) * rate:
                    return at + nbytes / rate
                at += seconds - inside
                nbytes -= (seconds - inside) * rate
                inside = 0.0


class ThrottledServer:
    """Serves `payloads[option][chunk]`, one connection after the other. `restart(at)`: the trace stands at `at` seconds now."""

    def __init__(self, payloads: Mapping[str, Sequence[bytes]], trace: Trace) -> None:
        self._payloads = payloads
        self._trace = trace
        self._zero = time.perf_counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SLICE)
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, name="hasten-throttled", daemon=True)
        self._thread.start()

    def restart(self, at: float) -> None:
        self._zero = time.perf_counter() - at

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := connection.recv(_ASK.size, socket.MSG_WAITALL):
            chunk, option = _ASK.unpack(asked)
            payload = memoryview(self._payloads[option.rstrip(b"\0").decode()][chunk])
            connection.sendall(_ANSWER.pack(len(payload)))
            at = time.perf_counter() - self._zero
            for begin in range(0, len(payload), SLICE):
                piece = payload[begin : begin + SLICE]
                at = self._trace.after(at, len(piece))
                left = at - (time.perf_counter() - self._zero)
                if left > 0:
                    time.sleep(left)
                connection.sendall(piece)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)


class SocketLink:
    """The other end (`streaming.Link`)."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def get(self, chunk: int, option: str, more: Callable[[int], bool]) -> bytes:
        if self._socket is None:
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * SLICE)
            self._socket.settimeout(0.02)
            self._socket.connect(self._address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(_ASK.pack(chunk, option.encode()))
        (length,) = _ANSWER.unpack(self._read(_ANSWER.size, lambda so_far: True))
        return bytes(self._read(length, more))

    def _read(self, length: int, more: Callable[[int], bool]) -> bytearray:
        assert self._socket is not None
        buffer = bytearray(length)
        view = memoryview(buffer)
        at = 0
        while at < length:
            try:
                got = self._socket.recv_into(view[at:])
            except TimeoutError:
                got = -1
            if got == 0:
                raise ConnectionError("the other side is gone")
            at += max(got, 0)
            if at < length and not more(at):
                self.close()
                raise GivenUp
        return buffer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
