"""What the claim `flashforge` times: that the steps it makes up are the steps it says, and that both sides compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.engine import tiny

from hasten.engine.attention.forest import find_nodes
from hasten.kernels.cpu import CpuKernels, native
from hasten.lab.claims.flashforge_sides import DIM, Bench, Steps
from hasten.lab.claims.flashforge_steps import SIZE, Shared, apart, common_prompt, of_trace, shared, skewed_tree

needs_kernels = pytest.mark.skipif(not native.available(), reason="no native library is built (make native)")


def slots(step: Shared, number: int) -> list[tuple[int, int, int]]:
    """Block, slot and position of every entry of a view."""
    runs = step.runs[step.offsets[number] : step.offsets[number + 1]].tolist()
    return [(block, first + i, at + i) for block, first, count, at in runs for i in range(count)]


def test_paths_name_what_is_shared() -> None:
    step = shared([["a", "b"], ["a"], ["a", "b"]], {"a": 40, "b": 32}, [5, 1, 33])
    views = [slots(step, number) for number in range(3)]
    assert [len(view) for view in views] == step.lengths.tolist() == [77, 41, 105]
    assert all([at for _, _, at in view] == list(range(len(view))) for view in views)
    assert views[0][:72] == views[2][:72] and views[0][:40] == views[1][:40]
    private = [set(view[n:]) for view, n in zip(views, (72, 40, 72), strict=True)]
    assert not private[0] & private[1] | private[0] & private[2] | private[1] & private[2]
    assert step.blocks == len({block for view in views for block, _, _ in view}) == 2 + 1 + 1 + 1 + 2


def test_the_cases_share_as_the_claim_says() -> None:
    rng = np.random.default_rng(0)

    def nodes(step: Shared) -> list[tuple[int, int]]:
        host = step.index().on_host()
        return sorted((node.entries, len(node.members)) for node in find_nodes(host, np.diff(host.run_offsets)))

    assert nodes(common_prompt(rng)) == [(8192, 32)]
    tree = nodes(skewed_tree(rng))
    assert tree[-1] == (6144, 32) and {n for n, _ in tree} == {256, 512, 1024, 2048, 6144}
    assert len(tree) == 10 and sum(members for _, members in tree) == 3 * 32, "each request crosses a node of each level"
    assert nodes(apart(rng)) == []


def test_the_trace_keeps_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 64, "hash_ids": [0, 1, 2]},
        {"timestamp": 1, "input_length": 40_000, "output_length": 64, "hash_ids": [0, *range(10, 88)]},
        {"timestamp": 2, "input_length": 1024, "output_length": 320, "hash_ids": [0, 3]},
    ]
    (tmp_path / "mooncake-conversation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    step = of_trace(0, 2, 16)
    assert step.lengths.tolist() == [64 + 4 + 2, 64 + 10], "the longest is left out"
    assert slots(step, 0)[:32] == slots(step, 1)[:32] and slots(step, 0)[32] != slots(step, 1)[32]
    fourfold = of_trace(0, 2, 16, answers=4)
    assert fourfold.lengths.tolist() == [70] * 4 + [74] * 4
    assert slots(fourfold, 0)[:68] == slots(fourfold, 3)[:68] and slots(fourfold, 0)[68] != slots(fourfold, 3)[68]


@needs_kernels
def test_both_sides_of_a_call_compute_the_same() -> None:
    step = shared([["a"]] * 6, {"a": 1024}, [20, 1, 300, 40, 5, 7])
    bench = Bench(CpuKernels(native.available()[0]), 4, 2, step.blocks)
    of = bench.compare(step, {"paged": None, "flashforge": bench.planner(), "whole": bench.planner(split=False)})
    for name in ("flashforge", "whole"):
        assert float((of["paged"][2] - of[name][2]).abs().max()) < 1e-5
        assert of[name][1] == (1024 + 373) * 2 * 2 * DIM * 4
    assert of["paged"][1] == (6 * 1024 + 373) * 2 * 2 * DIM * 4
    with pytest.raises(RuntimeError, match="no forest"):
        bench.call(apart(np.random.default_rng(0), 2, 16), bench.planner())


@needs_kernels
def test_steps_run_on_one_pool(tmp_path: Path) -> None:
    steps = Steps(tiny.folder(tmp_path), ("model.load_format=dummy", "model.dtype=float32", "kv.memory_bytes=2000000"))
    step = shared([["a"]] * 3, {"a": 3 * SIZE}, [2, 9, 4])
    assert set(steps.seconds(step, 2)) == {"paged", "flashforge"}
    with pytest.raises(RuntimeError, match="blocks"):
        steps.seconds(shared([["a"]], {"a": SIZE * (steps.blocks + 1)}, [1]), 1)
    steps.close()
