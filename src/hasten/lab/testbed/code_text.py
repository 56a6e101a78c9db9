"""Python source, its documentation, and questions about it; from the standard library and HumanEval."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sysconfig
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from hasten.lab.testbed.document import Document, chat

# Packages that are tests, tables, vendored wheels or generated code rather than Python worth imitating.
LEFT_OUT = {
    "site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "ensurepip", "pydoc_data", "turtledemo",
    "tkinter", "__pycache__", "distutils", "msilib", "config", "_casefix.py", "stringprep.py", "this.py",
}  # fmt: skip
LONGEST_MODULE_CHARACTERS = 60_000
PACKAGES = ("numpy", "scipy", "torch", "huggingface_hub", "pydantic", "fastapi", "jinja2", "rich", "httpx")
"""Those that hasten needs, so they are there wherever it is."""
LEAST_DOCUMENTATION_CHARACTERS = 300
LONGEST_FUNCTION_LINES = 40


def standard_library() -> Iterator[Document]:
    """Modules of the running interpreter's standard library, and questions about their documented functions."""
    for module, source, tree in _modules(Path(sysconfig.get_path("stdlib"))):
        if len(source) <= LONGEST_MODULE_CHARACTERS:
            yield Document("python", module, source)
        yield from _questions(module, source, tree)


def packages() -> Iterator[Document]:
    """Modules of the packages that hasten needs, and their docstrings as running text. Some 45 MB, half a minute to read."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        for root in (found.submodule_search_locations or ()) if found else ():
            for module, source, tree in _modules(Path(root)):
                if len(source) <= LONGEST_MODULE_CHARACTERS:
                    yield Document("package", f"{package}.{module}", source)
                texts = (ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef))
                for text in texts:
                    if len(text) >= LEAST_DOCUMENTATION_CHARACTERS:
                        yield Document("documentation", f"{package}.{module}", text)


def _modules(root: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Name, source and syntax tree of the Python files worth imitating."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT & set(relative.parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        yield ".".join(relative.with_suffix("").parts), source, tree


def _questions(module: str, source: str, tree: ast.Module) -> Iterator[Document]:
    """What the documented functions and classes of a module do, and how the short ones are written."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        summary = (ast.get_docstring(node) or "").partition("\n\n")[0]
        if not 30 <= len(summary) <= 600 or not summary[0].isupper():
            continue
        summary = re.sub(r"\s+", " ", summary)
        what = "function" if isinstance(node, ast.FunctionDef) else "class"
        question = f"What does the Python {what} `{node.name}` do?"
        yield Document("chat: documentation", module, chat(question, summary))
        own_lines = lines[node.lineno - 1 : node.end_lineno]
        if what == "function" and 3 < len(own_lines) <= LONGEST_FUNCTION_LINES:
            body = textwrap.dedent("\n".join(own_lines))
            request = f"Write a Python function `{node.name}`. {summary}"
            yield Document("chat: python", module, chat(request, f"```python\n{body}\n```"))
            yield Document("fill in the middle", module, fill_in_the_middle(body))


def fill_in_the_middle(source: str) -> str:
    """Source with some whole lines moved to the end, in the order prefix, suffix, middle; the same cut each time."""
    lines = source.splitlines(keepends=True)
    chance = zlib.crc32(source.encode())
    start = 1 + chance % (len(lines) - 1)
    stop = min(len(lines), start + 1 + (chance >> 16) % 8)
    prefix, middle, suffix = ("".join(part) for part in (lines[:start], lines[start:stop], lines[stop:]))
    return f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}"


def humaneval(text: str) -> Iterator[Document]:
    """Lines of {"prompt", "canonical_solution", "entry_point"} as plain source."""
    for line in text.splitlines():
        problem = json.loads(line)
        yield Document("python", problem["task_id"], problem["prompt"] + problem["canonical_solution"])


def language_topics() -> Iterator[Document]:
    """The language reference that the interpreter carries for `help()`, whole and as answers."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        title, _, body = text.partition("\n\n")
        title = re.sub("^The ", "the ", title.strip("*\n ="))
        yield Document("reference", f"topic {name}", text)
        answer = ""
        for paragraph in body.split("\n\n"):
            if len(answer) + len(paragraph) > 900:
                break
            answer += paragraph + "\n\n"
        if len(answer) > 80 and len(title) < 60:
            answer = re.sub(r"(?<=\S)\n(?=[a-z])", " ", answer.strip())
            yield Document("chat: reference", f"topic {name}", chat(f"Explain {title} in Python.", answer))
