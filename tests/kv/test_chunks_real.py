"""Chunks in real models: what is computed again everywhere is the plain engine's, what is not is an independent computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import tiny
from tests.kv.marked import marked
from torch import Tensor

from hasten import LLM, SamplingParams, Segment
from hasten.engine.attention.base import StatelessAttention
from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.shifting import turn, turned
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.executors.step import Site, Step
from hasten.engine.models.config import Rope
from hasten.engine.models.rope import cos_sin
from hasten.engine.request import Request
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError
from hasten.kernels.reference import _rotate

RNG = np.random.default_rng(3)
DOCUMENTS = [RNG.integers(1, 256, size).tolist() for size in (40, 16, 7, 70)]
TEXT = [RNG.integers(1, 256, size).tolist() for size in (5, 23, 1, 11, 40)]
BLOCK = 16 * 2 * 2 * 2 * 16 * 4
"""Bytes: slots, layers, k and v, kv heads, head_dim, float32."""


def request(id: str, *pieces: int | list[int], **sampling: Any) -> Request:
    return marked(
        id, DOCUMENTS, *pieces, **{"max_tokens": 12, "temperature": 0.0, "logprobs": 5, "ignore_eos": True, **sampling}
    )


def requests(**sampling: Any) -> list[Request]:
    return [
        request("a", TEXT[0], 0, TEXT[1], 3, TEXT[2], **sampling),
        request("b", TEXT[4], 3, 0, TEXT[3], n=2, temperature=0.9, seed=5, **sampling),
        request("c", 2, TEXT[2], 1, 0, TEXT[1], 0, TEXT[0], **sampling),
        request("d", TEXT[0], 0, TEXT[3], **sampling),
        request("e", TEXT[4], TEXT[1], temperature=0.8, seed=2, **sampling),
    ]


def spoil(built: tiny.Built) -> tiny.Built:
    """What nobody has written is no number, so whoever reads it shows."""
    for plane in built.parts.memory.planes:
        plane.fill_(torch.nan)
    return built


def answers(built: tiny.Built, asked: list[Request]) -> dict[Any, Any]:
    got = tiny.run(built, asked)
    return {key: (tiny.tokens(deltas), [score for d in deltas for score in d.logprobs]) for key, deltas in got.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_computed_again_is_plain_prefill_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    settings: dict[str, Any] = {"model__dtype": dtype, "executor__deterministic": True, "kv__block_size": 16}
    path = tiny.folder(tmp_path)
    plain = tiny.engine(path, kv__reuse=None, scheduling__max_rows=1, **settings)
    alone: dict[Any, Any] = {}
    for one in requests(max_tokens=40):
        alone |= answers(plain, [one])
    for host, chunk in ((0, 512), (0, 19), (1 << 20, 23)):
        busy = tiny.engine(
            path,
            with_=("plain-chunks:recompute=all", f"stall-free:chunk={chunk}", "newest-yields:swap_from=1"),
            kv__memory_bytes=(44 if chunk == 512 else 24) * BLOCK // (1 if dtype == "float32" else 2),
            kv__host_bytes=host,
            scheduling__max_tokens=chunk + 8,
            **settings,
        )
        spoil(busy)
        for _ in range(2):  # the second time chunks are found, and turned
            assert answers(busy, requests(max_tokens=40)) == alone
        linker = busy.engine.ledger.linker
        assert linker is not None and linker.linked > 0 and linker.computed > 0
        if chunk < 512:
            counts = busy.engine.events.counts
            assert counts[Kind.SWAPPED] + counts[Kind.PREEMPTED] > 0, "the test should press on memory"


class Masked(StatelessAttention):
    """Attention over the tokens of one step and no others, by a mask bool [T, T]."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        table = site.cos_sin[step.index.positions.long()][:, None]
        queries, keys = _rotate(q, table), _rotate(k, table)
        group = site.heads // site.kv_heads
        keys, values = keys.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * site.scale
        shares = scores.masked_fill(~self.mask, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", shares, values).flatten(1)


def masked(path: str, one: Request) -> dict[int, float]:
    """Log-probabilities of the first token where chunks see nothing but themselves and all else sees everything."""
    built = tiny.engine(path, kv__reuse=None, executor__native=False)
    length = len(one.prompt)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    for start, stop in one.chunks:
        mask[start:stop, :start] = False
    built.parts.executor._attention = Masked(mask)  # type: ignore[union-attr]
    return first_token(built, one)


def first_token(built: tiny.Built, one: Request) -> dict[int, float]:
    (deltas,) = tiny.run(built, [one]).values()
    score = deltas[0].logprobs[0]
    assert score is not None
    return dict(score.top)


def close(one: dict[int, float], other: dict[int, float], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(abs(one[token] - other[token]) <= tolerance for token in one)


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}], ids=["llama", "yarn"])
def test_nothing_computed_again_is_an_independent_computation(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tiny.folder(tmp_path, **changes)
    cases = [one for one in requests() if one.chunks]
    want = {one.id: masked(path, request(one.id, *pieces_of(one), max_tokens=1)) for one in cases}
    for budget in (512, 21):
        built = spoil(tiny.engine(path, with_=("plain-chunks",), kv__block_size=16, scheduling__max_tokens=budget))
        differs = 0
        for _ in range(2):
            for one in cases:
                asked = request(one.id, *pieces_of(one), max_tokens=1)
                assert close(first_token(built, asked), want[one.id], 1e-4), one.id
        linker = built.engine.ledger.linker
        assert linker is not None and linker.computed == 4 and linker.linked > 10
    plain = tiny.engine(path, kv__reuse=None)
    for one in cases:
        differs += not close(first_token(plain, request(one.id, *pieces_of(one), max_tokens=1)), want[one.id], 1e-4)
    assert differs, "the test should tell the two apart"


def pieces_of(one: Request) -> list[int | list[int]]:
    """What `request` was given."""
    pieces: list[int | list[int]] = []
    at = 0
    tokens = one.prompt.tolist()
    for start, stop in one.chunks:
        if at < start:
            pieces.append(tokens[at:start])
        pieces.append(DOCUMENTS.index(tokens[start:stop]))
        at = stop
    return [*pieces, tokens[at:]]


def test_mpic_lies_between_the_two(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    cases = [request(one.id, *pieces_of(one), max_tokens=1) for one in requests() if one.chunks]
    engines = {
        name: tiny.engine(path, with_=(name,), kv__block_size=16)
        for name in ("plain-chunks", "mpic:first=0", "mpic:first=9", "mpic:first=99", "plain-chunks:recompute=all")
    }
    cold: dict[str, list[dict[int, float]]] = {}
    hot: dict[str, list[dict[int, float]]] = {}
    for name, built in engines.items():
        cold[name] = [first_token(built, one) for one in cases]
        hot[name] = [first_token(built, one) for one in cases]
        assert all(close(one, other, 1e-4) for one, other in zip(cold[name], hot[name], strict=True)), name
    for name, same in (("mpic:first=0", "plain-chunks"), ("mpic:first=99", "plain-chunks:recompute=all")):
        assert all(close(one, other, 1e-4) for one, other in zip(hot[name], hot[same], strict=True))
    for other in ("plain-chunks", "plain-chunks:recompute=all"):
        assert not all(close(a, b, 1e-4) for a, b in zip(hot["mpic:first=9"], hot[other], strict=True))


@pytest.mark.parametrize(
    "rope",
    [
        Rope(theta=10000.0),
        Rope(kind="linear", theta=10000.0, factor=4.0),
        Rope(kind="yarn", theta=10000.0, factor=8.0, original=512),
        Rope(kind="llama3", theta=500000.0, factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original=512),
    ],
    ids=lambda rope: rope.kind,
)
@pytest.mark.parametrize("dims", [32, 24])
def test_turned_keys_are_those_computed_at_the_new_position(rope: Rope, dims: int) -> None:
    """Exact but for float32's rounding: at most 1e-5 of the largest element, wherever from and to."""
    torch.manual_seed(0)
    table = cos_sin(rope, dims, 4096)
    keys = torch.randn(50, 2, 16, 32)
    came_from, goes_to = torch.randint(0, 4096, (2, 50))
    places = (came_from[:, None] + torch.arange(16)).clamp(max=4095), (goes_to[:, None] + torch.arange(16)).clamp(max=4095)

    def rotated(at: Tensor) -> Tensor:
        flat = keys.transpose(1, 2).reshape(-1, 2, 32)
        return _rotate(flat, table[at.flatten()][:, None]).view(50, 16, 2, 32).transpose(1, 2)

    got = turned(rotated(places[0]), turn(table, came_from, goes_to, 16))
    assert (got - rotated(places[1])).abs().max() <= 1e-5 * keys.abs().max()
    there = turned(rotated(places[0]).bfloat16(), turn(table, came_from, goes_to, 16))
    assert (there.float() - rotated(places[1])).abs().max() <= 2**-7 * keys.abs().max()


WINDOW = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24}


@pytest.mark.parametrize(
    ("with_", "why"),
    [
        (("kv-int8",), "does no link"),
        (("kv-int4",), "does no link"),
        (("sink-window:tokens=64",), "does no link"),
        (("tiered",), "in the pool only"),
        (("plain-chunks",), "both decide kv.repair"),
    ],
)
def test_what_cannot_take_chunks_is_refused_by_name(tmp_path: Path, with_: tuple[str, ...], why: str) -> None:
    changes = {"head_dim": 64}
    with pytest.raises(ConfigError, match=why) as raised:
        tiny.engine(tiny.folder(tmp_path, **changes), with_=("mpic", *with_), kv__block_size=32)
    assert "mpic" in str(raised.value) and (with_[0].split(":")[0] in str(raised.value))


def test_windows_and_simulations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sliding window"):
        tiny.engine(tiny.folder(tmp_path, **WINDOW), with_=("mpic",))
    with pytest.raises(ConfigError, match=r"kv\.repair"):
        config = EngineConfig.build(with_=("mpic",))
        simulated_engine(config, SimulatedModel(name="m", vocabulary=10, max_length=100), None, blocks=4)  # type: ignore[arg-type]


def test_marks_change_nothing_in_an_engine_without_a_repair(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path)
    unmarked = [Request(id=one.id, prompt=one.prompt, sampling=one.sampling) for one in requests()]
    settings: dict[str, Any] = {"executor__deterministic": True}
    one, other = tiny.engine(path, **settings), tiny.engine(path, **settings)
    assert answers(one, requests()) == answers(other, unmarked)
    assert list(one.engine.events.columns()["kind"]) == list(other.engine.events.columns()["kind"])


FACTS = [" ".join(f"The number of the {colour} {thing} is {n + i}." for i, thing in enumerate(("river", "kettle", "harp")))
         for n, colour in ((4821, "quiet"), (7350, "golden"), (1964, "blue"))]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["quiet", "golden", "blue"]},
        "numbers": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["colour", "numbers"],
}


@pytest.mark.parametrize("policy", ["mpic:first=8", "plain-chunks:recompute=all", "cache-craft", "ape"])
def test_grammars_drafts_and_cut_prompts_change_no_answer(policy: str) -> None:
    """Twice, so that chunks are computed and found."""
    settings = ("model.dtype=float32", "kv.memory_bytes=30000000")
    plain = LLM(with_=[policy], set_=settings)
    busy = LLM(
        with_=[policy, "prompt-lookup", "forced-tokens", "stall-free:chunk=24", "newest-yields"],
        set_=(*settings, "scheduling.max_tokens=40"),
    )
    orders = ((0, 1, 2), (2, 0), (1, 2, 0))
    prompts = [
        [
            Segment("<|im_start|>user\n"),
            *(Segment(FACTS[i], cache=True) for i in order),
            Segment(" All of one colour as JSON.\n"),
        ]
        for order in orders
    ]
    sampling = SamplingParams(max_tokens=60, temperature=0, constraint=SCHEMA)
    for _ in range(2):
        for prompt in prompts:  # one after the other, as what is found must be the same
            (wanted,), (found,) = (llm.generate([prompt], sampling) for llm in (plain, busy))
            assert found.text == wanted.text
            if wanted.choices[0].finish == "stop":
                assert json.loads(found.text)["colour"] in ("quiet", "golden", "blue")
    assert sum(llm.engine.stats()["chunks_linked"] for llm in (plain, busy)) >= 2 * 8
    assert found.drafted
    for llm in (plain, busy):
        llm.engine.ledger.audit()
