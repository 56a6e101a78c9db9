"""The two or more configurations of a claim: engines in one process that take turns on the same arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Guard
from hasten.lab.workloads.base import Workload

if TYPE_CHECKING:
    from hasten.engine.outputs import TokenDelta
    from hasten.lab.bench.run import Run

Tokens = dict[int, list[int]]
"""Output tokens by the request's number in the workload."""


@dataclass(frozen=True, slots=True)
class Side:
    """One configuration: `with_` and `set_` as on the command line."""

    name: str
    with_: tuple[str, ...] = ()
    set_: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The configuration as its command-line options."""
        options = [f"--with {name}" for name in self.with_] + [f"--set {setting}" for setting in self.set_]
        return " ".join(options) or "the plain engine"


class Recorder:
    """An engine for a replay that also keeps the tokens it gives."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.tokens: Tokens = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, *arguments: Any) -> list[TokenDelta]:
        deltas: list[TokenDelta] = self._engine.step(*arguments)
        for delta in deltas:
            number = int(delta.request_id.rpartition("-")[2])  # as `bench.drive` names its requests
            self.tokens.setdefault(number, []).extend(delta.tokens)
        return deltas


class Sides:
    """Builds an engine of each side over `model` (None: the built-in one), with the settings `common` to all. Each has weights
    and KV of its own, and its own books. `attend(name, engine)` is called with each once it is built."""

    def __init__(
        self,
        sides: Sequence[Side],
        *,
        model: str | None = None,
        common: Sequence[str] = (),
        attend: Callable[[str, Any], None] = lambda name, engine: None,
    ) -> None:
        from hasten.engine.build import build
        from hasten.engine.config import EngineConfig

        self.sides = {side.name: side for side in sides}
        self._engines = {
            side.name: build(EngineConfig.build(model, with_=side.with_, set_=[*common, *side.set_])).engine for side in sides
        }
        for name, engine in self._engines.items():
            attend(name, engine)

    def replay(self, name: str, workload: Workload, seed: int = 0) -> tuple[Run, Tokens]:
        """One side's run of a workload, greedy, and the tokens it gave. Raises RuntimeError when a request failed."""
        from hasten.lab.bench.drive import replay

        recorder: Any = Recorder(self._engines[name])
        run = replay(recorder, workload, name=name, seed=seed)
        if run.errors:
            number, error = next(iter(run.errors.items()))
            raise RuntimeError(f"{name}: {len(run.errors)} requests of {workload.name} failed, the first, {number}: {error}")
        return run, recorder.tokens

    def rounds(
        self,
        workload: Callable[[int], Workload],
        count: int,
        progress: Callable[[str, float], None],
        names: Callable[[int], Sequence[str]] | None = None,
    ) -> Iterator[dict[str, Run]]:
        """The runs of each round by side, on the same arrivals, in turns: every other round in reverse order, so that a machine
        that drifts favours nobody. `workload(round)` makes a round's arrivals; `names(round)` says who runs (None: all)."""
        for number in range(count):
            work = workload(number)
            runs = {}
            turns = list(self.sides if names is None else names(number))[:: 1 if number % 2 == 0 else -1]
            for turn, name in enumerate(turns):
                progress(f"round {number + 1} of {count}: {name}", (number + turn / len(turns)) / count)
                runs[name] = self.replay(name, work, number)[0]
            yield runs

    def close(self) -> None:
        """Give their memory back."""
        for engine in self._engines.values():
            engine.executor.close()
        self._engines.clear()


def equal_tokens(
    sides: Sequence[Side],
    workload: Workload,
    *,
    model: str | None = None,
    common: Sequence[str] = (),
    attend: Callable[[str, Any], None] = lambda name, engine: None,
) -> Guard:
    """The sides give the same greedy tokens: in float32 with kernels whose sums do not depend on the batch, where exact means
    equal to the last token. (At bfloat16 the plain engine does not agree with itself at another batch size either.) `attend`:
    see `Sides`."""
    engines = Sides(sides, model=model, common=[*common, "model.dtype=float32", "executor.deterministic=true"], attend=attend)
    try:
        given = {name: engines.replay(name, workload)[1] for name in engines.sides}
    finally:
        engines.close()
    first, *others = given
    unequal = [(name, number) for name in others for number in given[first] if given[name].get(number) != given[first][number]]
    total = sum(map(len, given[first].values()))
    detail = f"{len(workload)} requests, {total} output tokens, {', '.join(given)}; float32, deterministic kernels"
    if unequal:
        detail = f"{unequal[0][0]} differs from {first} in request {unequal[0][1]} and {len(unequal) - 1} more; {detail}"
    return Guard("equal tokens", not unequal, detail)


def share(progress: Callable[[str, float], None], begin: float, end: float) -> Callable[[str, float], None]:
    """The progress of a part that takes `begin` to `end` of the whole."""
    return lambda what, done: progress(what, begin + done * (end - begin))
