"""Where sequences stand, kept as columns, so that a thousand of them are weighed at once.

A sequence that has not been served yet changes nothing but its waiting time, so its row is filled once; those that have been
are read again whenever their keys are made.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.base import View
from hasten.engine.scheduling.gain import Standing
from hasten.engine.scheduling.objectives import NEVER_S, begin_s, deadline_s, first_token_s, is_compound
from hasten.engine.scheduling.patterns import CASES, LATER, Patterns
from hasten.engine.sequence import Sequence, State

Ints = npt.NDArray[np.int64]

_COLUMNS = tuple(field.name for field in fields(Standing))


@dataclass(slots=True)
class Group:
    """The calls of a workflow under one deadline: rows of the live ones by sequence, and the tokens that ended ones put in."""

    number: int
    key: tuple[str, str, str]
    rows: dict[int, int] = field(default_factory=dict)
    ended: float = 0.0


class Standings:
    def __init__(self, quantile: float | None, best_effort_s: float, output_weight: float) -> None:
        self._quantile = quantile
        self._best_effort_s = best_effort_s
        self._weight = output_weight
        self._columns = {name: np.zeros((64, CASES) if name == "left" else 64) for name in _COLUMNS}
        self.patterns = Patterns()
        self.later = np.zeros((64, CASES, LATER))
        """By row: what comes after its workflow's stage."""
        self.streams = np.zeros(64, dtype=bool)
        """By row: it has a schedule for its tokens."""
        self.group = np.full(64, -1, dtype=np.int64)
        """By row: the number of its group, -1 without one."""
        self._row: dict[int, int] = {}
        self._free = list(range(63, -1, -1))
        self._part: dict[int, int] = {}
        """By sequence: the number of its group, or its own."""
        self._look_at: dict[int, int] = {}
        """By sequence: the output length at which its length is to be predicted again."""
        self._groups: dict[tuple[str, str, str], Group] = {}
        self._by_number: dict[int, Group] = {}
        self._count = 0

    def part(self, which: int, parts: int) -> list[int]:
        """The sequences of one of so many parts; the calls of a group are in one."""
        return [id for id, number in self._part.items() if number % parts == which]

    def refresh(self, sequences: Seq[Sequence], view: View, block_copy_s: float) -> Ints:
        """The rows of these, brought up to date: int64 [n]."""
        rows = np.empty(len(sequences), dtype=np.int64)
        row_of, look_at = self._row, self._look_at
        served: list[tuple[int, Sequence]] = []
        for i, seq in enumerate(sequences):
            row = row_of.get(seq.id)
            if row is None:
                row = self._enter(seq, view)
            rows[i] = row
            if seq.service or seq.output_length:
                if seq.output_length >= look_at[seq.id]:
                    self._look(row, seq, view)
                served.append((row, seq))
        if served:
            self._update(served, block_copy_s)
        return rows

    def _update(self, served: Seq[tuple[int, Sequence]], block_copy_s: float) -> None:
        columns = self._columns
        at = np.array([row for row, _ in served])
        produced = np.array([seq.output_length for _, seq in served], dtype=np.float64)
        # What was predicted counts from the last look on.
        columns["left"][at] = np.maximum(1.0, columns["left"][at] - (produced - columns["produced"][at])[:, None])
        columns["produced"][at] = produced
        columns["todo"][at] = [0 if seq.decoding else seq.remaining for _, seq in served]
        columns["held"][at] = [seq.view.length for _, seq in served]
        away = (State.SWAPPED, State.LEAVING)
        columns["copy_s"][at] = [len(seq.stored) * block_copy_s if seq.state in away else 0.0 for _, seq in served]

    def _enter(self, seq: Sequence, view: View) -> int:
        if not self._free:
            self._grow()
        row = self._row[seq.id] = self._free.pop()
        slo = seq.request.slo
        streams = slo.ttft_s is not None or slo.tpot_s is not None
        due_s = deadline_s(seq, view)
        if not streams and due_s >= NEVER_S:
            due_s = seq.arrival_s + self._best_effort_s
        values = {
            "arrival_s": seq.arrival_s,
            "begin_s": begin_s(seq, view),
            "deadline_s": due_s,
            "wait_s": seq.arrival_s + (slo.ttft_s if slo.ttft_s is not None else self._best_effort_s),
            "first_s": first_token_s(seq),
            "tpot_s": slo.tpot_s if slo.tpot_s is not None else NEVER_S,
            "prompt": seq.prompt_length,
            "produced": seq.output_length,
            "todo": seq.remaining,
            "held": seq.view.length,
            "copy_s": 0.0,
        }
        for name, value in values.items():
            self._columns[name][row] = value
        self.streams[row] = streams
        number = self.group[row] = self._join(seq, row, view)
        self.later[row] = self.patterns.later(seq) if number >= 0 else 0.0
        self._part[seq.id] = number if number >= 0 else seq.id
        self._look(row, seq, view)
        return row

    def _look(self, row: int, seq: Sequence, view: View) -> None:
        """Predict how much it will still produce: in equally likely cases, or at the quantile in all of them."""
        samples = view.remaining_output(seq)
        produced = seq.output_length
        if self._quantile is not None:
            at = np.full(CASES, min(len(samples) - 1, int(np.ceil(self._quantile * len(samples))) - 1))
        else:
            at = ((np.arange(CASES) + 0.5) / CASES * len(samples)).astype(np.int64)
            if self.group[row] >= 0:  # calls of a workflow are not all long in the same case
                at = at[np.random.default_rng(seq.id).permutation(CASES)]
        self._columns["left"][row] = samples[at]
        self._columns["produced"][row] = produced
        self._look_at[seq.id] = produced + max(16, produced // 4)

    def _join(self, seq: Sequence, row: int, view: View) -> int:
        if not is_compound(seq):
            return -1
        request = seq.request
        key = (request.tenant, request.app.application, request.app.workflow)
        group = self._groups.get(key)
        if group is None:
            self._count += 1
            group = self._groups[key] = self._by_number[self._count] = Group(self._count, key)
            workflow = view.workflow(seq)
            group.ended = workflow.prompt_tokens + self._weight * workflow.output_tokens
        group.rows[seq.id] = row
        return group.number

    def _grow(self) -> None:
        size = len(self.group)
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros_like(column)])
        self.later = np.concatenate([self.later, np.zeros_like(self.later)])
        self.streams = np.concatenate([self.streams, np.zeros(size, dtype=bool)])
        self.group = np.concatenate([self.group, np.full(size, -1, dtype=np.int64)])
        self._free = list(range(2 * size - 1, size - 1, -1))

    def began(self, seq: Sequence, now_s: float) -> None:
        """Its first token came: without an objective for that, its schedule counts from now."""
        row = self._row.get(seq.id)
        if row is not None and self._columns["first_s"][row] >= NEVER_S:
            self._columns["first_s"][row] = now_s

    def ended_one(self, seq: Sequence, ok: bool) -> None:
        row = self._row.pop(seq.id, None)
        if row is None:
            return
        self._look_at.pop(seq.id, None)
        self._part.pop(seq.id, None)
        self._free.append(row)
        number = int(self.group[row])
        self.group[row] = -1
        if number >= 0:
            group = self._by_number[number]
            group.rows.pop(seq.id, None)
            group.ended += seq.prompt_length + self._weight * seq.output_length if ok else 0.0
            if not group.rows:  # made anew from the workflow's ended calls when its next stage comes
                del self._groups[group.key], self._by_number[number]

    def siblings(self, rows: Ints) -> Ints:
        """Rows of the same groups that are not among `rows`: int64."""
        groups = {int(number) for number in self.group[rows] if number >= 0} if len(rows) else set()
        if not groups:
            return np.empty(0, dtype=np.int64)
        inside = set(rows.tolist())
        others = [row for number in groups for row in self._by_number[number].rows.values() if row not in inside]
        return np.array(others, dtype=np.int64)

    def ended(self, number: int) -> float:
        """What the ended calls of a group put in, weighted."""
        return self._by_number[number].ended

    def of(self, rows: Ints) -> Standing:
        """Columns [n, 1], `left` [n, CASES]."""
        return Standing(**{name: column[rows].reshape(len(rows), -1) for name, column in self._columns.items()})
