"""Typical acceptance: the rule, against one written out token by token; what it leaves alone."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine import tiny
from tests.engine.test_loop import request

from hasten.engine import speculate
from hasten.engine.decoding.base import Drawn, Row
from hasten.engine.decoding.lossless import LosslessSampler
from hasten.engine.decoding.typical_acceptance import Options, TypicalSampler
from hasten.engine.events import Kind
from hasten.engine.executors.base import StepResult
from hasten.engine.kv.base import ReuseKey
from hasten.engine.request import Request, SamplingParams
from hasten.engine.sequence import Draft, Sequence, Span
from hasten.kernels import ReferenceKernels

VOCABULARY = 12
KNOBS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 0.8, "repetition_penalty": 1.5, "presence_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": {3: 2.0, 4: -100.0}},
]


class Only:
    """A constraint that allows the tokens below a bound."""

    ended = False

    def __init__(self, bound: int) -> None:
        self.bound = bound

    def fork(self) -> Only:
        return self

    def advance(self, token: int) -> None:
        assert token < self.bound

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0
        mask[0] = (1 << self.bound) - 1


def sampler(kind: type[LosslessSampler] = TypicalSampler, **knobs: Any) -> LosslessSampler:
    parts: Any = SimpleNamespace(
        kernels=ReferenceKernels(), model=SimpleNamespace(vocabulary=VOCABULARY), eos=frozenset({VOCABULARY - 1})
    )
    if kind is TypicalSampler:
        return TypicalSampler(parts, Options(**knobs))
    return LosslessSampler(parts.kernels, VOCABULARY, parts.eos)


def sequence(number: int, **knobs: Any) -> Sequence:
    asked = Request(id=f"r{number}", prompt=np.array([1, 2, number % 9]), sampling=SamplingParams(seed=number, **knobs))
    return Sequence(number, asked, 0, number, ReuseKey("m"), 0.0)


def tree(rng: random.Random, seq: Sequence) -> Draft:
    """Some nodes that the sequence's constraint allows."""
    parents = [rng.randrange(-1, i) if i else -1 for i in range(rng.randint(1, 9))]
    bound = seq.constraint.bound if seq.constraint is not None else VOCABULARY
    tokens = [rng.randrange(bound) for _ in parents]
    found = speculate.prune(Draft(np.array(tokens, np.int32), np.array(parents, np.int32)), seq, 9)
    assert found is not None
    return found


def shaped(logits: torch.Tensor, row: Row) -> list[float]:
    """What a row is drawn from, written out."""
    params, seq = row.sequence.request.sampling, row.sequence
    values = logits.tolist()
    said = [*seq.tokens.tolist(), *row.path]
    output = [*seq.output.tolist(), *row.path]
    for token in set(said):
        values[token] = (
            values[token] / params.repetition_penalty if values[token] > 0 else values[token] * params.repetition_penalty
        )
    for token in set(output):
        values[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if row.constraint is not None:
        values = [value if token < row.constraint.bound else -math.inf for token, value in enumerate(values)]
    p = [math.exp((value - max(values)) / params.temperature) for value in values]
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    if params.top_k:
        order = order[: params.top_k]
    mass, kept = sum(p[token] for token in order), list[int]()
    for token in order:
        if params.top_p < 1 and kept and sum(p[one] for one in kept) >= params.top_p * mass:
            break
        kept.append(token)
    kept = [token for token in kept if p[token] >= params.min_p]
    total = sum(p[token] for token in kept)
    return [p[token] / total if token in kept else 0.0 for token in range(len(p))]


def longest(draft: Draft, rows: list[Row], logits: torch.Tensor, epsilon: float, delta: float) -> list[int]:
    """The tokens of the first longest path whose tokens may all stay."""
    parents = speculate.parents_of(draft).tolist()
    paths: list[tuple[int, ...] | None] = []
    best: tuple[int, ...] = ()
    for i, token in enumerate(draft.tokens.tolist()):
        before: tuple[int, ...] | None = () if parents[i] < 0 else paths[parents[i]]
        row = rows[parents[i] + 1]
        p = shaped(logits[row.logits_row], row)
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        stays = before is not None and p[token] > min(epsilon, delta * math.exp(-entropy))
        paths.append((*before, token) if stays and before is not None else None)
        found = paths[-1]
        if found is not None and len(found) > len(best):
            best = found
    return list(best)


@pytest.mark.parametrize("seed", range(60))
def test_the_rule_is_the_papers(seed: int) -> None:
    """A batch of trees at once, each with its own knobs; constraints too."""
    rng = random.Random(seed)
    epsilon = rng.choice([0.05, 0.09, 0.3])
    delta = rng.choice([None, 0.3, 2.0])
    spans, rows, firsts = [], list[Row](), []
    for number in range(5):
        seq = sequence(number, **KNOBS[(seed + number) % len(KNOBS)])
        if rng.random() < 0.3:
            seq.constraint = Only(rng.randint(2, VOCABULARY))
        draft = tree(rng, seq)
        span = Span(seq, 1, seq.tokens, seq.positions, seq.segments, np.zeros(1, np.int64), draft=draft)
        firsts.append(len(rows))
        rows += speculate.rows(span, len(rows))
        spans.append(span)
    logits = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    ours = sampler(epsilon=epsilon, delta=delta).draw(StepResult(logits.clone()), rows)
    true = sampler(LosslessSampler).draw(StepResult(logits.clone()), rows)
    for span, first in zip(spans, firsts, strict=True):
        assert span.draft is not None
        count = len(span.draft.tokens) + 1
        own = rows[first : first + count]
        want = longest(span.draft, own, logits, epsilon, delta if delta is not None else math.sqrt(epsilon))
        _, draws = speculate.accept(span, ours, first)
        said = [ours.tokens[first + offset] for offset in draws]
        assert said[: len(want)] == want
        # Behind it come true draws, and drafts that they happen to agree with.
        assert [ours.tokens[first + offset] for offset in draws[len(want) :]] == [
            true.tokens[first + offset] for offset in draws[len(want) :]
        ]


def test_greedy_requests_and_rows_without_drafts_are_left_alone() -> None:
    rng = random.Random(0)
    for seed in range(30):
        logits = torch.randn(10, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        greedy = sequence(1, temperature=0.0)
        span = Span(greedy, 1, greedy.tokens, greedy.positions, greedy.segments, np.zeros(1, np.int64), draft=tree(rng, greedy))
        drawn = sequence(2, temperature=1.0)
        rows = [*speculate.rows(span, 0)[:9], Row(drawn, 9), Row(drawn, 8, (3, 4))]
        found: list[Drawn] = [
            sampler(kind).draw(StepResult(logits.clone()), rows) for kind in (TypicalSampler, LosslessSampler)
        ]
        assert found[0].tokens == found[1].tokens


def test_logprobs_are_those_of_what_is_said() -> None:
    seq = sequence(1, temperature=1.0, logprobs=0)
    draft = Draft(np.array([5], np.int32))
    span = Span(seq, 1, seq.tokens, seq.positions, seq.segments, np.zeros(1, np.int64), draft=draft)
    logits = torch.zeros(2, VOCABULARY)
    drawn = sampler(epsilon=0.01).draw(StepResult(logits), speculate.rows(span, 0))
    assert drawn.tokens[0] == 5 and drawn.logprobs[0] is not None
    assert drawn.logprobs[0].token == 5 and drawn.logprobs[0].logprob == pytest.approx(-math.log(VOCABULARY))


def test_more_is_accepted_and_the_books_balance(tmp_path: Any) -> None:
    """With any proposer; greedy answers beside drawn ones stay the plain engine's."""
    model = tiny.folder(tmp_path)
    bias = dict.fromkeys((5, 6, 7), 50.0)
    requests = [
        request(
            f"r{i}", [5, 6, 7, 5, 6, 7, 5, i + 5], max_tokens=60, temperature=float(i % 2), logit_bias=bias, ignore_eos=True
        )
        for i in range(6)
    ]
    plain = tiny.run(tiny.engine(model, executor__deterministic=True), requests)
    accepted = []
    for with_ in (("prompt-lookup:shortest=1",), ("prompt-lookup:shortest=1", "typical-acceptance:epsilon=0.05")):
        built = tiny.engine(model, with_=with_, executor__deterministic=True)
        got = tiny.run(built, requests)
        for (name, index), deltas in plain.items():
            assert len(tiny.tokens(got[name, index])) == 60
            if int(name[1:]) % 2 == 0:
                assert tiny.tokens(got[name, index]) == tiny.tokens(deltas)
        columns = built.engine.events.columns()
        accepted.append(columns["b"][columns["kind"] == Kind.DRAFTED].sum())
    assert accepted[1] > 1.2 * accepted[0] > 0
