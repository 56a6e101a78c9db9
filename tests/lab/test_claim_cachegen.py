"""What the claim `cachegen` makes of what it measures over the link."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.engine.kv.bitstream.controller import Option
from hasten.engine.kv.bitstream.streaming import Streamed
from hasten.lab.bench.kv_streaming import Run
from hasten.lab.bench.throttled import Trace
from hasten.lab.claims.cachegen import CLAIM
from hasten.lab.claims.cachegen_link import _measure

FIXED = {"raw": (1.0, 40.0), "int8": (2.0, 20.0), "text": (10.0, 10.0), "level 0": (3.0, 9.0), "level 1": (3.0, 7.0)}
"""Seconds of a form where the link is fast, and where it is slow."""


class Prompt:
    """The controller takes a tenth longer than the best form, and 4 s where it has a deadline."""

    tail_s = 0.0
    bandwidth = 0.0
    options = (Option("text", 0, (0,), (10.0,)),)

    def run(self, names: Sequence[str], at: float, deadline_s: float = 0.0) -> Run:
        place = 0 if at == 0 else 1
        if len(names) == 1:
            return Run(FIXED.get(names[0], (50.0, 50.0))[place], Streamed([names[0]]))
        best = 1.1 * min(seconds[place] for seconds in FIXED.values())
        return Run(4.0 if deadline_s else best, Streamed(["raw", "level 1"]))


def test_the_link_in_figures() -> None:
    prompt: Any = Prompt()
    setting: Any = SimpleNamespace(progress=lambda what, done: None)
    found = _measure(prompt, Trace([(2.0, 1e6)]), [0.0, 1.0], 3, setting)
    samples = found.samples
    assert samples["adaptive"] == pytest.approx([1.1, 1.1])
    assert samples["raw"] == pytest.approx([40 / 7.7]) and samples["int8"] == pytest.approx([20 / 7.7])
    assert samples["text"] == pytest.approx([10 / 1.1])
    assert samples["misses"] == [0] and samples["misses-fewer"] == [50], "raw and int8 are late where the link is slow"
    assert samples["exact"] == [50]
    wanted = {requirement.name for requirement in CLAIM.requirements}
    assert set(samples) <= wanted
