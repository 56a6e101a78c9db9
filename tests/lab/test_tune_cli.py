"""`hasten tune` and `hasten calibrate` on a tiny model, from the command line to the file that the engine reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine import tiny
from typer.testing import CliRunner

from hasten.cli import calibrate as calibrate_cli
from hasten.cli import tune as tune_cli
from hasten.engine.build import build
from hasten.engine.config import EngineConfig
from hasten.lab.planning import calibrate
from hasten.lab.planning import tune as planning

SETTINGS = {"model.load_format": "dummy", "model.dtype": "float32", "kv.memory_bytes": "4194304"}
GIVEN = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={value}")]


@pytest.fixture(autouse=True)
def quiet_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


def test_calibrate_saves_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.folder(tmp_path / "model")
    measure = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", lambda built, **given: measure(built, **{**given, "budget_s": 0.5}))
    done = CliRunner().invoke(calibrate_cli.app, [model, *GIVEN], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config = EngineConfig.build(model, set_=SETTINGS)
    found = calibrate.here(model, config)
    assert str(calibrate.default_path(model, found.runs_on)) in done.stdout
    assert f"{found.steps:,} steps" in done.stdout
    out = tmp_path / "mine.calibration.json"
    done = CliRunner().invoke(calibrate_cli.app, [model, *GIVEN, "--out", str(out)], catch_exceptions=False)
    assert calibrate.Calibration.load(out).model == model


def test_tune_writes_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.folder(tmp_path / "model")
    base = EngineConfig.build(model, set_=SETTINGS)
    found = calibrate.measure(build(base), rounds=1, budget_s=0.5)
    found.save(calibrate.default_path(found.model, found.runs_on))
    monkeypatch.setattr(planning, "POLICIES", ("scheduling.batching",))
    monkeypatch.setattr(planning, "FIELDS", {"scheduling.max_rows": (1, 8), "model.dtype": ("float32", "bfloat16")})
    out, to, page = tmp_path / "tuned.toml", tmp_path / "tuned.json", tmp_path / "tuned.html"
    arguments = ["--workload", "poisson:requests=10", "--rate", "100", "--slo", "ttft=0.5,tpot=0.2", "--rounds", "1", *GIVEN]
    arguments += ["--out", str(out), "--json", str(to), "--report", str(page), "--budget", "0.1"]
    done = CliRunner().invoke(tune_cli.app, [model, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(to.read_text())
    assert told["candidates"][-1]["simulated"]["goodput"] <= told["candidates"][0]["simulated"]["goodput"]
    assert "as given" in [one["name"] for one in told["candidates"]]
    assert "calibrate" in told["refused"]["model.dtype=bfloat16"]
    assert "Objectives: TTFT <= 500 ms and TPOT <= 200 ms" in told["notes"][0]
    text = out.read_text()
    assert text.startswith("# hasten tune --workload poisson:requests=10 --slo ttft=0.5,tpot=0.2\n")
    config = EngineConfig.build(file=out)
    assert config.model.path == model and config.kv.memory_bytes == 4194304
    assert page.read_text().startswith("<!")


def test_a_file_that_cannot_be_written_is_said_before_the_search(tmp_path: Path) -> None:
    arguments = ["--workload", "poisson", "--slo", "ttft=1", "--out", str(tmp_path / "nowhere" / "x.toml")]
    done = CliRunner().invoke(tune_cli.app, arguments)
    assert done.exit_code == 2
    assert "there is no folder" in done.output
