"""The checksums of KV that comes back: they hold on a real engine, and see a byte that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.engine import tiny

from hasten.engine.request import Request, SamplingParams
from hasten.lab.bench.kv_checks import KVChecks

BLOCK = 8 * 2 * 2 * 2 * 16 * 4
"""Bytes of a block: 8 tokens of 2 layers' keys and values with 2 heads of 16 float32."""


def switching(path: str, **settings: Any) -> tiny.Built:
    return tiny.engine(
        path,
        with_=("priority-trace:least=1:most=3:stay=0.2", "fastswitch"),
        kv__block_size=8,
        kv__memory_bytes=24 * BLOCK,
        kv__host_bytes=200 * BLOCK,
        kv__reuse=None,
        **settings,
    )


def requests() -> list[Request]:
    sampling = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    rng = np.random.default_rng(1)
    return [Request(id=f"r{i}", prompt=rng.integers(1, 256, 40), sampling=sampling) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("copies", ["runs", "blocks"])
def test_real_copies_bring_back_what_left(model: str, copies: str) -> None:
    built = switching(model, kv__copies=copies)
    checks = KVChecks(built.engine)
    tiny.run(built, requests())
    assert checks.compared > 5 and not checks.wrong
    traffic = built.engine.executor.traffic
    assert traffic.blocks_in > 0 and traffic.blocks_out < traffic.blocks_in, "what lay there was sent again"
    sites = 2 * len(built.parts.model.sites)
    if copies == "blocks":
        assert traffic.calls_in == sites * traffic.blocks_in
    else:
        assert traffic.calls_in < 0.5 * sites * traffic.blocks_in
    built.engine.executor.close()


def test_a_byte_that_changed_is_seen(model: str) -> None:
    built = switching(model)
    checks = KVChecks(built.engine)
    for request in requests():
        built.engine.add(request)
    while checks.compared < 3:
        built.engine.step()
    assert not checks.wrong
    built.parts.memory.host_planes[2].add_(1.0)  # all that lies in the host tier now is wrong
    for _ in range(400):
        built.engine.step()
    assert checks.wrong
    built.engine.executor.close()
