"""Requests with objectives, for the tests of orders that read them."""

from __future__ import annotations

import numpy as np

from hasten.engine.outputs import TokenDelta
from hasten.engine.request import SLO, AppContext, Request, SamplingParams


def asking(
    id: str,
    slo: SLO | None = None,
    *,
    prompt: int = 5,
    tokens: int = 3,
    workflow: str = "",
    stage: str = "",
    app: str = "app",
    arrival_s: float | None = None,
) -> Request:
    return Request(
        id=id,
        prompt=np.arange(prompt) % 37,
        sampling=SamplingParams(max_tokens=tokens, temperature=0, seed=1),
        slo=slo or SLO(),
        app=AppContext(application=app, workflow=workflow, stage=stage),
        arrival_s=arrival_s,
    )


def ends(deltas: list[TokenDelta]) -> list[str]:
    """The requests that ended, in order."""
    assert all(delta.error is None for delta in deltas)
    return [delta.request_id for delta in deltas if delta.last]
