"""`hasten train`: mistakes are told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hasten.cli.train import app
from hasten.engine.technique import ConfigError

runner = CliRunner()


def test_help_names_the_models_and_says_that_a_run_can_be_killed() -> None:
    said = runner.invoke(app, ["testbed", "--help"]).output
    assert all(name in said for name in ("base", "draft", "moe", "large"))
    assert "killed" in runner.invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bse"], "no testbed model is called 'bse'; there are base, draft"),
        (["--data", "nowhere"], "'nowhere' is not a folder"),
        (["--tokenizer", "nowhere"], "nowhere has no tokenizer.json"),
        (["--teacher", "nowhere"], "nowhere has no tokenizer.json"),
        (["--device", "tpu"], "device 'tpu': cpu and cuda are supported"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fault = runner.invoke(app, ["testbed", "--out", str(tmp_path / "run"), *arguments]).exception
    assert isinstance(fault, ConfigError) and message in str(fault)
    assert not list(tmp_path.glob("run/*"))
