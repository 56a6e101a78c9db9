"""Hugging Face transformers: the plain model in bfloat16 with its default attention (SDPA) and its dynamic cache, under
inference mode. All sequences of a batch are equally long, so nothing is padded. It has no 8- or 4-bit path of its own for a
CPU, so it takes part in bfloat16 only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
PACKAGES = ("transformers", "torch")
FORMATS = ("bf16",)


def convert(folder: Path, format: str) -> None:
    """Nothing to do: it reads the checkpoint as it is."""


class Engine:
    def load(self, folder: Path, format: str, threads: int) -> str:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        return "weights bf16, activations bf16, KV bf16"

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        self._forward([prompt], None)
        return time.perf_counter() - began

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        tokens, cache = self._forward(prompts, None)
        times = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            tokens, cache = self._forward(tokens, cache)
            times.append(time.perf_counter() - began)
        return times[1:]  # as with the others, the first step after the prompts does not count

    def _forward(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        """Tokens [sequences, count] -> the next token of each [sequences, 1], and the cache with theirs added."""
        import torch

        with torch.inference_mode():
            out = self.model(torch.as_tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1:].argmax(-1), out.past_key_values
