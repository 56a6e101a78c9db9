"""`hasten quantize`: a checkpoint with fewer bits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.engine.technique import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
TOKENS_A_TEXT = 512


@app.command()
def quantize(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A folder, a hub id; the built-in model if left out.")
    ] = "builtin",
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("quantized"),
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Input columns that share a scale: 32, 64, 128 or 256.")] = 32,
    symmetric: Annotated[bool, typer.Option(help="No zero points.")] = False,
    method: Annotated[str, typer.Option(help="gptq (errors weighed by calibration texts) or nearest.")] = "gptq",
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text; without it, the testbed's texts and lessons.")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help=f"Stretches of {TOKENS_A_TEXT} tokens to calibrate on.")] = 64,
    seed: Annotated[int, typer.Option(help="Of which stretches are taken.")] = 0,
) -> None:
    """Round a model's weights and write them as a checkpoint in GPTQ's format, which hasten and other engines load."""
    from rich.console import Console
    from rich.progress import Progress

    from hasten.engine.llm import LLM
    from hasten.lab.quantize.checkpoint import Settings
    from hasten.lab.quantize.checkpoint import quantize as write
    from hasten.lab.quantize.inputs import watch

    if method not in ("gptq", "nearest"):
        raise ConfigError(f"--method {method}: gptq and nearest are there")
    console = Console(highlight=False)
    with Progress(console=console) as bar:

        def shown(label: str) -> Any:
            task = bar.add_task(label)
            return lambda done, total: bar.update(task, completed=done, total=total)

        llm = LLM(model, progress=False)
        hessians = watch(llm, _stretches(llm, calibration, texts, seed), shown("calibrating"))
        errors = write(model, out, Settings(bits, group, symmetric, method), hessians, shown("rounding"))  # type: ignore[arg-type]
    worst = max(errors, key=errors.__getitem__)
    mean = sum(errors.values()) / len(errors)
    console.print(f"{out}: outputs of layers change by {mean:.2%} on average, at most {errors[worst]:.2%} ({worst})")


def _stretches(llm: Any, calibration: Path | None, count: int, seed: int) -> list[list[int]]:
    """Token lists, from random places."""
    rng = random.Random(seed)
    if calibration is not None:
        tokens = llm.tokenizer.encode(calibration.read_text(encoding="utf-8"))
        if len(tokens) < TOKENS_A_TEXT:
            raise ConfigError(f"{calibration} has {len(tokens)} tokens; {TOKENS_A_TEXT} at least are wanted")
    else:
        from hasten.lab.testbed import material

        documents = material.load(len).training
        tokens = llm.tokenizer.encode("\n\n".join(d.text for d in rng.sample(list(documents), min(len(documents), 4 * count))))
    starts = [rng.randrange(len(tokens) - TOKENS_A_TEXT + 1) for _ in range(count)]
    return [tokens[start : start + TOKENS_A_TEXT] for start in starts]
