"""Weights of 4 bits in small groups (`quantized.py`), activations of 8: the nearest levels, or those that a checkpoint of
`hasten quantize` holds. The head, which no layer comes after, has 8 bits, and so has the embedding. Not exact; about a third
of the bytes of bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from hasten.engine.technique import Technique
from hasten.engine.weights.dense import WeightContext
from hasten.engine.weights.quantized import Form, MakeQuantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    group: Annotated[Literal[32, 64, 128, 256], BeforeValidator(int)] = 32
    """Input columns that share a scale, of weights and of activations: 32, 64, 128 or 256."""
    symmetric: bool = False
    """Without zero points: a little smaller and less exact."""
    head: Annotated[Literal[4, 8, 16], BeforeValidator(int)] = 8
    """Bits of the head; 16: the run dtype. In 4 bits it costs more quality than all layers."""
    embedding: bool = True
    """Whether tokens are looked up in rounded weights too."""


def _make(context: WeightContext, options: Options) -> MakeQuantized:
    form = Form(bits=4, group=options.group, symmetric=options.symmetric)
    heads = {4: form, 8: Form(bits=8, group=128), 16: None}
    embedding = Form(bits=8, group=options.group) if options.embedding else None
    return MakeQuantized(form, heads[options.head], embedding, context)


TECHNIQUE = Technique(
    name="int4",
    seam="weights",
    summary="weights of 4 bits in small groups, activations and the head of 8: a third of the bytes",
    exact=False,
    sets={"weights.store": "int4"},
    options=Options,
    make=_make,
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022",
)
