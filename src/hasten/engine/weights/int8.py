"""Weights of 8 bits (`quantized.py`): after LLM.int8 (Dettmers et al., 2022) and ZeroQuant (Yao et al., 2022), whose scales are
finer than a row here, so that no columns need be kept apart. Not exact; half the bytes of bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from hasten.engine.technique import Technique
from hasten.engine.weights.dense import WeightContext
from hasten.engine.weights.quantized import Form, MakeQuantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    group: Annotated[Literal[32, 64, 128, 256], BeforeValidator(int)] = 128
    """Input columns that share a scale, of weights and of activations: 32, 64, 128 or 256."""
    head: bool = True
    """Whether the head is rounded too."""
    embedding: bool = True
    """Whether tokens are looked up in rounded weights too."""


def _make(context: WeightContext, options: Options) -> MakeQuantized:
    form = Form(bits=8, group=options.group)
    return MakeQuantized(form, form if options.head else None, form if options.embedding else None, context)


TECHNIQUE = Technique(
    name="int8",
    seam="weights",
    summary="weights and activations of 8 bits: half the bytes, twice the products",
    exact=False,
    sets={"weights.store": "int8"},
    options=Options,
    make=_make,
    paper="ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers, 2022",
)
