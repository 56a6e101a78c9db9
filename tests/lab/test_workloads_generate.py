"""Generators, the fitted one among them, and the figures that describe and compare workloads."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

import numpy as np
import pytest

from hasten.lab.workloads import TimedRequest, Workload, WorkloadError, burst, coldstarts, compare, data, load
from hasten.lab.workloads import transform as t
from hasten.lab.workloads.generate import arrivals
from hasten.lab.workloads.picture import picture

needs_data = pytest.mark.skipif(data.data_folder() is None, reason="HASTEN_DATA is not set")

SPECS = ["poisson", "gamma:cv=3", "conversations", "agents"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_seed_decides_everything(spec: str) -> None:
    join = "," if ":" in spec else ":"
    assert load(spec) == load(f"{spec}{join}seed=0") != load(f"{spec}{join}seed=1")


@pytest.mark.parametrize("cv", [0.3, 1.0, 4.0])
def test_gamma_arrivals_have_rate_and_burstiness(cv: float) -> None:
    workload = load(f"gamma:rate=3,cv={cv},requests=20000")
    figures = compare.statistics(workload)
    assert figures["requests_per_s"] == pytest.approx(3.0)
    assert figures["gap_cv"] == pytest.approx(cv, rel=0.1)


def test_arrivals_and_lengths_are_drawn_apart() -> None:
    one, other = load("gamma:cv=1"), load("gamma:cv=4,rate=9")
    assert [r.prompt_tokens for r in one] == [r.prompt_tokens for r in other]


def test_lengths_are_those_of_the_azure_trace() -> None:
    figures = compare.statistics(load("poisson:requests=20000"))
    assert figures["prompt_p50"] == pytest.approx(1020, rel=0.03) and figures["output_p50"] == pytest.approx(129, rel=0.03)
    assert figures["prompt_max"] <= 16_384


def test_few_arrivals() -> None:
    rng = np.random.default_rng(0)
    assert arrivals(rng, 1, 5.0).tolist() == [0.0]
    assert arrivals(rng, 2, 5.0).tolist() == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("longest", [40, 300, 16_384])
@pytest.mark.parametrize("name", ["conversations", "agents"])
def test_workflows_share_their_history(name: str, longest: int) -> None:
    workload = load(f"{name}:longest={longest}")
    by_id = {r.id: r for r in workload}
    owners: dict[int, set[str]] = defaultdict(set)
    for request in workload:
        assert request.prompt_tokens + request.output_tokens <= longest
        assert len(request.blocks) <= -(-request.prompt_tokens // workload.block_tokens)
        for parent in request.parents:
            earlier = by_id[parent]
            assert earlier.workflow == request.workflow
            if longest > 10_000:
                whole = earlier.blocks[: earlier.prompt_tokens // workload.block_tokens]
                assert request.blocks[: len(whole)] == whole
        for block in request.blocks:
            owners[block].add(request.workflow)
    # A block belongs to one workflow, or else to the beginning that all have.
    common = {block for block, own in owners.items() if len(own) > 1}
    assert common == set(range(len(common)))
    assert len(common) <= (128 if name == "conversations" else 512) // workload.block_tokens


def test_agents_work_in_stages() -> None:
    workload = load("agents:workflows=300")
    figures = compare.statistics(workload)
    assert figures["requests_per_workflow"] == pytest.approx(1 + 4 * 4 + 1, rel=0.15)
    stages: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for request in workload:
        stages[f"{request.workflow} {request.stage}"].add(request.parents)
    assert all(len(parents) == 1 for parents in stages.values())
    answer = next(r for r in workload if r.stage == "answer")
    assert answer.parents and all("round" in r.stage for r in workload if r.id in answer.parents)


def test_conversations_have_the_published_means() -> None:
    workload = load("conversations:conversations=5000,system=16")
    figures = compare.statistics(workload)
    assert figures["requests_per_workflow"] == pytest.approx(2.0, rel=0.05)
    assert figures["output_mean"] == pytest.approx(214.5, rel=0.05)
    first = [r.prompt_tokens - 16 for r in workload if not r.parents]
    assert np.mean(first) == pytest.approx(69.5, rel=0.05)


# -- the fitted generator ----------------------------------------------------------------------------------------------


def drifting(seed: int = 0, count: int = 6000) -> Workload:
    """Two services: one whose rate doubles halfway while its gaps turn bursty, its outputs as long as its prompts; one of
    Poisson arrivals, with outputs of two kinds and failures."""
    rng = np.random.default_rng(seed)
    half = count // 2
    gaps = np.concatenate([rng.exponential(1.0, half), rng.gamma(0.1, 0.5 / 0.1, half)])
    rows = []
    for at_s in np.cumsum(gaps):
        prompt = int(rng.pareto(2.0) * 100) + 10
        rows.append((float(at_s), prompt, prompt + int(rng.integers(0, 5)), "bursty", False))
    end_s = rows[-1][0]
    for at_s in np.sort(rng.uniform(0, end_s, half)):
        failed = bool(rng.random() < 0.1)
        rows.append((float(at_s), 500, 1 if failed else int(rng.choice([10, 1000])), "plain", failed))
    rows.sort()
    requests = [
        TimedRequest(id=str(i), arrival_s=at, prompt_tokens=p, output_tokens=o, application=a, failed=f)
        for i, (at, p, o, a, f) in enumerate(rows)
    ]
    return Workload(name="drifting", requests=requests)


@pytest.fixture(scope="module")
def trace() -> Workload:
    return drifting()


@pytest.fixture(scope="module")
def fitted(trace: Workload) -> burst.Parameters:
    return burst.fit(trace)


def only(workload: Workload, application: str) -> Workload:
    return dataclasses.replace(workload, requests=[r for r in workload if r.application == application])


def unpaired(workload: Workload) -> Workload:
    """The same lengths, each output with another's prompt."""
    outputs = np.random.default_rng(0).permutation([r.output_tokens for r in workload]).tolist()
    requests = [dataclasses.replace(r, output_tokens=o) for r, o in zip(workload, outputs, strict=True)]
    return dataclasses.replace(workload, requests=requests)


def test_generated_is_like_the_trace(trace: Workload, fitted: burst.Parameters) -> None:
    made = burst.generate(fitted, failures=True, seed=3)
    assert len(made) == len(trace) and t.mean_rate(made) == pytest.approx(t.mean_rate(trace), rel=0.01)
    for application in ("bursty", "plain"):
        one, other = only(trace, application), only(made, application)
        distances = compare.compare(one, other)
        assert distances["ks_gaps"] < 0.06
        assert distances["ks_prompt"] < 0.05
        worst = compare.compare(one, unpaired(other))["joint_error"] if application == "bursty" else 0.2
        assert distances["joint_error"] < 0.25 * worst
    one, other = (compare.windows(only(w, "bursty")) for w in (trace, made))
    for values, others, close in ((one.rate, other.rate, 0.25), (one.cv, other.cv, 0.35)):
        for part in (slice(2, 18), slice(22, 38)):  # both halves, not what lies between
            assert np.nanmean(others[part]) == pytest.approx(np.nanmean(values[part]), rel=close)


def test_poisson_arrivals_are_further_from_the_trace(trace: Workload, fitted: burst.Parameters) -> None:
    bursty = only(trace, "bursty")
    plain = load(f"poisson:rate={t.mean_rate(bursty)},requests=6000")
    ours = compare.compare(bursty, only(burst.generate(fitted, seed=5), "bursty"))["ks_gaps"]
    assert ours < 0.5 * compare.compare(bursty, plain)["ks_gaps"]


def test_output_lengths_depend_on_the_prompt(fitted: burst.Parameters) -> None:
    made = only(burst.generate(fitted, seed=1), "bursty")
    assert compare.statistics(made)["length_correlation"] > 0.85
    plain = only(burst.generate(fitted, seed=1), "plain")
    near = [min(abs(math.log(r.output_tokens / kind)) for kind in (10, 1000)) for r in plain]
    assert np.mean(np.array(near) < 0.05) > 0.9


def test_generated_is_decided_by_its_seed(fitted: burst.Parameters) -> None:
    assert burst.generate(fitted, requests=300, seed=1) == burst.generate(fitted, requests=300, seed=1)
    assert burst.generate(fitted, requests=300, seed=1) != burst.generate(fitted, requests=300, seed=2)


def test_rate_count_and_burstiness_can_be_chosen(fitted: burst.Parameters) -> None:
    made = burst.generate(fitted, requests=2 * fitted.requests, rate=50.0, cv=2.0)
    assert len(made) == 2 * fitted.requests and t.mean_rate(made) == pytest.approx(50.0)
    plain = [burst.generate(fitted, cv=cv) for cv in (0.5, 3.0)]
    low, high = (compare.statistics(only(w, "plain"))["gap_cv_windows"] for w in plain)
    assert low < 0.8 and high > 1.5


def test_failures_come_as_often_as_fitted(fitted: burst.Parameters) -> None:
    failed = [r.failed for r in only(burst.generate(fitted, failures=True), "plain")]
    assert np.mean(failed) == pytest.approx(0.1, abs=0.03)
    assert not any(r.failed for r in burst.generate(fitted))


def test_failures_rise_with_load() -> None:
    rng = np.random.default_rng(0)
    requests = []
    for at_s in np.sort(np.concatenate([rng.uniform(0, 1000, 1000), rng.uniform(1000, 2000, 4000)])):
        failed = bool(rng.random() < (0.02 if at_s < 1000 else 0.2))
        requests.append(TimedRequest(id=str(len(requests)), arrival_s=at_s, prompt_tokens=5, output_tokens=5, failed=failed))
    made = burst.generate(burst.fit(Workload(name="w", requests=requests)), failures=True)
    quiet, busy = ([r.failed for r in made if (r.arrival_s < 1000) == early] for early in (True, False))
    assert np.mean(busy) > 4 * np.mean(quiet) and np.mean(busy) == pytest.approx(0.2, abs=0.04)


def test_a_clock_of_whole_seconds_is_no_burst() -> None:
    workload = load("poisson:rate=5,requests=5000")
    coarse = [dataclasses.replace(r, arrival_s=float(int(r.arrival_s))) for r in workload]
    service = burst.fit(dataclasses.replace(workload, requests=coarse)).services[0]
    assert np.mean(service.cv) == pytest.approx(1.0, abs=0.1)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(WorkloadError, match="stages"):
        burst.fit(load("agents"))
    with pytest.raises(WorkloadError, match="too few"):
        burst.fit(load("poisson:requests=20"))
    with pytest.raises(WorkloadError, match="at once"):
        burst.fit(Workload(name="w", requests=[dataclasses.replace(r, arrival_s=1.0) for r in load("poisson")]))
    with pytest.raises(WorkloadError, match="requests must be at least 1"):
        burst.generate(burst.fit(load("poisson")), requests=0)


# -- cold starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "sd"), [(1.25, 3.66), (3.24, 7.1), (2.0, 2.0), (5.0, 0.5)])
def test_parameters_have_the_moments(mean: float, sd: float) -> None:
    shape, scale = coldstarts.weibull_parameters(mean, sd)
    first, second = (scale**k * math.gamma(1 + k / shape) for k in (1, 2))
    assert (first, math.sqrt(second - first**2)) == pytest.approx((mean, sd))
    mu, sigma = coldstarts.lognormal_parameters(mean, sd)
    first, second = (math.exp(k * mu + (k * sigma) ** 2 / 2) for k in (1, 2))
    assert (first, math.sqrt(second - first**2)) == pytest.approx((mean, sd))


def test_drawn_times_have_the_published_moments() -> None:
    rng = np.random.default_rng(0)
    for draw, mean, sd in ((coldstarts.start_ups, 3.24, 7.10), (coldstarts.gaps, 1.25, 3.66)):
        drawn = draw(rng, 1_000_000)
        assert (drawn.mean(), drawn.std()) == pytest.approx((mean, sd), rel=0.05)


@pytest.mark.parametrize(("mean", "sd"), [(0, 1), (1, -1), (math.nan, 1), (1, 1e9)])
def test_impossible_moments_are_refused(mean: float, sd: float) -> None:
    with pytest.raises(WorkloadError, match=r"positive number|no Weibull"):
        coldstarts.weibull_parameters(mean, sd)


def test_cold_starts_delay_some_arrivals() -> None:
    before = load("conversations:conversations=500")
    after = load("conversations:conversations=500@coldstarts=20")
    moved = {r.id: r.arrival_s for r in after}
    delays = np.array([moved[r.id] - r.arrival_s for r in before])
    delayed = int(re.findall(r"(\d+) of 500 arrivals delayed", after.source)[0])
    assert (delays >= 0).all() and np.count_nonzero(delays) == delayed > 5
    assert {r.id for r in before} == {r.id for r in after}


# -- figures -----------------------------------------------------------------------------------------------------------


def test_statistics_of_a_small_workload() -> None:
    requests = [
        TimedRequest(id="a", arrival_s=0, prompt_tokens=100, output_tokens=10, blocks=(0, 1), workflow="w"),
        TimedRequest(id="b", arrival_s=2, prompt_tokens=90, output_tokens=30, blocks=(0, 1), failed=True),
        TimedRequest(id="c", arrival_s=0, prompt_tokens=110, output_tokens=20, blocks=(2, 1), parents=("a",), workflow="w"),
    ]
    figures = compare.statistics(Workload(name="w", requests=requests, block_tokens=64))
    assert figures["reuse_share"] == 90 / 300  # c's second block is known, but not after its first
    assert figures["requests_per_s"] == pytest.approx(3 * (1 / 2) / 2)
    assert (figures["workflows"], figures["requests_per_workflow"]) == (1, 2)
    assert figures["waiting_share"] == figures["failed_share"] == pytest.approx(1 / 3)
    assert (figures["prompt_mean"], figures["output_max"]) == (100, 30)


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_statistics_of_next_to_nothing(requests: int) -> None:
    figures = compare.statistics(load(f"poisson:requests={requests}"))
    assert figures["requests"] == requests and not math.isnan(figures["prompt_mean"])


def test_a_period_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    at_s = np.sort(rng.uniform(0, 20_000, 20_000))
    waves = at_s[rng.random(20_000) < (1 + np.sin(2 * np.pi * at_s / 1000)) / 2]
    found_s, strength = compare.period(waves)
    assert found_s == pytest.approx(1000, rel=0.05) and strength > 0.2
    for other in (at_s, np.floor(at_s / 3) * 3):
        assert math.isnan(compare.period(other)[0])


def test_distances() -> None:
    one, again, other = (
        load("gamma:cv=1,requests=4000"),
        load("gamma:cv=1,requests=4000,seed=1"),
        load("gamma:cv=4,requests=4000"),
    )
    same, apart = compare.compare(one, again), compare.compare(one, other)
    assert same["ks_gaps"] < same["ks_noise"] < 0.1 * apart["ks_gaps"]
    assert same["joint_error"] == pytest.approx(same["joint_noise"], rel=0.3)
    assert set(compare.compare(one, one).values()) >= {0.0, 1.0}
    assert compare.ks(np.array([1.0, 2.0]), np.array([3.0])) == 1.0
    assert compare.compare(one, t.scale_time(one, 2.0))["ks_gap_shape"] < 1e-3


@pytest.mark.parametrize("specs", [["poisson:requests=1"], ["agents", "gamma:cv=3", "conversations[0:2]"]])
def test_pictures(specs: list[str]) -> None:
    pytest.importorskip("matplotlib")
    assert picture(*map(load, specs)).startswith(b"\x89PNG")


def test_a_picture_of_too_many_is_refused() -> None:
    with pytest.raises(WorkloadError, match="1 to 4 workloads"):
        picture(*[load("poisson:requests=3")] * 5)


# -- the real trace ----------------------------------------------------------------------------------------------------


@needs_data
def test_the_real_trace_is_matched_closer_than_by_poisson() -> None:
    azure = load("azure-llm-2023-conv")
    train, test = t.cut(azure, 0, 9683), t.cut(azure, 9683)
    made = load("burst:requests=30000,seed=1")
    assert made.source.startswith("generated like (azure-llm-2023-conv.csv")
    fitted = burst.generate(burst.fit(train), requests=30_000, seed=1)
    plain = load(f"poisson:rate={t.mean_rate(train)},requests=30000,seed=1")
    ours, theirs = compare.compare(test, fitted), compare.compare(test, plain)
    assert ours["ks_gaps"] < 0.75 * theirs["ks_gaps"]
    # No generator fitted to the one half can be closer to the other than the halves are to each other.
    assert ours["joint_error"] < 1.25 * compare.compare(test, train)["joint_error"] < theirs["joint_error"] / 2


@needs_data
def test_mooncake_reuses_prefixes() -> None:
    assert compare.statistics(load("mooncake-conversation"))["reuse_share"] == pytest.approx(0.374, abs=0.001)
