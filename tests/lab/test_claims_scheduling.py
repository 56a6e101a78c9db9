"""What the claims on orders compute: service of tenants, and services whose outputs differ."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hasten.lab.claims import fair_share_tenants as tenants
from hasten.lab.claims import hexgen, schedulers
from hasten.lab.claims.sides import Side
from hasten.lab.claims.srpt_services import LONGEST, SERVICES, services
from hasten.lab.claims.virtual import Virtual
from hasten.lab.workloads.base import TimedRequest, Workload


def two(count: int = 40) -> list[TimedRequest]:
    return [
        TimedRequest(id=str(i), arrival_s=0.01 * i, prompt_tokens=20, output_tokens=10, tenant="ab"[i % 2])
        for i in range(count)
    ]


def test_service_is_all_that_was_computed() -> None:
    run = Virtual([Side("plain")]).replay("plain", tenants.workload(two()))
    for tenant in "ab":
        time_s, service = tenants.curve(run, tenant)
        assert (np.diff(time_s) >= 0).all() and (np.diff(service) >= 0).all()
        assert service[-1] == 20 * (20 * tenants.PROMPT_PRICE + 10 * tenants.OUTPUT_PRICE)
    found = tenants.services(run)
    assert found["a"] == pytest.approx(found["b"], rel=0.3)
    assert tenants.widest(run, "a", "b") < found["a"]


def test_jain() -> None:
    assert tenants.jain([3.0, 3.0, 3.0]) == 1.0
    assert tenants.jain([1.0, 0.0]) == 0.5


def test_services_come_in_their_shares_and_lengths() -> None:
    work = services(4000, 10.0, 3)
    for name, (share, prompt, _, output, _) in SERVICES.items():
        mine = [request for request in work if request.application == name]
        assert len(mine) == pytest.approx(4000 * share, rel=0.15)
        assert np.median([request.prompt_tokens for request in mine]) == pytest.approx(prompt, rel=0.2)
        assert np.median([request.output_tokens for request in mine]) == pytest.approx(output, rel=0.2)
        assert max(request.output_tokens for request in mine) <= LONGEST
    assert services(50, 10.0, 3).requests == services(50, 10.0, 3).requests != services(50, 10.0, 4).requests


def test_what_is_sustained_leaves_the_end_out() -> None:
    sides = Virtual([Side("rows", set_=("scheduling.max_rows=8",))])
    work = services(150, 10.0, 1)
    assert sides.sustained("rows", work) > sides.saturation("rows", work)


def test_a_call_that_did_not_wait_for_its_parents_is_seen() -> None:
    made = [TimedRequest(id=id, arrival_s=0.0, prompt_tokens=20, output_tokens=10) for id in "ab"]
    after = [made[0], dataclasses.replace(made[1], parents=("a",))]
    work = Workload(name="two", requests=after)
    run = Virtual([Side("plain")]).replay("plain", work)
    assert hexgen.in_order(run)
    together = Virtual([Side("plain")]).replay("plain", dataclasses.replace(work, requests=made))
    assert not hexgen.in_order(dataclasses.replace(together, workload=work))


def test_a_refused_plan_breaks_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = schedulers.configs(None)
    device = Virtual([]).device
    work = dataclasses.replace(tenants.workload(two(4)), slos={})
    kept, broken = {}, {}
    for pair in ("fcfs + stall-free", "edf + whole-prompts"):
        kept[pair] = schedulers._figures(schedulers._replay(device, found[pair], work))
    assert schedulers._own({"x": {"85%": kept}}).held

    def fail(self: object, ranked: object, view: object) -> None:
        raise RuntimeError("no plan")

    monkeypatch.setattr("hasten.engine.scheduling.whole_prompts.WholePrompts.compose", fail)
    broken["edf + whole-prompts"] = schedulers._figures(schedulers._replay(device, found["edf + whole-prompts"], work))
    assert not schedulers._own({"x": {"85%": broken}}).held
