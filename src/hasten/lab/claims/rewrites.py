"""Answers that repeat most of their prompt, said by a large shape with random weights: JSON with one value changed, code with
one name changed. What is said is given; guessing it, checking the guesses and the time that this takes are real."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.draft_model_pairs import DUMMY, SERVED, shapes
from hasten.lab.claims.drafting import OFF, Times, answer
from hasten.lab.claims.sides import Side

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
    from hasten.engine.executors.base import StepResult
    from hasten.lab.testbed.material import Material

RECORDS = 3
LINES = (12, 30)
"""Of a function that is edited."""
PLAIN = 16
"""Tokens of an answer that are said without drafts: each takes the same time."""


@dataclass(frozen=True)
class Rewrite:
    prompt: str
    answer: str


def json_rewrite(rng: random.Random) -> Rewrite:
    """A list of records, one value of one of them changed."""
    from hasten.lab.testbed.things import KINDS

    kind = rng.choice(KINDS)
    title = kind.title_names[0]
    records = [
        {title: kind.title(rng)} | {fact.names[0]: fact.draw(rng) for fact in kind.facts} for _ in range(RECORDS)
    ]  # fmt: skip
    before = json.dumps(records, indent=1)
    chosen, fact = rng.choice(records), rng.choice(kind.facts)
    name = fact.names[0]
    value = next(value for value in iter(lambda: fact.draw(rng), None) if value != chosen[name])
    asked = f"Set `{name}` of {chosen[title]} to {json.dumps(value)}. Write all of it."
    chosen[name] = value
    return Rewrite(f"```json\n{before}\n```\n{asked}\n```json\n", f"{json.dumps(records, indent=1)}\n```\n")


def code_edit(rng: random.Random, material: Material) -> Rewrite:
    """A function of held-out source, one of its variables renamed."""
    source, names = rng.choice(material.once(("functions to edit",), lambda: list(_functions(material))))
    old = rng.choice(names)
    new = f"{old}_of_{rng.choice(['caller', 'parent', 'request'])}"
    edited = re.sub(rf"(?<![\w.]){old}\b", new, source)
    return Rewrite(f"```python\n{source}\n```\nCall `{old}` `{new}`. Write all of it.\n```python\n", f"{edited}\n```\n")


def _functions(material: Material) -> Iterator[tuple[str, list[str]]]:
    """Functions of some length, and their variables that are used thrice."""
    for document in material.documents("held-out", "python"):
        try:
            tree = ast.parse(document.text)
        except SyntaxError:
            continue
        lines = document.text.splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and LINES[0] <= node.end_lineno - node.lineno < LINES[1]:  # type: ignore[operator]
                used = [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
                stored = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
                if names := sorted(name for name in stored if used.count(name) >= 3):
                    yield "\n".join(lines[node.lineno - 1 : node.end_lineno]), names


class Dictated:
    """A sampler that draws as `inner` does and then says `text`, whatever was drawn. One sequence."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.text: Sequence[int] = ()

    def draw(self, result: StepResult, rows: Sequence[Row]) -> Drawn:
        drawn: Drawn = self._inner.draw(result, rows)
        for number, row in enumerate(rows):
            at = row.sequence.output_length + len(row.path)
            drawn.tokens[number] = self.text[min(at, len(self.text) - 1)]
        return drawn

    def score(self, *asked: Any) -> list[TokenLogprobs]:
        scores: list[TokenLogprobs] = self._inner.score(*asked)
        return scores


def large(
    side: Side,
    rounds: Sequence[Mapping[str, Rewrite]],
    encode: Callable[[str], list[int]],
    progress: Callable[[str, float], None],
) -> dict[str, dict[str, Times]]:
    """Each round's rewrites by the plain engine and by `side`, in turns: by rewrite and side. Of the plain engine's answers
    the beginning."""
    import numpy as np

    from hasten.engine.request import Request, SamplingParams

    engines = {one.name: dummy(one) for one in (OFF, side)}
    voices = {}
    for name, built in engines.items():
        voices[name] = built.engine.decoding.sampler = Dictated(built.engine.decoding.sampler)
    found = {task: {name: Times() for name in engines} for task in rounds[0]}
    for number, asked in enumerate(rounds):
        for place, (task, rewrite) in enumerate(asked.items()):
            progress(f"1B shape, round {number + 1} of {len(rounds)}: {task}", (number + place / len(asked)) / len(rounds))
            prompt, said = np.array(encode(rewrite.prompt), dtype=np.int32), encode(rewrite.answer)
            for name in list(engines)[:: 1 if number % 2 == 0 else -1]:
                voices[name].text = said
                length = min(PLAIN, len(said)) if name == OFF.name else len(said)
                sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
                request = Request(id=f"{task}-{number}", prompt=prompt, sampling=sampling)
                times = found[task][name]
                seconds, tokens, steps = answer(engines[name], request, times)
                times.seconds.append(seconds / tokens)
                times.tokens.append(tokens / steps)
    for built in engines.values():
        built.engine.executor.close()
    return found


def dummy(side: Side) -> Built:
    """The 1B shape with random weights."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    with shapes(served=SERVED) as folder:
        return build(EngineConfig.build(f"{folder}/served", with_=side.with_, set_=[*DUMMY, *side.set_]))
