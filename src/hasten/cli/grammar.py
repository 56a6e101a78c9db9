"""`hasten grammar`: what becomes of a grammar, a pattern or a JSON Schema, and whether a text fits it."""

from __future__ import annotations

import re
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.decoding.constraints.base import GrammarError
    from hasten.engine.decoding.constraints.grammar import Grammar
    from hasten.engine.decoding.constraints.machine import CompiledGrammar

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

SUFFIXES = {".json": "json_schema", ".lark": "ebnf", ".ebnf": "ebnf", ".gbnf": "gbnf", ".regex": "regex"}
END = 256
"""The token that ends a text where bytes are the vocabulary."""
MOST_CONFLICTS = 5
MOST_EXPECTED = 8


@app.callback()
def grammar() -> None:
    """Grammars that constrain what a model writes."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON Schema, a grammar or a regular expression.")],
    kind: Annotated[
        str | None,
        typer.Option(help="json_schema (.json), ebnf as Lark writes it (.lark), gbnf (.gbnf) or regex (.regex); by suffix."),
    ] = None,
    instance: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Say whether this text is accepted, or where it goes wrong. Repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Compile for the tokens of this model too, and time its masks.")
    ] = None,
    dot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the automaton for Graphviz.")] = None,
    whitespace: Annotated[
        str, typer.Option(help="JSON: any, compact, spaced, or at most so many characters in a place.")
    ] = "any",
    order: Annotated[str, typer.Option(help="JSON: of properties, any or schema.")] = "any",
    lenient: Annotated[bool, typer.Option(help="JSON: warn of keywords that cannot be enforced instead of refusing.")] = False,
) -> None:
    """Compile a grammar: what is refused and why, conflicts with an example, sizes, times, and the automaton if it is small.

    The exit status is 1 where the grammar is refused or an instance is not accepted."""
    from hasten.cli import grammar_show as show
    from hasten.engine.decoding.constraints.base import GrammarError, Limits
    from hasten.engine.decoding.constraints.spec import ConstraintSpec

    source = _read(file)
    named = kind or SUFFIXES.get(file.suffix, "")
    if named not in SUFFIXES.values():
        raise ConfigError(f"{file}: its suffix tells no kind of grammar; --kind is one of json_schema, ebnf, gbnf, regex")
    texts = {path: _read(path) for path in instance or ()}
    spaces = int(whitespace) if whitespace.isdecimal() else whitespace
    import_module(f"hasten.engine.decoding.constraints.{named.removeprefix('json_')}")  # so that it is not timed
    began = time.perf_counter()
    try:
        text = source.removesuffix("\n") if named == "regex" else source
        found = ConstraintSpec(named, text, spaces, order, lenient).compile(Limits())  # type: ignore[arg-type]
    except GrammarError as refused:
        _refused(refused, source)
        raise typer.Exit(1) from None
    front_s = time.perf_counter() - began
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"grammar: {show.sizes(found)}; read in {1000 * front_s:.1f} ms")
    _automaton(found, dot)
    good = _native(found, model, texts)
    if not good:
        raise typer.Exit(1)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as fault:
        raise ConfigError(f"{path} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{path} is no text in UTF-8: {fault.reason} at byte {fault.start}") from None


def _refused(error: GrammarError, source: str) -> None:
    typer.echo(f"refused: {error}")
    if place := re.fullmatch(r"line (\d+), column (\d+)", error.where):
        _point(source, int(place[1]), int(place[2]))
    elif place := re.match(r"position (\d+) of ", error.where):
        _point(source, 1, int(place[1]) + 1)


def _point(source: str, line: int, column: int) -> None:
    """The line, what stands before the column at most 60 characters of it, and a caret under the place."""
    shown = source.split("\n")[line - 1].replace("\t", " ")
    first = max(column - 61, 0)
    typer.echo(f"    {shown[first : first + 100]}\n    {' ' * (column - 1 - first)}^")


def _automaton(found: Grammar, dot: Path | None) -> None:
    """What the readable reference makes of it; the native machine builds the same as far as texts reach."""
    from hasten.cli import grammar_show as show
    from hasten.engine.decoding.constraints.base import GrammarError, Limits
    from hasten.engine.decoding.constraints.lr import Automaton
    from hasten.engine.decoding.constraints.reference import Pushdown

    began = time.perf_counter()
    try:
        lr = Automaton(found, Limits())
        conflicts = lr.conflicts()
        pushdown = Pushdown(lr, Limits())
    except GrammarError as error:
        typer.echo(f"automaton: too large to build as a whole ({error}); it is built as far as texts reach")
        if dot is not None:
            raise ConfigError("--dot: the automaton is too large to draw") from None
        return
    took_s = time.perf_counter() - began
    edges = [edge for several in pushdown.edges.values() for edge in several]
    typer.echo(
        f"automaton: {len(lr.states)} LR(1) states, {len(edges)} edges that look at up to "
        f"{max(len(edge.required) for edge in edges)} states ({sum(edge.partial for edge in edges)} partial); "
        f"{len(conflicts) or 'no'} {'conflict' if len(conflicts) == 1 else 'conflicts'}; {1000 * took_s:.1f} ms in Python"
    )
    for conflict in conflicts[:MOST_CONFLICTS]:
        typer.echo(show.conflict(lr, conflict))
    if len(conflicts) > MOST_CONFLICTS:
        typer.echo(f"... and {len(conflicts) - MOST_CONFLICTS} more conflicts")
    if conflicts:
        typer.echo("All readings of a text are followed, which is exact but slower.")
    if len(lr.states) <= show.MOST_STATES and len(edges) <= show.MOST_EDGES:
        typer.echo(show.table(pushdown))
    if dot is not None:
        try:
            dot.write_text(show.graph(pushdown))
        except OSError as fault:
            raise ConfigError(f"--dot {dot}: {fault.strerror}") from None


def _native(found: Grammar, model: str | None, texts: dict[Path, str]) -> bool:
    """Compile it as the engine does, and say of each text whether it is accepted; whether all are."""
    from hasten.engine.decoding.constraints.base import GrammarError, Limits
    from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary

    try:
        if model is not None:
            _time(found, model)
        if not texts:
            return True
        vocabulary = Vocabulary([*(bytes((byte,)) for byte in range(256)), b""], [END])
        compiled = CompiledGrammar(found, vocabulary, Limits())
    except GrammarError as refused:
        typer.echo(f"refused: {refused}")
        return False
    except RuntimeError as missing:
        raise ConfigError(str(missing)) from None
    verdicts = [_judge(compiled, path, text) for path, text in texts.items()]
    return all(verdicts)


def _time(found: Grammar, model: str) -> None:
    import numpy as np

    from hasten.engine.config import ModelConfig
    from hasten.engine.decoding.constraints.base import Limits
    from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary
    from hasten.engine.text import load_text

    tokenizer, _ = load_text(ModelConfig(path=model))
    vocabulary = Vocabulary(tokenizer.pieces.table(tokenizer.vocabulary), [])
    began = time.perf_counter()
    state = CompiledGrammar(found, vocabulary, Limits()).start()
    compiled_s = time.perf_counter() - began
    mask = np.zeros(vocabulary.words, np.int32)
    state.fill(mask)
    first_s = time.perf_counter() - began - compiled_s
    legal = int(np.unpackbits(mask.view(np.uint8)).sum())
    typer.echo(
        f"{model}: {vocabulary.tokens} tokens; compiled in {1000 * compiled_s:.2f} ms, first mask in {1000 * first_s:.2f} ms "
        f"({legal} tokens legal), {options.show_bytes(state.grammar.bytes)}"
    )


def _judge(compiled: CompiledGrammar, path: Path, text: str) -> bool:
    """Editors end files with a line break; it need not be part of the text."""
    for candidate in dict.fromkeys((text, text.removesuffix("\n"))):
        data = candidate.encode()
        state = compiled.start()
        if state.match(data) == len(data):
            for byte in data:
                state.advance(byte)
            if state.ended:
                typer.echo(f"{path}: accepted")
                return True
    data = text.removesuffix("\n").encode()
    state = compiled.start()
    good = state.match(data)
    for byte in data[:good]:
        state.advance(byte)
    expected = state.expected()
    more = f" and {len(expected) - MOST_EXPECTED} more" if len(expected) > MOST_EXPECTED else ""
    before = data[:good].decode(errors="ignore")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    what = "ends too early" if good == len(data) else "is not accepted"
    typer.echo(
        f"{path}: {what} at line {line}, column {column} (byte {good}); expected {', '.join(expected[:MOST_EXPECTED])}{more}"
    )
    _point(data.decode(), line, column)
    return False
