"""From the start of a process to the first token: what somebody waits who runs one command.

hasten is started through its command line, the others through `peer.py --first`'s loading and one prompt of 32 tokens. The
clock stops at the first byte on standard output, which each writes when the first token is drawn. Files are in the page cache,
since everything has been started once before. `import torch` is measured beside it: what no program on torch can be faster
than.
"""

from __future__ import annotations

from pathlib import Path

from hasten.lab.bench import startup
from hasten.lab.bench.startup import IMPORT, IMPORT_TORCH


def command(engine: str, python: Path, folder: Path, format: str, threads: int) -> list[str]:
    if engine == IMPORT:
        return IMPORT_TORCH
    if engine != "hasten":
        peer = Path(__file__).with_name("peer.py")
        return [str(python), "-B", str(peer), engine, "--first", str(folder), format, str(threads)]
    asked = [str(folder), "--dtype", "bfloat16", "--threads", str(threads)]
    return startup.generate(asked if format == "bf16" else [*asked, "--with", format])


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Until the command's first byte; raises StartFailed."""
    return startup.start(command, environment).first_output_s
