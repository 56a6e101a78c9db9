"""`int4`: weights of 4 bits whose rounding GPTQ has weighed, against dense weights and plain rounding."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hasten.lab.claims.base import Claim, Outcome, Requirement, Setting
from hasten.lab.claims.quality import rounds_of
from hasten.lab.claims.quantized import NOTE, TASKS, Progress, decode_times, perplexities
from hasten.lab.claims.sides import Side, share

INT4 = ("int4",)
STRETCHES = 64
"""Of 512 tokens, to calibrate on: what `hasten quantize` takes."""
NEAREST = Side("nearest", INT4)


def run(setting: Setting) -> Outcome:
    rounds, n, asked, of_speed = (3, 2, 3, 2) if setting.quick else (5, 12, 16, 9)
    with TemporaryDirectory(prefix="hasten-") as folder:
        count = 8 if setting.quick else STRETCHES
        _calibrated(Path(folder), count, setting.seed, share(setting.progress, 0.0, 0.15))
        checkpoint = (f"model.path={folder}",)
        gptq, narrow = Side("gptq", INT4, checkpoint), Side("gptq, head of 4 bits", ("int4:head=4",), checkpoint)
        texts = perplexities(
            (gptq, narrow, NEAREST), rounds=rounds, n=n, seed=setting.seed, progress=share(setting.progress, 0.15, 0.4)
        )
        answers = rounds_of(
            (gptq, NEAREST), dict.fromkeys(TASKS, asked), rounds=min(rounds, 5), seed=setting.seed, common=(),
            progress=share(setting.progress, 0.4, 0.7),
        )  # fmt: skip
    times = decode_times(NEAREST, rounds=of_speed, progress=share(setting.progress, 0.7, 1.0))
    short = {task: task.partition(":")[0] for task in TASKS}
    return Outcome(
        samples={
            "perplexity": texts.risen(gptq),
            "perplexity-narrow": texts.risen(narrow),
            "perplexity-nearest": texts.risen(NEAREST),
            **{f"lost-{short[task]}": answers.lost(gptq, task) for task in TASKS},
            **{f"nearest-{short[task]}": answers.lost(NEAREST, task) for task in TASKS},
            "decode-1": times.faster(NEAREST, 1),
            "decode-32": times.faster(NEAREST, 32),
            "bytes": [times.smaller(NEAREST)],
        },
        shortfall={
            "decode-1": f"the bytes are {times.smaller(NEAREST):.2g}x fewer, the head's 8 bits among them; reading "
            "keys and values and the norms between products cost what they did"
        },
        notes=[NOTE, times.in_words(NEAREST)],
        details={"perplexity": texts.values, "scores": answers.scores, "seconds": times.seconds, "bytes": times.bytes},
    )


def _calibrated(folder: Path, count: int, seed: int, progress: Progress) -> None:
    """The built-in model as `hasten quantize` writes it."""
    from hasten.engine.config import BUILTIN
    from hasten.lab.quantize.checkpoint import Settings, quantize
    from hasten.lab.quantize.inputs import hessians
    from hasten.lab.quantize.texts import of_documents
    from hasten.lab.testbed import material

    progress("reading texts", 0.0)
    stretches = of_documents(BUILTIN, material.load(len).training, count, seed)
    seen = hessians(BUILTIN, stretches, lambda done, total: progress("calibrating", 0.3 + 0.4 * done / total))
    settings = Settings(bits=4, group=32, symmetric=False, method="gptq")
    quantize(BUILTIN, folder, settings, seen, lambda done, total: progress("rounding", 0.7 + 0.3 * done / total))


def _lost(name: str, how: str) -> list[Requirement]:
    return [
        Requirement(name=f"{name}-{task.partition(':')[0]}", what=f"points lost on {task}{how}", unit="points")
        for task in TASKS
    ]


CLAIM = Claim(
    name="int4",
    title="Weights of 4 bits in small groups",
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (Frantar et al., 2022)",
    workload="quality: the built-in model, held-out texts and questions of the testbed; speed: random weights of Qwen3-0.6B's "
    "shape, prompts of 32 tokens, decode steps",
    baseline="the plain engine, bfloat16",
    technique=f"int4, groups of 32 with zero points, activations of 8 bits; the layers as `hasten quantize` writes them (GPTQ, "
    f"{STRETCHES} stretches of the testbed's training texts), the head (here the embedding) rounded to 8 bits at load",
    requirements=(
        Requirement(
            name="perplexity",
            what="perplexity of held-out text, int4 over bfloat16",
            paper="OPT-175B on WikiText2: 8.37 against 8.34, nearest levels 10.54",
            unit="%",
            at_most=3.0,
        ),
        Requirement(name="perplexity-narrow", what="the same with a head of 4 bits (head=4)", unit="%"),
        Requirement(name="perplexity-nearest", what="the same without calibration, nearest levels", unit="%"),
        *_lost("lost", ""),
        *_lost("nearest", ", nearest levels"),
        Requirement(
            name="decode-1",
            what="decode step at batch 1, dense over int4",
            paper="OPT-175B at 3 bits: 3.25x on A100, 4.5x on A6000, over FP16",
            unit="x",
            at_least=2.2,
        ),
        Requirement(name="decode-32", what="decode step at batch 32, dense over int4", unit="x", at_least=1.2),
        Requirement(name="bytes", what="bytes of the weights, dense over int4", unit="x"),
    ),
    run=run,
)
