"""JITServe's composition of a frame: which sequences are to share the steps until the next one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key", bound=Hashable)


def window(values: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """The `width` candidates next to each other in length whose values add up to most: their numbers, int64, shortest first.
    All of them when there are no more. Of equal sums the shorter sequences win. O(n log n)."""
    by_length = np.argsort(lengths, kind="stable")
    if len(values) <= width:
        return by_length
    # Values differ by many orders of magnitude, so sums are taken of each window rather than as differences of running sums.
    sums = np.lib.stride_tricks.sliding_window_view(values[by_length], width).sum(axis=1)
    first = int(np.argmax(sums))
    return by_length[first : first + width]


def siblings_short(left: float, time_s: float, frame_s: float, frame: int, inside: int) -> int:
    """How many more calls of a workflow must be in a frame of `frame` steps and `frame_s` seconds, of which `inside` are, so
    that its `left` tokens can be produced within `time_s`: at least 0, and 0 when the time is over."""
    if time_s <= 0 or frame_s <= 0:
        return 0
    needed = left / time_s * frame_s
    return max(0, math.ceil((needed - inside * frame) / frame - 1e-9))


def add_siblings(
    chosen: list[int],
    of: Seq[Key | None],
    values: npt.NDArray[np.float64],
    short: Callable[[Key, int], int],
    width: int,
) -> list[int]:
    """`chosen` numbers of candidates with the missing siblings of its workflows, at most `width` of them: densest siblings join
    and the least valued of the others, workflows' calls excepted, make way. `of`: each candidate's workflow, None without one.
    `short(workflow, inside)`: how many more of its calls are needed."""
    members = list(chosen)
    inside: dict[Key, int] = {}
    for number in members:
        if (key := of[number]) is not None:
            inside[key] = inside.get(key, 0) + 1
    outside: dict[Key, list[int]] = {}
    taken = set(members)
    for number, key in enumerate(of):
        if key is not None and key in inside and number not in taken:
            outside.setdefault(key, []).append(number)
    expendable = sorted((n for n in members if of[n] is None), key=lambda n: values[n], reverse=True)
    for key, others in outside.items():
        others.sort(key=lambda n: -values[n])
        for number in others[: short(key, inside[key])]:
            if len(members) >= width:
                if not expendable:
                    return members
                members.remove(expendable.pop())
            members.append(number)
    return members
