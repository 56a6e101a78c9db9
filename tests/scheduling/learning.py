"""Requests and outputs for tests of predictors."""

from __future__ import annotations

import zlib

import numpy as np

from hasten.engine.config import EngineConfig
from hasten.engine.request import AppContext, Request, SamplingParams
from hasten.engine.scheduling.lengths.saved import Learning

NAMES = ("length-histogram", "length-similarity", "length-quantiles")


def make(name: str, **knobs: object) -> Learning:
    text = ":".join([name, *(f"{knob}={value}" for knob, value in knobs.items())])
    made = EngineConfig.build(with_=[text]).make(name)
    assert isinstance(made, Learning)
    return made


def ask(
    id: str = "r",
    *,
    app: str = "",
    stage: str = "",
    tenant: str = "",
    prompt: object = 20,
    limit: int | None = None,
    n: int = 1,
) -> Request:
    tokens = np.random.default_rng(zlib.crc32(id.encode())).integers(0, 30, prompt) if isinstance(prompt, int) else prompt
    return Request(
        id=id,
        prompt=np.asarray(tokens),
        sampling=SamplingParams(max_tokens=limit, n=n),
        app=AppContext(application=app, stage=stage),
        tenant=tenant,
    )


def teach(predictor: Learning, outputs: object, **about: object) -> None:
    for number, output in enumerate(outputs):  # type: ignore[call-overload]
        predictor.observe(ask(f"{about}{number}", **about), int(output), ended=True)  # type: ignore[arg-type]
