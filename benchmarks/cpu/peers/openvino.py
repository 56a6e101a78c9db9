"""OpenVINO GenAI: its continuous batching pipeline, stepped by hand.

Weights are converted with optimum-intel and NNCF without data: int8 per output channel with zero points (the default of its
command line), int4 in groups of 128 with the embedding, which is the head too, left in int8 (likewise its default); without
zero points, which was 5 to 10 % faster than with. For both, activations are rounded to int8 in groups of 128 on the fly.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from peer import KV_BYTES, full_steps

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
PACKAGES = ("openvino", "openvino-genai", "optimum-intel", "nncf")
FORMATS = ("bf16", "int8", "int4")

# float16 in the first one's file becomes bfloat16 when the plugin compiles the model.
_EXPORT = {
    "bf16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--group-size", "128", "--ratio", "1.0", "--sym"],
}


def _converted(folder: Path, format: str) -> Path:
    return folder / f"openvino-{format}"


def convert(folder: Path, format: str) -> None:
    if (_converted(folder, format) / "openvino_model.bin").exists():
        return
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(folder)]
    command += ["--task", "text-generation-with-past", *_EXPORT[format], str(_converted(folder, format))]
    subprocess.run(command, check=True, stdout=sys.stderr)


class Engine:
    def load(self, folder: Path, format: str, threads: int) -> str:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = KV_BYTES >> 30
        scheduler.max_num_batched_tokens = 4096
        scheduler.enable_prefix_caching = False
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if format == "bf16":
            properties["KV_CACHE_PRECISION"] = "bf16"
        else:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
        self.pipeline = genai.ContinuousBatchingPipeline(str(_converted(folder, format)), scheduler, "CPU", properties)
        self.ids = count()
        stored = {"bf16": "bf16", "int8": "int8 per channel", "int4": "int4 in groups of 128, head int8"}[format]
        return f"weights {stored}, activations {'bf16, KV bf16' if format == 'bf16' else 'int8 in groups of 128, KV u8'}"

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        handle = self._add(prompt, 1)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        took = time.perf_counter() - began
        handle.read()
        return took

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        handles = [self._add(prompt, 4096) for prompt in prompts]

        def step() -> int:
            self.pipeline.step()
            return sum(len(out.generated_ids) for h in handles if h.can_read() for out in h.read().values())

        try:
            return full_steps(step, len(prompts), steps)
        finally:
            for handle in handles:
                handle.cancel()
            while self.pipeline.has_non_finished_requests():
                self.pipeline.step()

    def _add(self, prompt: list[int], tokens: int) -> Any:
        import numpy as np
        import openvino as ov
        import openvino_genai as genai

        sampling = genai.GenerationConfig()
        sampling.max_new_tokens = tokens
        sampling.ignore_eos = True
        sampling.do_sample = False
        return self.pipeline.add_request(next(self.ids), ov.Tensor(np.array([prompt], dtype=np.int64)), sampling)
