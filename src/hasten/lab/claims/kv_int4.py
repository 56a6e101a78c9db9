"""`kv-int4`: little more than a quarter of bfloat16's KV bytes, against dense KV and against keeping so many of the keys."""

from __future__ import annotations

from hasten.lab.claims.base import Claim
from hasten.lab.claims.rounded_kv import WORKLOAD, measure, requirements
from hasten.lab.claims.sides import Side

SIDE = Side("kv-int4", ("kv-int4",))
CONTROL = Side("random quarter", ("random-eviction:share=0.28",))

CLAIM = Claim(
    name="kv-int4",
    title="KV of 4 bits in groups of 32",
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU (Sheng et al., 2023)",
    workload=WORKLOAD,
    baseline="the plain engine, bfloat16",
    technique="kv-int4",
    requirements=requirements(
        points=5, perplexity=3, bytes_=0.3, attention=2.2, step=1.6, control="a random 0.28 of the keys (random-eviction)"
    ),
    run=lambda setting: measure(setting, SIDE, CONTROL),
)
