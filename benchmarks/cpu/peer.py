"""One engine in a process of its own, driven by JSON lines: what `run.py` starts in each engine's environment.

    ENVIRONMENT/bin/python peer.py openvino

reads a line per request from standard input and answers each with a line (`{"error": ...}` if it fails):

    {"op": "convert", "folder": F, "format": "int8"}              writes the engine's own form of a checkpoint, if it has one
    {"op": "load", "folder": F, "format": "int8", "threads": 2}   {"seconds", "details", "versions"}
    {"op": "prefill", "tokens": 512, "seed": 7}                   {"seconds"}: until the first token of one prompt is drawn
    {"op": "decode", "sequences": 32, "context": 128, "steps": 16, "seed": 7}   {"seconds": [each step's]}
    {"op": "memory"}                                              {"peak_rss", "rss", "anonymous"} in bytes

Prompts are random token ids, the same for every engine given the same seed, and no two prompts share a prefix that a cache
could have. A decode step advances every sequence by one greedily drawn token. With `--first FOLDER FORMAT THREADS` the process
loads, answers one prompt of 32 tokens with one token, prints it and ends: a start from nothing to the first token.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Protocol

ENGINES = ("hasten", "openvino", "llamacpp", "transformers", "vllm")
"""Modules in `peers/`. Each holds ENVIRONMENT (variables for its process), PACKAGES (whose versions are noted), FORMATS
(supported ones), `convert(folder, format)` and a class `Engine`; none imports its engine before it is asked to."""
KV_BYTES = 2 << 30
"""Room for cached keys and values that engines with a fixed pool are given: enough for every case."""
FIRST_TOKENS = 32


class Engine(Protocol):
    def load(self, folder: Path, format: str, threads: int) -> str:
        """Make ready; what is stored and computed in which precision, as text."""
        ...

    def prefill(self, prompt: list[int]) -> float:
        """Seconds until the first token after `prompt` is drawn. Nothing of the prompt may be left cached afterwards."""
        ...

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Seconds of each of `steps` steps in which all sequences advance by one token, after their prompts are done."""
        ...


def prompts(folder: Path, count: int, tokens: int, seed: int) -> list[list[int]]:
    """Random ids below the vocabulary; the lowest are left out, they are control tokens."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rng = random.Random(f"{count}x{tokens}-{seed}")
    return [[rng.randrange(256, vocabulary) for _ in range(tokens)] for _ in range(count)]


def full_steps(step: Callable[[], int], sequences: int, steps: int) -> list[float]:
    """Seconds of the steps of an engine that mixes prompts and decoding as it likes: `step` runs one and says how many tokens
    came out. As soon as every sequence gave a token in one step all of them are decoding, so from the next on steps are
    pure decode steps."""
    times: list[float] = []
    decoding = False
    while len(times) < steps:
        began = time.perf_counter()
        tokens = step()
        took = time.perf_counter() - began
        if decoding:
            if tokens != sequences:
                raise RuntimeError(f"{tokens} tokens came out of a step of {sequences} sequences")
            times.append(took)
        decoding = decoding or tokens == sequences
    return times


def memory() -> dict[str, int]:
    """Bytes of this process: the most it ever had resident, what is resident now, and what of that is no file's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"peak_rss": "VmHWM", "rss": "VmRSS", "anonymous": "RssAnon"}
    return {name: int(status[field].split()[0]) * 1024 for name, field in fields.items()}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


class Server:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.engine: Engine = module.Engine()
        self.folder = Path()

    def answer(self, op: str, **given: Any) -> dict[str, Any]:
        if op == "convert":
            self.module.convert(Path(given["folder"]), given["format"])
            return {}
        if op == "load":
            self.folder = Path(given["folder"])
            began = time.perf_counter()
            details = self.engine.load(self.folder, given["format"], given["threads"])
            seconds = time.perf_counter() - began
            return {"seconds": seconds, "details": details, "versions": _versions(self.module.PACKAGES)}
        if op == "prefill":
            return {"seconds": self.engine.prefill(prompts(self.folder, 1, given["tokens"], given["seed"])[0])}
        if op == "decode":
            asked = prompts(self.folder, given["sequences"], given["context"], given["seed"])
            return {"seconds": self.engine.decode(asked, given["steps"])}
        if op == "memory":
            return dict(memory())
        raise ValueError(f"no op is called {op!r}")


def serve(server: Server, answers: IO[str]) -> None:
    for line in sys.stdin:
        try:
            answer = server.answer(**json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    # Libraries print to standard output what they like; the answers get a descriptor of their own, the rest goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, *first = sys.argv[1:]
    if name not in ENGINES:
        raise SystemExit(f"peer.py: no engine is called {name!r}; there are {', '.join(ENGINES)}")
    server = Server(importlib.import_module(f"peers.{name}"))
    if first:
        _, folder, format, threads = first
        server.answer("load", folder=folder, format=format, threads=int(threads))
        server.answer("prefill", tokens=FIRST_TOKENS, seed=0)
        answers.write("first token\n")
        answers.flush()
        os._exit(0)
    serve(server, answers)
    # Some engines take seconds to tear down, and some crash in it.
    os._exit(0)


if __name__ == "__main__":
    main()
