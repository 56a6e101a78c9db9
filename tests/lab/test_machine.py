"""What a machine can do is measured on every processor that hasten runs on."""

from __future__ import annotations

import pytest
import torch

from hasten.lab.bench import machine


def test_a_dtype_the_processor_cannot_multiply_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    monkeypatch.setattr(machine, "can_pack", lambda dtype: asked.append(dtype))
    monkeypatch.setattr(machine, "seconds", lambda work: [1.0] if work() is not None else [])
    limits = machine.measure(torch.float16)  # which oneDNN's packed product refuses
    assert asked == [torch.float16] and limits.matmul == 2 * 512 * 2048 * 4096 and limits.read == 400_000_000
