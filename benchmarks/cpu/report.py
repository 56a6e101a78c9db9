"""Makes results/report.md and results/cpu.png of what `run.py` wrote.

.venv/bin/python benchmarks/cpu/report.py [--results FOLDER] [--plot docs/img/cpu.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import checkpoint

FORMATS = ("bf16", "int8", "int4")
LABELS = {"hasten": "hasten", "openvino": "OpenVINO", "llamacpp": "llama.cpp", "transformers": "transformers", "vllm": "vLLM"}
COLOURS = {"hasten": "#d1495b", "openvino": "#2e6f95", "llamacpp": "#8d99ae", "transformers": "#cbb279", "vllm": "#6a994e"}

Result = dict[str, Any]


def read(folder: Path) -> list[Result]:
    """Results by shape and format, in the order in which they are shown."""
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    shapes = list(checkpoint.SHAPES)
    return sorted(found, key=lambda result: (shapes.index(result["shape"]), FORMATS.index(result["format"])))


def speeds(results: list[Result]) -> list[str]:
    names = _engines(results)
    lines = [
        _row("model", "case", "format", *(LABELS[name] for name in names), "bound", "hasten / best other"),
        _row(*["---"] * 3, *["---:"] * (len(names) + 2)),
    ]
    for shape in dict.fromkeys(result["shape"] for result in results):
        for case in dict.fromkeys(case["name"] for result in results if result["shape"] == shape for case in result["cases"]):
            for result in results:
                for measured in result["cases"]:
                    if result["shape"] == shape and measured["name"] == case:
                        lines.append(_speed_row(result, measured, names))
    return lines


def _speed_row(result: Result, case: dict[str, Any], names: list[str]) -> str:
    cells = []
    for name in names:
        speed = case["tokens_per_s"].get(name)
        cells.append(f"{_three(speed[0])} ({_three(speed[1])} to {_three(speed[2])})" if speed else "")
    bound = _bound(case)
    ratio = case["ratio"]
    compared = ""
    if ratio:
        middle, low, high = ratio["values"]
        compared = f"**{middle:.2f}** ({low:.2f} to {high:.2f}) {LABELS[ratio['to']]}"
    return _row(result["shape"], _say(case), result["format"], *cells, _three(bound) if bound else "", compared)


def starts(results: list[Result]) -> list[str]:
    """Seconds of a process start, and bytes: the most a serving process had resident, and what of it was no file's."""
    lines = [
        _row("model", "format", "engine", "first token, s", "`import torch`, s", "loading, s", "peak RSS, GB", "anonymous, GB"),
        _row(*["---"] * 3, *["---:"] * 5),
    ]
    for result in results:
        for name in _engines([result]):
            engine, began = result["engines"][name], result["start"]
            first = [f"{median(began[key]):.2f}" if began else "" for key in (name, "import torch")]
            memory = [f"{engine['memory'][key] / 1e9:.1f}" for key in ("peak_rss", "anonymous")]
            lines.append(_row(result["shape"], result["format"], LABELS[name], *first, f"{engine['load_s']:.1f}", *memory))
    return lines


def notes(results: list[Result]) -> list[str]:
    lines = []
    for processor in dict.fromkeys(result["machine"]["processor"] for result in results):
        lines.append(f"- {processor}; {results[0]['machine']['threads']} threads.")
    reads = [value for result in results for case in result["cases"] for each in case["rounds"] for value in each["read"]]
    rates = {name: max(result["rates"].get(name, 0.0) for result in results) for name in ("bf16", "int8")}
    lines.append(f"- Reading {min(reads) / 1e9:.0f} to {max(reads) / 1e9:.0f} GB/s, median {median(reads) / 1e9:.0f}.")
    lines.append(f"- Multiplying at most {rates['bf16'] / 1e12:.2f} Tops/s in bf16 and {rates['int8'] / 1e12:.2f} in int8.")
    count = [len(case["rounds"]) for result in results for case in result["cases"]]
    kept = sum(1 for result in results for case in result["cases"] for each in case["rounds"] if each["disturbed"])
    lines.append(f"- {min(count)} to {max(count)} rounds a case; {kept} of {sum(count)} are disturbed ones for want of better.")
    for format in FORMATS:
        for name in _engines(results):
            said = {r["engines"][name]["details"] for r in results if r["format"] == format and name in r["engines"]}
            lines += [f"- {format}, {LABELS[name]}: {details}." for details in sorted(said)]
    versions: dict[str, str] = {}
    for result in results:
        for engine in result["engines"].values():
            versions |= engine["versions"]
    lines.append(f"- Versions: {', '.join(f'{package} {version}' for package, version in versions.items())}.")
    return lines


def plot(results: list[Result], to: Path) -> None:
    """A panel for each shape and case: bars of tokens/s by format and engine, the bound of each format as a line across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(result["shape"] for result in results))
    cases = list(dict.fromkeys(case["name"] for result in results for case in result["cases"]))
    names = _engines(results)
    figure, panels = pyplot.subplots(
        len(shapes), len(cases), figsize=(3.1 * len(cases) + 0.4, 2.7 * len(shapes) + 0.7), squeeze=False, layout="constrained"
    )
    for row, shape in zip(panels, shapes, strict=True):
        for panel, case in zip(row, cases, strict=True):
            _panel(panel, [result for result in results if result["shape"] == shape], case, names)
        row[0].set_ylabel(f"{shape}\ntokens/s")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    handles.append(pyplot.Line2D([], [], color="black", linewidth=1.2))
    figure.legend(handles, [*(LABELS[name] for name in names), "bound"], loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(to, dpi=110)


def _panel(panel: Any, results: list[Result], name: str, engines: list[str]) -> None:
    if not any(case["name"] == name for result in results for case in result["cases"]):
        panel.axis("off")  # not measured of this shape
        return
    title, labels = name, []
    for place, result in enumerate(results):
        labels.append(result["format"])
        for case in result["cases"]:
            if case["name"] != name:
                continue
            title = _say(case)
            shown = [engine for engine in engines if engine in case["tokens_per_s"]]
            width = 0.8 / len(shown)
            for i, engine in enumerate(shown):
                middle, low, high = case["tokens_per_s"][engine]
                at = place + (i - (len(shown) - 1) / 2) * width
                errors = [[middle - low], [high - middle]]
                style = {"elinewidth": 0.8, "ecolor": "#333333"}
                panel.bar(at, middle, width * 0.92, yerr=errors, color=COLOURS[engine], error_kw=style)
            if bound := _bound(case):
                panel.plot([place - 0.42, place + 0.42], [bound, bound], color="black", linewidth=1.2)
    panel.set_xticks(range(len(labels)), labels)
    panel.set_title(title, fontsize=10)
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)


def _engines(results: list[Result]) -> list[str]:
    return [name for name in LABELS if any(name in result["engines"] for result in results)]


def _bound(case: dict[str, Any]) -> float | None:
    """Tokens per second of the least time."""
    tokens = case["tokens"] if case["what"] == "prefill" else case["sequences"]
    return tokens / case["bound_s"] if case["bound_s"] else None


def _say(case: dict[str, Any]) -> str:
    if case["what"] == "prefill":
        return f"prefill of {case['tokens']}"
    sequences = "1 sequence" if case["sequences"] == 1 else f"{case['sequences']} sequences"
    return f"decode, {sequences} after {case['context']}"


def _three(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", type=Path, help="where the plot goes; RESULTS/cpu.png if left out")
    options = parser.parse_args()
    results = read(options.results)
    if not results:
        raise SystemExit(f"report.py: there are no results in {options.results}; run.py writes them")
    parts = ["Tokens per second: median (lowest to highest) of the rounds.", "", *speeds(results), "", *starts(results)]
    (options.results / "report.md").write_text("\n".join([*parts, "", *notes(results)]) + "\n")
    plot(results, options.plot or options.results / "cpu.png")


if __name__ == "__main__":
    main()
