"""From the start of a process to its first output, and the most private memory it takes: what somebody waits who runs one
command.

Every start is a new process of `hasten generate`: the first start in an empty folder of kept weights, so that it packs what is
quantised, then a later one, which maps what the first has kept. `import torch` alone takes turns with them: what no program on
torch can be faster than. Files are in the page cache, since everything has been started once before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROMPT = (
    "The old captain walked slowly along the harbour and counted the boats that had come back before the storm, "
    "while the others waited at home"
)
"""32 tokens of the built-in tokenizer."""
FIRST, LATER, IMPORT = "first start", "later start", "import torch"
IMPORT_TORCH = [sys.executable, "-c", "import torch; print('imported', flush=True)"]
MOST_S = 600.0
_SAMPLE_S = 0.002


class StartFailed(RuntimeError):
    """A process ended without output, or took too long. `said`: its standard error."""

    def __init__(self, command: Sequence[str], status: int, said: str) -> None:
        super().__init__(f"{' '.join(command[:4])} … ended with status {status} and no output: {said[-500:]}")
        self.status = status
        self.said = said


@dataclass(frozen=True, slots=True)
class Start:
    """One process. `private_bytes`: the most anonymous memory it had at any time, pages of mapped files not counted.
    `resident_bytes`: the most it had resident, those included. Both None where there is no /proc. `stages`: seconds to the
    first token by what they went to, `sizes`: bytes of weights and KV, where the process tells."""

    first_output_s: float
    ended_s: float
    private_bytes: int | None
    resident_bytes: int | None
    stages: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def generate(arguments: Sequence[str]) -> list[str]:
    """The command that draws one token with `hasten generate` and further arguments."""
    asked = ["--max-tokens", "1", "--temperature", "0", "--ignore-eos"]
    return [sys.executable, "-m", "hasten.cli.main", "generate", PROMPT, *asked, *arguments]


def start(command: Sequence[str], environment: dict[str, str] | None = None) -> Start:
    """Run a command until it ends. Raises StartFailed."""
    # Into a file: nobody reads a pipe meanwhile, and a process that says much would wait for that for ever.
    with tempfile.TemporaryFile() as errors:
        began, began_at = time.perf_counter(), time.time()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(environment or {})}
        ) as process:
            timer = threading.Timer(MOST_S, process.kill)
            timer.start()
            memory = _Memory(process.pid)
            assert process.stdout is not None
            first = process.stdout.read(1)
            took = time.perf_counter() - began
            process.communicate()
            ended = time.perf_counter() - began
            timer.cancel()
            memory.join()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if not first or process.returncode:
        raise StartFailed(command, process.returncode, said)
    told = _told(said)
    stages = {"command line": told["began_at"] - began_at, **told["stages"]} if told else {}
    return Start(took, ended, memory.private_bytes, memory.resident_bytes, stages, told.get("sizes", {}))


def _told(said: str) -> dict[str, Any]:
    """What `hasten generate` writes about its start where HASTEN_STARTUP_TIMES is set; empty for other programs."""
    for line in said.splitlines():
        if line.startswith('{"began_at"'):
            told: dict[str, Any] = json.loads(line)
            return told
    return {}


class _Memory(threading.Thread):
    """Watches the memory of a process until it ends.

    RssAnon counts what no file backs: the heap, and pages of mapped files once they are written to. It equals `Anonymous` of
    smaps_rollup, but is a counter that the kernel keeps, where smaps_rollup walks all pages, and so can be read every few
    milliseconds without slowing the process down."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="hasten-startup-memory", daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.private_bytes: int | None = None
        self.resident_bytes: int | None = None
        self.start()

    def run(self) -> None:
        while found := self._read():
            self.private_bytes = max(self.private_bytes or 0, found["RssAnon"])
            self.resident_bytes = found["VmHWM"]
            time.sleep(_SAMPLE_S)

    def _read(self) -> dict[str, int]:
        """Empty once the process has ended, and without /proc."""
        try:
            lines = [line.split() for line in self._status.read_text().splitlines()]
        except OSError:
            return {}
        found = {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "VmHWM:")}
        return found if len(found) == 2 else {}


def run(arguments: Sequence[str], rounds: int, advance: Callable[[str], None] = lambda label: None) -> dict[str, Any]:
    """Starts `hasten generate` with these further arguments. Figures of the rounds, each a list in their order. Raises
    StartFailed."""
    commands = {FIRST: generate(arguments), LATER: generate(arguments), IMPORT: IMPORT_TORCH}
    starts: dict[str, list[Start]] = {name: [] for name in commands}
    advance("bringing files into the page cache")
    with _cache() as environment:
        sizes = start(commands[FIRST], environment).sizes
    for number in range(rounds):
        with _cache() as environment:
            for name, command in commands.items():
                advance(f"round {number + 1} of {rounds}: {name}")
                starts[name].append(start(command, environment))
    return {
        "arguments": list(arguments),
        **sizes,
        "starts": {name: [asdict(one) for one in each] for name, each in starts.items()},
    }


@contextmanager
def _cache() -> Iterator[dict[str, str]]:
    """An environment in which nothing is kept yet."""
    with tempfile.TemporaryDirectory(prefix="hasten-startup-") as folder:
        yield {"HASTEN_CACHE": folder, "HASTEN_STARTUP_TIMES": "1"}
