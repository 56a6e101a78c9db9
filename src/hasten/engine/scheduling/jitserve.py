"""JITServe: just enough service for each request's objectives, although nobody knows how long its answer will be.

Zhang et al., JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025 (NSDI '26). A preset of three parts,
each of use alone: `goodput-density` orders by what serving a sequence gains over what it takes, `frames` decides who runs a
frame of steps at a time and gives members first right to rows and memory, `capped-swaps` moves the others' KV a few sequences
a step. The fourth part of the paper, its predictor of lengths, is whatever part answers for lengths: switch on one that
learns beside it (`jitserve,length-quantiles`), since with the default, which knows a request's limit only, every request
looks as long as its limit. Exact; what is reconstructed and what differs is said by each part.
"""

from __future__ import annotations

from hasten.engine.technique import Technique

TECHNIQUE = Technique(
    name="jitserve",
    seam="scheduling",
    summary="most goodput under mixed service levels and uncertain lengths, planned in frames",
    exact=True,
    sets={
        "scheduling.order": "goodput-density",
        "scheduling.batching": "frames",
        "scheduling.residency": "capped-swaps",
    },
    paper="JITServe: SLO-aware LLM Serving with Imprecise Request Information, 2025",
)
