"""`hasten train`: make the testbed's models, and heads that guess ahead for any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train small models here. A run can be killed at any moment and goes on when the same command is given again."""


@app.command()
def testbed(
    model: Annotated[str, typer.Option(help="base, draft, moe (8 experts, 2 active) or large.")] = "base",
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoint, states, record and picture.")] = Path("testbed"),
    init: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on from this checkpoint's weights, with new optimisers.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(metavar="MILLIONS", help="Train on this many in all, not the recipe's.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after about so long; the same command goes on later.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder with the public texts (default: HASTEN_DATA).")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Use this checkpoint's tokenizer (default: --init's, --teacher's, or a new one)."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Learn running text from what this checkpoint says of it, not from the text."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that make batches: about twelve keep up with a GPU; 0, a thread, with a CPU.")
    ] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads (default: torch's choice).")] = None,
) -> None:
    """Train a model of the testbed from nothing, or go on with a run that was cut off.

    One tokenizer serves all models: give `--tokenizer` for the second and later ones."""
    from hasten.engine.technique import ConfigError
    from hasten.lab.training import testbed as training

    try:
        training.run(
            model, out, init=init, tokens=None if tokens is None else int(tokens * 1e6), minutes=minutes, data=data,
            tokenizer=tokenizer, teacher=teacher, device=device, workers=workers, threads=threads,
        )  # fmt: skip
    except (ValueError, FileNotFoundError) as fault:
        raise ConfigError(str(fault)) from None


@app.command()
def medusa(
    model: Annotated[str, typer.Option(help="The model that they guess for: a folder, file, hub id or builtin.")] = "builtin",
    out: Annotated[Path, typer.Option(help="The folder of the heads, and of what a run that is cut off goes on from.")] = Path(
        "medusa"
    ),
    heads: Annotated[int, typer.Option(min=1, max=8, help="Tokens guessed one after the other.")] = 4,
    answers: Annotated[int, typer.Option(min=8, help="Questions that the model answers, to be learnt from.")] = 3000,
    passes: Annotated[float, typer.Option(min=0.0, help="Times that what was said is learnt.")] = 4.0,
    guessed: Annotated[
        int | None,
        typer.Option(min=0, help="Guess the most frequent tokens only, so many; 0: all (default: a quarter, at most 8,192)."),
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="Output weights for each head, instead of the model's own head.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed gives other questions.")] = 0,
    data: Annotated[Path | None, typer.Option(help="The folder with the public texts (default: HASTEN_DATA).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (default: one a core).")] = None,
) -> None:
    """Train heads for `--with medusa:path=FOLDER` on what a model answers; the model itself stays as it is."""
    from hasten.engine.technique import ConfigError
    from hasten.lab.training import medusa as training

    recipe = training.Recipe(heads=heads, answers=answers, passes=passes, guessed=guessed, own=own, seed=seed)
    try:
        training.run(model, out, recipe, data=data, threads=threads)
    except FileNotFoundError as fault:
        raise ConfigError(str(fault)) from None
