"""Budgeted policies in the engine: against plain masked softmax, however a request is cut, preempted, reused or guessed at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.attention import naive, oracle
from tests.engine import tiny

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.executors.cost import CostModel
from hasten.engine.executors.simulated import SimulatedModel
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Draft, Sequence
from hasten.engine.simulate import simulated_engine
from hasten.engine.technique import ConfigError, Technique

NAMES = ["sink-window", "random-eviction"]
BLOCK = 16 * 2 * 2 * 2 * 16 * 4  # slots, layers, k and v, kv heads, head_dim, bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def built(model: str, with_: str, *more: str, **settings: Any) -> tiny.Built:
    engine = tiny.engine(model, with_=(with_, *more), kv__block_size=16, **settings)
    for site in engine.parts.model.sites:
        site.scale *= 30  # random weights attend to everything alike: sharper, so that every key counts
    return engine


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(1, 256, 100).tolist()
    return [shared[:k] + rng.integers(1, 256, n).tolist() for k, n in ((0, 3), (100, 40), (0, 90), (96, 60), (100, 0))]


def requests(count: int = 40) -> list[Request]:
    sampling = SamplingParams(max_tokens=count, temperature=0, logprobs=1, ignore_eos=True)
    return [Request(id=f"r{i}", prompt=np.array(prompt), sampling=sampling) for i, prompt in enumerate(prompts())]


def answers(engine: tiny.Built) -> list[tuple[list[int], list[float]]]:
    got = tiny.run(engine, requests())
    out = []
    for i in range(len(got)):
        deltas = got[(f"r{i}", 0)]
        scores = [score for delta in deltas for score in delta.logprobs]
        out.append((tiny.tokens(deltas), [score.logprob for score in scores if score is not None]))
    return out


@pytest.mark.parametrize("prefill", ["budget", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_plain_masked_softmax(model: str, name: str, prefill: str) -> None:
    reuse = {"kv__reuse": None} if prefill == "exact" else {}
    engine = built(model, f"{name}:prefill={prefill}", "stall-free:chunk=23", scheduling__max_tokens=37, **reuse)
    unlike = 0.0
    for prompt, (tokens, scores) in zip(prompts(), answers(engine), strict=True):
        whole, asked = prompt + tokens, len(prompt)
        mask = naive.mask(name, len(whole), prompt=asked if prefill == "exact" else None)
        rows = torch.arange(asked - 1, len(whole) - 1)
        want = oracle.log_probabilities(engine.parts.model, whole, mask)[rows]
        np.testing.assert_allclose(scores, want[torch.arange(len(rows)), tokens], atol=1e-4)
        assert (want.max(-1).values - want[torch.arange(len(rows)), tokens] < 1e-4).all(), "greedy under the mask"
        full = oracle.log_probabilities(engine.parts.model, whole, np.tri(len(whole), dtype=bool))[rows]
        unlike = max(unlike, float((want - full).abs().max()))
        if prefill == "exact":
            torch.testing.assert_close(want[0], full[0], msg="the first token is drawn from the exact prompt")
    assert unlike > 0.05, "what is gone must matter, or the test shows nothing"


@pytest.mark.parametrize("prefill", ["budget", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_preemption_and_reuse_change_nothing(model: str, name: str, prefill: str) -> None:
    technique = f"{name}:prefill={prefill}"
    plain = built(model, technique, "whole-prompts", kv__reuse=None, executor__deterministic=True)
    want = answers(plain)
    for host in (0, 1 << 20):
        busy = built(
            model,
            technique,
            "stall-free:chunk=23",
            "newest-yields:swap_from=1",
            kv__memory_bytes=(26 if prefill == "budget" else 20) * BLOCK,
            kv__host_bytes=host,
            kv__reuse="prefix-tree" if prefill == "budget" else None,
            scheduling__max_tokens=37,
            executor__deterministic=True,
        )
        assert answers(busy) == want
        assert answers(busy) == want, "once more, now that prompts are cached"
        counts = busy.engine.events.counts
        assert counts[Kind.SWAPPED if host else Kind.PREEMPTED] > 0, "the test should press on memory"
        assert (counts[Kind.REUSED] > 0) == (prefill == "budget")


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_all_is_the_plain_engine(model: str, name: str) -> None:
    want = answers(built(model, "paged", executor__deterministic=True))
    assert answers(built(model, f"{name}:share=1", executor__deterministic=True)) == want
    assert answers(built(model, f"{name}:tokens=400", executor__deterministic=True)) == want
    assert answers(built(model, name, executor__deterministic=True)) != want


class Guesses:
    """Proposes a small tree: chains of the answer known from before, with wrong tokens beside them."""

    def __init__(self, known: dict[str, list[int]]) -> None:
        self.known = known

    def lookahead(self, sequence: Sequence) -> int:
        return 4

    def propose(self, sequences: list[Sequence], budgets: list[int], last: Any) -> list[Draft | None]:
        out: list[Draft | None] = []
        for seq, budget in zip(sequences, budgets, strict=True):
            right = self.known[seq.request.id][seq.output_length :][:2]
            if len(right) < 2 or budget < 4:
                out.append(None)
                continue
            wrong = [(token + 1) % 256 for token in right]
            tokens = np.array([wrong[0], right[0], wrong[1], right[1]], dtype=np.int32)
            out.append(Draft(tokens, np.array([-1, -1, 1, 1], dtype=np.int32)))
        return out


@pytest.mark.parametrize("prefill", ["budget", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_drafted_trees_see_what_plain_decoding_sees(
    model: str, name: str, prefill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    technique = f"{name}:prefill={prefill}"
    want = answers(built(model, technique, kv__reuse=None, executor__deterministic=True))
    guesses = Technique(
        name="guesses",
        seam="decoding",
        summary="x",
        exact=True,
        sets={"decoding.proposers": ("guesses",)},
        make=lambda context, options: Guesses({f"r{i}": tokens for i, (tokens, _) in enumerate(want)}),
    )
    entry = SimpleNamespace(name="guesses", load=lambda: guesses)
    monkeypatch.setattr("hasten.engine.technique.entry_points", lambda group: [entry])
    engine = built(model, technique, "guesses", kv__reuse=None, executor__deterministic=True)
    assert answers(engine) == want
    columns = engine.engine.events.columns()
    accepted = columns["b"][columns["kind"] == Kind.DRAFTED]
    assert accepted.sum() > 100, "most guesses are right"


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_run_together_is_refused(model: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} and kv.reuse=prefix-tree cannot run together"):
        built(model, f"{name}:prefill=exact")
    with pytest.raises(ConfigError, match=f"{name}: share must lie in"):
        built(model, f"{name}:share=2")
    with pytest.raises(ConfigError, match=f"{name}: prefill"):
        EngineConfig.build(with_=[f"{name}:prefill=none"])
    with pytest.raises(ConfigError, match=f"attention.policy={name} cannot be simulated"):
        simulated = SimulatedModel(name="m", vocabulary=10, max_length=64)
        simulated_engine(EngineConfig.build(with_=[name]), simulated, CostModel(knots=(1, 9), knot_s=(1e-3, 2e-3)), blocks=8)
