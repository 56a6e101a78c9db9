"""`hasten quantize`: a checkpoint with fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options
from hasten.engine.config import BUILTIN
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.lab.quantize.checkpoint import Settings, Written

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def quantize(
    model: options.Model = None,
    out: Annotated[Path, typer.Option(help="The folder to write; a new one.")] = Path("quantized"),
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Input columns that share a scale: 32, 64, 128 or 256.")] = 32,
    symmetric: Annotated[bool, typer.Option(help="No zero points.")] = False,
    method: Annotated[str, typer.Option(help="gptq (errors weighed by calibration texts) or nearest.")] = "gptq",
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text; without it, the testbed's training texts (HASTEN_DATA).")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Stretches of 512 tokens to calibrate on.")] = 64,
    seed: Annotated[int, typer.Option(help="Of which stretches are taken.")] = 0,
) -> None:
    """Round a model's weights and write them as a checkpoint in GPTQ's format, which hasten and other engines load.

    Embedding, head and norms stay as they are."""
    from hasten.cli.eval_show import progress
    from hasten.lab.quantize.checkpoint import Plan, Settings
    from hasten.lab.quantize.checkpoint import quantize as write
    from hasten.lab.quantize.texts import of_file

    settings = Settings(bits, group, symmetric, method)  # type: ignore[arg-type]
    if method == "nearest" and calibration is not None:
        raise ConfigError("--calibration is of use to --method gptq only")
    name = model or BUILTIN
    Plan.of(name, settings)
    stretches = of_file(name, calibration, texts, seed) if calibration is not None else None
    _claim(out)
    with progress() as tell:
        seen: dict[tuple[int, str], Tensor] = {}
        if method == "gptq":
            from hasten.lab.quantize.inputs import hessians

            tell("reading texts", 0, 1)
            stretches = stretches or _of_testbed(name, texts, seed)
            tell("loading", 0, 1)
            seen = hessians(name, stretches, lambda done, total: tell("calibrating", done, total))
        written = write(name, out, settings, seen, lambda done, total: tell("rounding", done, total))
    _show(written, settings, out)


def _claim(out: Path) -> None:
    """Make the folder, unless it is there and empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: it is there already and not an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ConfigError(f"--out {out}: {fault.strerror}") from None


def _of_testbed(model: str, count: int, seed: int) -> list[list[int]]:
    from hasten.lab.quantize.texts import of_documents
    from hasten.lab.testbed import corpus, material

    try:
        corpus.data_folder()
    except FileNotFoundError:
        typer.echo("HASTEN_DATA names no folder: calibrating on the texts of Python's own library alone", err=True)
    return of_documents(model, material.load(len).training, count, seed)


def _show(written: Written, settings: Settings, out: Path) -> None:
    """The sizes, what rounding changed, and where the result is."""
    before, after = map(options.show_bytes, (written.bytes_before, written.bytes_after))
    if errors := written.errors:
        worst = max(errors, key=errors.__getitem__)
        mean, nearest = (sum(found.values()) / len(found) for found in (errors, written.nearest_errors))
        typer.echo(
            f"outputs of layers change by {mean:.2%} on average (nearest levels: {nearest:.2%}), at most {errors[worst]:.2%} "
            f"({worst})"
        )
    typer.echo(f"weights: {before} before, {after} with {settings.bits} bits; written to {out}")
