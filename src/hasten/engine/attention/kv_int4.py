"""KV of 4 bits: every key and value rounded to 16 levels, each 32 elements of a head with a range of their own.

FlexGen (Sheng et al., 2023) keeps a cache of 4 bits in groups of 64 elements, each with its smallest and largest value, and
loses little accuracy. Here a group is 32 elements along the head and its scale and zero point share 16 bits: 4.5 bits an
element, keys after their rotation. Not exact. Scores and sums are products of bytes in whole numbers, where the processor has
them (AVX-512 VNNI); queries and probabilities have 15 bits then, so rounding the cache is all that is lost. O(n) a token as
plain attention. FlexGen's groups have float16 bounds, 4.5 bits an element too; half the elements share each. KIVI (Liu et al.,
2024) rounds keys channel by channel and keeps the latest tokens whole, which costs a buffer a sequence and is not done here.
"""

from __future__ import annotations

from hasten.engine.attention.coded import CodedAttention, CodedForm
from hasten.engine.technique import Technique

TECHNIQUE = Technique(
    name="kv-int4",
    seam="attention",
    summary="keys and values of 4 bits in groups of 32: between a third and a quarter of bfloat16's bytes",
    exact=False,
    sets={"attention.policy": "kv-int4"},
    make=lambda context, options: CodedAttention(4),
    form=lambda options: CodedForm(4),
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, 2023",
)
