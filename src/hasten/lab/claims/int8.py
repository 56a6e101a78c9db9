"""`int8`: half the bytes of bfloat16 and whole-number products, against dense weights."""

from __future__ import annotations

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.quality import PLAIN, rounds_of
from hasten.lab.claims.quantized import NOTE, TASKS, decode_times, perplexities
from hasten.lab.claims.sides import Side, share

INT8 = Side("int8", ("int8",))
FLOAT32 = Side("float32", (), ("model.dtype=float32",))


def run(setting: Setting) -> Outcome:
    rounds, n, asked, of_speed = (3, 4, 6, 3) if setting.quick else (7, 12, 16, 9)
    texts = perplexities((INT8, FLOAT32), rounds=rounds, n=n, seed=setting.seed, progress=share(setting.progress, 0.0, 0.3))
    answers = rounds_of(
        (INT8,), dict.fromkeys(TASKS, asked), rounds=min(rounds, 5), seed=setting.seed, common=(),
        progress=share(setting.progress, 0.3, 0.6),
    )  # fmt: skip
    times = decode_times(INT8, rounds=of_speed, progress=share(setting.progress, 0.6, 1.0))
    return Outcome(
        samples={
            "perplexity": texts.risen(INT8),
            "bfloat16": texts.risen(PLAIN, FLOAT32),
            **{f"lost-{task.partition(':')[0]}": answers.lost(INT8, task) for task in TASKS},
            "decode-1": times.faster(INT8, 1),
            "decode-32": times.faster(INT8, 32),
            "bytes": [times.smaller(INT8)],
        },
        notes=[NOTE, times.in_words(INT8)],
        details={"perplexity": texts.values, "scores": answers.scores, "seconds": times.seconds, "bytes": times.bytes},
    )


CLAIM = Claim(
    name="int8",
    title="Weights and activations of 8 bits",
    paper="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (Dettmers et al., 2022); ZeroQuant: Efficient and "
    "Affordable Post-Training Quantization for Large-Scale Transformers (Yao et al., 2022)",
    workload="quality: the built-in model, held-out texts and questions of the testbed; speed: random weights of Qwen3-0.6B's "
    "shape, prompts of 32 tokens, decode steps",
    baseline="the plain engine, bfloat16",
    technique="int8, groups of 128, head and embedding included",
    requirements=(
        Requirement(
            name="perplexity",
            what="perplexity of held-out text, int8 over bfloat16",
            paper="LLM.int8: no degradation up to 175 billion parameters",
            unit="%",
            at_most=0.5,
        ),
        Requirement(name="bfloat16", what="the same, bfloat16 over float32", unit="%"),
        *(Requirement(name=f"lost-{task.partition(':')[0]}", what=f"points lost on {task}", unit="points") for task in TASKS),
        Requirement(
            name="decode-1",
            what="decode step at batch 1, dense over int8",
            paper="ZeroQuant: up to 5.19x on BERT, 4.16x on GPT-3-style models, over FP16 on GPUs",
            unit="x",
            at_least=1.5,
        ),
        Requirement(name="decode-32", what="decode step at batch 32, dense over int8", unit="x", at_least=1.4),
        Requirement(name="bytes", what="bytes of the weights, dense over int8", unit="x"),
    ),
    run=run,
)
