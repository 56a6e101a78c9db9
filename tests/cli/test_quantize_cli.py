"""`hasten quantize` as a person calls it: mistakes before any work, and a folder that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.engine import tiny
from typer.testing import CliRunner, Result

from hasten.cli.quantize import app
from hasten.engine.llm import LLM
from hasten.engine.models import Checkpoint
from hasten.engine.request import SamplingParams
from hasten.engine.technique import ConfigError
from hasten.lab.testbed import material
from hasten.lab.testbed.document import Document

MODEL = "builtin-draft"
SENTENCES = "The number of the quiet river is 7350. The keeper of the golden kettle came from the north, and said so.\n" * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(SENTENCES)
    return file


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def bits_of(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "gptq" and config["group_size"] == 32
    bits: int = config["bits"]
    return bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", 3], "bits is 3; it must be one of 4, 8"),
        (["--group", 7], "group is 7; it must be one of 32, 64, 128, 256"),
        (["--group", 256], "has 128 columns, which do not divide into groups of 256 (fitting: 32, 64, 128)"),
        (["--method", "best"], "method is 'best'; it must be one of"),
        (["--calibration", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--method", "nearest", "--calibration", "text.txt"], "--calibration is of use to --method gptq only"),
        (["--out", "text.txt"], "--out text.txt: it is there already"),
        (["--out", "full"], "--out full: it is there already and not an empty folder"),
        (["--out", "text.txt/below"], "--out text.txt/below: Not a directory"),
    ],
)
def test_mistakes(arguments: list[object], message: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LLM, "__init__", _never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    with pytest.raises(ConfigError) as fault:
        call(MODEL, *arguments)
    assert message in str(fault.value) and "\n" not in str(fault.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "text.txt"]


def _never(*args: object, **more: object) -> None:
    raise AssertionError("a model was loaded")


def test_models_with_experts_are_refused(tmp_path: Path) -> None:
    folder = tiny.folder(
        tmp_path / "moe", architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=4, num_experts_per_tok=2
    )
    with pytest.raises(ConfigError, match="models with experts cannot be quantised to a file yet"):
        call(folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_is_there_and_mistakes_are_one_line() -> None:
    command = [sys.executable, "-m", "hasten.cli.main", "quantize", MODEL, "--bits", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: bits is 3; it must be one of 4, 8\n"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_calibrated_checkpoint(bits: int, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "small"
    done = call(MODEL, "--bits", bits, "--calibration", text, "--texts", 2, "--out", out)
    outputs, sizes = done.stdout.strip().splitlines()
    mean, nearest = (float(part.partition("%")[0]) for part in (outputs.split("by ")[1], outputs.split("levels: ")[1]))
    assert mean < nearest < 15 and "model.layers." in outputs
    assert sizes.startswith("weights: 3.5 MiB before, ") and sizes.endswith(f" MiB with {bits} bits; written to {out}")
    assert bits_of(out) == bits and not list(out.glob("*.part"))
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "model.layers.0.mlp.up_proj.qweight" in file.keys()  # noqa: SIM118
    assert Checkpoint(out).nbytes < 3.5 * 2**20
    answers = [
        LLM(str(out), with_=with_, set_={"kv.memory_bytes": 4 << 20}).generate(
            "The number of", SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        )
        for with_ in ((), ("int8",))
    ]
    assert all(len(one.choices[0].tokens) == 4 for (one,) in answers)
    with pytest.raises(ConfigError, match="quantised already"):
        call(out, "--out", tmp_path / "again")


def test_the_nearest_levels_need_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "__init__", _never)
    monkeypatch.setattr(material, "load", _never)
    (tmp_path / "out").mkdir()
    done = call(MODEL, "--method", "nearest", "--symmetric", "--out", tmp_path / "out")
    assert done.stdout.startswith("weights: 3.5 MiB before") and bits_of(tmp_path / "out") == 4


def test_without_a_file_the_testbeds_texts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(count: Callable[[str], int]) -> material.Material:
        return material.Material(count, training=[Document("essay", "mine", SENTENCES)])

    monkeypatch.setattr(material, "load", load)
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    assert "HASTEN_DATA" not in call(MODEL, "--texts", 1, "--out", tmp_path / "a").output
    monkeypatch.delenv("HASTEN_DATA")
    done = call(MODEL, "--texts", 1, "--out", tmp_path / "b")
    assert "HASTEN_DATA names no folder: calibrating on the texts of Python's own library alone" in done.output
    assert bits_of(tmp_path / "b") == 4
