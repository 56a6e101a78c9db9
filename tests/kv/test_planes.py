"""Planes: what a site's store looks like to whoever copies, counts or moves its bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hasten.engine.attention.coded import CodedForm
from hasten.engine.kv.planes import DENSE, Form
from hasten.engine.memory import Memory, block_bytes

FORMS: list[Form] = [DENSE, CodedForm(8), CodedForm(4)]


def model(sites: int = 2) -> Any:
    """What `Memory` asks of a model."""

    def site() -> Any:
        return SimpleNamespace(kv_heads=2, head_dim=64, planes=(), form=None, block_size=0)

    return SimpleNamespace(sites=[site() for _ in range(sites)], dtype=torch.bfloat16, device=torch.device("cpu"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_blocks_bytes_are_its_rows_of_all_planes(form: Form) -> None:
    memory = Memory(model(), 3, 32, 2, form)
    assert memory.block_bytes == block_bytes(memory.model, 32, form) == sum(plane[0].nbytes for plane in memory.planes)
    assert all(plane.is_contiguous() and len(plane) == 3 for plane in memory.planes)
    for number, plane in enumerate(memory.planes):
        plane.view(torch.uint8).copy_(torch.arange(plane.nbytes).view(plane.view(torch.uint8).shape) * (number + 3) % 251)
    before = [plane.clone() for plane in memory.planes]
    memory.copy_out([(1, 0, 2)]).wait()
    for plane in memory.planes:
        plane.zero_()
    memory.copy_in([(0, 1, 1), (2, 0, 1)]).wait()
    for plane, was in zip(memory.planes, before, strict=True):
        assert plane[0].equal(was[2]) and plane[2].equal(was[1]) and not plane[1].any()
    assert memory.traffic.blocks_out == 2 and memory.traffic.calls_in == 2 * len(memory.planes)
    memory.close()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_slots_move_and_leave_others_alone(form: Form) -> None:
    torch.manual_seed(1)
    memory = Memory(model(1), 3, 32, 0, form)
    for plane in memory.planes:
        plane.copy_(torch.randint(0, 200, plane.shape))
    planes = memory.model.sites[0].planes
    every = torch.arange(96)
    before = [held.clone() for held in form.read(planes, every, 32)]
    source, target = torch.tensor([5, 40, 64, 7]), torch.tensor([6, 5, 95, 33])
    form.write(planes, target, 32, form.read(planes, source, 32))
    came_from = every.clone()
    came_from[target] = source
    for held, was in zip(form.read(planes, every, 32), before, strict=True):
        assert held.equal(was[came_from])
    memory.close()
