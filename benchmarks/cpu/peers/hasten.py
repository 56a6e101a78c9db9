"""hasten: `LLM`'s engine stepped by hand, weights rounded by its techniques `int8`, with its default knobs, and `int4` in the
groups that OpenVINO has. (The default's are smaller, more exact and slower.)"""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

from peer import KV_BYTES, full_steps

ENVIRONMENT: dict[str, str] = {}
PACKAGES = ("hasten", "torch")
FORMATS = ("bf16", "int8", "int4")

_WITH = {"bf16": [], "int8": ["int8"], "int4": ["int4:group=128:symmetric=true"]}


def convert(folder: Path, format: str) -> None:
    """Nothing to do: weights are rounded while loading."""


class Engine:
    def load(self, folder: Path, format: str, threads: int) -> str:
        from hasten import LLM

        settings = {
            "model.dtype": "bfloat16",
            "executor.threads": threads,
            "kv.memory_bytes": KV_BYTES,
            "kv.reuse": None,
        }
        llm = LLM(str(folder), with_=_WITH[format], set_=settings)
        self.engine = llm.engine
        self.ids = count()
        if format == "bf16":
            return "weights bf16, activations bf16, KV bf16"
        return f"weights {format} in groups of 128, head int8, activations int8 in groups of 128, KV bf16"

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        self._add(prompt, 1)
        self.engine.run()
        return time.perf_counter() - began

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        names = [self._add(prompt, None) for prompt in prompts]
        try:
            return full_steps(lambda: sum(len(delta.tokens) for delta in self.engine.step()), len(prompts), steps)
        finally:
            for name in names:
                self.engine.cancel(name)
            self.engine.run()

    def _add(self, prompt: list[int], tokens: int | None) -> str:
        import numpy as np

        from hasten import SamplingParams
        from hasten.engine.request import Request

        name = str(next(self.ids))
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        self.engine.add(Request(id=name, prompt=np.array(prompt), sampling=sampling))
        return name
