"""Every pair of exact techniques, drawn from the registry by itself, gives the plain engine's tokens or is refused by name."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tests.decoding.test_medusa import write as write_heads
from tests.engine import tiny

from hasten.engine.config import EngineConfig
from hasten.engine.technique import ConfigError, Technique, all_techniques, find, refuse

EXACT = [t for t in all_techniques() if t.exact]
PAIRS = [*((t,) for t in EXACT), *combinations(EXACT, 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(model: str) -> tiny.Built:
    return tiny.engine(model, with_=("whole-prompts",), kv__reuse=None)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(1, 256, 70).tolist()
    return [shared[:k] + rng.integers(1, 256, n).tolist() for k, n in ((0, 1), (70, 5), (64, 30), (70, 0), (33, 90))]


@pytest.fixture(scope="module")
def heads(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_heads(tmp_path_factory.mktemp("heads"), model)


def switched_on(technique: Technique, model: str, heads: str) -> str:
    """As it is named to be switched on; a draft model must be named too, and heads."""
    named = {"draft-model": f":model={model}", "mirror-sd": f":model={model}", "medusa": f":path={heads}"}
    return technique.name + named.get(technique.name, "")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(t.name for t in pair))
def test_pairs_compose_or_are_refused(pair: tuple[Technique, ...], model: str, heads: str, plain: tiny.Built) -> None:
    names = tuple(t.name for t in pair)
    with_ = tuple(switched_on(t, model, heads) for t in pair)
    if "smart-spec" in names and not any({"decoding.proposers", "decoding.forced"} & t.sets.keys() for t in pair):
        with_ += ("prompt-lookup",)  # it governs somebody
    try:
        refuse(pair)
    except ConfigError as refusal:
        assert all(name in str(refusal) for name in names), "a refusal names both"
        with pytest.raises(ConfigError):
            EngineConfig.build(with_=names)
        return
    # Small chunks and little memory, so that chunking, prefix hits and preemption all take part.
    try:
        other = tiny.engine(
            model, with_=with_, scheduling__max_tokens=40, kv__memory_bytes=12 * 32 * 2 * 2 * 2 * 16 * 4, kv__host_bytes=1 << 20
        )
    except ConfigError as refusal:
        if "pip install" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    tiny.assert_exact(plain, other, prompts(), 12)


def test_unknown_names_and_settings_are_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean whole-prompts"):
        find("whole-prompt")
    with pytest.raises(ConfigError, match=r"no setting is called 'kv\.blocksize'.*block_size"):
        EngineConfig.build(set_=["kv.blocksize=3"])
    with pytest.raises(ConfigError, match="multiple of 8"):
        EngineConfig.build(set_=["kv.block_size=12"])
    with pytest.raises(ConfigError, match="chunk"):
        EngineConfig.build(with_=["stall-free:chunk=many"])
    with pytest.raises(ConfigError, match="has no knobs"):
        EngineConfig.build(with_=["fcfs:speed=9"])
    with pytest.raises(ConfigError, match=r"fcfs and priority cannot run together: both decide scheduling\.order"):
        EngineConfig.build(with_=["fcfs,priority"])


def test_with_and_set_mean_the_same_everywhere() -> None:
    config = EngineConfig.build("some/model", with_=["whole-prompts,priority"], set_=["kv.block_size=16", "kv.reuse=none"])
    assert (config.scheduling.batching, config.scheduling.order) == ("whole-prompts", "priority")
    assert (config.model.path, config.kv.block_size, config.kv.reuse) == ("some/model", 16, None)
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config
    overruled = EngineConfig.build(with_=["priority"], set_=["scheduling.order=fcfs"])
    assert EngineConfig.build(base=overruled).scheduling.order == "fcfs"
    assert EngineConfig.build(set_={"scheduling.max_tokens": 7}).scheduling.max_tokens == 7


def test_techniques_from_other_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from hasten.engine.technique import Technique\n"
        "T = Technique(name='last-first', seam='scheduling', summary='x', exact=True, sets={'scheduling.order': 'last-first'},"
        " conflicts={'whole-prompts': 'it starves them'})\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hasten.techniques]\nlast-first = elsewhere:T\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("last-first").name == "last-first"
    assert "last-first" in [t.name for t in all_techniques()]
    with pytest.raises(ConfigError, match="last-first and whole-prompts cannot run together: it starves them"):
        EngineConfig.build(with_=["last-first", "whole-prompts"])
