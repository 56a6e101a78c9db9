"""A start of the engine's own process with a clock beside it: `python -m hasten.lab.planning.worker_start FD MARKS`.

It is `hasten.engine.process` itself, run by its `main`, with a stopwatch around the stages of a start. Each stage's begin and
end are written to the pipe MARKS as they happen, in seconds of the system's monotonic clock, which the parent reads too.
"""

from __future__ import annotations

import time

BEGAN_S = time.monotonic()
"""The interpreter is up and has found this file."""

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402


class Marks:
    """Lines `stage begin end` into a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.write(name, began, time.monotonic())

    def write(self, name: str, began_s: float, ended_s: float) -> None:
        os.write(self._fd, f"{name} {began_s!r} {ended_s!r}\n".encode())

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """From now on, calls of `owner.attribute` are a stage."""
        inner: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)


def main(fd: int, marks_fd: int) -> int:
    marks = Marks(marks_fd)
    marks.write("interpreter", BEGAN_S, BEGAN_S)
    with marks.stage("import"):
        from hasten.engine import build, models, process, text
    marks.around(text, "load_text", "tokenizer")
    marks.around(models, "load", "weights")
    marks.around(build, "Memory", "kv")
    marks.around(build, "build", "build")
    return process.main(fd)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
