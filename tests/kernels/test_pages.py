"""Where large memory lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.kernels import pages


@pytest.mark.parametrize(("said", "nodes"), [("0\n", (0,)), ("0-1,4\n", (0, 1, 4)), ("\n", ())])
def test_nodes_are_read_from_the_system(said, nodes, tmp_path):
    (tmp_path / "has_memory").write_text(said)
    assert pages.memory_nodes(tmp_path / "has_memory") == nodes
    assert pages.memory_nodes(tmp_path / "absent") == ()


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a system without policies for memory")
def test_memory_is_spread_over_nodes_that_are_there_only():
    tensor = torch.empty(8 << 20, dtype=torch.uint8)
    start = -(-tensor.data_ptr() // 4096) * 4096
    assert pages.interleave(start, 4 << 20, pages.memory_nodes(pages.NODES))
    assert f"{start:x} interleave" in Path("/proc/self/numa_maps").read_text()
    assert not pages.interleave(start, 4 << 20, (1000,))
    tensor.fill_(7)
    assert int(tensor.max()) == int(tensor.min()) == 7


def test_what_is_well_placed_is_memory_like_any_other():
    for shape in ((3,), (5, 1 << 20)):
        tensor = pages.well_placed(torch.empty(shape))
        tensor.fill_(2)
        assert float(tensor.sum()) == 2 * tensor.numel()
