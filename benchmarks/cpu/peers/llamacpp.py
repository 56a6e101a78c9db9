"""llama.cpp through the bindings of llama-cpp-python, compiled for this processor: `llama_decode` called batch by batch.

Its two rounded formats are its own: Q8_0 (groups of 32, a scale each) and Q4_0 (the same with 4 bits; the embedding, which is
the head too, is Q6_K, its default). Both are repacked for the processor's vector width when loaded, if llama.cpp finds it
worthwhile. The next token is the largest logit, found by numpy, which is cheaper than llama.cpp's own samplers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from peer import full_steps

ENVIRONMENT: dict[str, str] = {}
PACKAGES = ("llama-cpp-python",)
FORMATS = ("bf16", "int8", "int4")

BATCH = 2048
"""Most tokens given to one call."""
MICRO_BATCH = 512
"""Most tokens llama.cpp computes together."""


def _converted(folder: Path, format: str) -> Path:
    return folder / f"llamacpp-{format}.gguf"


def convert(folder: Path, format: str) -> None:
    """Written under another name first, so that what a killed conversion leaves is never taken for a model."""
    to = _converted(folder, format)
    if to.exists():
        return
    half = to.with_suffix(".half")
    if format == "bf16":
        from peers import to_gguf

        to_gguf.write(folder, half)
    else:
        import llama_cpp

        convert(folder, "bf16")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0 if format == "int8" else llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        paths = [str(path).encode() for path in (_converted(folder, "bf16"), half)]
        if llama_cpp.llama_model_quantize(*paths, params) != 0:
            raise RuntimeError(f"llama.cpp could not make {to}")
    half.rename(to)


class Engine:
    def load(self, folder: Path, format: str, threads: int) -> str:
        import llama_cpp

        self.library: Any = llama_cpp
        self.threads = threads
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(_converted(folder, format)).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {_converted(folder, format)}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context: Any = None
        self.room = (0, 0)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        stored = {"bf16": "bf16", "int8": "Q8_0", "int4": "Q4_0, head Q6_K"}[format]
        return f"weights {stored}, activations {'bf16' if format == 'bf16' else 'int8 in groups of 32'}, KV f16"

    def prefill(self, prompt: list[int]) -> float:
        self._open(1, len(prompt))
        began = time.perf_counter()
        self._run([(token, i, 0) for i, token in enumerate(prompt)], {len(prompt) - 1})
        return time.perf_counter() - began

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        length = len(prompts[0])
        self._open(len(prompts), length + steps + 1)
        last = []
        for i, prompt in enumerate(prompts):
            last += self._run([(token, at, i) for at, token in enumerate(prompt)], {length - 1})
        position = length

        def step() -> int:
            nonlocal last, position
            last = self._run([(token, position, i) for i, token in enumerate(last)], set(range(len(last))))
            position += 1
            return len(last)

        return full_steps(step, len(prompts), steps)

    def _open(self, sequences: int, length: int) -> None:
        """An empty context for so many sequences, the last one again if it fits: its size is fixed, and a large one is no
        slower but takes memory."""
        library = self.library
        if self.context is None or self.room[0] != sequences or self.room[1] < length:
            if self.context is not None:
                library.llama_free(self.context)
            length = -(-length // 256) * 256
            params = library.llama_context_default_params()
            params.n_ctx, params.n_seq_max = sequences * length, sequences
            params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
            params.n_threads = params.n_threads_batch = self.threads
            params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.no_perf = True
            self.context = library.llama_init_from_model(self.model, params)
            if not self.context:
                raise RuntimeError(f"llama.cpp makes no context for {sequences} sequences of {length} tokens")
            self.room = (sequences, length)
        library.llama_memory_clear(library.llama_get_memory(self.context), False)

    def _run(self, items: list[tuple[int, int, int]], wanted: set[int]) -> list[int]:
        """Compute (token, position, sequence) items; the greedy next token after each of the wanted ones."""
        import numpy as np

        out = []
        for first in range(0, len(items), BATCH):
            part = items[first : first + BATCH]
            batch = self.batch
            batch.n_tokens = len(part)
            for i, (token, position, sequence) in enumerate(part):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = first + i in wanted
            if (code := self.library.llama_decode(self.context, batch)) != 0:
                raise RuntimeError(f"llama_decode returned {code}")
            for i in range(len(part)):
                if first + i in wanted:
                    row = self.library.llama_get_logits_ith(self.context, i)
                    out.append(int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax()))
        return out
