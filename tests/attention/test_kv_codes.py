"""`kv-int8` and `kv-int4` in the engine: their KV depends on the tokens alone, whatever the core does with its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import tiny
from tests.engine.test_exactness import WINDOW, answers, mixed_requests

from hasten.engine.build import Built
from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.memory import block_bytes
from hasten.engine.request import Request, SamplingParams
from hasten.engine.technique import ConfigError

NAMES = ("kv-int8", "kv-int4")
HEADS = {"hidden_size": 128}
"""Four heads of 32."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, WINDOW], ids=["llama", "window"])
@pytest.mark.parametrize("name", NAMES)
def test_deterministic_runs_are_equal_bit_for_bit(tmp_path: Path, dtype: str, changes: dict[str, Any], name: str) -> None:
    """Alone and whole, or in chunks beside others, preempted, swapped, forked (n = 2) and with prompts cached."""
    path = tiny.folder(tmp_path, **HEADS, **changes)
    settings: dict[str, Any] = {"model__dtype": dtype, "executor__deterministic": True}
    plain = tiny.engine(path, with_=(name,), kv__reuse=None, scheduling__max_rows=1, **settings)
    alone: dict[Any, Any] = {}
    for request in mixed_requests():
        alone.update(answers(plain, [request]))
    block = block_bytes(plain.parts.model, 16, plain.parts.config.form())
    for host in (0, 1 << 20):
        busy = tiny.engine(
            path,
            with_=(name, "stall-free:chunk=23", "newest-yields:swap_from=1"),
            kv__block_size=16,
            kv__memory_bytes=26 * block,
            kv__host_bytes=host,
            scheduling__max_tokens=37,
            **settings,
        )
        assert answers(busy, mixed_requests()) == alone
        counts = busy.engine.events.counts
        assert counts[Kind.SWAPPED if host else Kind.PREEMPTED] > 0, "the test should press on memory"
        assert answers(busy, mixed_requests()) == alone
        assert counts[Kind.REUSED] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_recorded_steps_give_the_same_bits(tmp_path: Path, dtype: str, name: str) -> None:
    path = tiny.folder(tmp_path, **HEADS)
    results = []
    for native in (True, False):
        built = tiny.engine(path, with_=(name,), model__dtype=dtype, executor__native=native)
        results.append(answers(built, mixed_requests()))
        assert bool(built.parts.executor._plans) == native  # type: ignore[union-attr]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", NAMES)
def test_codes_go_through_the_tiers(tmp_path: Path, name: str) -> None:
    """To host memory and to disk, and from there into an engine that was started anew."""
    path = tiny.folder(tmp_path / "model", **HEADS)
    tiers = f"tiered:host_bytes=4000000:chunk=32:margin=1e9:disk={tmp_path / 'cache'}"

    def started() -> Built:
        return tiny.engine(path, with_=(name, tiers), kv__block_size=16, executor__deterministic=True)

    first = started()
    want = answers(first, mixed_requests())
    first.engine.executor.close()
    second = started()
    assert answers(second, mixed_requests()) == want
    assert second.engine.events.sums[Kind.LOADED] > 0
    second.engine.executor.close()


def test_what_is_lost_shrinks_with_the_bits(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, **HEADS)
    prompt = np.random.default_rng(2).integers(1, 256, 200)
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    scores = {}
    for name in ("paged", *NAMES):
        (deltas,) = tiny.run(tiny.engine(path, with_=(name,)), [Request(id="a", prompt=prompt, sampling=sampling)]).values()
        found = deltas[0].prompt_logprobs
        assert found is not None
        scores[name] = torch.tensor([score.logprob for score in found[1:] if score is not None])
    lost = {name: float((scores[name] - scores["paged"]).abs().mean()) for name in NAMES}
    assert 0 < lost["kv-int8"] < 0.25 * lost["kv-int4"] < 0.05


def test_the_same_memory_holds_more(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, **HEADS)
    blocks = {name: tiny.engine(path, with_=(name,), model__dtype="bfloat16").info["kv_blocks"] for name in ("paged", *NAMES)}
    assert blocks["kv-int8"] / blocks["paged"] == pytest.approx(64 / 36, rel=0.01)
    assert blocks["kv-int4"] / blocks["paged"] == pytest.approx(64 / 18, rel=0.01)


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv-int8 and sink-window cannot run together: both decide attention\.policy"):
        EngineConfig.build(with_=["kv-int8,sink-window"])
    with pytest.raises(ConfigError, match="kv-int4: codes need a head_dim that is a multiple of 32"):
        tiny.engine(tiny.folder(tmp_path / "narrow"), with_=("kv-int4",))
    with pytest.raises(ConfigError, match=r"kv-int8: codes need a kv\.block_size that is a multiple of 16"):
        tiny.engine(tiny.folder(tmp_path / "wide", **HEADS), with_=("kv-int8",), kv__block_size=24)
