"""Batches made ahead of the step that needs them: by a thread, or by several processes where steps are short."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait

import torch

from hasten.lab.training.batch import Ask, Batch, Windows

AHEAD_A_WORKER = 3
_windows: Windows | None = None


def ahead(windows: Windows, asks: Iterable[Ask], workers: int = 0) -> Generator[Batch]:
    """The batches of `asks`, in their order. workers: processes that make them; 0 for a thread of this one. Asks are drawn as
    far ahead as batches are made."""
    left = iter(asks)
    waiting: deque[Future[Batch]] = deque()
    pool = _processes(windows, workers) if workers else ThreadPoolExecutor(1)
    make = _make if workers else windows.batch
    try:
        waiting.extend(pool.submit(make, ask) for ask in itertools.islice(left, max(1, AHEAD_A_WORKER * workers)))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(make, ask) for ask in itertools.islice(left, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _processes(windows: Windows, workers: int) -> Executor:
    # Spawned: a forked process would have the threads' locks as they happened to be, and CUDA does not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(windows,))


def _begin(windows: Windows) -> None:
    global _windows
    _windows = windows
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run may be killed at any moment, and its workers would wait for their next order for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _make(ask: Ask) -> Batch:
    assert _windows is not None
    return _windows.batch(ask)
