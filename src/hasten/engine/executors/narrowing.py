"""Rows that leave a step before its last layer.

A row whose output nobody wants runs through the layers only for its keys and values. Where something says that those of the
later layers are not needed, or are there already, it may leave (`Step.leave`): between two ops, as all that they hand on is
row by row. The step goes on as if it had begun without the row: stream, slots, positions, views and the wanted rows of logits
are those of the rest. What the row stored so far stays, and the rest go on reading its slots, which hold in the later layers
what they held before the step; that this is something is the business of whoever lets it leave.

Cost: the stream is copied once, the index made once more and the attention policy asked once more for a plan. Recorded steps
have as many rows as they have and let none leave.
"""

from __future__ import annotations

import numpy as np
import torch

from hasten.engine.batch import Batch
from hasten.engine.executors.step import Step
from hasten.kernels import ViewIndex


def index_of(batch: Batch, device: torch.device) -> ViewIndex:
    """What the rows of a batch may read."""
    index = ViewIndex.from_numpy(
        batch.span_offsets,
        batch.positions,
        batch.runs,
        batch.run_offsets,
        batch.ancestors,
        batch.is_tree,
        device,
    )
    index.contexts = batch.contexts
    return index


def narrow(step: Step) -> int:
    """Go on without the rows that are `leaving`, which must all be there still; how many. Raises ValueError as `Batch.keep`,
    with nothing changed but that none is leaving."""
    leaving, step.leaving = np.unique(np.concatenate(step.leaving)), []
    device, size = step.x.device, step.batch.size
    place = np.arange(size) if step.place is None else step.place.cpu().numpy()
    stays = np.ones(size, dtype=bool)
    stays[place[leaving]] = False
    rows = np.flatnonzero(stays)
    if len(rows) == size:
        return 0
    step.batch = step.batch.keep(rows)
    moved = np.full(len(place) + 1, len(place))
    moved[rows] = np.arange(len(rows))
    step.place = torch.from_numpy(moved[place]).to(device)
    step.index = index_of(step.batch, device)
    step.attention.before_step(step.index)
    kept = torch.from_numpy(rows).to(device)
    x, h, delta = step.x, step.h, step.delta
    step.slots = step.slots[kept]
    step.x = x[kept]
    step.h = step.x if h is x else h[kept]
    step.delta = None if delta is None else step.h if delta is h else delta[kept]
    return size - len(rows)
