"""Which form every next chunk of a stored prefix should come in: the online half of CacheGen.

Before each chunk the controller assumes the bandwidth of the transfer before it. For every option, a quality level, the values
as they are or the text to be computed from, it predicts when all that remains would be done if it came in that form, and takes
the least lossy option that meets the deadline; if none does, the fastest. Pure arithmetic, no clock and no socket.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """A form that chunks can come in. `loss`: 0 is exact, more is worse. For each chunk, `nbytes`: to be transferred, and
    `seconds`: of what follows, decoding or computing."""

    name: str
    loss: int
    nbytes: tuple[int, ...]
    seconds: tuple[float, ...]


class Controller:
    """`options`: all of as many chunks. `deadline_s`: by when the last chunk is to be ready, on the clock that `now` is of;
    `tail_s`: seconds of what comes after it, until the first token. `bandwidth`: bytes a second assumed for the first transfer.

    Raises ValueError for options that do not fit together."""

    def __init__(self, options: Seq[Option], deadline_s: float, bandwidth: float, tail_s: float = 0.0) -> None:
        chunks = {len(part) for option in options for part in (option.nbytes, option.seconds)}
        if not options or len(chunks) != 1:
            raise ValueError("a controller needs options, all of them for the same chunks")
        if not bandwidth > 0:
            raise ValueError(f"the bandwidth assumed must be above 0 bytes a second, got {bandwidth}")
        self.options = tuple(options)
        self.chunks = chunks.pop()
        self.bandwidth = bandwidth
        self._deadline_s = deadline_s - tail_s

    def measured(self, nbytes: int, seconds: float) -> None:
        """A transfer of `nbytes` took `seconds`. One of nothing says nothing."""
        if nbytes > 0 and seconds > 0:
            self.bandwidth = nbytes / seconds

    def finish_s(self, option: Option, chunk: int, now: float, busy_until: float) -> float:
        """When chunk `chunk` and all after it would be ready in this form: transfers follow each other, and so do decoding and
        computing, which is busy until `busy_until` and may overlap later transfers."""
        arrived, ready = now, max(now, busy_until)
        for nbytes, seconds in zip(option.nbytes[chunk:], option.seconds[chunk:], strict=True):
            arrived += nbytes / self.bandwidth
            ready = max(ready, arrived) + seconds
        return ready

    def choose(self, chunk: int, now: float, busy_until: float = 0.0) -> Option:
        """The form for chunk number `chunk`."""
        ends = {option: self.finish_s(option, chunk, now, busy_until) for option in self.options}
        in_time = [option for option, end in ends.items() if end <= self._deadline_s]
        if in_time:
            return min(in_time, key=lambda option: (option.loss, ends[option]))
        return min(self.options, key=lambda option: (ends[option], option.loss))

    def gives_up(
        self, option: Option, chunk: int, received: int, elapsed_s: float, now: float, busy_until: float = 0.0
    ) -> bool:
        """Whether chunk `chunk`, of which `received` bytes came in `elapsed_s` so far, should be given up for another form: it
        should have been here by now, at this rate it comes after the deadline, and the other form takes far less time."""
        if elapsed_s <= option.nbytes[chunk] / self.bandwidth:
            return False
        rate = max(received, 1) / elapsed_s
        rest_s = (option.nbytes[chunk] - received) / rate
        before, self.bandwidth = self.bandwidth, rate
        try:
            other = self.choose(chunk, now, busy_until)
            if other.name == option.name or now + rest_s + option.seconds[chunk] <= self._deadline_s:
                return False
            instead_s = max(other.nbytes[chunk] / rate, busy_until - now) + other.seconds[chunk]
            return rest_s + option.seconds[chunk] > 1.5 * instead_s
        finally:
            self.bandwidth = before
