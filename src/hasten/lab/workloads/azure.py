"""Loader of the Azure LLM inference traces (Patel et al., Splitwise, ISCA 2024; Azure/AzurePublicDataset, 2023 and 2024).

CSV with the columns TIMESTAMP (date and time, seven decimals), ContextTokens, GeneratedTokens: two services of one hour each.
Only lengths and times are known, so no two prompts share anything.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.reading import Floats, Table, counted, no_collection, read_csv

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def load(path: Path) -> Workload:
    """The requests of a trace file by time of arrival, the first at 0 s. Raises WorkloadError for broken rows."""
    table = read_csv(path, COLUMNS)
    at_s = _times(table)
    prompt, output = table.ints("ContextTokens"), table.ints("GeneratedTokens")
    order = np.argsort(at_s, kind="stable")
    rows = zip((at_s[order] - at_s[order[0]]).tolist(), prompt[order].tolist(), output[order].tolist(), strict=True)
    with no_collection():
        requests = [
            TimedRequest(id=str(number), arrival_s=arrival_s, prompt_tokens=p, output_tokens=o)
            for number, (arrival_s, p, o) in enumerate(counted(rows, len(table), "making requests"))
        ]
    return Workload(name=path.stem, requests=requests, source=f"{path.name}: {len(requests):,} requests")


def _times(table: Table) -> Floats:
    """Seconds since the earliest, float64 [n]."""
    texts = [text.strip().removesuffix("+00:00") for text in table.columns["TIMESTAMP"]]
    try:
        stamps = np.array(texts, dtype="datetime64[ns]")
    except ValueError:
        for row, text in enumerate(texts):
            try:
                np.datetime64(text, "ns")
            except ValueError:
                raise WorkloadError(
                    f"{table.place(row, 'TIMESTAMP')} must be a date and time as 2023-11-16 18:15:46.68059, got {text!r}"
                ) from None
        raise
    missing = np.isnat(stamps)
    if missing.any():
        raise WorkloadError(f"{table.place(int(np.argmax(missing)), 'TIMESTAMP')} is not a time")
    return (stamps - stamps.min()).astype(np.float64) * 1e-9
