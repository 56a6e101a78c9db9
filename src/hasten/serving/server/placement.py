"""What a client may say of a request beside what it asks: how urgent it is, whose it is, and of which application it is a part.

In the body (`extra_body` of OpenAI's client): `priority` (an integer, lower is more urgent), `slo` (an object with `ttft_s`,
`tpot_s`, `deadline_s`, seconds as everywhere in hasten) and `tenant`. In headers, which a gateway or a framework can set
without touching bodies: `x-hasten-application`, `-workflow`, `-stage`, `-parents` (ids of earlier answers, with commas
between) and `-tenant`. Schedulers use them (`hasten techniques`); tenants do not share cached prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hasten.engine.request import SLO, AppContext, BadRequest
from hasten.serving.server.errors import invalid
from hasten.serving.server.strict import Strict

PREFIX = "x-hasten-"
NAMES = ("application", "workflow", "stage", "parents", "tenant")
LONGEST = 256
MOST_PARENTS = 64

_NAME = re.compile(r"[^\x00-\x1f\x7f]+")


class Objectives(Strict):
    """The body's `slo`: seconds to the first token, between tokens, and for the whole answer."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None


class PlacementBody(Strict):
    priority: int | None = None
    slo: Objectives | None = None
    tenant: str | None = None
    cache_salt: str | None = None

    def placement(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """What `engine.request.Request` takes of it. Raises ApiError 400, naming the field or header."""
        said = _headers(headers)
        found = {name: text if name == "parents" else _name(f"{PREFIX}{name}", text) for name, text in said.items()}
        parents = _parents(found.pop("parents", None))
        if parents and "workflow" not in found:
            raise invalid(f"{PREFIX}parents needs {PREFIX}workflow: parents are calls of the same workflow", f"{PREFIX}parents")
        header_tenant = found.pop("tenant", None)
        tenant = self.tenant if self.tenant is None else _name("tenant", self.tenant)
        if None not in (tenant, header_tenant) and tenant != header_tenant:
            raise invalid(f"tenant and the header {PREFIX}tenant name different tenants", "tenant")
        return {
            "priority": self.priority or 0,
            "slo": self._objectives(),
            "tenant": tenant or header_tenant or "",
            "app": AppContext(parents=parents, **found),
            "cache_salt": self.cache_salt or "",
        }

    def _objectives(self) -> SLO:
        if self.slo is None:
            return SLO()
        unknown = sorted(self.slo.model_extra or ())
        if unknown:  # an objective that is not understood must not be thought kept
            known = ", ".join(Objectives.model_fields)
            raise invalid(f"slo has no field {unknown[0]!r:.80}; it has {known}", "slo", "unknown_parameter")
        try:
            return SLO(ttft_s=self.slo.ttft_s, tpot_s=self.slo.tpot_s, deadline_s=self.slo.deadline_s)
        except BadRequest as error:
            raise invalid(f"slo.{error.message}", f"slo.{error.param}") from None


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The text of each of NAMES that was sent. What is repeated is a list, as HTTP has it, and only parents are one."""
    said: dict[str, str] = {}
    for header, raw in headers.items():  # a repeated one several times
        name = header.lower().removeprefix(PREFIX)
        if name not in NAMES or name == header.lower():
            continue
        try:  # HTTP reads headers as latin-1; who writes more than ASCII writes UTF-8
            text = raw.encode("latin-1").decode()
        except UnicodeError:
            text = raw
        if name in said and name != "parents":
            raise invalid(f"{header} is given more than once", header)
        said[name] = f"{said[name]},{text}" if name in said else text
    return said


def _name(where: str, text: str) -> str:
    if not 0 < len(text) <= LONGEST or _NAME.fullmatch(text) is None:
        raise invalid(f"{where} should hold 1 to {LONGEST} characters, none of them a control character", where)
    return text


def _parents(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    where = f"{PREFIX}parents"
    names = tuple(_name(where, name.strip()) for name in text.split(","))
    if len(names) > MOST_PARENTS:
        raise invalid(f"{where} names {len(names)} calls, at most {MOST_PARENTS} are taken", where)
    return names
