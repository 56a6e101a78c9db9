"""What a technique costs in quality: the plain engine and the technique asked the same questions of the testbed, in rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.lab.claims.base import Guard
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.llm import LLM
    from hasten.lab.testbed.scores import Scores

PLAIN = Side("plain")


@dataclass(frozen=True)
class Rounds:
    """scores[side][task]: per cent right, of every round; the plain engine is a side too."""

    scores: dict[str, dict[str, list[float]]]

    def lost(self, side: Side, task: str) -> list[float]:
        """How many points of a hundred a side scores below the plain engine, round by round."""
        both = zip(self.scores[PLAIN.name][task], self.scores[side.name][task], strict=True)
        return [plain - other for plain, other in both]


def rounds_of(
    sides: Sequence[Side], tasks: Mapping[str, int], *, rounds: int, seed: int, common: Sequence[str],
    progress: Callable[[str, float], None],
) -> Rounds:  # fmt: skip
    """`tasks`: notations with how many questions of each a round asks. Every side and the plain engine answer all of them,
    with the settings `common` to all."""
    from hasten.lab.testbed.evaluate import evaluate, material_for
    from hasten.lab.testbed.tasks.registry import find

    engines = {side.name: _engine(side, common) for side in (PLAIN, *sides)}
    scores: dict[str, dict[str, list[float]]] = {name: {task: [] for task in tasks} for name in engines}
    material = material_for(engines[PLAIN.name])
    turns = [(number, task, name) for number in range(rounds) for task in tasks for name in engines]
    for done, (number, task, name) in enumerate(turns):
        progress(f"round {number + 1} of {rounds}: {task}, {name}", done / len(turns))
        scored = evaluate(engines[name], [find(task)], tasks[task], seed=seed + number, material=material)
        scores[name][task].append(100 * _first(scored))
    for engine in engines.values():
        engine.engine.executor.close()
    return Rounds(scores)


def same_answers(side: Side, tasks: Mapping[str, int], *, seed: int, common: Sequence[str]) -> Guard:
    """Whether a side gives the plain engine's answers, text for text."""
    from hasten.lab.testbed.evaluate import evaluate, material_for
    from hasten.lab.testbed.tasks.registry import find

    answers: list[list[str]] = []
    material = None
    for one in (PLAIN, side):
        engine = _engine(one, common)
        material = material or material_for(engine)
        scored = [evaluate(engine, [find(task)], n, seed=seed, material=material) for task, n in tasks.items()]
        answers.append([outcome.output for scores in scored for outcome in scores.tasks[0].outcomes])
        engine.engine.executor.close()
    unlike = sum(a != b for a, b in zip(*answers, strict=True))
    return Guard(f"{side} answers as the plain engine", not unlike, f"{unlike} of {len(answers[0])} answers differ")


def _engine(side: Side, common: Sequence[str]) -> LLM:
    from hasten.engine.llm import LLM

    return LLM(with_=side.with_, set_=(*common, *side.set_))


def _first(scores: Scores) -> float:
    (task,) = scores.tasks
    return next(iter(task.estimates.values())).value
