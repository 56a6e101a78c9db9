"""`kv-int8`: half the KV bytes of bfloat16, against dense KV and against keeping half of the keys."""

from __future__ import annotations

from hasten.lab.claims.base import Claim
from hasten.lab.claims.rounded_kv import WORKLOAD, measure, requirements
from hasten.lab.claims.sides import Side

SIDE = Side("kv-int8", ("kv-int8",))
CONTROL = Side("random half", ("random-eviction:share=0.56",))
"""With heads of 32 dimensions, the built-in model's, codes and scales take 0.5625 of bfloat16's bytes."""

CLAIM = Claim(
    name="kv-int8",
    title="KV of 8 bits",
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU (Sheng et al., 2023)",
    workload=WORKLOAD,
    baseline="the plain engine, bfloat16",
    technique="kv-int8",
    requirements=requirements(
        points=3, perplexity=0.5, bytes_=0.52, attention=1.6, step=1.3, control="a random 0.56 of the keys (random-eviction)"
    ),
    run=lambda setting: measure(setting, SIDE, CONTROL),
)
