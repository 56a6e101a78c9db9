"""What the claim `medusa` measures: texts that the built-in model goes on with, alone and many at once; trees of other shapes;
answers that are drawn and scored."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hasten.lab.claims import drafting
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.decoding.drafts.tree import Tree
    from hasten.engine.request import Request

Progress = Callable[[str, float], None]
PYTHON = "language:source=python"
PROMPT, OUTPUT = 160, 96
"""Tokens of a text that is given, and that are said behind it."""


def texts(task: str, count: int, seed: Any, output: int = OUTPUT) -> list[Request]:
    """Greedy requests to go on with held-out texts, by so many tokens."""
    import numpy as np

    from hasten.engine.request import AppContext, Request, SamplingParams
    from hasten.lab.testbed.tasks.registry import find

    asked = []
    for number in range(count):
        one = find(task).example(random.Random(f"{seed}/{task}/{number}"), "held-out", drafting.texts())
        prompt = np.asarray(drafting.encode(one.prompt + one.answer)[:PROMPT], dtype=np.int32)
        sampling = SamplingParams(max_tokens=output, temperature=0.0, seed=number, ignore_eos=True)
        asked.append(Request(id=f"{task}-{seed}-{number}", prompt=prompt, sampling=sampling, app=AppContext(application=task)))
    return asked


def together(built: Built, asked: Sequence[Request]) -> float:
    """Seconds a token of requests that are answered at once, from when all have begun. Each must say as many tokens."""
    engine = built.engine
    for request in asked:
        engine.add(request)
    begun: set[str] = set()
    while len(begun) < len(asked):
        begun |= {delta.request_id for delta in engine.step() if delta.tokens}
    began, tokens = time.perf_counter(), 0
    while engine.unfinished:
        tokens += sum(len(delta.tokens) for delta in engine.step())
    return (time.perf_counter() - began) / tokens


def by_size(
    off: Built, on: Built, sizes: Sequence[int], rounds: int, output: int, seed: int, tell: Progress
) -> dict[int, list[float]]:
    """Time a token, off over on, by how many requests are answered at once, round by round."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds):
        for at, size in enumerate(sizes):
            tell(f"{size} at once, round {number + 1} of {rounds}", (number + at / len(sizes)) / rounds)
            asked = texts(PYTHON, size, f"{seed}/{number}/together", output)
            took = {}
            for side in (off, on)[:: 1 if (number + at) % 2 == 0 else -1]:
                took[id(side)] = together(side, asked)
            found[size].append(took[id(off)] / took[id(on)])
    return found


# Trees


def chain(tree: Tree, heads: int) -> Tree:
    """The likeliest guess of each head, one behind the other."""
    import numpy as np

    numbers = np.arange(heads, dtype=np.int32)
    return replace(tree, depths=numbers, ranks=0 * numbers, parents=numbers - 1, expected=np.ones(heads))


def full(tree: Tree, heads: int, nodes: int, branches: int = 2) -> Tree:
    """As many nodes, level by level, with equally many behind each: a tree that no accuracy was measured for."""
    import numpy as np

    found: list[tuple[int, int, int]] = []
    level = [-1]
    for depth in range(heads):
        below = []
        for parent in level:
            for rank in range(branches):
                if len(found) < nodes:
                    below.append(len(found))
                    found.append((depth, rank, parent))
        level = below
    depths, ranks, parents = (np.array(column, dtype=np.int32) for column in zip(*found, strict=True))
    return replace(tree, depths=depths, ranks=ranks, parents=parents, expected=np.ones(len(found)))


def by_tree(on: Built, asked: Sequence[Request]) -> dict[str, float]:
    """Tokens a step over the same questions with the measured tree, a chain, and a full tree of as many nodes."""
    proposer: Any = on.engine.decoding.proposer
    measured = proposer.tree
    heads = int(measured.depths.max()) + 1
    shapes = {"measured": measured, "chain": chain(measured, heads), "full": full(measured, heads, len(measured))}
    found = {}
    for name, shape in shapes.items():
        proposer.tree = shape
        times = drafting.in_turns({name: on}, [[replace(one, id=f"{name}-{one.id}") for one in asked]], lambda what, done: None)
        found[name] = times[name].tokens[0]
    proposer.tree = measured
    return found


def accepted(on: Built, begin: int) -> list[float]:
    """Of all drafts from event `begin` on, the share of which at least one token, two, three, ... were accepted."""
    from hasten.engine.events import Kind

    columns = on.engine.events.columns(begin)
    drafts = columns["b"][columns["kind"] == Kind.DRAFTED]
    most = int(drafts.max()) if len(drafts) else 0
    return [float((drafts > depth).mean()) for depth in range(most)]


# Drawn answers


@dataclass(slots=True)
class DrawnAnswers:
    """Of one side: each question's score, and tokens said a step."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    tokens: float = 0.0


def drawn(
    sides: Sequence[Side], tasks: Sequence[str], n: int, heat: float, seed: int, tell: Progress
) -> Mapping[str, DrawnAnswers]:
    """Answers drawn at temperature `heat`, scored; every side is asked the same, with the same random numbers."""
    from hasten.engine.events import Kind
    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams
    from hasten.lab.testbed.evaluate import draw, material_for, spoken, token_ids
    from hasten.lab.testbed.tasks.registry import find

    found = {}
    for place, side in enumerate(sides):
        llm = LLM(with_=side.with_, set_=side.set_)
        texts_, one = material_for(llm), DrawnAnswers()
        for at, name in enumerate(tasks):
            tell(f"{side.name}: {name}", (place + at / len(tasks)) / len(sides))
            task = find(name)
            examples = draw(task, name, n, seed, "held-out", texts_, lambda what, done, total: None)
            sampling = [SamplingParams(max_tokens=e.max_tokens, temperature=heat, seed=i) for i, e in enumerate(examples)]
            done = llm.generate([token_ids(llm, e.prompt) for e in examples], sampling)
            one.scores[name] = [
                task.score(e, spoken(llm, answer.choices[0]))[task.metrics[0]] for e, answer in zip(examples, done, strict=True)
            ]
        events = llm.engine.events
        drafts = events.counts[Kind.DRAFTED]
        columns = events.columns()
        one.tokens = 1 + columns["b"][columns["kind"] == Kind.DRAFTED].sum() / max(1, drafts)
        llm.engine.executor.close()
        found[side.name] = one
    return found
