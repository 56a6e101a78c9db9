"""A progress bar on stderr for work that turns out to be long; short work shows nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOWN_AFTER_S = 1.0


@contextmanager
def bar(description: str, total: float | None, *, in_bytes: bool = False) -> Iterator[Callable[[float], None]]:
    """Gives `advance(amount)`; the bar appears once SHOWN_AFTER_S have passed and is gone at the end. `total` None: unknown."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    done = 0.0
    shown: Progress | None = None
    task = None
    begin = time.monotonic()

    def advance(amount: float) -> None:
        nonlocal done, shown, task
        done += amount
        if shown is None:
            if time.monotonic() - begin < SHOWN_AFTER_S:
                return
            count = DownloadColumn() if in_bytes else TextColumn("{task.percentage:3.0f} %")
            columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
            shown = Progress(*columns, console=Console(stderr=True), transient=True)
            task = shown.add_task(description, total=total)
            shown.start()
        if task is not None:
            shown.update(task, completed=done)

    try:
        yield advance
    finally:
        if shown is not None:
            shown.stop()
