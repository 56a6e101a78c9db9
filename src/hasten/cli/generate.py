"""`hasten generate`: complete one prompt, streaming to standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options
from hasten.cli.stages import Stages

if TYPE_CHECKING:
    from hasten.engine.decoding.constraints.spec import ConstraintSpec


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from; - reads standard input.")],
    model: options.Model = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    constraint: Annotated[
        Path | None,
        typer.Option("--grammar", metavar="FILE", help="What it must follow: a JSON Schema (.json), .lark, .gbnf or .regex."),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token.")] = False,
    speculate: options.Speculate = None,
    with_: options.With = None,
    set_: options.Set = None,
    config: options.Config = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    load_format: options.LoadFormat = None,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Complete a prompt: the text to standard output as it comes, its speed to standard error."""
    stages = Stages()
    asked = options.asked(model, with_, set_, device, dtype, load_format, max_length, threads, config)
    asked.speculate, asked.auto = speculate, True
    from hasten.engine.request import SamplingParams

    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        constraint=_spec(constraint) if constraint is not None else None,
    )
    if prompt == "-":
        prompt = sys.stdin.read()
    llm = asked.load(progress=sys.stderr.isatty(), stages=stages)

    from hasten.cli.pace import Pace

    pace = Pace(loaded_s=stages.total_s)
    finish = error = None
    try:
        for delta in llm.stream(prompt, sampling):
            pace.add(len(delta.tokens))
            sys.stdout.write(delta.text)
            sys.stdout.flush()
            finish, error = delta.finish, delta.error
    except KeyboardInterrupt:
        finish = "interrupted"
    sys.stdout.write("\n")
    sys.stdout.flush()
    if error is not None:
        typer.secho(f"error: the engine failed: {error}", err=True, fg="red")
        raise typer.Exit(1)
    stages.tell({"first token": pace.ttft_s}, {name: llm.info[name] for name in ("weight_bytes", "kv_bytes")})
    typer.secho(f"{pace.summary()}, ended by {finish}", err=True, dim=True)


def _spec(file: Path) -> ConstraintSpec:
    from hasten.cli.grammar import SUFFIXES
    from hasten.engine.decoding.constraints.spec import ConstraintSpec
    from hasten.engine.technique import ConfigError

    kind = SUFFIXES.get(file.suffix)
    if kind is None:
        raise ConfigError(f"--grammar {file}: the file's name should end in {', '.join(SUFFIXES)}")
    try:
        return ConstraintSpec(kind, file.read_text(encoding="utf-8").rstrip("\n"))  # type: ignore[arg-type]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--grammar {file}: {error}") from None
