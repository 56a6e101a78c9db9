"""Token goodput: the output tokens that were of use, because they came when their request's objectives asked for them.

- A *stream* (an SLO with a time to first token or per token, and no deadline) counts token by token: token i, from 0 on, counts
  if it was committed at most `ttft_s` + i `tpot_s` after the request was due. Without `ttft_s` the schedule begins with the
  first token, wherever that comes; without `tpot_s` only the first one has a time, and the others count.
- A *whole response* (an SLO with a deadline) counts all its tokens if it ended well within `deadline_s` of when it was due,
  and none otherwise; with an objective for streaming as well, those of them that came on schedule.
- A *workflow* (calls that carry its name and have a deadline) counts all tokens of all its calls if every one of them ended
  well and the last one within `deadline_s` of when the first was due, and none otherwise.
- A request without objectives counts its tokens if it ended well.

The share is of all output tokens that the workload asks for; the rate is per second from the first due time to the last that is
known beforehand (`Workload.duration_s`), the same for every engine that replays it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.request import SLO
from hasten.lab.bench.log import Log
from hasten.lab.bench.run import Floats, Ints, Run
from hasten.lab.bench.slo import describe


@dataclass(frozen=True, slots=True)
class TokenGoodput:
    """`counted`, `offered`: int64 [n], output tokens of each request that count, and that the workload asks for.
    `duration_s`: what the rate is over."""

    counted: Ints
    offered: Ints
    duration_s: float

    @property
    def share(self) -> float:
        return float(self.counted.sum()) / float(self.offered.sum())

    @property
    def per_s(self) -> float:
        return float(self.counted.sum()) / self.duration_s if self.duration_s > 0 else float("inf")


def token_goodput(run: Run) -> TokenGoodput:
    """By the SLO classes of the run's workload."""
    log = Log(run)
    slos = [run.workload.slos.get(request.slo_class, SLO()) for request in run.workload]
    offered = np.array([request.output_tokens for request in run.workload], dtype=np.int64)
    first_s = log.first(log.rows(Kind.FIRST_TOKEN))[0]
    end_s, ended_row = log.first(log.rows(Kind.FINISHED, Kind.FAILED))
    ok = ended_row < len(log.kind)
    ok[log.rows(Kind.FAILED).request] = False
    due_s = run.due_s - run.start_s
    on_time = _on_time(run, slos, due_s, end_s, ok)
    streams = np.array([slo.ttft_s is not None or slo.tpot_s is not None for slo in slos])
    counted = np.where(streams, _on_schedule(log, slos, due_s, first_s), offered)
    whole = np.array([slo.deadline_s is not None for slo in slos])
    # A stream that failed has delivered what it has; a whole response that did is worth nothing.
    counted = np.where(whole & ~on_time, 0, np.where(~whole & ~streams & ~ok, 0, counted))
    return TokenGoodput(counted.astype(np.int64), offered, run.workload.duration_s)


def definition(run: Run) -> str:
    """What `token_goodput` counts in this run, as one sentence; empty without objectives."""
    classes = {name: describe(slo) for name, slo in run.workload.slos.items() if describe(slo)}
    if not classes:
        return ""
    return (
        "Token goodput: the share of all output tokens that came in time (of streams each token by its own time, of whole "
        "responses and of workflows all or none): " + "; ".join(f"{words} for class {name}" for name, words in classes.items())
    )


def _on_time(run: Run, slos: list[SLO], due_s: Floats, end_s: Floats, ok: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[n] whether a request's deadline was kept, for a call of a workflow the workflow's."""
    deadline_s = np.array([np.inf if slo.deadline_s is None else slo.deadline_s for slo in slos])
    begin_s, last_s, well = due_s.copy(), end_s.copy(), ok.copy()
    numbers: dict[tuple[str, str], int] = {}
    of = np.full(len(slos), -1)
    for i, (request, slo) in enumerate(zip(run.workload, slos, strict=True)):
        if request.workflow and slo.deadline_s is not None:
            of[i] = numbers.setdefault((request.tenant, request.workflow), len(numbers))
    inside = of >= 0
    of = of[inside]
    begin, last, sound = np.full(len(numbers), np.inf), np.full(len(numbers), -np.inf), np.ones(len(numbers), dtype=bool)
    np.fmin.at(begin, of, due_s[inside])
    np.fmax.at(last, of, end_s[inside])
    np.logical_and.at(sound, of, ok[inside])
    begin_s[inside], last_s[inside], well[inside] = begin[of], last[of], sound[of]
    with np.errstate(invalid="ignore"):
        return well & (last_s - begin_s <= deadline_s)


def _on_schedule(log: Log, slos: list[SLO], due_s: Floats, first_s: Floats) -> Ints:
    """[n] how many output tokens of each request came by the schedule of its stream."""
    tokens = log.rows(Kind.TOKENS)
    order = np.argsort(tokens.request, kind="stable")
    count = log.a[tokens.row[order]].astype(np.int64)
    request = np.repeat(tokens.request[order], count)
    time_s = np.repeat(tokens.time_s[order], count)
    begins = np.searchsorted(request, np.arange(log.count))
    index = np.arange(len(request)) - begins[request]
    ttft_s = np.array([np.nan if slo.ttft_s is None else slo.ttft_s for slo in slos])
    tpot_s = np.array([np.inf if slo.tpot_s is None else slo.tpot_s for slo in slos])
    schedule_s = np.where(np.isnan(ttft_s), first_s, due_s + ttft_s)
    with np.errstate(invalid="ignore"):
        later_s = np.where(index == 0, 0.0, index * tpot_s[request])
    kept = time_s <= schedule_s[request] + later_s
    return np.bincount(request[kept], minlength=log.count).astype(np.int64)
