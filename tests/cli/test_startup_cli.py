"""`hasten bench startup`: what it says of a start, of a mistake, and of the memory of processes whose memory is known."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import hasten
from hasten.cli.bench import app
from hasten.engine.technique import ConfigError
from hasten.lab.bench import startup

BUILTIN = Path(hasten.__file__).with_name("builtin_model")
needs_builtin = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["startup", *arguments], env={**os.environ, "COLUMNS": "120"})


@needs_builtin
def test_starts_beside_the_import_of_torch(tmp_path: Path) -> None:
    to = tmp_path / "s.json"
    done = call("--rounds", "1", "--threads", "1", "--with", "int8", "--set", "kv.memory_bytes=4000000", "--json", str(to))
    assert done.exit_code == 0, done.output
    assert "first start" in done.output and "over import torch" in done.output and "weights, memory" in done.output
    figures = json.loads(to.read_text())
    assert figures["arguments"] == ["--threads=1", "--with=int8", "--set=kv.memory_bytes=4000000"]
    assert 0 < figures["kv_bytes"] <= 4_000_000 and figures["weight_bytes"] > 1_000_000
    assert [len(each) for each in figures["starts"].values()] == [1, 1, 1]
    [later], [imported] = figures["starts"][startup.LATER], figures["starts"][startup.IMPORT]
    assert later["first_output_s"] <= later["ended_s"] and not imported["stages"]
    assert all(seconds >= 0 for seconds in later["stages"].values())
    assert sum(later["stages"].values()) == pytest.approx(later["first_output_s"], abs=0.3)


def test_what_the_process_says_of_a_mistake_is_shown() -> None:
    done = call("/no/such/model")
    assert done.exit_code == 2 and "there is no folder /no/such/model" in done.output and "Traceback" not in done.output


def test_mistakes_in_options_are_told_before_anything_starts() -> None:
    done = call("--with", "int88")
    assert isinstance(done.exception, ConfigError) and "int88" in str(done.exception)


@needs_proc
def test_private_memory_is_what_no_file_backs(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(bytes(64 << 20))
    held = "import time; held = bytearray(b'x') * (32 << 20); time.sleep(0.1); del held"
    mapped = f"import mmap; f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); m.find(b'x')"
    one = startup.start([sys.executable, "-c", f"{held}\n{mapped}\nprint('done'); time.sleep(0.1)"])
    assert one.private_bytes is not None and one.resident_bytes is not None
    assert 32 << 20 <= one.private_bytes < 60 << 20 and one.resident_bytes > 64 << 20
    assert one.first_output_s <= one.ended_s and not one.stages


@pytest.mark.parametrize("ends", ["sys.exit(3)", "print('half'); sys.exit(3)"])
def test_a_process_that_fails(ends: str) -> None:
    with pytest.raises(startup.StartFailed, match="status 3") as failed:
        startup.start([sys.executable, "-c", f"import sys; print('why', file=sys.stderr); {ends}"])
    assert failed.value.said == "why\n" and failed.value.status == 3
