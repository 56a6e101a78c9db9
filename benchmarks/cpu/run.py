"""Measures hasten beside other engines: the same checkpoint, the same prompts, alternately.

    .venv/bin/python benchmarks/cpu/run.py            # everything, about an hour
    .venv/bin/python benchmarks/cpu/run.py --quick    # under five minutes

For each shape and format every engine runs in a process of its own, all loaded at once and all but one waiting. A round of a
case measures each engine once, one right after the other, beginning with another one each round; the machine's reading
bandwidth is measured before and after. A round is done again, up to a limit, if the bandwidth moved by more than a tenth or if
something else on this machine used more than a twentieth of its processors: only figures of the same minute are compared.
Each shape and format gives one file, results/SHAPE-FORMAT.json; `report.py` makes tables and a plot of them.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import checkpoint
import start
from bandwidth import Arithmetic, Bandwidth, bound_s
from peer import ENGINES

HERE = Path(__file__).parent
CASES = ("prefill:512", "prefill:2048", "decode:1x512", "decode:8x128", "decode:32x128", "decode:32x512")
QUICK_CASES = ("prefill:512", "decode:1x512", "decode:32x64")
STEPS = {1: 24, 8: 12, 32: 8}
"""Decode steps measured a round, by sequences."""
MOVED = 0.10
FOREIGN = 0.05
HOLD_S = 60
"""When this is over no further round begins under the same hold of the lock."""
_TICK = os.sysconf("SC_CLK_TCK")

Case = dict[str, int | str]


def parse_case(text: str) -> Case:
    """`prefill:TOKENS` or `decode:SEQUENCESxCONTEXT`."""
    what, _, size = text.partition(":")
    if what == "prefill":
        return {"name": text, "what": what, "tokens": int(size)}
    if what != "decode":
        raise ValueError(f"a case is prefill:TOKENS or decode:SEQUENCESxCONTEXT, got {text!r}")
    sequences, context = map(int, size.split("x"))
    return {"name": text, "what": what, "sequences": sequences, "context": context, "steps": STEPS.get(sequences, 8)}


class Peer:
    """An engine's process."""

    def __init__(self, name: str, python: Path, threads: int) -> None:
        self.name = name
        self.module = importlib.import_module(f"peers.{name}")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **self.module.ENVIRONMENT}
        log = subprocess.DEVNULL if "HASTEN_PEERS_VERBOSE" not in os.environ else None
        self.process = subprocess.Popen(
            [python, "-B", HERE / "peer.py", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=environment, cwd=HERE,
        )  # fmt: skip

    def ask(self, op: str, **given: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"op": op, **given}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended during {op}; HASTEN_PEERS_VERBOSE=1 shows what it says")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {op}: {answer['error']}")
        return answer

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Lab:
    """What stays the same over all shapes and formats."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.peers
        self.pythons = {name: self._python(name) for name in options.engines}
        for name in [name for name, python in self.pythons.items() if not python.exists()]:
            print(f"{name}: left out, {self.pythons.pop(name)} is not there (see README.md)")
        with self.alone():
            self.bandwidth = Bandwidth(options.threads)
            self.work = Arithmetic(self.root, options.threads)
        self.rates: dict[str, float] = {}
        self._improve_rates()

    def _improve_rates(self) -> None:
        """The best ever seen is nearest to what the processor can do: nothing makes it look faster than it is."""
        for _ in range(5):
            for name, rate in self.work.measure().items():
                self.rates[name] = max(rate, self.rates.get(name, 0.0))

    def _python(self, name: str) -> Path:
        return Path(sys.executable) if name == "hasten" else self.root / name / "bin/python"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock that other work on this machine takes too, if there is one."""
        if self.options.lock is None:
            yield
            return
        with self.options.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        time.sleep(0.5)  # whoever waits for it has its turn

    def run(self, shape: str, format: str) -> dict[str, Any]:
        with self.alone():
            folder = checkpoint.write(shape, self.root / "models")
        peers: dict[str, Peer] = {}
        engines: dict[str, Any] = {}
        try:
            for name, python in self.pythons.items():
                peer = Peer(name, python, self.options.threads)
                if format in peer.module.FORMATS:
                    peers[name] = peer
                    engines[name] = self._load(peer, folder, format)
                else:
                    peer.close()
            cases = [self._case(case, folder, format, peers) for case in map(parse_case, self.options.cases)]
            for name, peer in peers.items():
                engines[name]["memory"] = peer.ask("memory")
        finally:
            for peer in peers.values():
                peer.close()
        for case in cases:  # only now: the rates have become better known with every round
            case["bound_s"] = bound_s(checkpoint.config_of(shape), format, case, case["read"], self.rates)
        return {
            "shape": shape,
            "format": format,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"processor": _processor(), "system": platform.platform(), "threads": self.options.threads},
            "rates": self.rates,
            "engines": engines,
            "cases": cases,
            "start": self._start(folder, format, list(peers)) if self.options.starts else {},
        }

    def _load(self, peer: Peer, folder: Path, format: str) -> dict[str, Any]:
        """Convert in a process of its own, whose memory then does not count, and load."""
        with self.alone():
            writer = Peer(peer.name, self.pythons[peer.name], self.options.threads)
            try:
                writer.ask("convert", folder=str(folder), format=format)
            finally:
                writer.close()
            loaded = peer.ask("load", folder=str(folder), format=format, threads=self.options.threads)
        print(f"  {peer.name}: loaded in {loaded['seconds']:.1f} s: {loaded['details']}", flush=True)
        return {"load_s": loaded["seconds"], "details": loaded["details"], "versions": loaded["versions"]}

    def _case(self, case: Case, folder: Path, format: str, peers: dict[str, Peer]) -> dict[str, Any]:
        given = {key: value for key, value in case.items() if key not in ("name", "what")}
        with self.alone():
            for peer in peers.values():  # the first time is slower everywhere: buffers, compiled kernels, page faults
                peer.ask(str(case["what"]), **{**given, **({"context": 32} if "context" in given else {})}, seed=0)
        good: list[dict[str, Any]] = []
        disturbed: list[dict[str, Any]] = []
        wanted, most = self.options.rounds, self.options.rounds + self.options.repeats

        def unfinished() -> bool:
            return len(good) < wanted and len(good) + len(disturbed) < most

        while unfinished():
            with self.alone():
                until = time.monotonic() + HOLD_S
                while unfinished() and time.monotonic() < until:
                    measured = self._round(case, given, peers, len(good) + len(disturbed) + 1)
                    (disturbed if measured["disturbed"] else good).append(measured)
                    self._tell(case, measured)
        # What was disturbed least fills up the rounds, and says so in the file. A machine that became faster or slower did so
        # for all engines; other work here may have met one of them only.
        disturbed.sort(key=lambda each: (each["foreign"] > FOREIGN, each["disturbed"]))
        rounds = good + disturbed[: wanted - len(good)]
        read = median(value for each in rounds for value in each["read"])
        return {**case, "rounds": rounds, "repeated": len(disturbed), "read": read, **_summary(case, rounds)}

    def _round(self, case: Case, given: dict[str, Any], peers: dict[str, Peer], number: int) -> dict[str, Any]:
        names = list(peers)
        first = number % len(names)
        before = self.bandwidth.measure()
        foreign, seconds = 0.0, {}
        for name in names[first:] + names[:first]:
            watch = Watch(peers[name].cpu_s)
            seconds[name] = peers[name].ask(str(case["what"]), **given, seed=number)["seconds"]
            foreign = max(foreign, watch.foreign())
        after = self.bandwidth.measure()
        self._improve_rates()
        moved = abs(after / before - 1)
        trouble = max(moved / MOVED, foreign / FOREIGN)
        return {"read": [before, after], "foreign": foreign, "disturbed": trouble if trouble > 1 else 0.0, "seconds": seconds}

    def _tell(self, case: Case, measured: dict[str, Any]) -> None:
        speeds = "  ".join(f"{name} {_speed(case, taken):.1f}" for name, taken in measured["seconds"].items())
        read = " to ".join(f"{value / 1e9:.1f}" for value in measured["read"])
        why = f"  disturbed (others used {measured['foreign']:.0%}): again" if measured["disturbed"] else ""
        print(f"  {case['name']:14} {speeds}  tokens/s; reading {read} GB/s{why}", flush=True)

    def _start(self, folder: Path, format: str, names: list[str]) -> dict[str, list[float]]:
        """Seconds from process start to first token; the processes of before are gone."""
        times: dict[str, list[float]] = {name: [] for name in [*names, start.IMPORT]}
        for number in range(self.options.rounds + self.options.repeats + 1):
            foreign, took = 0.0, {}
            with self.alone():
                for name in times:
                    environment = {"OMP_NUM_THREADS": str(self.options.threads)}
                    if name in names:
                        environment |= importlib.import_module(f"peers.{name}").ENVIRONMENT
                    python = self.pythons.get(name, Path(sys.executable))
                    command = start.command(name, python, folder, format, self.options.threads)
                    watch = Watch(_children_s)
                    took[name] = start.seconds(command, environment)
                    foreign = max(foreign, watch.foreign())
            if number == 0:  # files come into the page cache
                continue
            print("  start", "  ".join(f"{name} {seconds:.2f}" for name, seconds in took.items()), "s", flush=True)
            # The last chances are taken as they come.
            if foreign <= FOREIGN or number > self.options.repeats + len(times[start.IMPORT]):
                for name, seconds in took.items():
                    times[name].append(seconds)
            if len(times[start.IMPORT]) == self.options.rounds:
                break
        return times


class Watch:
    """How much of the machine something else used while one process worked; `own_s`: its processor time so far."""

    def __init__(self, own_s: Callable[[], float]) -> None:
        self._own_s = own_s
        self._began, self._busy, self._own = time.perf_counter(), _busy_s(), own_s()

    def foreign(self) -> float:
        """Share of all processors since the beginning."""
        elapsed = time.perf_counter() - self._began
        others = (_busy_s() - self._busy) - (self._own_s() - self._own)
        # Counters tick every hundredth of a second on each processor: two ticks of each are not told from none.
        return max(0.0, others - 0.04) / (elapsed * (os.cpu_count() or 1))


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _speed(case: Case, seconds: float | list[float]) -> float:
    """Tokens per second of a prefill, or of the median decode step."""
    if isinstance(seconds, list):
        return int(case["sequences"]) / median(seconds)
    return int(case["tokens"]) / seconds


def _summary(case: Case, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens per second of each engine and hasten's ratio to the best other one, each as [median, lowest, highest] of the
    rounds; the ratio is taken within each round."""
    speeds = {name: [_speed(case, each["seconds"][name]) for each in rounds] for name in rounds[0]["seconds"]}
    out: dict[str, Any] = {"tokens_per_s": {name: _spread(values) for name, values in speeds.items()}, "ratio": None}
    others = [name for name in speeds if name != "hasten"]
    if "hasten" in speeds and others:
        best = max(others, key=lambda name: median(speeds[name]))
        ratios = [mine / theirs for mine, theirs in zip(speeds["hasten"], speeds[best], strict=True)]
        out["ratio"] = {"to": best, "values": _spread(ratios)}
    return out


def _spread(values: list[float]) -> list[float]:
    return [median(values), min(values), max(values)]


def _busy_s() -> float:
    """Seconds all processors spent on anything since the machine started, time stolen by other virtual machines included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def _processor() -> str:
    info = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in info}
    return f"{facts.get('model name')}, family {facts.get('cpu family')}, model {facts.get('model')}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("HASTEN_PEERS", "/tmp/peers")),
                        help="where environments and models lie (HASTEN_PEERS)")  # fmt: skip
    parser.add_argument("--shapes", nargs="+", choices=checkpoint.SHAPES)
    parser.add_argument("--formats", nargs="+", choices=("bf16", "int8", "int4"))
    parser.add_argument("--engines", nargs="+", choices=ENGINES)
    parser.add_argument("--cases", nargs="+", help="prefill:TOKENS or decode:SEQUENCESxCONTEXT")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--repeats", type=int, help="disturbed rounds done again, for each case")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--starts", action=argparse.BooleanOptionalAction, help="measure process starts too")
    parser.add_argument("--lock", type=Path, help="a file to hold a lock on while something is measured")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="two rounds of few cases, one shape, no starts")
    options = parser.parse_args()
    options.shapes = options.shapes or (["qwen3-0.6b"] if options.quick else list(checkpoint.SHAPES))
    options.formats = options.formats or (["bf16", "int8"] if options.quick else ["bf16", "int8", "int4"])
    options.engines = options.engines or (["hasten", "openvino", "llamacpp"] if options.quick else list(ENGINES))
    options.cases = options.cases or list(QUICK_CASES if options.quick else CASES)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.repeats = options.repeats if options.repeats is not None else (1 if options.quick else 5)
    options.starts = options.starts if options.starts is not None else not options.quick

    options.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(options)
    print("arithmetic", {name: f"{rate / 1e12:.2f} Tops/s" for name, rate in lab.rates.items()})
    for shape in options.shapes:
        for format in options.formats:
            print(f"{shape} {format}", flush=True)
            result = lab.run(shape, format)
            (options.out / f"{shape}-{format}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
