"""KV of 8 bits: every key and value of a token's head rounded to 256 levels between its smallest and largest element.

Rounding a cache as it is written (FlexGen, Sheng et al., 2023; KIVI, Liu et al., 2024, compares ways) halves what a decoded
token reads and what a context takes. Here each token has for every head one scale and one low in bfloat16, for keys and values
alike, keys after their rotation: a byte an element and 4 bytes a head. Not exact. Scores and sums are products of bytes in
whole numbers, where the processor has them (AVX-512 VNNI); queries and probabilities have 15 bits then, so rounding the cache
is all that is lost. O(n) a token as plain attention. The papers' caches of few bits keep the latest tokens or the keys'
channels apart; here all are alike, which is what every other form of compression must beat.
"""

from __future__ import annotations

from hasten.engine.attention.coded import CodedAttention, CodedForm
from hasten.engine.technique import Technique

TECHNIQUE = Technique(
    name="kv-int8",
    seam="attention",
    summary="keys and values of 8 bits: half the bytes of bfloat16 in memory and in each step",
    exact=False,
    sets={"attention.policy": "kv-int8"},
    make=lambda context, options: CodedAttention(8),
    form=lambda options: CodedForm(8),
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, 2023 (8 bits for its 4)",
)
