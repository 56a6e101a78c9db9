"""Priority, objectives, tenant and application of a request, from its body and its headers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.server.conftest import Running

from hasten.engine.request import SLO, AppContext


def post(running: Running, headers: dict[str, str] | None = None, chat: bool = False, **body: Any) -> httpx.Response:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    return httpx.post(f"{running.url}{path}", json={**asked, "max_tokens": 3, **body}, headers=headers or {})


@pytest.mark.parametrize("chat", [False, True])
def test_all_of_it_reaches_the_engine(server: Running, chat: bool) -> None:
    headers = {
        "X-Hasten-Application": "text2sql",
        "x-hasten-workflow": "w 17",
        "x-hasten-stage": "revise",
        "x-hasten-parents": "cmpl-1, cmpl-2",
        "x-hasten-tenant": "gold",
    }
    slo = {"ttft_s": 0.5, "tpot_s": 0.05, "deadline_s": 30}
    assert post(server, headers, chat, priority=-2, slo=slo, cache_salt="s").status_code == 200
    seen = server.engine.seen[-1]
    assert (seen.priority, seen.tenant, seen.cache_salt) == (-2, "gold", "s")
    assert seen.slo == SLO(ttft_s=0.5, tpot_s=0.05, deadline_s=30)
    assert seen.app == AppContext(application="text2sql", workflow="w 17", stage="revise", parents=("cmpl-1", "cmpl-2"))


def test_what_is_not_said_is_the_default(server: Running) -> None:
    assert post(server, slo=None, tenant=None).status_code == 200
    seen = server.engine.seen[-1]
    assert (seen.priority, seen.tenant, seen.slo, seen.app) == (0, "", SLO(), AppContext())
    assert post(server, slo={"tpot_s": 0.1}).status_code == 200
    assert server.engine.seen[-1].slo == SLO(tpot_s=0.1)


def test_openais_client_sends_it_too(server: Running) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, default_headers={"x-hasten-application": "a"})
    extra = {"priority": 3, "slo": {"ttft_s": 1.0}, "tenant": "free"}
    client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=2, extra_body=extra,
        extra_headers={"x-hasten-stage": "plan"},
    )  # fmt: skip
    seen = server.engine.seen[-1]
    assert (seen.priority, seen.slo.ttft_s, seen.tenant) == (3, 1.0, "free")
    assert (seen.app.application, seen.app.stage) == ("a", "plan")


@pytest.mark.parametrize(
    ("body", "headers", "param", "message"),
    [
        ({"priority": "high"}, {}, "priority", "integer"),
        ({"priority": 1 << 40}, {}, "priority", "between|at most|at least"),
        ({"slo": "fast"}, {}, "slo", "object|dictionary"),
        ({"slo": {"ttft_s": 0}}, {}, "slo.ttft_s", "must be in"),
        ({"slo": {"ttft_s": "1"}}, {}, "slo.ttft_s", "number"),
        ({"slo": {"ttft_ms": 100}}, {}, "slo", "no field 'ttft_ms'; it has ttft_s, tpot_s, deadline_s"),
        ({"tenant": ""}, {}, "tenant", "1 to 256 characters"),
        ({"tenant": 5}, {}, "tenant", "string"),
        ({"tenant": "a\nb"}, {}, "tenant", "control character"),
        ({"tenant": "a"}, {"x-hasten-tenant": "b"}, "tenant", "different tenants"),
        ({}, {"x-hasten-application": ""}, "x-hasten-application", "1 to 256 characters"),
        ({}, {"x-hasten-stage": "s" * 257}, "x-hasten-stage", "1 to 256 characters"),
        ({}, {"x-hasten-parents": "a"}, "x-hasten-parents", "needs x-hasten-workflow"),
        ({}, {"x-hasten-workflow": "w", "x-hasten-parents": "a,,b"}, "x-hasten-parents", "1 to 256"),
        ({}, {"x-hasten-workflow": "w", "x-hasten-parents": ",".join("abcdefgh" * 9)}, "x-hasten-parents", "names 72 calls"),
    ],
)
def test_bad_ones_are_refused_by_name(
    server: Running, body: dict[str, Any], headers: dict[str, str], param: str, message: str
) -> None:
    import re

    before = len(server.engine.seen)
    answer = post(server, headers, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and re.search(message, error["message"]), error
    assert len(server.engine.seen) == before


def test_a_repeated_header_is_a_list_or_refused(server: Running) -> None:
    asked = {"prompt": "x", "max_tokens": 1}

    def answer(*headers: tuple[str, str]) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/completions", json=asked, headers=[("x-hasten-workflow", "w"), *headers])

    assert answer(("x-hasten-parents", "a"), ("x-hasten-parents", "b, c")).status_code == 200
    assert server.engine.seen[-1].app.parents == ("a", "b", "c")
    refused = answer(("x-hasten-tenant", "a"), ("x-hasten-tenant", "b"))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-hasten-tenant"
    assert "more than once" in refused.json()["error"]["message"]


def test_names_beyond_ascii_are_the_same_in_body_and_header(server: Running) -> None:
    assert post(server, {"x-hasten-tenant": "müller".encode()}, tenant="müller").status_code == 200  # type: ignore[dict-item]
    assert server.engine.seen[-1].tenant == "müller"
    assert post(server, {"x-hasten-tenant": "müller".encode("latin-1")}).status_code == 200  # type: ignore[dict-item]
    assert server.engine.seen[-1].tenant == "müller"


def test_objectives_kept_and_missed_are_counted(make_server: Any) -> None:
    running = make_server(step_s=0.02)
    slo = {"ttft_s": 20.0, "tpot_s": 0.001, "deadline_s": 20.0}
    assert post(running, slo=slo).status_code == 200
    assert post(running).status_code == 200
    text = httpx.get(f"{running.url}/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("hasten_objectives_total")]
    assert sorted(counted) == [
        f'hasten_objectives_total{{endpoint="completions",kept="{kept}",objective="{objective}"}} 1.0'
        for kept, objective in (("no", "tpot_s"), ("yes", "deadline_s"), ("yes", "ttft_s"))
    ]
