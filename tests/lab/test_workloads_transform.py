"""Transformations and prompts: what they promise for any workload."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.engine.request import SLO
from hasten.lab.workloads import TimedRequest, Workload, WorkloadError, load
from hasten.lab.workloads import transform as t
from hasten.lab.workloads.prompts import FIRST_TOKEN, Prompts

FEW = settings(max_examples=60)


@st.composite
def workloads(draw: st.DrawFn, *, alike: bool = False) -> Workload:
    """Up to 12 requests, some with parents, some with blocks. `alike`: blocks of 16 tokens."""
    size = 16 if alike else draw(st.integers(1, 600))
    requests: list[TimedRequest] = []
    at_s = 0.0
    for number in range(draw(st.integers(1, 12))):
        at_s += draw(st.integers(0, 100_000)) / 1000
        prompt = draw(st.integers(1, 5000))
        parents = draw(st.lists(st.sampled_from([r.id for r in requests]), max_size=2, unique=True)) if requests else []
        requests.append(
            TimedRequest(
                id=f"r{number}",
                arrival_s=0.0 if parents else at_s,
                delay_s=draw(st.floats(0, 9)) if parents else 0.0,
                prompt_tokens=prompt,
                output_tokens=draw(st.integers(1, 2000)),
                blocks=tuple(range(draw(st.integers(0, -(-prompt // size))))),
                parents=tuple(parents),
                workflow=draw(st.sampled_from(["", "w"])),
            )
        )
    return Workload(name="drawn", requests=requests, block_tokens=size, source="drawn")


def poisson(requests: int = 200) -> Workload:
    return load(f"poisson:rate=2,requests={requests}")


@FEW
@given(workloads(), st.floats(0.01, 100))
def test_scaled_time_scales_all_of_it(workload: Workload, factor: float) -> None:
    scaled = t.scale_time(workload, factor)
    assert scaled.duration_s == pytest.approx(workload.duration_s * factor)
    assert [r.delay_s for r in scaled] == pytest.approx([r.delay_s * factor for r in workload])
    assert [r.prompt_tokens for r in scaled] == [r.prompt_tokens for r in workload]


@FEW
@given(workloads(), st.floats(0.01, 100))
def test_scaled_load_has_the_rate_asked_for(workload: Workload, rate: float) -> None:
    if not np.isfinite(t.mean_rate(workload)):
        with pytest.raises(WorkloadError, match="at once"):
            t.scale_load(workload, rate)
        return
    scaled = t.scale_load(workload, rate)
    assert t.mean_rate(scaled) == pytest.approx(rate)
    assert [r.delay_s for r in scaled] == [r.delay_s for r in workload]
    assert f"{rate:.6g} requests/s" in scaled.source


@FEW
@given(workloads(), st.integers(2, 8000))
@example(
    Workload(
        name="w",
        requests=[TimedRequest(id="a", arrival_s=0, prompt_tokens=1, output_tokens=473, blocks=(0,))],
        block_tokens=237,
    ),
    2,
)  # 237 * (2 / 474) is below 1 in floating point
def test_everything_fits_the_context(workload: Workload, context: int) -> None:
    longest = max(r.prompt_tokens + r.output_tokens for r in workload)
    shared = any(r.blocks for r in workload)
    if shared and longest > context and workload.block_tokens * context < longest:
        with pytest.raises(WorkloadError, match="would vanish"):
            t.fit_context(workload, context)
        return
    fitted = t.fit_context(workload, context)
    assert max(r.prompt_tokens + r.output_tokens for r in fitted) <= context
    for old, new in zip(workload, fitted, strict=True):
        assert new.prompt_tokens >= 1 and new.output_tokens >= 1
        assert len(new.blocks) <= -(-new.prompt_tokens // fitted.block_tokens)
        assert new.blocks == old.blocks[: len(new.blocks)]
        if old.prompt_tokens == len(old.blocks) * workload.block_tokens:
            assert new.prompt_tokens == len(new.blocks) * fitted.block_tokens
    if longest <= context:
        assert fitted == workload


def test_fitting_keeps_the_share_of_a_prompt_that_is_reused() -> None:
    requests = [
        TimedRequest(id="a", arrival_s=0, prompt_tokens=5120, output_tokens=100, blocks=tuple(range(10))),
        TimedRequest(id="b", arrival_s=1, prompt_tokens=5120, output_tokens=100, blocks=(0, 1, 2, 3, 4, 15, 16, 17, 18, 19)),
    ]
    fitted = t.fit_context(Workload(name="w", requests=requests), 600)
    assert fitted.block_tokens == 58
    assert [r.prompt_tokens for r in fitted] == [580, 580] and [len(r.blocks) for r in fitted] == [10, 10]
    one, other = (Prompts(fitted, 1000).tokens(r) for r in fitted)
    assert (one[:290] == other[:290]).all() and (one[290:] != other[290:]).mean() > 0.9


def test_lengths_grow_and_shrink() -> None:
    workload = poisson(20)
    twice = t.scale_lengths(workload, 2.0)
    assert [r.prompt_tokens for r in twice] == [2 * r.prompt_tokens for r in workload]
    assert all(r.output_tokens == 1 for r in t.scale_lengths(workload, 1e-6))


@FEW
@given(workloads(), st.integers(0, 12), st.integers(1, 13))
def test_a_cut_keeps_workflows_whole(workload: Workload, start: int, length: int) -> None:
    try:
        part = t.cut(workload, start, start + length)
    except WorkloadError as error:
        assert "begins among" in str(error)
        return
    assert part.requests[0].arrival_s == 0.0
    kept = {r.id for r in part}
    linked = [{r.id, *r.parents} for r in workload if r.parents]
    assert all(link <= kept or not link & kept for link in linked)
    roots = [int(r.id[1:]) for r in part if not r.parents]
    assert start <= min(roots) < start + length


def test_cuts_by_number_and_by_time() -> None:
    workload = poisson()
    part = load("poisson:rate=2,requests=200[50:60]")
    assert [r.id for r in part] == [str(i) for i in range(50, 60)]
    gap_s = workload.requests[51].arrival_s - workload.requests[50].arrival_s
    assert part.requests[1].arrival_s == pytest.approx(gap_s)
    assert len(t.cut(workload, 150)) == 50
    timed = t.between(workload, 10.0, 20.0)
    inside = [r for r in workload if 10.0 <= r.arrival_s < 20.0]
    assert [r.id for r in timed] == [r.id for r in inside]
    assert timed.requests[0].arrival_s == pytest.approx(inside[0].arrival_s - 10.0)


@FEW
@given(st.lists(workloads(), min_size=1, max_size=3))
def test_a_mix_has_everything_once(several: list[Workload]) -> None:
    mixed = t.mix(*several)
    assert len(mixed) == sum(map(len, several)) and len({r.id for r in mixed}) == len(mixed)
    assert mixed.duration_s == pytest.approx(max(w.duration_s for w in several))
    assert sorted(r.prompt_tokens for r in mixed) == sorted(r.prompt_tokens for w in several for r in w)


@FEW
@given(st.lists(workloads(), min_size=2, max_size=3))
def test_mixed_blocks_share_within_a_workload_only(several: list[Workload]) -> None:
    mixed = t.mix(*several)
    prompts = Prompts(mixed, 50_000)
    size = mixed.block_tokens
    blocks: list[set[int]] = []
    for number, workload in enumerate(several):
        label = f"drawn#{number}/"
        mine = [r for r in mixed if r.id.startswith(label)]
        blocks.append({block for r in mine for block in r.blocks})
        sharing = [(r, next(m for m in mine if m.id == label + r.id)) for r in workload if r.blocks]
        for (old, new), (other, new_other) in pairwise(sharing):
            # All drawn prompts begin alike, for as many tokens as both have blocks for.
            alike = min(len(old.blocks), len(other.blocks)) * workload.block_tokens
            alike = min(alike, old.prompt_tokens, other.prompt_tokens)
            assert (prompts.tokens(new)[:alike] == prompts.tokens(new_other)[:alike]).all()
            assert min(len(new.blocks), len(new_other.blocks)) * size >= alike
    assert sum(map(len, blocks)) == len(set().union(*blocks))


def test_a_mix_refuses_two_meanings_of_a_class() -> None:
    def one(slo: SLO) -> Workload:
        request = TimedRequest(id="a", arrival_s=0, prompt_tokens=1, output_tokens=1, slo_class="chat")
        return Workload(name="w", requests=[request], slos={"chat": slo})

    assert len(t.mix(one(SLO(ttft_s=1.0)), one(SLO(ttft_s=1.0)))) == 2
    with pytest.raises(WorkloadError, match="'chat' means something else"):
        t.mix(one(SLO(ttft_s=1.0)), one(SLO(ttft_s=2.0)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("poisson:requests=5@load=0", "requests_per_s must be a positive"),
        ("poisson:requests=5@time=-1", "factor must be a positive"),
        ("poisson:requests=5@context=1", "at least 2"),
        ("poisson:requests=5@size=1", "no step is called 'size'; known: load, time, lengths, context"),
        ("poisson:requests=5@load=fast", "load must be float, got 'fast'"),
        ("poisson:requests=5[3:2]", "cannot cut from 3 to 2"),
        ("poisson:requests=5[9:12]", "no request or workflow begins"),
        ("poisson:speed=3", "poisson has no option 'speed'; it has rate, requests"),
        ("poisson:requests=many", "requests must be int, got 'many'"),
        ("poisson:requests=0", "requests must be at least 1"),
        ("poisson:rate=nan", "rate must be a positive"),
        ("poisson:rate=1,rate=2", "'rate' is there twice"),
        ("gamma:cv=0", "cv must be a positive"),
        ("poisson:prompt_sigma=-1", "spread of lengths"),
        ("conversations:turns=0.5", "turns must be"),
        ("agents:width=0", "width must be"),
        ("agents:longest=1", "longest must be at least 2"),
        ("", "is no workload"),
    ],
)
def test_bad_specs_are_refused(spec: str, expected: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(expected)):
        load(spec)


def test_steps_follow_each_other_as_written() -> None:
    workload = load("poisson:rate=2,requests=100[0:50]@context=512,load=7,time=2")
    assert len(workload) == 50 and t.mean_rate(workload) == pytest.approx(3.5)
    assert max(r.prompt_tokens + r.output_tokens for r in workload) <= 512
    done = [step.split(" ")[0] for step in workload.source.split("; ")[-4:]]
    assert done == ["requests", "lengths", "load", "time"]


def test_text_has_no_length_to_scale() -> None:
    request = TimedRequest(id="a", arrival_s=0, prompt_tokens=100, output_tokens=1, text="hello")
    with pytest.raises(WorkloadError, match="cannot be scaled"):
        t.fit_context(Workload(name="w", requests=[request]), 50)


# -- prompts -----------------------------------------------------------------------------------------------------------


@FEW
@given(workloads(alike=True), st.sampled_from([2, 50, 64, 1000, 128_256, 2**31]), st.integers(0, 3))
def test_prompts_have_their_length_and_stay_in_the_vocabulary(workload: Workload, vocabulary: int, seed: int) -> None:
    for request in workload:
        tokens = Prompts(workload, vocabulary, seed).tokens(request)
        assert tokens.dtype == np.int32 and tokens.shape == (request.prompt_tokens,)
        assert tokens.min() >= (FIRST_TOKEN if vocabulary >= 64 else 0) and tokens.max() < vocabulary


def test_equal_blocks_are_equal_tokens_and_nothing_else_is() -> None:
    def request(id: str, *blocks: int, tokens: int = 96) -> TimedRequest:
        return TimedRequest(id=id, arrival_s=0, prompt_tokens=tokens, output_tokens=1, blocks=blocks)

    requests = [request("a", 5, 6, 7), request("b", 5, 8, 7), request("c", 5, 6, tokens=50), request("d")]
    prompts = Prompts(Workload(name="w", requests=requests, block_tokens=32), 100_000)
    a, b, c, d = (prompts.tokens(r) for r in requests)
    assert (a[:32] == b[:32]).all() and (a[64:] == b[64:]).all() and (a[:50] == c).all()
    assert (a[32:64] != b[32:64]).mean() > 0.9 and (a != d).mean() > 0.9
    assert (a[:32] != a[32:64]).mean() > 0.9
    other = Prompts(Workload(name="w", requests=requests, block_tokens=32), 100_000, seed=1)
    assert (other.tokens(requests[0]) != a).mean() > 0.9
    assert (prompts.tokens(requests[0]) == a).all()


def test_tokens_look_evenly_drawn() -> None:
    requests = [
        TimedRequest(id="a", arrival_s=0, prompt_tokens=512 * 200, output_tokens=1, blocks=tuple(range(200))),
        TimedRequest(id="b", arrival_s=0, prompt_tokens=512 * 200, output_tokens=1),
    ]
    prompts = Prompts(Workload(name="w", requests=requests), 1016)
    for request in requests:
        tokens = prompts.tokens(request)
        counts = np.bincount(tokens - FIRST_TOKEN, minlength=1000)
        assert 0.8 < ((counts - counts.mean()) ** 2 / counts.mean()).mean() < 1.2  # chi-square per degree of freedom
        for lag in (1, 2, 512):
            assert abs(np.corrcoef(tokens[:-lag], tokens[lag:])[0, 1]) < 0.02


def test_text_is_encoded_by_the_tokenizer_given() -> None:
    request = TimedRequest(id="a", arrival_s=0, prompt_tokens=1, output_tokens=1, text="hey")
    workload = Workload(name="w", requests=[request])
    assert Prompts(workload, 256, encode=lambda text: list(text.encode())).tokens(request).tolist() == [104, 101, 121]
    with pytest.raises(WorkloadError, match="a tokenizer is needed"):
        Prompts(workload, 256).tokens(request)
    with pytest.raises(WorkloadError, match="has no tokens"):
        Prompts(workload, 256, encode=lambda text: []).tokens(request)
    with pytest.raises(WorkloadError, match="vocabulary"):
        Prompts(workload, 1)
