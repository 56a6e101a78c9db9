"""What a run's events say: figures of each request, and of the run as a whole.

Pure functions of a `Run`. A request is one sequence here (n=1); sequences forked off it are not followed. Times count from when
a request was due, never from when it was sent, so a server that blocks its clients cannot hide the waiting. Terms as in the
field: time to first token (TTFT), time per output token after the first (TPOT), end-to-end time (E2E), goodput (DistServe,
2024), and Jain's index of fairness (Jain, Chiu and Hawe, 1984).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Kind
from hasten.engine.request import SLO
from hasten.lab.bench.log import Log, Rows
from hasten.lab.bench.run import Floats, Ints, Run
from hasten.lab.bench.slo import describe
from hasten.lab.bench.token_goodput import token_goodput

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Table:
    """One row a request of the workload, in its order; every array is [n].

    `due_s`, `scheduled_s` (first), `first_token_s`, `end_s`: float64, seconds after the workload's start, NaN for what never
    happened or was not seen (a client sees no scheduling). `ok`: it ended well. `prompt_tokens`, `output_tokens`,
    `reused_tokens` (prompt tokens whose KV was found when it was first scheduled), `preemptions` (recomputed or swapped):
    int64. `longest_stall_s`: largest gap between two of its commits of output, NaN where there were fewer than two."""

    due_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    end_s: Floats
    ok: Bools
    prompt_tokens: Ints
    output_tokens: Ints
    reused_tokens: Ints
    preemptions: Ints
    longest_stall_s: Floats

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.due_s

    @property
    def tpot_s(self) -> Floats:
        """Seconds per output token after the first; NaN where there is only one, or no end."""
        later = np.where(self.output_tokens > 1, self.output_tokens - 1, np.nan)
        return (self.end_s - self.first_token_s) / later

    @property
    def e2e_s(self) -> Floats:
        return self.end_s - self.due_s

    @property
    def queue_s(self) -> Floats:
        """From due to first scheduled."""
        return self.scheduled_s - self.due_s


@dataclass(frozen=True, slots=True)
class Gaps:
    """Between successive commits of output of the same request; arrays [m], request after request. Tokens committed together
    (accepted drafts) are one commit: what a reader waits for. `end_s`: of the later one, after the workload's start."""

    request: Ints
    seconds: Floats
    end_s: Floats


def _gaps(log: Log) -> Gaps:
    tokens = log.rows(Kind.TOKENS)
    order = np.argsort(tokens.request, kind="stable")
    request, time_s = tokens.request[order], tokens.time_s[order]
    same = request[1:] == request[:-1]
    return Gaps(request[1:][same], np.diff(time_s)[same], time_s[1:][same])


def gaps(run: Run) -> Floats:
    """[m] all inter-token gaps of the run, in seconds."""
    return _gaps(Log(run)).seconds


def gaps_by_request(run: Run) -> Gaps:
    """The same, with whose they are and when they ended."""
    return _gaps(Log(run))


def requests(run: Run) -> Table:
    """The figures of every request."""
    log = Log(run)
    return _table(run, log, _gaps(log))


def _table(run: Run, log: Log, found: Gaps) -> Table:
    n = log.count
    scheduled_s, first_scheduled = log.first(log.rows(Kind.SCHEDULED))
    ended = log.rows(Kind.FINISHED, Kind.FAILED)
    failed = np.zeros(n, dtype=bool)
    failed[log.rows(Kind.FAILED).request] = True
    end_s, end_row = log.first(ended)
    arrived = log.rows(Kind.ARRIVED)
    prompt = np.array([request.prompt_tokens for request in run.workload], dtype=np.int64)
    prompt[arrived.request] = log.a[arrived.row]
    stall = np.full(n, -np.inf)
    np.maximum.at(stall, found.request, found.seconds)
    reused = log.rows(Kind.REUSED)
    # Later ones are its own KV, found again after it was preempted.
    early = reused.row < first_scheduled[reused.request]
    first_reused = Rows(reused.row[early], reused.request[early], reused.time_s[early])
    return Table(
        due_s=run.due_s - run.start_s,
        scheduled_s=scheduled_s,
        first_token_s=log.first(log.rows(Kind.FIRST_TOKEN))[0],
        end_s=end_s,
        ok=(end_row < len(log.kind)) & ~failed,
        prompt_tokens=prompt,
        output_tokens=log.total(log.rows(Kind.TOKENS)),
        reused_tokens=np.minimum(log.total(first_reused), prompt),
        preemptions=np.bincount(log.rows(Kind.PREEMPTED, Kind.SWAPPED).request, minlength=n).astype(np.int64),
        longest_stall_s=np.where(stall >= 0, stall, np.nan),
    )


# -- goodput and fairness ----------------------------------------------------------------------------------------------


def met(run: Run, table: Table, slo: SLO | None) -> Bools:
    """[n] the requests that ended well and kept every objective of theirs: those of their SLO class where the workload has
    one, else `slo`. A request of one token has no TPOT and keeps any."""
    ok = table.ok.copy()
    default = slo or SLO()
    asked = [run.workload.slos.get(request.slo_class, default) for request in run.workload]
    for value_s, name in ((table.ttft_s, "ttft_s"), (table.tpot_s, "tpot_s"), (table.e2e_s, "deadline_s")):
        bound = np.array([np.inf if (limit := getattr(one, name)) is None else limit for one in asked])
        ok &= ~(value_s > bound)
    return ok


def goodput_definition(run: Run, slo: SLO | None) -> str:
    """What `goodput` counts in this run, as one sentence; empty where there is no objective and so no goodput."""
    classes = {name: describe(one) for name, one in run.workload.slos.items() if describe(one)}
    general = describe(slo) if slo is not None else ""
    if not classes and not general:
        return ""
    parts = [f"{words} for class {name}" for name, words in classes.items()]
    if general:
        parts.append(f"{general} for the others" if parts else general)
    return (
        "Goodput: the share of all requests (and their number per second) that ended well and jointly kept "
        + "; ".join(parts)
        + ", counted from when each was due."
    )


def fairness_definition(run: Run) -> str:
    """Over what `jain` is computed in this run."""
    who = "tenants" if _tenants(run) else "requests"
    return f"Jain index over the {who}' service rates (prompt and output tokens per second between due and end); 1 is equal."


def _tenants(run: Run) -> list[str]:
    names = sorted({request.tenant for request in run.workload})
    return names if len(names) > 1 else []


def _jain(run: Run, table: Table) -> float:
    tokens = np.where(table.ok, table.prompt_tokens + table.output_tokens, 0).astype(np.float64)
    took_s = np.where(table.ok, table.e2e_s, 0.0)
    names = _tenants(run)
    if names:
        number = {name: i for i, name in enumerate(names)}
        of = np.array([number[request.tenant] for request in run.workload])
        tokens, took_s = (np.bincount(of, column, len(names)).astype(np.float64) for column in (tokens, took_s))
    rate = np.divide(tokens, took_s, out=np.zeros_like(tokens), where=took_s > 0)
    squares = float((rate**2).sum())
    return float(rate.sum()) ** 2 / (len(rate) * squares) if squares else float("nan")


# -- the run as a whole ------------------------------------------------------------------------------------------------


def workflows(run: Run, table: Table) -> Floats:
    """[workflows] completion times in seconds, from the first stage's due time to the last stage's end; NaN for a workflow of
    which a request failed. In order of first appearance; empty where the workload has none."""
    numbers: dict[str, int] = {}
    of = np.array([numbers.setdefault(r.workflow, len(numbers)) if r.workflow else -1 for r in run.workload])
    inside = of >= 0
    begin, end = np.full(len(numbers), np.inf), np.full(len(numbers), -np.inf)
    np.fmin.at(begin, of[inside], table.due_s[inside])
    np.fmax.at(end, of[inside], table.end_s[inside])
    took_s = end - begin
    took_s[of[inside & ~table.ok]] = np.nan
    return took_s


@dataclass(frozen=True, slots=True)
class Steps:
    """The engine's steps, arrays [m] in order: when each ended (seconds after the workload's start), tokens computed, seconds
    taken, rows, and the share of the KV blocks in use after it (NaN where the engine's size is not known)."""

    end_s: Floats
    tokens: Ints
    took_s: Floats
    rows: Ints
    kv: Floats


def steps(run: Run) -> Steps:
    """Empty for a run seen from a client."""
    kind = np.asarray(run.columns["kind"])
    step, memory = np.flatnonzero(kind == Kind.STEP), np.flatnonzero(kind == Kind.MEMORY)
    count = min(len(step), len(memory))
    step, memory = step[-count:] if count else step[:0], memory[-count:] if count else memory[:0]
    a, b = (np.asarray(run.columns[name], dtype=np.float64) for name in "ab")
    free = a[memory]
    kv = 1 - free / run.total_blocks if run.total_blocks else np.full(count, np.nan)
    end_s = np.asarray(run.columns["time_s"], dtype=np.float64)[step] - run.start_s
    return Steps(end_s, a[step].astype(np.int64), b[step], b[memory].astype(np.int64), kv)


def summary(run: Run, slo: SLO | None = None) -> dict[str, float]:
    """Figures of the whole run by name; what the run cannot tell is left out.

    `ttft_`, `tpot_`, `gap_`, `e2e_`, `queue_`, `workflow_` with `mean_s`, `p50_s`, `p95_s`, `p99_s`, over requests that ended
    well (gaps: of all, and `gap_p999_s` too). Rates are per second between the first due time and the last end, and count
    requests that ended well. `goodput` (share of all requests) and `goodput_per_s`: see `goodput_definition`; `token_goodput`
    (share of all output tokens) and `token_goodput_per_s`: see `bench.token_goodput`; `jain`: see `fairness_definition`.
    `kv_mean` is over time, `kv_peak` the largest share of blocks in use. `cpu_s_per_token`: per output token, real runs only.
    `valid` is 1 unless the replay itself fell behind."""
    log = Log(run)
    found = _gaps(log)
    table = _table(run, log, found)
    ok = table.ok
    out = {"requests": float(len(table)), "completed": float(ok.sum()), "failed": float((~ok).sum())}
    done_s = table.end_s[np.isfinite(table.end_s)]
    due_s = table.due_s[np.isfinite(table.due_s)]
    took_s = float(done_s.max() - due_s.min()) if len(done_s) and len(due_s) else 0.0
    prompt, output = int(table.prompt_tokens[ok].sum()), int(table.output_tokens[ok].sum())
    out |= {"prompt_tokens": float(prompt), "output_tokens": float(output)}
    if took_s > 0:
        out["duration_s"] = took_s
        out["requests_per_s"] = out["completed"] / took_s
        out["output_tokens_per_s"] = output / took_s
        out["tokens_per_s"] = (output + prompt) / took_s
    for name, values in (
        ("ttft", table.ttft_s[ok]),
        ("tpot", table.tpot_s[ok]),
        ("gap", found.seconds),
        ("e2e", table.e2e_s[ok]),
        ("queue", table.queue_s[ok]),
        ("workflow", workflows(run, table)),
    ):
        out |= _quantiles(name, values)
    if len(found.seconds):
        out["longest_stall_s"] = float(found.seconds.max())
        out["gap_p999_s"] = float(np.percentile(found.seconds, 99.9))
    if goodput_definition(run, slo):
        kept = met(run, table, slo)
        out["goodput"] = float(kept.mean())
        if took_s > 0:
            out["goodput_per_s"] = float(kept.sum()) / took_s
    if any(describe(asked) for asked in run.workload.slos.values()):
        in_time = token_goodput(run)
        out |= {"token_goodput": in_time.share, "token_goodput_per_s": in_time.per_s}
    if ok.any():
        out["jain"] = _jain(run, table)
        out["prefix_hit_rate"] = float(table.reused_tokens[ok].sum()) / prompt
    out["preemptions"] = float(table.preemptions.sum())
    out |= _memory(run)
    drafted = log.rows(Kind.DRAFTED)
    if len(drafted.row):
        out["drafted"] = float(log.a[drafted.row].sum())
        out["accepted"] = float(np.asarray(run.columns["b"])[drafted.row].sum())
    if not run.simulated and run.peak_memory_bytes:
        out["peak_memory_bytes"] = float(run.peak_memory_bytes)
    if not run.simulated and run.cpu_s and output:
        out["cpu_s_per_token"] = run.cpu_s / output
    return out | {"lag_p99_s": run.lag_p99_s, "valid": float(run.valid)}


def _quantiles(name: str, values: Floats) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return {f"{name}_mean_s": float(values.mean()), f"{name}_p50_s": p50, f"{name}_p95_s": p95, f"{name}_p99_s": p99}


def _memory(run: Run) -> dict[str, float]:
    found = steps(run)
    if not len(found.kv) or not np.isfinite(found.kv).all():
        return {}
    held_s = np.diff(found.end_s)
    mean = float((found.kv[:-1] * held_s).sum() / held_s.sum()) if held_s.sum() > 0 else float(found.kv.mean())
    return {"kv_mean": mean, "kv_peak": float(found.kv.max())}
