"""Time to first token of a prompt whose beginning is stored at the other end of a throttled link, in every form and with a
controller.

Decoding, computing and the question are the engine's own work, timed as it happens; the link is a loopback socket that serves
no faster than a trace of bandwidths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from hasten.engine.kv.bitstream import chunk as chunks
from hasten.engine.kv.bitstream import levels
from hasten.engine.kv.bitstream.controller import Controller, Option
from hasten.engine.kv.bitstream.planes import fill, rows_of, unrotate
from hasten.engine.kv.bitstream.streaming import Streamed, stream
from hasten.engine.request import SamplingParams
from hasten.lab.bench.kv_prefix import Planes, PrefixLab
from hasten.lab.bench.throttled import SocketLink, ThrottledServer, Trace

CHUNK = 1536
RAW, INT8, TEXT = "raw", "int8", "text"
LEVEL_NAMES = tuple(f"level {level}" for level in range(len(levels.LEVELS)))
FIXED = (RAW, INT8, TEXT, *LEVEL_NAMES)


@dataclass(frozen=True)
class Run:
    """One prompt brought in. `seconds`: from asking to the first token."""

    seconds: float
    streamed: Streamed


class StoredPrompt:
    """`tokens`: prefix and question. The prefix, whole chunks of CHUNK tokens and a shorter last one, is stored in every form;
    what decoding and computing take was measured beforehand, as a server would know."""

    def __init__(self, lab: PrefixLab, tokens: Sequence[int], question: int, trace: Trace, repeats: int = 3) -> None:
        self._lab = lab
        self._tokens = list(tokens)
        prefix = lab.whole(len(tokens) - question)
        self.ends = [*range(CHUNK, prefix, CHUNK), prefix]
        self.starts = [0, *self.ends[:-1]]
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="hasten-decode")
        lab.compute(self._tokens[:prefix])
        self._planes = [lab.read(self._tokens[:end], start) for start, end in zip(self.starts, self.ends, strict=True)]
        self.payloads = {RAW: [_joined(planes) for planes in self._planes], INT8: [_int8(planes) for planes in self._planes]}
        for level, name in enumerate(LEVEL_NAMES):
            self.payloads[name] = [self._encode(i, level) for i in range(len(self.ends))]
        self._server = ThrottledServer(self.payloads, trace)
        self.options, self.tail_s = self._measure(repeats)
        self.bandwidth = trace.rate(0)
        """What the next prompt assumes: that of the last transfer."""

    @property
    def chunks(self) -> int:
        return len(self.ends)

    def run(self, names: Sequence[str], at: float, deadline_s: float = 0.0) -> Run:
        """Bring the prompt in, the trace being at `at` seconds, with the controller free to choose among `names` (a single one:
        always that), and take the first token. `deadline_s` 0: as fast as it goes."""
        self._lab.forget()
        self._server.restart(at)
        link = SocketLink(self._server.address)
        options = [option for option in self.options if option.name in names]
        began = time.perf_counter()
        controller = Controller(options, deadline_s, self.bandwidth, self.tail_s)
        try:
            streamed = stream(
                controller, link, self._decode, self._compute, text=TEXT, clock=lambda: time.perf_counter() - began
            )
        finally:
            link.close()
        self._question()
        took = time.perf_counter() - began
        if len(names) > 1:
            self.bandwidth = controller.bandwidth
        return Run(took, streamed)

    def close(self) -> None:
        self._server.close()
        self._pool.shutdown()

    # -- the parts ------------------------------------------------------------------------------------------------------

    def _encode(self, index: int, level: int) -> bytes:
        rows = [rows_of(plane) for plane in self._planes[index]]
        for keys in rows[::2]:
            unrotate(keys, self._table(index))
        return chunks.encode(list(zip(rows[::2], rows[1::2], strict=True)), self.starts[index], level, executor=self._pool)

    def _table(self, index: int) -> npt.NDArray[np.float32]:
        return self._lab.cos_sin[self.starts[index] : self.ends[index]]

    def _decode(self, index: int, name: str, payload: bytes) -> None:
        like = self._planes[index]
        if name == RAW:
            planes = _split(payload, like)
        elif name == INT8:
            planes = _from_int8(payload, like)
        else:
            planes = [np.empty_like(plane) for plane in like]
            tables = [self._table(index)] * (len(planes) // 2)
            chunks.decode_into(payload, chunks.head(payload), planes, tables, self._pool)
        self._lab.plant(self._tokens[: self.ends[index]], planes, self.starts[index])

    def _compute(self, index: int) -> None:
        self._lab.compute(self._tokens[: self.ends[index]])

    def _question(self) -> None:
        self._lab.llm.generate([self._tokens], SamplingParams(max_tokens=1, temperature=0))

    def _measure(self, repeats: int) -> tuple[list[Option], float]:
        """Seconds of decoding and computing each chunk, and of the question; the median of `repeats`."""
        options, tails = [], []
        losses = {RAW: 0, TEXT: 0, INT8: 1} | {name: 2 + i for i, name in enumerate(LEVEL_NAMES)}
        for name in FIXED:
            took: list[list[float]] = [[] for _ in self.ends]
            for _ in range(repeats):
                self._lab.forget()
                for index in range(self.chunks):
                    work = self._worker(name)
                    took[index].append(_seconds(lambda index=index, work=work: work(index)))  # type: ignore[misc]
                tails.append(_seconds(self._question))
            nbytes = tuple(len(payload) for payload in self.payloads[name]) if name != TEXT else (0,) * self.chunks
            options.append(Option(name, losses[name], nbytes, tuple(map(median, took))))
        return options, median(tails)

    def _worker(self, name: str) -> Callable[[int], None]:
        return self._compute if name == TEXT else lambda index: self._decode(index, name, self.payloads[name][index])


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _joined(planes: Planes) -> bytes:
    return b"".join(plane.tobytes() for plane in planes)


def _split(payload: bytes, like: Planes) -> Planes:
    planes, at = [], 0
    for plane in like:
        planes.append(np.frombuffer(payload, plane.dtype, plane.size, at).reshape(plane.shape))
        at += plane.nbytes
    return planes


def _int8(planes: Planes) -> bytes:
    parts = []
    for plane in planes:
        rows = rows_of(plane)
        scale = (np.abs(rows).max(-1, keepdims=True) / 127).astype(np.float16)
        parts += [
            scale.tobytes(),
            np.rint(rows / np.maximum(scale.astype(np.float32), 1e-8)).clip(-127, 127).astype(np.int8).tobytes(),
        ]
    return b"".join(parts)


def _from_int8(payload: bytes, like: Planes) -> Planes:
    planes, at = [], 0
    for plane in like:
        blocks, heads, size, dim = plane.shape
        scale = np.frombuffer(payload, np.float16, blocks * size * heads, at).reshape(-1, heads, 1).astype(np.float32)
        at += 2 * scale.size
        rows = np.frombuffer(payload, np.int8, plane.size, at).reshape(-1, heads, dim) * scale
        at += plane.size
        planes.append(np.empty_like(plane))
        fill(planes[-1], rows)
    return planes
