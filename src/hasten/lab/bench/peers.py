"""hasten beside transformers: the same shapes, random weights, one process, alternately.

    python -m hasten.lab.bench.peers FOLDER --prompt 512 --tokens 16 --rounds 3

FOLDER holds a config.json. Greedy, batch 1: prefill of the prompt, then single decoded tokens, each round first the one, then
the other. transformers runs its default attention (SDPA) with its own key-value cache, in bfloat16, under inference mode.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hasten.engine.build import Built, build
from hasten.engine.config import EngineConfig
from hasten.engine.request import Request, SamplingParams
from hasten.lab.bench import machine


def ours(built: Built, prompt: list[int], tokens: int, salt: str) -> tuple[float, list[float]]:
    """(seconds of the prefill, seconds of each decoded token)."""
    engine = built.engine
    sampling = SamplingParams(max_tokens=tokens + 1, temperature=0.0, ignore_eos=True)
    engine.add(Request(id=salt, prompt=np.array(prompt), sampling=sampling, cache_salt=salt))
    times = []
    while engine.unfinished:
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    steps = len(times) - tokens
    return sum(times[:steps]), times[steps:]


def theirs(model: Any, prompt: list[int], tokens: int) -> tuple[float, list[float]]:
    with torch.inference_mode():
        began = time.perf_counter()
        out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prefill = time.perf_counter() - began
        times = []
        for _ in range(tokens):
            began = time.perf_counter()
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - began)
    return prefill, times


def load_transformers(folder: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    torch.set_default_dtype(torch.float32)
    return model.eval()


def compare(folder: str, prompt_length: int, tokens: int, rounds: int) -> dict[str, Any]:
    settings = {"model.load_format": "dummy", "model.dtype": "bfloat16", "model.max_length": prompt_length + 64}
    built = build(EngineConfig.build(folder, set_=settings))
    peer = load_transformers(folder)
    prompt = np.random.default_rng(0).integers(1, built.parts.model.vocabulary, prompt_length).tolist()
    prefills: dict[str, list[float]] = {"hasten": [], "transformers": []}
    decodes: dict[str, list[float]] = {"hasten": [], "transformers": []}
    reads = [machine.measure().read]
    for i in range(rounds + 1):
        for name in prefills:
            mine = name == "hasten"
            prefill, decode = ours(built, prompt, tokens, f"r{i}") if mine else theirs(peer, prompt, tokens)
            if i:  # the first round warms up
                prefills[name].append(prefill)
                decodes[name] += decode
    reads.append(machine.measure().read)
    return {
        "model": folder,
        "prompt": prompt_length,
        "read_bytes_per_s": reads,
        "prefill_s": {name: [median(v), min(v), max(v)] for name, v in prefills.items()},
        "decode_s": {name: [median(v), *np.percentile(v, [25, 75]).tolist()] for name, v in decodes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with Console(stderr=True).status("measuring"):
        figures = compare(options.folder, options.prompt, options.tokens, options.rounds)
    table = Table("ms (median, low, high)", "hasten", "transformers", "ratio")
    for what in ("prefill_s", "decode_s"):
        mine, other = figures[what]["hasten"], figures[what]["transformers"]
        cells = [", ".join(f"{value * 1e3:.1f}" for value in row) for row in (mine, other)]
        table.add_row(what.removesuffix("_s"), *cells, f"{other[0] / mine[0]:.2f}x")
    Console().print(table)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
