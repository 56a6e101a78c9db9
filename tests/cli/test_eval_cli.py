"""`hasten eval` as a person calls it, on a tiny model and a task of its own."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from tests.engine import tiny
from typer.testing import CliRunner, Result

from hasten.cli import main
from hasten.cli.eval import app
from hasten.cli.eval_show import in_words
from hasten.engine.technique import ConfigError
from hasten.lab.testbed import corpus
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.scores import BITS_PER_BYTE, Estimate, Scores
from hasten.lab.testbed.tasks import registry
from hasten.lab.testbed.tasks.arithmetic import Arithmetic
from hasten.lab.testbed.tasks.base import Example, Split, Task
from hasten.lab.testbed.tasks.needle import Needle

split = cache(corpus.split)  # reading the texts takes seconds
LIKE = ("--set", "model.load_format=dummy", "--set", "model.dtype=float32", "--set", "kv.memory_bytes=4194304")


@dataclass(frozen=True)
class Letters(Task):
    name: ClassVar[str] = "letters"
    about: ClassVar[str] = "a fake"

    length: int = 12

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        return Example("".join(rng.choices("abcdefgh", k=self.length)), "[bold]", "[bold]", max_tokens=4)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("HASTEN_DATA", raising=False)
    monkeypatch.setattr(corpus, "split", split)
    monkeypatch.setattr(registry, "all_tasks", lambda: {"letters": Letters})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), env=dict(os.environ))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_scores_failures_and_files(model: str, tmp_path: Path) -> None:
    to, plot = tmp_path / "a.json", tmp_path / "a.png"
    asked = ("--tasks", "letters:length=5", "--tasks", "letters", "--n", "3", "--show", "1")
    done = call(model, *asked, *LIKE, "--json", str(to), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    assert "0.0 % (0.0-56.1)" in done.output and done.output.count("expected  '[bold]'") == 2
    scores = Scores.read(to)
    assert [task.task for task in scores.tasks] == ["letters:length=5", "letters"] and len(scores.tasks[0].outcomes) == 3
    assert scores.model == model and "model.dtype=float32" in scores.configuration
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert call("run", model, *asked, *LIKE).exit_code == 0


def test_two_configurations(model: str, tmp_path: Path) -> None:
    to = tmp_path / "both.json"
    asked = ("--model", model, "--tasks", "letters", "--n", "4", *LIKE)
    done = call("compare", "plain", "stall-free:chunk=8", *asked, "--json", str(to))
    assert done.exit_code == 0, done.output
    assert "+0.0 points (-" in done.output and "1.0000" in done.output and "--with stall-free:chunk=8" in done.output
    told = json.loads(to.read_text())
    assert told["names"] == ["plain", "stall-free:chunk=8"] and told["differences"][0]["p"] == 1
    with pytest.raises(ConfigError, match="run in this process"):
        call("compare", "plain", "http://localhost:1")


def test_files_are_compared(model: str, tmp_path: Path) -> None:
    a, b, plot = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "d.png"
    for path, seed in ((a, "0"), (b, "1")):
        assert call(model, "--tasks", "letters", "--n", "2", "--seed", seed, *LIKE, "--json", str(path)).exit_code == 0
    done = call("diff", str(a), str(a), "--plot", str(plot))
    assert done.exit_code == 0 and "1.0000" in done.output and plot.is_file()
    with pytest.raises(ConfigError, match="questions differ"):
        call("diff", str(a), str(b))
    with pytest.raises(ConfigError, match="No such file"):
        call("diff", str(a), str(tmp_path / "none.json"))


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean letters"):
        call("--tasks", "leters", "--n", "2")
    with pytest.raises(ConfigError, match="is no folder"):
        call("--tasks", "letters", "--json", str(tmp_path / "none" / "a.json"))
    assert call("--tasks", "letters", "--n", "1").exit_code == 2


def test_help() -> None:
    assert "eval" in main.GROUPS
    done = call("--help")
    assert done.exit_code == 0 and all(command in done.output for command in ("run", "compare", "diff"))
    assert "--tasks" in call("run", "--help").output


def test_figures_in_words() -> None:
    assert in_words("correct", Estimate(value=0.935, low=0.891, high=0.962)) == "93.5 % (89.1-96.2)"
    assert in_words("correct", Estimate(value=0.01, low=-0.025, high=0.045), signed=True) == "+1.0 points (-2.5 to +4.5)"
    assert in_words(BITS_PER_BYTE, Estimate(value=2.134, low=2.0121, high=2.25)) == "2.134 (2.012-2.250)"


def test_standard_tasks_longer_than_the_context_are_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    from hasten.cli.eval import _fitting

    tasks: list[Task] = [Needle(length=4096), Arithmetic()]
    assert _fitting(tasks, 2048) == tasks[1:]
    assert "needle:length=4096" in capsys.readouterr().err
    assert _fitting(tasks, 8192) == tasks
    assert not capsys.readouterr().err
