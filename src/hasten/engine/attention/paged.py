"""Paged attention: every query reads the whole of its sequence's view in the block pool (Kwon et al., 2023). Exact."""

from __future__ import annotations

from torch import Tensor

from hasten.engine.attention.base import StatelessAttention
from hasten.engine.executors.step import Site, Step
from hasten.engine.technique import Technique


class PagedAttention(StatelessAttention):
    native = True

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        kernels = step.kernels
        kernels.rope_and_store(q, k, v, site.cos_sin, step.index.positions, step.slots, site.k, site.v)
        out = step.empty(*q.shape)
        kernels.attention(q, site.k, site.v, step.index, site.scale, out, window=site.window, deterministic=step.deterministic)
        return out.view(q.shape[0], -1)


TECHNIQUE = Technique(
    name="paged",
    seam="attention",
    summary="full attention over paged blocks, sequence by sequence",
    exact=True,
    sets={"attention.policy": "paged"},
    make=lambda context, options: PagedAttention(),
)
