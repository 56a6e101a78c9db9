"""What a request's SLO asks of its sequences, as moments of the engine's clock.

A deadline counts from the request's own arrival, or for a call of a workflow from the arrival of the workflow's first call:
the application waits for all of them, so calls of one workflow share what time is left.
"""

from __future__ import annotations

from hasten.engine.scheduling.base import View
from hasten.engine.sequence import Sequence

NEVER_S = 1e12
"""Stands for a moment that never comes: finite, so that sums and differences of moments stay numbers."""


def is_compound(sequence: Sequence) -> bool:
    """It is a call of a workflow that as a whole has a deadline."""
    request = sequence.request
    return bool(request.app.workflow) and request.slo.deadline_s is not None


def begin_s(sequence: Sequence, view: View) -> float:
    """When the time of its deadline began to run."""
    return view.workflow(sequence).arrival_s if is_compound(sequence) else sequence.arrival_s


def deadline_s(sequence: Sequence, view: View) -> float:
    """When its last token is due; `NEVER_S` without a deadline."""
    allowed_s = sequence.request.slo.deadline_s
    return begin_s(sequence, view) + allowed_s if allowed_s is not None else NEVER_S


def first_token_s(sequence: Sequence) -> float:
    """When its first token is due; `NEVER_S` without such an objective."""
    allowed_s = sequence.request.slo.ttft_s
    return sequence.arrival_s + allowed_s if allowed_s is not None else NEVER_S
