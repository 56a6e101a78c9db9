"""`hasten simulate`: every kind of workload, several engines, and what is said of mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hasten.cli import main as cli
from hasten.cli.simulate import app

ON = ("--model", "llama-3-8b", "--hardware", "h100")


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


def simulated(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The run's figures as JSON, and what was printed."""
    out = folder / "out.json"
    done = CliRunner().invoke(app, [*ON, *arguments, "--json", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (run,) = json.loads(out.read_text())["runs"]
    return run["figures"], done.stdout


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `hasten simulate` says of a mistake: one line, with exit status 2."""
    monkeypatch.setattr(sys, "argv", ["hasten", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, said = capsys.readouterr()
    assert out == ""
    (line,) = filter(None, said.splitlines())
    assert line.startswith("error: ")
    return line


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# -- workloads ---------------------------------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
SAMPLES = {
    "azure.csv": AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    "burstgpt.csv": BURSTGPT + "5,12,1.5,ChatGPT,472,18,490,Conversation log\n118.5,12,0.1,ChatGPT,1087,230,1317,API log\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 1100, "output_length": 4, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 9000, "input_length": 1030, "output_length": 9, "hash_ids": [0, 1, 7]}\n',
    "text2sql.json": json.dumps(
        [
            {
                "Text2SQLRequest": [
                    {"step": step, "input_length": 100, "output_length": 9} for step in ("plan", "revise", "revise")
                ]
            }
        ]
    ),
    "sharegpt.json": json.dumps(
        [{"conversations": [{"from": who, "value": "so it goes " * 30} for who in ("human", "gpt", "human", "gpt")]}]
    ),
    "own.jsonl": '{"arrival_s": 0.5, "prompt_tokens": 30, "output_tokens": 4}\n'
    '{"arrival_s": 1, "prompt_tokens": 9, "output_tokens": 1}\n',
}
REQUESTS = {"azure.csv": 2, "burstgpt.csv": 2, "mooncake.jsonl": 2, "text2sql.json": 3, "sharegpt.json": 2, "own.jsonl": 2}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    figures, printed = simulated(tmp_path, "--workload", written(tmp_path, name, SAMPLES[name]))
    assert figures["completed"] == REQUESTS[name] and figures["failed"] == 0
    assert "SIMULATED, from published figures of h100" in " ".join(printed.split())


def test_shared_blocks_are_found_again(tmp_path: Path) -> None:
    figures, _ = simulated(tmp_path, "--workload", written(tmp_path, "m.jsonl", SAMPLES["mooncake.jsonl"]))
    assert figures["prefix_hit_rate"] == pytest.approx(1024 / 2130)
    figures, _ = simulated(tmp_path, "--workload", str(tmp_path / "m.jsonl"), "--set", "kv.reuse=none")
    assert figures["prefix_hit_rate"] == 0


@pytest.mark.parametrize("spec", ["poisson:requests=20", "gamma:requests=20", "conversations[0:20]", "agents:workflows=3"])
def test_every_generator(tmp_path: Path, spec: str) -> None:
    figures, _ = simulated(tmp_path, "--workload", spec)
    assert figures["failed"] == 0 and figures["completed"] >= 9


@pytest.mark.parametrize("name", ["mooncake.jsonl", "text2sql.json", "sharegpt.json"])
def test_several_engines(tmp_path: Path, name: str) -> None:
    trace = written(tmp_path, name, SAMPLES[name])
    for more in (("--engines", "3"), ("--speeds", "1,0.5", "--dispatch", "round-robin")):
        figures, _ = simulated(tmp_path, "--workload", trace, *more)
        assert figures["completed"] == REQUESTS[name] and figures["failed"] == 0


def test_engines_that_wait_and_stages_between_them(tmp_path: Path) -> None:
    figures, _ = simulated(
        tmp_path, "--workload", "agents:workflows=4", "--engines", "2", "--with", "static-batches:window_s=0.3"
    )
    assert figures["failed"] == 0


def test_requests_rate_and_objectives(tmp_path: Path) -> None:
    figures, printed = simulated(
        tmp_path, "--workload", "poisson:requests=50", "--requests", "30", "--rate", "100", "--slo", "ttft=10"
    )
    assert figures["requests"] == 30 and figures["goodput"] == 1.0
    assert figures["duration_s"] < 30 / 100 + 20
    assert "simulat" in printed.lower()


# -- mistakes ----------------------------------------------------------------------------------------------------------

BROKEN = {
    "empty.csv": ("", "the file is empty"),
    "header.csv": (AZURE, "header.csv"),
    "column.csv": ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.68,374\n", "GeneratedTokens"),
    "negative.csv": (AZURE + "2023-11-16 18:15:46.68,-374,44\n", "line 2: ContextTokens"),
    "nan.csv": (AZURE + "2023-11-16 18:15:46.68,nan,44\n", "line 2: ContextTokens"),
    "word.csv": (AZURE + "2023-11-16 18:15:46.68,many,44\n", "line 2: ContextTokens"),
    "time.csv": (AZURE + "soon,374,44\n", "line 2: TIMESTAMP"),
    "short.csv": (AZURE + "2023-11-16 18:15:46.68,374\n", "line 2"),
    "burst.csv": (BURSTGPT + "-5,12,1.5,ChatGPT,472,18,490,API log\n", "line 2: Timestamp"),
    "later.jsonl": ('{"timestamp": -1, "input_length": 5, "output_length": 4, "hash_ids": []}\n', "timestamp"),
    "hashes.jsonl": ('{"timestamp": 1, "input_length": 5, "output_length": 4}\n', "hash_ids"),
    "nan.jsonl": ('{"arrival_s": NaN, "prompt_tokens": 3, "output_tokens": 4}\n', "line 1"),
    "minus.jsonl": ('{"arrival_s": -3, "prompt_tokens": 3, "output_tokens": 4}\n', "arrival_s"),
    "half.jsonl": ('{"arrival_s": 0, "prompt_tokens": 3.5, "output_tokens": 4}\n', "prompt_tokens"),
    "cut.jsonl": ('{"arrival_s": 0, "prompt_tokens": 3, "output_tokens": 4}\n{"arriv', "line 2"),
    "list.json": ("[]", "list.json"),
    "steps.json": ('[{"Text2SQLRequest": []}]', "workflow 0"),
    "bytes.csv": (b"\xff\xfe\x00\x01\x02", "bytes.csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, said = BROKEN[name]
    path = written(tmp_path, name, content)
    told = refused(capsys, monkeypatch, *ON, "--workload", path)
    assert said in told and name in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workload", "nowhere.csv"), "there is no such file"),
        (("--workload", "poissson"), "did you mean poisson"),
        (("--hardware", "h1000"), "no hardware is called 'h1000'; did you mean h100"),
        (("--hardware", "here"), "`hasten calibrate llama-3-8b`"),
        (("--hardware", "gone.calibration.json"), "gone.calibration.json: No such file"),
        (("--model", "llama-4-9b"), "llama-4-9b"),
        (("--model", "llama-3-70b", "--hardware", "l4"), "for its weights"),
        (("--slo", "ttft=-1"), "ttft must be above 0"),
        (("--engines", "2", "--dispatch", "random"), "no dispatcher is called 'random'; known: round-robin, least-outstanding"),
        (("--speeds", "1,-1"), "speeds must be positive"),
        (("--speeds", "nan"), "speeds must be positive"),
        (("--with", "stall-free:chunks=3"), "stall-free has no knob called 'chunks'"),
        (("--set", "depth.policy=other"), "depth.policy=other cannot be simulated"),
        (("--config", "gone.toml"), "gone.toml: No such file"),
    ],
)
def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, monkeypatch, *ON, "--workload", "poisson:requests=5", *arguments)


def test_a_trace_of_which_nothing_can_be_served(tmp_path: Path) -> None:
    """Prompts beyond the model's context: the run is shown, with what became of the requests."""
    path = written(tmp_path, "long.csv", AZURE + "2023-11-16 18:15:46.68,900000,44\n")
    figures, printed = simulated(tmp_path, "--workload", path)
    assert figures["completed"] == 0 and figures["failed"] == 1
    assert "900000 tokens" in " ".join(printed.split())
