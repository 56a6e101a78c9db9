"""Fill in the middle: whole lines of a real Python function that were taken out.

The order prefix, suffix, middle is that of Bavarian et al., "Efficient training of language models to fill in the middle"
(2022). Prompts are raw text with marks, not conversations.
"""

from __future__ import annotations

import ast
import gc
import random
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import ClassVar

from hasten.lab.testbed.document import END_OF_TEXT, Document
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.tasks.base import Example, Lesson, Piece, Split, Task

MOST_LINES = 3
LEAST_CONTEXT, MOST_CONTEXT = 64, 2000
LEAST_FUNCTION_LINES, MOST_FUNCTION_LINES = 4, 60
LONGEST_MIDDLE_CHARACTERS = 2000
TRIES = 500


@dataclass(frozen=True)
class Function:
    """A function's source, ending with a newline, and the lines that may be taken out: its code, not its signature,
    docstring, comments and blank lines."""

    source: str
    code_lines: frozenset[int]


@dataclass(frozen=True)
class PythonFill(Task):
    """lines: how many are masked (1 to 3). context: tokens that the whole function takes at most."""

    name: ClassVar[str] = "python"
    about: ClassVar[str] = "fill in masked lines of a Python function"
    metrics: ClassVar[tuple[str, ...]] = ("exact", "parses")
    lines: int = 1
    context: int = 400

    def __post_init__(self) -> None:
        if not 1 <= self.lines <= MOST_LINES:
            raise ValueError(f"python: lines is {self.lines}; it must be from 1 to {MOST_LINES}")
        if not LEAST_CONTEXT <= self.context <= MOST_CONTEXT:
            raise ValueError(f"python: context is {self.context}; it must be from {LEAST_CONTEXT} to {MOST_CONTEXT} tokens")

    def example(self, rng: random.Random, split: Split, material: Material) -> Example:
        function, start = self._draw(rng, split, material)
        lines = function.source.splitlines(keepends=True)
        stop = start + self.lines
        prefix, middle, suffix = ("".join(part) for part in (lines[:start], lines[start:stop], lines[stop:]))
        prompt = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
        expected = {"prefix": prefix, "middle": middle, "suffix": suffix}
        return Example(prompt, middle, expected, max_tokens=max(64, 2 * material.count(middle)))

    def score(self, example: Example, output: str) -> dict[str, float]:
        prefix, middle, suffix = (example.expected[part] for part in ("prefix", "middle", "suffix"))
        written = output.removesuffix(END_OF_TEXT)
        exact = _without_trailing_space(written) == _without_trailing_space(middle)
        parses = len(written) <= LONGEST_MIDDLE_CHARACTERS and _parse(f"{prefix}{written.rstrip()}\n{suffix}") is not None
        return {"exact": float(exact), "parses": float(parses)}

    def lesson(self, rng: random.Random, material: Material) -> Lesson:
        """All of it is learnt: it is a text about Python as much as a question."""
        example = self.example(rng, "train", material)
        return (Piece(example.prompt + example.answer + END_OF_TEXT, True),)

    def easier(self, rng: random.Random, tokens: int) -> PythonFill:
        context = max(LEAST_CONTEXT, min(self.context, tokens - 8))
        return replace(self, lines=rng.randint(1, MOST_LINES), context=context)

    def _draw(self, rng: random.Random, split: Split, material: Material) -> tuple[Function, int]:
        """A function that is short enough, and the index of the first line to mask."""
        documents, ends = material.once(("python", split), lambda: _pool(split, material))
        for _ in range(TRIES if documents else 0):
            module = rng.choices(documents, cum_weights=ends)[0].text
            # Modules are parsed when first drawn; parsing them all takes many seconds.
            functions = material.once(("functions", module), partial(_functions, module))
            if not functions:
                continue
            function = rng.choice(functions)
            starts = [i for i in sorted(function.code_lines) if function.code_lines.issuperset(range(i, i + self.lines))]
            if starts and material.count(function.source) <= self.context:
                return function, rng.choice(starts)
        raise ValueError(f"the {split} documents hold no Python function of at most {self.context} tokens to mask")


def _pool(split: Split, material: Material) -> tuple[list[Document], list[int]]:
    """Python documents and their running total of characters."""
    found = material.documents(split, "python")
    return found, list(accumulate(len(d.text) for d in found))


def _functions(module: str) -> list[Function]:
    """The functions and methods of a module, as they would stand at its top level."""
    tree = _parse(module)
    lines = module.splitlines()
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] if tree else []
    found = (_function(lines[node.lineno - 1 : node.end_lineno]) for node in nodes)
    return [function for function in found if function is not None]


def _function(lines: list[str]) -> Function | None:
    if not LEAST_FUNCTION_LINES <= len(lines) <= MOST_FUNCTION_LINES:
        return None
    source = textwrap.dedent("\n".join(lines)) + "\n"
    tree = _parse(source)
    if tree is None or not isinstance(tree.body[0], ast.FunctionDef):
        return None
    body = tree.body[0].body
    first = body[1] if ast.get_docstring(tree.body[0]) is not None and len(body) > 1 else body[0]
    own = source.splitlines()
    code = {i for i in range(first.lineno - 1, len(own)) if any(c.isalnum() for c in own[i].partition("#")[0])}
    code.discard(0)
    return Function(source, frozenset(code)) if code else None


def _parse(source: str) -> ast.Module | None:
    """The syntax tree, or None where there is none: models write anything.

    Nothing is collected meanwhile: up to Python 3.11 a finalizer that parses (formatting a traceback does) in the middle of
    another's tree makes the interpreter miscount its recursion and raise SystemError (CPython's gh-106905)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()


def _without_trailing_space(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


TASK = PythonFill
