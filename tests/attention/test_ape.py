"""APE in real models against the whole of it written out in dense torch: positions, who sees what, and the two parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine import tiny
from tests.kv.marked import marked
from torch import Tensor

from hasten.engine.attention.ape import ApeAttention
from hasten.engine.attention.base import StatelessAttention
from hasten.engine.events import Kind
from hasten.engine.executors.step import Site, Step
from hasten.engine.request import BadRequest, Request
from hasten.engine.technique import ConfigError
from hasten.kernels.reference import _rotate

RNG = np.random.default_rng(8)
DOCUMENTS = [RNG.integers(1, 256, size).tolist() for size in (40, 16, 7, 70, 33)]
TEXT = [RNG.integers(1, 256, size).tolist() for size in (5, 23, 1, 11, 40)]


def request(id: str, *pieces: int | list[int], **sampling: Any) -> Request:
    given = {"max_tokens": 4, "temperature": 0.0, "logprobs": 5, "ignore_eos": True, **sampling}
    return marked(id, DOCUMENTS, *pieces, **given)


class Dense(StatelessAttention):
    """Attention among the tokens of one step. `kind` int [T]: 0 in front of all contexts, i in the i-th of them, -1 behind."""

    def __init__(self, positions: Tensor, kind: Tensor, temperature: float, scale: float) -> None:
        self._at, self._temperature, self._scale = positions, temperature, scale
        number = torch.arange(len(kind))
        before = number[None] <= number[:, None]
        front, inside = kind == 0, kind > 0
        same = (kind[:, None] == kind[None]) & before
        self._plain = same | (front[None] & ~front[:, None])
        self._contexts = (kind == -1)[:, None] & inside[None]

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        table, group = site.cos_sin[self._at][:, None], site.heads // site.kv_heads
        queries, keys = _rotate(q, table).double(), _rotate(k, table).double().repeat_interleave(group, 1)
        values = v.double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * site.scale
        outs, norms = [], []
        for seen, heat, factor in ((self._plain, 1.0, 1.0), (self._contexts, self._temperature, self._scale)):
            part = (scores / heat).masked_fill(~seen, -torch.inf)
            outs.append(torch.einsum("hqk,khd->hqd", part.softmax(-1).nan_to_num(0.0), values))
            norms.append(torch.logsumexp(part, -1) * factor)
        weights = torch.softmax(torch.stack(norms), 0)
        out = sum(weight[..., None] * part for weight, part in zip(weights, outs, strict=True))
        return out.transpose(0, 1).flatten(1).float()  # type: ignore[union-attr]


def laid_out(one: Request, length: int) -> tuple[Tensor, Tensor]:
    """Positions and kinds of a prompt of which `one` is the beginning."""
    front, longest = one.chunks[0][0], max(stop - start for start, stop in one.chunks)
    positions, kinds = list(range(front)), [0] * front
    behind = 0
    for i in range(front, length):
        number = next((n for n, (start, stop) in enumerate(one.chunks, 1) if start <= i < stop), None)
        if number is None:
            positions.append(front + longest + behind)
            kinds.append(-1)
            behind += 1
        else:
            positions.append(front + i - one.chunks[number - 1][0])
            kinds.append(number)
    return torch.tensor(positions), torch.tensor(kinds)


def scores(deltas: list[Any]) -> list[dict[int, float]]:
    return [dict(score.top) for delta in deltas for score in delta.logprobs]


_KNOWN: dict[Any, dict[int, float]] = {}


def written_out(dense: tiny.Built, one: Request, tokens: list[int], temperature: float, scale: float) -> list[dict[int, float]]:
    """Scores of each of `tokens` behind those before it."""
    wanted = []
    for k in range(len(tokens)):
        prompt = np.concatenate([one.prompt, np.array(tokens[:k], dtype=one.prompt.dtype)])
        key = (prompt.tobytes(), one.chunks, temperature, scale)
        if key not in _KNOWN:
            positions, kinds = laid_out(one, len(prompt))
            dense.parts.executor._attention = Dense(positions, kinds, temperature, scale)  # type: ignore[union-attr]
            plain = Request(id="d", prompt=prompt, sampling=request("d", [1], max_tokens=1).sampling)
            (_KNOWN[key],) = scores(tiny.run(dense, [plain])[("d", 0)])
        wanted.append(_KNOWN[key])
    return wanted


def dense_engine(path: str) -> tiny.Built:
    return tiny.engine(
        path, with_=("whole-prompts",), kv__reuse=None, executor__native=False, model__max_length=1024, scheduling__max_rows=1
    )


def close(one: list[dict[int, float]], other: list[dict[int, float]], tolerance: float = 1e-4) -> bool:
    """Whatever both name among the best has the same score, the best the same name."""
    return len(one) == len(other) and all(
        max(a, key=a.__getitem__) == max(b, key=b.__getitem__)
        and all(abs(a[token] - b[token]) <= tolerance for token in a.keys() & b.keys())
        for a, b in zip(one, other, strict=True)
    )


def spoil(built: tiny.Built) -> tiny.Built:
    """What nobody has written is no number, so whoever reads it shows."""
    for plane in built.parts.memory.planes:
        plane.fill_(torch.nan)
    return built


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("ape"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def dense(model: str) -> tiny.Built:
    return dense_engine(model)


CASES = [
    request("a", TEXT[0], 0, 3, TEXT[2]),
    request("b", TEXT[4], 3, 0, 1, TEXT[3]),
    request("c", 2, TEXT[2], 1, TEXT[1], 0, 0, TEXT[0]),
    request("d", TEXT[1], 4, TEXT[3]),
    request("e", TEXT[4], 2, TEXT[1], 3, 4, TEXT[4]),
]


@pytest.mark.parametrize(
    ("temperature", "scale", "native"), [(0.8, 0.7, True), (0.8, 0.7, False), (1.3, 1.0, True), (1.0, 1.0, True)]
)
def test_the_engine_gives_what_is_written_out(
    model: str, dense: tiny.Built, temperature: float, scale: float, native: bool
) -> None:
    differs = 0
    for budget in (512, 21):
        built = spoil(
            tiny.engine(
                model,
                with_=(f"ape:temperature={temperature}:scale={scale}",),
                kv__block_size=16,
                scheduling__max_tokens=budget,
                executor__native=native,
            )
        )
        for _ in range(2):  # cold, then found
            for one in CASES:
                deltas = tiny.run(built, [one])[(one.id, 0)]
                want = written_out(dense, one, tiny.tokens(deltas), temperature, scale)
                assert close(scores(deltas), want), (one.id, budget)
                differs += not close(scores(deltas)[:1], written_out(dense, one, tiny.tokens(deltas)[:1], 1.0, 1.1), 1e-3)
        linker = built.engine.ledger.linker
        assert linker is not None and linker.linked >= 14 and not built.engine.ledger.books.shifts
    assert differs, "the test should tell weights apart"


pieces = st.lists(
    st.one_of(st.integers(0, len(DOCUMENTS) - 1), st.integers(0, len(TEXT) - 1).map(lambda i: TEXT[i])), min_size=1, max_size=6
)


@settings(max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(pieces, min_size=1, max_size=3),
    temperature=st.sampled_from([0.7, 1.0]),
    scale=st.sampled_from([0.8, 1.0]),
    budget=st.integers(9, 90),
    together=st.booleans(),
)
def test_any_segmentation_gives_what_is_written_out(
    model: str, dense: tiny.Built, parts: list[Any], temperature: float, scale: float, budget: int, together: bool
) -> None:
    built = spoil(
        tiny.engine(
            model,
            with_=(f"ape:temperature={temperature}:scale={scale}", f"stall-free:chunk={budget}"),
            kv__block_size=8,
            scheduling__max_tokens=budget + 8,
        )
    )
    asked = [request(f"r{i}", *some, TEXT[i], n=1 + i % 2, max_tokens=4) for i, some in enumerate(parts)]
    got: dict[Any, Any] = {}
    for group in [asked] if together else [[one] for one in asked]:
        got |= tiny.run(built, group)
    for one in asked:
        if one.chunks:
            for i in range(one.sampling.n):
                deltas = got[(one.id, i)]
                assert close(scores(deltas), written_out(dense, one, tiny.tokens(deltas), temperature, scale))


def test_one_context_with_neither_knob_is_ordinary_attention(model: str) -> None:
    plain = tiny.engine(model, kv__reuse=None)
    built = tiny.engine(model, with_=("ape:temperature=1:scale=1",))
    attention = built.parts.executor.attention  # type: ignore[union-attr]
    assert isinstance(attention, ApeAttention) and attention._contexts is None, "there is nothing to weigh"
    for one in (CASES[3], request("f", 3, TEXT[0]), request("g", TEXT[1], 0, TEXT[2])):
        unmarked = Request(id=one.id, prompt=one.prompt, sampling=one.sampling)
        want = tiny.run(plain, [unmarked])[(one.id, 0)]
        for _ in range(2):
            got = tiny.run(built, [one])[(one.id, 0)]
            assert tiny.tokens(got) == tiny.tokens(want) and close(scores(got), scores(want))


def test_contexts_together_may_be_longer_than_the_window(tmp_path: Path, model: str, dense: tiny.Built) -> None:
    short = tiny.folder(tmp_path, max_position_embeddings=128)
    built = tiny.engine(short, with_=("ape:temperature=0.9:scale=0.9",), kv__block_size=16)
    one = request("a", TEXT[0], 3, 0, 3, 1, 4, TEXT[3], max_tokens=99)
    assert len(one.prompt) > 128
    for _ in range(2):
        deltas = tiny.run(built, [one])[("a", 0)]
        tokens = tiny.tokens(deltas)
        assert len(tokens) == 128 - (5 + 70 + 11), "as many as there are positions left"
        assert close(scores(deltas)[:6], written_out(dense, one, tokens[:6], 0.9, 0.9))
    for refused in (request("b", TEXT[4], 3, 0, TEXT[4]), request("c", TEXT[0], 3, 0, 3, TEXT[3], prompt_logprobs=1)):
        with pytest.raises(BadRequest, match="the prompt has"):
            built.engine.add(refused)
    unmarked = Request(id="d", prompt=one.prompt, sampling=one.sampling)
    with pytest.raises(BadRequest, match="the prompt has"):
        built.engine.add(unmarked)


def test_answers_do_not_depend_on_memory_company_or_drafts(model: str) -> None:
    """Preemption, swapping, several answers, and guesses that are right now and then."""

    def asked(**sampling: Any) -> list[Request]:
        return [
            request("a", TEXT[4], 3, 0, 1, TEXT[3], max_tokens=40, **sampling),
            request("b", TEXT[0], 0, TEXT[2], 3, 4, TEXT[1], n=3, temperature=0.9, seed=5, max_tokens=40),
            request("c", TEXT[4], 3, 0, 1, TEXT[2], max_tokens=40, **sampling),
            request("d", TEXT[4], TEXT[1], max_tokens=40, **sampling),
        ]

    with_ = ("ape:temperature=0.8:scale=0.8",)
    alone: dict[Any, Any] = {}
    quiet = tiny.engine(model, with_=with_, kv__block_size=8, kv__reuse=None)
    for one in asked():
        alone |= tiny.run(quiet, [one])
    block = 8 * 2 * 2 * 2 * 16 * 4
    for host in (0, 1 << 20):
        busy = spoil(
            tiny.engine(
                model,
                with_=(*with_, "prompt-lookup", "stall-free:chunk=19", "newest-yields:swap_from=1"),
                kv__block_size=8,
                kv__memory_bytes=66 * block,
                kv__host_bytes=host,
                scheduling__max_tokens=40,
            )
        )
        for _ in range(2):
            got = tiny.run(busy, asked())
            assert got.keys() == alone.keys()
            for key, deltas in got.items():
                assert tiny.tokens(deltas) == tiny.tokens(alone[key]), key
        counts = busy.engine.events.counts
        assert counts[Kind.SWAPPED] + counts[Kind.PREEMPTED] > 0, "the test should press on memory"
        assert counts[Kind.DRAFTED] > 0
        assert busy.engine.ledger.linker is not None and busy.engine.ledger.linker.linked > 0


@pytest.mark.parametrize(
    ("with_", "settings", "why"),
    [
        (("kv-int8",), {}, "both decide attention.policy"),
        (("sink-window:tokens=64",), {}, "both decide attention.policy"),
        (("mpic",), {}, "both decide kv.repair"),
        (("tiered",), {}, "in the pool only"),
        ((), {"attention__policy": "paged"}, "attention.policy=paged"),
        ((), {"kv__repair": None}, "kv.repair=None"),
        ((), {"kv__repair": "plain-chunks"}, "kv.repair=plain-chunks"),
        ((), {"executor__deterministic": True}, "deterministic"),
    ],
)
def test_what_cannot_go_with_it_is_refused_by_name(
    model: str, with_: tuple[str, ...], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        tiny.engine(model, with_=("ape", *with_), **settings)
    assert "ape" in str(raised.value)


def test_windows_and_weights_that_are_none_are_refused(tmp_path: Path, model: str) -> None:
    window = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24}
    with pytest.raises(ConfigError, match="sliding window"):
        tiny.engine(tiny.folder(tmp_path, **window), with_=("ape",))
    for knob in ("temperature=0", "scale=-1", "temperature=inf"):
        with pytest.raises(ConfigError, match="must be above 0"):
            tiny.engine(model, with_=(f"ape:{knob}",))


def test_beside_each_other_even_in_fixed_order(model: str, dense: tiny.Built) -> None:
    """Without knobs a deterministic engine can do it too."""
    built = tiny.engine(model, with_=("ape:temperature=1:scale=1",), executor__deterministic=True)
    first = tiny.run(built, CASES)
    assert scores(first[("b", 0)]) == scores(tiny.run(built, [CASES[1]])[("b", 0)])
    assert close(scores(first[("b", 0)]), written_out(dense, CASES[1], tiny.tokens(first[("b", 0)]), 1.0, 1.0))
