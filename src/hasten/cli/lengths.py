"""`hasten lengths`: how well output lengths of a workload can be predicted, and predictors that have learned them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hasten.engine.scheduling.lengths.saved import Learning

app = typer.Typer(help="Predict output lengths: how well it goes, and from what.", no_args_is_help=True, add_completion=False)

PREDICTORS = ("length-histogram", "length-similarity", "length-quantiles")

Spec = Annotated[
    str, typer.Argument(metavar="WORKLOAD", help="As hasten workloads takes it, such as azure-llm-2023-conv or a file.")
]
Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@app.command()
def show(
    spec: Spec,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the calibration (PNG) to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Learn the first half of a workload's outputs, predict the second, and score that."""
    from hasten.lab.bench import lengths
    from hasten.lab.workloads import load

    found = lengths.examples(load(spec))
    half = len(found) // 2
    if half < 20:
        raise typer.BadParameter(f"{spec} has {len(found)} requests; at least 40 are needed to learn from half of them")
    blank = lengths.of_all(found)
    scores = {"histogram of all": lengths.score(_predictor(PREDICTORS[0]), blank[:half], blank[half:])}
    scores |= {name: lengths.score(_predictor(name), found[:half], found[half:]) for name in PREDICTORS}
    if plot is not None:
        from hasten.lab.bench.lengths_picture import calibration

        plot.write_bytes(calibration({spec: scores}))
    rows = [
        {
            "predictor": name,
            "produced": after,
            "asked": score.asked,
            "coverage_error": score.coverage_error,
            "pinball": score.pinball,
            "mean_rank": score.mean_rank,
        }
        for name, by_tokens in scores.items()
        for after, score in by_tokens.items()
    ]
    _print(rows, as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    import sys

    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("predictor", no_wrap=True)
    for column in ("tokens", "outputs", "coverage error", "pinball loss", "rank"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row["produced"]), f"{row['asked']:,}", f"{row['coverage_error']:.1%}"]
        table.add_row(row["predictor"], *cells, f"{row['pinball']:.3f}", f"{row['mean_rank']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nTokens: produced when asked. Coverage error: mean distance between a predicted quantile's level and the share "
        "of outputs below it. Pinball "
        "loss: of "
        "logarithms, lower is better. Rank: correlation of predicted means with outputs, 1 at best.",
        style="dim",
    )


@app.command()
def learn(
    spec: Spec,
    file: Annotated[Path, typer.Argument(help="The file to write; one that is there is learned further.")],
    with_: Annotated[str, typer.Option("--with", help="The predictor, with knobs as elsewhere.")] = PREDICTORS[0],
) -> None:
    """Learn all outputs of a workload into a file, for `--with length-histogram:file=FILE`."""
    from rich.console import Console

    from hasten.lab.bench import lengths
    from hasten.lab.workloads import load

    predictor = _predictor(with_)
    found = lengths.examples(load(spec))
    try:
        if file.exists():
            predictor.load(file)
        for example in found:
            predictor.observe(example.request, example.output, ended=True)
        predictor.save(file)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from None
    except OSError as fault:
        raise typer.BadParameter(f"cannot write {file}: {fault.strerror or fault}") from fault
    Console(stderr=True, highlight=False).print(f"{len(found):,} outputs learned into {file}")


def _predictor(text: str) -> Learning:
    """Raises ConfigError for what is no predictor."""
    from hasten.engine.config import EngineConfig, parse_with
    from hasten.engine.scheduling.lengths.saved import Learning
    from hasten.engine.technique import ConfigError

    name = parse_with(text)[0]
    made = EngineConfig.build(with_=[text]).make(name)
    if not isinstance(made, Learning):
        raise ConfigError(f"{name} learns no lengths; {', '.join(PREDICTORS)} do")
    return made
