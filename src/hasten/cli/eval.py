"""`hasten eval`: scores on tasks with one right answer, and comparisons on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from hasten.cli import eval_show, options
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.config import EngineConfig
    from hasten.lab.testbed.scores import Scores
    from hasten.lab.testbed.tasks.base import Task


ROOM_FOR_AN_ANSWER = 128


class _RunUnlessNamed(typer.core.TyperGroup):
    """`hasten eval MODEL` is `hasten eval run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    help="Score a model on tasks with one right answer. `hasten eval MODEL` is short for `hasten eval run MODEL`.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks", metavar="TASK", help="A task with its knobs, as recall:pairs=16. Repeatable; the standard ones if left out."
    ),
]
Count = Annotated[int, typer.Option("--n", min=2, help="Questions of each task.")]
Seed = Annotated[int, typer.Option(help="Of the questions: equal seeds ask the same.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the scores to this PNG file.")]


@app.command()
def run(
    model: options.Model = None,
    tasks: Tasks = None,
    n: Count = 200,
    seed: Seed = 0,
    show: Annotated[int, typer.Option(min=0, help="Print this many wrong answers of each task.")] = 0,
    with_: options.With = None,
    set_: options.Set = None,
    config_file: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    to: Annotated[
        Path | None, typer.Option("--json", help="Write scores and answers here; `hasten eval diff` reads it.")
    ] = None,
    plot: Plot = None,
) -> None:
    """Ask the same questions of each task through the engine, greedily, and score the answers."""
    eval_show.check_files(to, plot=plot)
    config = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config_file).config()
    (scores,) = _evaluate([config], tasks, n, seed)
    eval_show.show(scores)
    eval_show.show_failures(scores, show)
    if to is not None:
        scores.write(to)
    eval_show.draw(plot, {scores.label: scores})


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="`plain`, techniques as for --with, or a .toml file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other side, likewise.")],
    model: Annotated[str | None, typer.Option(help="Of both sides; the built-in model if left out.")] = None,
    tasks: Tasks = None,
    n: Count = 200,
    seed: Seed = 0,
    with_: options.With = None,
    set_: options.Set = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write both sides' scores and their differences here.")] = None,
    plot: Plot = None,
) -> None:
    """Score two configurations of a model on the same questions, and test whether they differ."""
    eval_show.check_files(to, plot=plot)
    from hasten.lab.bench.targets import config_of, is_server

    if any(map(is_server, (a, b))):
        raise ConfigError("evaluations run in this process; a side is `plain`, techniques, or a .toml file")
    configs = [config_of(side, model, with_ or [], set_ or []) for side in (a, b)]
    both = _evaluate(configs, tasks, n, seed)
    _compared((both[0], both[1]), (a, b), to, plot)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="What `hasten eval --json` wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="The other one.")],
    to: Annotated[Path | None, typer.Option("--json", help="Write both sides' scores and their differences here.")] = None,
    plot: Plot = None,
) -> None:
    """Compare two evaluations that were written before; they may be of different models."""
    eval_show.check_files(to, plot=plot)
    from hasten.lab.testbed.scores import Scores

    try:
        both = (Scores.read(a), Scores.read(b))
    except ValueError as fault:
        raise ConfigError(str(fault)) from None
    _compared(both, (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b)), to, plot)


@app.command()
def acceptance(
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="The draft model: a folder or a hub id.")],
    model: Annotated[str | None, typer.Option(help="The target; the built-in model if left out.")] = None,
    tasks: Tasks = None,
    n: Count = 100,
    seed: Seed = 0,
    to: Annotated[Path | None, typer.Option("--json", help="Write the shares here.")] = None,
    plot: Plot = None,
) -> None:
    """How often a draft model's best next token is the one that the target says: what speculation could accept."""
    eval_show.check_files(to, plot=plot)
    from hasten.engine.llm import LLM
    from hasten.lab.testbed.acceptance import acceptance as measure
    from hasten.lab.testbed.evaluate import EvaluationFailed

    asked = _tasks(tasks)
    with eval_show.progress() as tell:
        tell("loading", 0, 1)
        try:
            scores = measure(LLM(model), LLM(draft), asked, n, seed=seed, progress=tell)
        except (ValueError, EvaluationFailed) as fault:
            raise ConfigError(str(fault)) from None
    eval_show.show(scores)
    if to is not None:
        scores.write(to)
    eval_show.draw(plot, {scores.label: scores})


def _tasks(notations: list[str] | None) -> list[Task]:
    from hasten.lab.testbed.evaluate import STANDARD
    from hasten.lab.testbed.tasks.registry import find

    try:
        return [find(text) for text in notations or STANDARD]
    except ValueError as fault:
        raise ConfigError(str(fault)) from None


def _evaluate(configs: list[EngineConfig], notations: list[str] | None, n: int, seed: int) -> list[Scores]:
    """Each configuration's scores; one engine is in memory at a time, and the first one's tokens measure texts for all."""
    from hasten.engine.llm import LLM
    from hasten.lab.testbed.evaluate import EvaluationFailed, evaluate, material_for

    tasks = _tasks(notations)
    out: list[Scores] = []
    material = None
    with eval_show.progress() as tell:
        for number, config in enumerate(configs, 1):
            side = f"{number} of {len(configs)}: " if len(configs) > 1 else ""
            tell(f"{side}loading", 0, 1)
            llm = LLM(config=config)

            def progress(what: str, done: int, total: int, side: str = side) -> None:
                tell(side + what, done, total)

            if not notations:
                tasks = _fitting(tasks, llm.engine.max_length)
            if material is None:
                progress("reading texts", 0, 1)
                material = material_for(llm)
            try:
                out.append(evaluate(llm, tasks, n, seed=seed, material=material, progress=progress))
            except EvaluationFailed as fault:
                typer.secho(f"error: {fault}", err=True, fg="red")
                raise typer.Exit(1) from None
            finally:
                llm.engine.executor.close()
    return out


def _fitting(tasks: list[Task], context: int) -> list[Task]:
    """The standard tasks that a model with so short a context can be asked; the others are named."""
    from hasten.lab.testbed.tasks.registry import notation

    fitting = [task for task in tasks if getattr(task, "length", 0) + ROOM_FOR_AN_ANSWER <= context]
    if left_out := [notation(task) for task in tasks if task not in fitting]:
        typer.echo(f"left out, longer than the context of {context:,} tokens: {', '.join(left_out)}", err=True)
    return fitting


def _compared(both: tuple[Scores, Scores], names: tuple[str, str], to: Path | None, plot: Path | None) -> None:
    from hasten.lab.testbed import pairwise

    try:
        differences = pairwise.compare(*both)
    except ValueError as fault:
        raise ConfigError(str(fault)) from None
    if names[0] == names[1]:  # a side against itself, to see that nothing else differs
        names = (f"{names[0]} (first)", f"{names[1]} (second)")
    for name, scores in zip(names, both, strict=True):
        typer.echo(f"{name}: {scores.label}")
    eval_show.show_compared(differences, names)
    eval_show.write_compared(to, names, both, differences)
    eval_show.draw(plot, dict(zip(names, both, strict=True)))
