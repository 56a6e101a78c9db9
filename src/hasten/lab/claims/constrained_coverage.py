"""The part of the claim `pre3` that counts: of how many schemas of MaskBench every instance is judged rightly, by whom."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.lab.bench.mask_peers import INSTALLED

if TYPE_CHECKING:
    from hasten.lab.bench.mask_vocabulary import Words
    from hasten.lab.bench.masks import Case, Replayed

SAMPLE = "maskbench-sample.jsonl"
OURS = "hasten"
MOST_NAMED = 8
"""Refusals and wrong verdicts that are told one by one."""


def covered(cases: Sequence[Case], words: Words, progress: Any) -> dict[str, list[Replayed]]:
    """All schemas, by all engines; by bytes where `words` would take an hour."""
    from hasten.lab.bench import masks
    from hasten.lab.bench.mask_peers import Hasten, MaskEngine, XGrammar, peers
    from hasten.lab.bench.mask_vocabulary import letters
    from hasten.lab.workloads.data import find

    threads = os.cpu_count() or 1
    engines: list[tuple[MaskEngine, Sequence[Case], Words]] = [
        (engine, cases, words) for engine in (Hasten(words), *peers(words, whole=False, threads=threads))
    ]
    if "xgrammar" in INSTALLED:
        small = letters()
        engines.append((XGrammar(small, open_=True, threads=threads), masks.read(find(SAMPLE), small), small))
    found: dict[str, list[Replayed]] = {}
    for number, (engine, read, vocabulary) in enumerate(engines):
        room = masks.room(vocabulary)
        found[engine.name] = []
        for at, case in enumerate(read):
            progress(f"coverage, {engine.name}: {case.id}", (number + at / len(read)) / len(engines))
            found[engine.name].append(replace(masks.replay(engine, case, room, 1), compiled=None))
    return found


def samples(results: Mapping[str, list[Replayed]]) -> dict[str, list[float]]:
    from hasten.lab.bench.masks import coverage

    mine = coverage(results[OURS])
    others = [coverage(of) for name, of in results.items() if name != OURS]
    return {"coverage": [mine], **({"coverage-ahead": [mine - max(others)]} if others else {})}


def in_words(results: Mapping[str, list[Replayed]]) -> list[str]:
    from hasten.lab.bench.masks import per_group

    said = []
    for name, of in results.items():
        counts = {kind: sum(group.get(kind, 0) for group in per_group(of).values()) for kind in ("right", "wrong", "refused")}
        said.append(f"{name} {counts['right']} of {len(of)} right, {counts['wrong']} wrong, {counts['refused']} refused")
    lines = ["schemas with every instance judged rightly: " + "; ".join(said)]
    groups = {name: per_group(of) for name, of in results.items()}
    lines.append(
        f"by group ({', '.join(results)}): "
        + "; ".join(
            f"{group} " + ", ".join(f"{of[group].get('right', 0)}/{of[group]['schemas']}" for of in groups.values())
            for group in groups[OURS]
        )
    )
    faults = [f"{one.case.id} is refused: {one.refused}" for one in results[OURS] if one.refused]
    faults += [f"{one.case.id}: instances {one.wrong} judged wrongly" for one in results[OURS] if one.wrong]
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        lines.append("hasten: " + "; ".join(faults[:MOST_NAMED]) + more)
    return lines


def second(file: Path, words: Words) -> str:
    from hasten.lab.bench import masks
    from hasten.lab.bench.mask_peers import Hasten

    engine, room = Hasten(words), masks.room(words)
    found = [masks.replay(engine, case, room, 1) for case in masks.read(file, words)]
    faults = [f"{one.case.id} ({one.refused or f'instances {one.wrong}'})" for one in found if not one.right]
    return f"{file.name}: {len(found) - len(faults)} of {len(found)} schemas right; not: {', '.join(faults) or 'none'}"
