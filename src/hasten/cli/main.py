"""`hasten`: the commands, and how a mistake is told."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from hasten import __version__
from hasten.cli.chat import chat
from hasten.cli.generate import generate
from hasten.cli.serve import serve
from hasten.cli.techniques import techniques

app = typer.Typer(
    name="hasten",
    help="Low-latency LLM inference, with the published techniques switched on by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(generate)
app.command()(chat)
app.command()(techniques)


GROUPS = {
    "bench": "Measure latency, throughput, whole workloads and starts.",
    "claims": "Run the experiments that hold each technique against the plain engine.",
    "eval": "Score answers on tasks with one right answer; compare configurations on the same questions.",
    "grammar": "Check a grammar, a regular expression or a JSON Schema, and texts against it.",
    "demand": "Learn, show and merge demand graphs of applications, for the technique hermes.",
    "workloads": "Show, compare and export traces and generated workloads.",
    "lengths": "Predict output lengths: how well it goes on a workload, and predictors that have learned one.",
    "cache": "Stored KV: computed ahead, sent to a peer, listed, dropped, served.",
    "quantize": "Round a model's weights to 4 or 8 bits, weighed by what it reads, and write them as a checkpoint.",
    "calibrate": "Measure this machine's steps, for simulation.",
    "simulate": "Replay a workload on a virtual clock: this machine, or one you do not have.",
    "train": "Train the small models that quality is measured on, and heads that guess ahead for any model.",
    "tune": "Search the best configuration for a workload and its service-level objective.",
}
"""Commands that need more imports than the other commands' help should wait for: each is `app` in its own file."""


def _add_group(name: str, summary: str) -> None:
    @app.command(
        name,
        help=f"{summary} (hasten {name} --help)",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def run(context: typer.Context) -> None:
        commands = importlib.import_module(f"hasten.cli.{name}").app
        commands(args=context.args, prog_name=f"hasten {name}")


for _name, _summary in GROUPS.items():
    _add_group(_name, _summary)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line. What the user can mend is one line and exit status 2; anything else is a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as in `hasten generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is flushed into the pipe at exit
        sys.exit(1)
    except Exception as error:
        status = _expected(error)
        if status is None:
            raise
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print("error:", style="bold red", end=" ")
        console.print(str(error) or type(error).__name__, style="red", markup=False, soft_wrap=True)
        sys.exit(status)


def _expected(error: Exception) -> int | None:
    """The exit status for an error that needs no traceback."""
    from hasten.engine.outputs import EngineDead, QueueFull
    from hasten.engine.request import BadRequest
    from hasten.engine.technique import ConfigError
    from hasten.lab.workloads.base import WorkloadError

    if isinstance(error, ConfigError | BadRequest | WorkloadError):
        return 2
    return 1 if isinstance(error, EngineDead | QueueFull) else None


if __name__ == "__main__":
    main()
