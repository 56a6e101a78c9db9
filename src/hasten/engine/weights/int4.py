"""Weights of 4 bits in small groups (`quantized.py`), activations of 8: the nearest levels, or those that a checkpoint of
`hasten quantize` holds. Not exact; a quarter of the bytes of bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.engine.technique import Technique
from hasten.engine.weights.quantized import Form, MakeQuantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    group: int = 32
    """Input columns that share a scale, of weights and of activations: 32, 64, 128 or 256."""
    symmetric: bool = False
    """Without zero points: a little smaller and less exact."""
    head: bool = True
    """Whether the head is rounded too."""


TECHNIQUE = Technique(
    name="int4",
    seam="weights",
    summary="weights of 4 bits in small groups, activations of 8: a quarter of the bytes",
    exact=False,
    sets={"weights.store": "int4"},
    options=Options,
    make=lambda context, options: MakeQuantized(
        Form(bits=4, group=options.group, symmetric=options.symmetric), context, options.head
    ),
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022",
)
