"""Calibration of a tiny model, what is kept of it, and how it is found again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine import tiny

from hasten.engine.build import Built
from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.technique import ConfigError
from hasten.lab.planning import calibrate
from hasten.lab.planning.calibrate import Calibration, grid
from hasten.lab.planning.simulate import device, simulate
from hasten.lab.workloads import load

HOST_BLOCKS = 6
SAVED = Calibration(
    model="some/model",
    vocabulary=1000,
    max_length=512,
    kv_token_bytes=128.0,
    kv_bytes=1 << 20,
    costs=CostModel(knots=(1, 64, 512), knot_s=(0.01, 0.012, 0.05), row_s=1e-4, pair_s=1e-9, copy_s=1e-5),
    machine=calibrate.this_machine(),
    runs_on={"device": "cpu", "dtype": "bfloat16", "threads": 2, "kernels": "native", "deterministic": False},
    made_at=1_700_000_000.0,
    steps=321,
    median_error=0.02,
    p95_error=0.11,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hasten" / "calibrations"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    token_bytes = 2 * 2 * 2 * 16 * 4  # k and v, layers, heads, size of a head, float32
    return tiny.engine(
        tiny.folder(tmp_path_factory.mktemp("tiny")), kv__host_bytes=HOST_BLOCKS * 32 * token_bytes, executor__threads=1
    )


@pytest.fixture(scope="module")
def measured(built: Built) -> Calibration:
    return calibrate.measure(built, rounds=2, budget_s=1.0)


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_a_tiny_model_is_measured(built: Built, measured: Calibration) -> None:
    assert measured.steps >= 20
    assert (measured.vocabulary, measured.max_length) == (256, 512)
    assert measured.kv_token_bytes == 2 * 2 * 2 * 16 * 4
    assert measured.kv_bytes == built.parts.memory.nbytes
    assert 0 < measured.costs.tokens(1) < 1
    assert measured.costs.copy_token_s > 0 or measured.costs.copy_s > 0
    assert measured.machine == calibrate.this_machine()
    assert measured.runs_on["dtype"] == "float32" and measured.runs_on["threads"] == 1
    assert np.isfinite([measured.median_error, measured.p95_error]).all()


def test_the_engine_is_left_idle_and_whole(built: Built, measured: Calibration) -> None:
    assert built.engine.unfinished == 0
    built.engine.ledger.audit()


def test_copies_are_timed_though_the_prefix_cache_holds_all_memory(built: Built) -> None:
    calibrate.collect(built, rounds=1, budget_s=0.2)
    books = built.parts.books
    held = books.pool.take(max(0, books.pool.free))  # nothing is free but what can be evicted
    assert books.available > HOST_BLOCKS
    try:
        copy_s, copy_token_s = calibrate.copies(built)
    finally:
        books.pool.drop(held)
    assert copy_s + copy_token_s > 0
    built.engine.ledger.audit()


def test_a_second_round_finds_nothing_cached(built: Built) -> None:
    """Prompts that the prefix cache knew would be measured as if they were short."""
    hits = built.engine.events.sums[Kind.REUSED]
    calibrate.collect(built, rounds=2, budget_s=0.5)
    calibrate.collect(built, rounds=1, budget_s=0.5)
    assert built.engine.events.sums[Kind.REUSED] == hits


def test_it_tells_how_far_it_is(built: Built) -> None:
    told: list[tuple[str, float]] = []
    shapes, seconds = calibrate.collect(built, rounds=2, budget_s=0.3, progress=lambda what, share: told.append((what, share)))
    assert len(shapes) == len(seconds) > 0 and (seconds > 0).all()
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1
    assert told[0][0].startswith("round 1: 1 × ") and told[-1][0].startswith("round 2")


def test_a_budget_that_is_too_small_is_said_to_be(built: Built) -> None:
    with pytest.raises(ConfigError, match=r"0 seconds are too few to calibrate this model: at least 20 steps"):
        calibrate.measure(built, rounds=1, budget_s=0.0)


def test_a_calibration_simulates(measured: Calibration) -> None:
    run = simulate(load("poisson:rate=50,requests=20@context=256"), measured.device(), EngineConfig.build())
    assert not run.errors and run.simulated
    assert run.info["simulated on"].startswith(f"calibration of {calibrate.this_machine()}, 20")


@pytest.mark.parametrize(("max_length", "rows"), [(40, 1), (512, 8), (131_072, 256)])
def test_the_grid_fits_the_engine(max_length: int, rows: int) -> None:
    scenarios = grid(max_length, rows)
    assert all(one.prompt >= 1 and one.prompt + one.output <= max_length for one in scenarios if not one.apart_s)
    assert all(one.count <= rows for one in scenarios if not one.apart_s)
    assert any(one.apart_s for one in scenarios)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, measured: Calibration) -> None:
    for one in (SAVED, measured):
        path = tmp_path / "deep" / "down.calibration.json"
        one.save(path)
        assert Calibration.load(path) == one
        assert Calibration.load(path).costs.tokens(77) == one.costs.tokens(77)
        assert [file.name for file in path.parent.iterdir()] == ["down.calibration.json"]
        assert device("any", str(path), EngineConfig.build()).costs == one.costs


def edited(**changes: Any) -> str:
    return json.dumps({**dataclasses.asdict(SAVED), **changes})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no calibration"),
        ("{", "no calibration"),
        ("[]", "no calibration"),
        ("{}", "model: Field required"),
        (edited(kv_bytes="much"), "kv_bytes: Input should be a valid number"),
        (edited(runs_on=None), "runs_on: "),
        (edited(costs=None), "costs: "),
        (edited(costs={"knots": [1, 2]}), r"costs\.knot_s: Field required"),
        (edited(costs={"knots": [2, 1], "knot_s": [1, 1]}), "must ascend"),
        (edited(costs={"knots": [1, 2], "knot_s": [1, -1]}), "seconds from 0 on"),
        (edited(costs={"knots": [1, 2], "knot_s": [1, 1], "pair_s": float("nan")}), "seconds from 0 on"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.calibration.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said) as refusal:
        Calibration.load(path)
    assert str(path) in str(refusal.value) and "hasten calibrate" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there: `hasten calibrate` makes it"):
        Calibration.load(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        Calibration.load(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no calibration"):
        Calibration.load(tmp_path / "bytes.json")


# -- finding -----------------------------------------------------------------------------------------------------------


def kept(**changes: Any) -> Calibration:
    one = dataclasses.replace(SAVED, **changes)
    one.save(calibrate.default_path(one.model, one.runs_on))
    return one


def asking(**settings: Any) -> EngineConfig:
    return EngineConfig.build(set_={name.replace("__", "."): value for name, value in settings.items()})


def test_the_newest_that_fits_is_found() -> None:
    kept(made_at=1.0)
    newest = kept(made_at=3.0, runs_on={**SAVED.runs_on, "threads": 1})
    float32 = kept(made_at=2.0, runs_on={**SAVED.runs_on, "dtype": "float32"})
    kept(made_at=9.0, model="other/model")
    assert calibrate.here("some/model", EngineConfig()) == newest
    assert calibrate.here("some/model", asking(model__dtype="float32")) == float32
    assert calibrate.here("some/model", asking(executor__threads=2)).made_at == 2.0
    assert device("some/model", "here", EngineConfig()).costs == newest.costs


def test_one_of_each_way_of_running_is_kept(cache: Path) -> None:
    kept()
    kept(made_at=5.0)
    kept(runs_on={**SAVED.runs_on, "threads": 1})
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "`hasten calibrate some/model`"),
        ({"model__dtype": "float32", "executor__threads": 3}, "`hasten calibrate some/model --threads 3 --dtype float32`"),
        ({"model__device": "cuda"}, "`hasten calibrate some/model --device cuda`"),
    ],
)
def test_where_there_is_none_it_says_what_to_do(settings: dict[str, Any], command: str) -> None:
    kept(machine="another machine")
    with pytest.raises(ConfigError) as refusal:
        calibrate.here("some/model", asking(**settings))
    assert "this machine is not calibrated for some/model" in str(refusal.value)
    assert command in str(refusal.value)


def test_a_broken_one_does_not_hide_the_others(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "old.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not calibrated for some/model.*left out: .*old\.json is no calibration"):
        calibrate.here("some/model", EngineConfig())
    one = kept()
    assert calibrate.here("some/model", EngineConfig()) == one
