"""From the start of a process to the first token: what somebody waits who runs one command.

hasten is started through its command line, the others through `peer.py --first`'s loading and one prompt of 32 tokens. The
clock stops at the first byte on standard output, which each writes when the first token is drawn. Files are in the page cache,
since everything has been started once before. `import torch` is measured beside it: what no program on torch can be faster
than.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROMPT = (
    "The old captain walked slowly along the harbour and counted the boats that had come back before the storm, "
    "while the others waited at home"
)
"""32 tokens of the built-in tokenizer."""
IMPORT_TORCH = "import torch"


def command(engine: str, python: Path, folder: Path, format: str, threads: int) -> list[str]:
    if engine == IMPORT_TORCH:
        return [sys.executable, "-c", "import torch; print('imported', flush=True)"]
    if engine != "hasten":
        peer = Path(__file__).with_name("peer.py")
        return [str(python), "-B", str(peer), engine, "--first", str(folder), format, str(threads)]
    hasten = str(Path(sys.executable).with_name("hasten"))
    asked = [hasten, "generate", PROMPT, str(folder), "--max-tokens", "1", "--temperature", "0", "--ignore-eos"]
    asked += ["--dtype", "bfloat16", "--threads", str(threads)]
    return asked if format == "bf16" else [*asked, "--with", format]


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Until the command's first byte; RuntimeError with what it said if it ends without, or takes more than five minutes."""
    # Into a file: nobody reads a pipe meanwhile, and an engine that says much would wait for that for ever.
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}
        ) as process:
            timer = threading.Timer(300, process.kill)
            timer.start()
            assert process.stdout is not None
            first = process.stdout.read(1)
            took = time.perf_counter() - began
            process.communicate()
            timer.cancel()
        if not first:
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-500:]
            raise RuntimeError(f"{' '.join(command[:4])} … ended without a token: {said}")
    return took
