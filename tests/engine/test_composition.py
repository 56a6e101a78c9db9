"""Every pair of exact techniques, drawn from the registry, is refused by name or gives the plain engine's tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tests.decoding.test_medusa import write as write_heads
from tests.engine import tiny

from hasten.engine.config import EngineConfig
from hasten.engine.technique import ConfigError, all_techniques, find, refuse

ELSEWHERE = {name for name in ("xgrammar", "llguidance") if find_spec(name) is None}
"""Techniques of packages that are not installed here."""
EXACT = {t.name: t for t in all_techniques() if t.exact and t.name not in ELSEWHERE}
TOGETHER = 6
"""Techniques in one engine. With 2 every pair has an engine of its own: minutes, and four times as many for twice the
techniques; to find which pair of a company breaks."""

EAGER = {"draft-model", "mirror-sd", "medusa"}
"""They have a guess nearly always, so that whoever is named behind them never makes one: one a company, and last."""


def refusal(names: Iterable[str]) -> str:
    """Why they cannot work together; empty if they can."""
    try:
        refuse(EXACT[name] for name in names)
    except ConfigError as error:
        return str(error)
    return ""


REFUSED = {frozenset(pair): why for pair in combinations(EXACT, 2) if (why := refusal(pair))}


def companies() -> list[tuple[str, ...]]:
    """Techniques that can work together, such that each pair that is not refused is in one company at least. Greedily: whoever
    brings most pairs that are still missing comes in."""
    rng = random.Random(0)
    missing = {frozenset(pair) for pair in combinations(EXACT, 2)} - REFUSED.keys()
    found = []
    while missing:
        company = sorted(min(missing, key=sorted))
        while len(company) < TOGETHER and len(EAGER.intersection(company)) < 2:
            others = [name for name in EXACT if name not in company and not (name in EAGER and EAGER.intersection(company))]
            fit = [name for name in others if not any(frozenset((name, one)) in REFUSED for one in company)]
            new = {name: sum(frozenset((name, one)) in missing for one in company) for name in fit}
            if not any(new.values()):
                break
            company.append(max(fit, key=lambda name: new[name]))
        missing -= {frozenset(pair) for pair in combinations(company, 2)}
        rng.shuffle(company)  # in whatever order they are named
        found.append(tuple(sorted(company, key=EAGER.__contains__)))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(model: str) -> tiny.Built:
    return tiny.engine(model, with_=("whole-prompts",), kv__reuse=None)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(1, 256, 70).tolist()
    different = [shared[:k] + rng.integers(1, 256, n).tolist() for k, n in ((0, 1), (70, 5), (64, 30), (70, 0), (33, 90))]
    return [*different, shared[:7] * 5]  # which misleads whoever looks up what followed


@pytest.fixture(scope="module")
def heads(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_heads(tmp_path_factory.mktemp("heads"), model)


def switched_on(name: str, model: str, heads: str) -> str:
    """As it is named to be switched on: a draft model must be named too, and heads; what random texts repeat is short."""
    named = {
        "draft-model": f":model={model}",
        "mirror-sd": f":model={model}",
        "medusa": f":path={heads}",
        "prompt-lookup": ":shortest=1",
    }
    return name + named.get(name, "")


@pytest.mark.parametrize("names", [*((name,) for name in EXACT), *companies()], ids="+".join)
def test_techniques_compose(names: tuple[str, ...], model: str, heads: str, plain: tiny.Built) -> None:
    with_ = tuple(switched_on(name, model, heads) for name in names)
    if "smart-spec" in names and not any({"decoding.proposers", "decoding.forced"} & EXACT[name].sets.keys() for name in names):
        with_ += ("prompt-lookup",)  # it governs somebody
    # Small chunks and little memory, so that chunking, prefix hits and preemption all take part.
    other = tiny.engine(
        model, with_=with_, scheduling__max_tokens=40, kv__memory_bytes=12 * 32 * 2 * 2 * 2 * 16 * 4, kv__host_bytes=1 << 20
    )
    for _ in range(2):  # the second time with what was kept of the first: KV, and outputs that drafts are made of
        tiny.assert_exact(plain, other, prompts(), 12)
    other.engine.executor.close()


def test_every_pair_is_tried_or_refused_by_both_names() -> None:
    tried = {frozenset(pair) for company in companies() for pair in combinations(company, 2)}
    assert tried | REFUSED.keys() == {frozenset(pair) for pair in combinations(EXACT, 2)} and not tried & REFUSED.keys()
    for pair, why in REFUSED.items():
        assert all(name in why for name in pair), why
        with pytest.raises(ConfigError):
            EngineConfig.build(with_=sorted(pair))


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
