"""The command line as a person uses it: quick help, clear errors, and text on standard output only."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import hasten
from hasten.cli import options
from hasten.cli.main import main
from hasten.engine.technique import all_techniques

BUILTIN = Path(hasten.__file__).with_name("builtin_model")
needs_builtin = pytest.mark.skipif(not BUILTIN.is_dir(), reason="there is no built-in model")


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hasten.cli.main", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run` without a process of its own: torch takes a second or two to import."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["hasten", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)

    return call


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, hasten.cli.main\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'fastapi', 'tokenizers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "generate", "chat", "techniques", "bench"):
        assert command in done.stdout
    assert run("--version").stdout.strip() == f"hasten {hasten.__version__}"


def test_techniques(here: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("techniques", "--json")
    assert [t["name"] for t in json.loads(done.stdout)] == [t.name for t in all_techniques()]
    table = here("techniques").stdout
    assert "prefix-tree" in table and "exact" in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "x", "--with", "prefix-treee"), "prefix-tree"),
        (("generate", "x", "--set", "kv.blocksize=4"), "block_size"),
        (("generate", "x", "--set", "kv.block_size=7"), "kv.block_size"),
        (("generate", "x", "--dtype", "int3"), "model.dtype"),
        (("generate", "x", "--max-length", "0"), "model.max_length"),
        (("generate", "x", "--temperature", "-1"), "temperature"),
        (("generate", "x", "--max-tokens", "0"), "max_tokens"),
        (("generate", "x", "/no/such/model"), "/no/such/model"),
        (("chat", "--top-p", "2"), "top_p"),
        (("serve", "/no/such/model", "--port", "0"), "/no/such/model"),
        (("serve", "--kv-memory", "much"), "much"),
        (("serve", "--queue-limit", "0"), "--queue-limit"),
        (("serve", "--host", "no such host"), "--host"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], said: str, here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = here(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.strip() == ""


def test_port_in_use_is_told_before_loading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        done = run("serve", "/no/such/model", "--port", str(held.getsockname()[1]))
    assert done.returncode == 2 and "address already in use" in done.stderr and "such" not in done.stderr


@needs_builtin
def test_generate() -> None:
    given = ("--max-tokens", "8", "--temperature", "0", "--ignore-eos", "--threads", "1")
    done = run("generate", "The server", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "8 tokens" in done.stderr and "TPOT" in done.stderr
    assert run("generate", "-", *given, given="The server").stdout == done.stdout


@needs_builtin
def test_chat() -> None:
    lines = ["Hello!", "/system Be brief.", "/reset", "/what", "word " * 9000, "Again", "/exit", "never said"]
    done = run("chat", "--max-tokens", "6", "--temperature", "0", "--threads", "1", given="\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TTFT") == 2 and "forgotten" in done.stdout
    assert "context" in done.stderr and "Traceback" not in done.stderr
    assert "\x1b[K" not in done.stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512M", 512 << 20), ("1.5GB", 1_500_000_000), ("8 MiB", 8 << 20), ("1000", 1000), ("10kb", 10_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1QiB", "1e9", "0"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.size_bytes(text)


def test_set_wins_over_other_options() -> None:
    asked = options.asked(None, None, ["model.dtype=float32"], None, "bfloat16", None, 100, None)
    config = asked.config()
    assert (config.model.dtype, config.model.max_length, config.executor.threads) == ("float32", 100, None)
