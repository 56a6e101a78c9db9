"""Loader of the BurstGPT traces (Wang et al., BurstGPT, KDD 2025; HPMLL/BurstGPT).

CSV with the columns Timestamp (seconds from midnight of the first day), Model, Request tokens, Response tokens, Total tokens,
Log Type (`Conversation log` or `API log`), in later releases also Session ID and Elapsed time. A response of 0 tokens marks a
request the service failed to answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.reading import counted, no_collection, read_csv

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")


def load(path: Path, *, failures: Literal["drop", "keep"] = "drop") -> Workload:
    """The requests of a trace file by time of arrival, the first at 0 s.

    `application` is model and way of use, as `ChatGPT/conversation` or `GPT-4/api`; `workflow` the session, where the file
    names one (its requests keep their recorded times: nothing waits for an earlier answer). `failures`: requests without an
    answer are dropped, or kept with `failed` set and one token to generate. Raises WorkloadError for broken rows."""
    if failures not in ("drop", "keep"):
        raise WorkloadError(f"failures must be drop or keep, got {failures!r}")
    table = read_csv(path, COLUMNS, optional=("Session ID",))
    at_s = table.floats("Timestamp")
    output = table.ints("Response tokens", low=0)
    prompt = table.ints("Request tokens", low=0)
    answered = output > 0
    empty = answered & (prompt == 0)
    if empty.any():
        raise WorkloadError(f"{table.place(int(np.argmax(empty)), 'Request tokens')} is 0 although there was a response")
    order = np.argsort(at_s, kind="stable")
    if failures == "drop":
        order = order[answered[order]]
    if not len(order):
        raise WorkloadError(f"{path}: no request in it was answered")
    models, types = table.columns["Model"], table.columns["Log Type"]
    sessions = table.columns.get("Session ID")
    names: dict[tuple[str, str], str] = {}
    requests = []
    with no_collection():
        start_s = at_s[order[0]]
        columns = (order, at_s[order] - start_s, np.maximum(prompt[order], 1), np.maximum(output[order], 1), ~answered[order])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, (row, arrival_s, p, o, failed) in enumerate(counted(rows, len(order), "making requests")):
            key = (models[row], types[row])
            name = names.get(key) or names.setdefault(key, f"{key[0]}/{key[1].lower().removesuffix(' log')}")
            session = sessions[row] if sessions is not None else ""
            requests.append(
                TimedRequest(
                    id=str(number),
                    arrival_s=arrival_s,
                    prompt_tokens=p,
                    output_tokens=o,
                    application=name,
                    workflow=session,
                    failed=failed,
                )
            )
    lost = int(len(table) - answered.sum())
    source = f"{path.name}: {len(requests):,} requests; {lost:,} unanswered ones {'dropped' if failures == 'drop' else 'kept'}"
    return Workload(name=path.stem, requests=requests, source=source)
