"""The replay client's own limit: the highest rate it sustains against a stub that streams tokens and never thinks.

    python -m hasten.lab.bench.client_rate --tokens 20 --seconds 3

A rate is sustained when the 99th percentile of the client's lag stays under the limit above which a run is invalid, and every
answer came whole.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from hasten.lab.bench import stub
from hasten.lab.bench.http import replay_http
from hasten.lab.bench.metrics import summary
from hasten.lab.bench.openai_form import negotiate
from hasten.lab.bench.run import LAG_LIMIT_S
from hasten.lab.bench.saturation import Probe, Saturation, search
from hasten.lab.workloads.base import TimedRequest, Workload


def _steady(rate: float, seconds: float, prompt: int, tokens: int) -> Workload:
    count = max(1, round(rate * seconds))
    requests = [TimedRequest(id=str(i), arrival_s=i / rate, prompt_tokens=prompt, output_tokens=tokens) for i in range(count)]
    return Workload(name=f"{rate:g} requests/s", requests=requests)


def sustained(tokens: int = 20, seconds: float = 3.0, prompt: int = 200, start: float = 200.0) -> Saturation:
    """Rates in requests per second; each probed for `seconds`. `figures` of a probe hold the run's summary."""
    with stub.running() as url:
        form = negotiate(url)

        def measure(rate: float) -> Probe:
            run = replay_http(url, _steady(rate, seconds, prompt, tokens), form=form)
            whole = not run.errors and "answers that ended early" not in run.info
            figures = summary(run) | {"client_cpu_s": float(run.info["client_cpu_s"])}
            return Probe(rate, float(whole and run.lag_p99_s <= LAG_LIMIT_S), figures)

        return search(measure, start, attainment=1.0, tolerance=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each probe")
    parser.add_argument("--prompt", type=int, default=200)
    options = parser.parse_args()
    with Console(stderr=True).status("measuring"):
        found = sustained(options.tokens, options.seconds, options.prompt)
    table = Table("requests/s", "lag p99 ms", "TTFT p99 ms", "gap p50 ms", "client CPU s", "sustained")
    for probe in found.probes:
        values = [probe.figures.get(name, float("nan")) * 1e3 for name in ("lag_p99_s", "ttft_p99_s", "gap_p50_s")]
        cpu_s = probe.figures["client_cpu_s"]
        table.add_row(
            f"{probe.rate:.0f}", *(f"{value:.1f}" for value in values), f"{cpu_s:.2f}", "yes" if probe.attainment else "no"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
