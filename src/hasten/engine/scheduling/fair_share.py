"""Fair shares for tenants: a virtual token counter each, the least served first.

Sheng et al., Fairness in Serving Large Language Models, 2024 (VTC). Each tenant has a counter of the service it got, prompt
tokens and output tokens at a price each, divided by its weight. Whoever waits is admitted from the tenant with the lowest
counter, its earliest request first; a tenant that comes back after a pause is lifted to the lowest counter of those that wait
(or to the one that last stopped waiting, if none does), so that nobody saves up service by being away. Then between two
tenants that both always have requests waiting, the service per weight never differs by more than a bound that does not grow
with time. Exact.

As an order this is a tag on each sequence: its tenant's counter, plus the prompts of the tenant's that wait before it.
Sorting by tags is picking the lowest counter again and again, all picks of a step at once, and an admission changes no tag:
what it adds to the counter is taken off the prompts ahead. So tags move only with output tokens, which are counted every
`EVERY` steps; a tenant's tags are set anew when it has got `DRIFT` of service. That adds `EVERY` steps' output and `DRIFT` to
the paper's bound, 2 max(w_p L, w_q M), where L is the longest prompt and M the tokens of KV. Of those that have requests:
O(tenants) an arrival, O(sequences) every `EVERY` steps and in a step in which somebody arrives.

Where this differs from the paper: work conservation is the batching's affair (a request that does not fit lets nobody
overtake, of whatever tenant); a prompt found in the cache is charged in full, as the paper's service is what a user asks for,
not what it costs; recomputation is not charged; running sequences keep their tags, so who yields when memory is short is who
was admitted at the highest counter.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hasten.engine.events import Event, Kind
from hasten.engine.scheduling.base import StepPlan, View
from hasten.engine.sequence import Sequence
from hasten.engine.technique import Technique

EVERY = 16
"""Steps between two counts of output tokens."""
DRIFT = 256.0
"""Service that a tenant gets before its waiting sequences get new tags."""
KEPT = 4096
"""Tenants without a request whose counters are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    prompt_price: float = 1.0
    """Service that a token of prompt counts for."""
    output_price: float = 2.0
    """Service that a token of output counts for."""
    weights: str = ""
    """Shares of tenants, as gold=4+free=0.5; those not named have 1."""


@dataclass(slots=True)
class Tenant:
    """`counter`: service per weight. `tagged`: the counter when its waiting sequences' tags were set. `waiting`: the
    sequences not yet admitted in order of arrival, with their prompt's charge; `ahead`: the sum of these."""

    weight: float
    counter: float = 0.0
    tagged: float = 0.0
    waiting: OrderedDict[int, tuple[Sequence, float]] = field(default_factory=OrderedDict)
    ahead: float = 0.0
    live: int = 0


class FairShare:
    stale_on: frozenset[Kind] = frozenset()
    lifetime_s = math.inf
    learns_from = frozenset({Kind.ARRIVED, Kind.FORKED, Kind.FINISHED, Kind.FAILED, Kind.STEP})

    def __init__(self, options: Options) -> None:
        for knob in ("prompt_price", "output_price"):
            if not 0 <= getattr(options, knob) < math.inf:
                raise ValueError(f"fair-share: {knob} must be a number from 0 on, got {getattr(options, knob)}")
        if not options.prompt_price and not options.output_price:
            raise ValueError("fair-share: prompt_price and output_price are both 0, so nothing is counted")
        self._prompt, self._output = options.prompt_price, options.output_price
        self._weights = _weights(options.weights)
        self.tenants: dict[str, Tenant] = {}
        """Those that have requests."""
        self.idle: OrderedDict[str, Tenant] = OrderedDict()
        """Those that have none, the longest idle first."""
        self._last: Tenant | None = None
        """Who last stopped waiting."""
        self._charged: dict[int, tuple[Sequence, Tenant, int]] = {}
        """Admitted sequences, with the output tokens that have been counted."""
        self._tags: dict[int, float] = {}
        self._steps = 0
        self._counted = -1
        """Of `_steps`, when output tokens were counted last."""

    # -- the order ----------------------------------------------------------------------------------------------------------

    def keys(self, stale: Seq[Sequence], view: View) -> npt.NDArray[np.float64]:
        return np.array([self._tags[seq.id] for seq in stale], dtype=np.float64)

    def steady(self, plan: StepPlan, view: View) -> float:
        """Until output tokens are counted again."""
        return EVERY - self._steps % EVERY

    def learn(self, event: Event, sequence: Sequence | None, view: View) -> Iterable[int]:
        if event.kind is Kind.STEP:
            self._steps += 1
            return self._count() if self._steps % EVERY == 0 else ()
        assert sequence is not None, "the books know whom the event concerns"
        if event.kind is Kind.ARRIVED:
            # Whoever comes back is lifted to counters as they are; several that come in one step see the same.
            stale = self._count() if self._counted != self._steps else []
            self._came(sequence)
            return stale
        if event.kind is Kind.FORKED:
            tenant = self._tenant(sequence)
            self._tags[sequence.id] = tenant.counter
            self._charged[sequence.id] = (sequence, tenant, sequence.output_length)
            tenant.live += 1
            return ()
        return self._went(sequence)

    # -- counting -----------------------------------------------------------------------------------------------------------

    @property
    def _floor(self) -> float:
        """Where those begin who come without anything waiting: at the lowest counter of those that wait."""
        waiting = [tenant.counter for tenant in self.tenants.values() if tenant.waiting]
        return min(waiting) if waiting else self._last.counter if self._last is not None else 0.0

    def _tenant(self, sequence: Sequence) -> Tenant:
        name = sequence.request.tenant
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.idle.pop(name) if name in self.idle else Tenant(self._weights.get(name, 1.0))
            self.tenants[name] = tenant
        return tenant

    def _came(self, sequence: Sequence) -> None:
        tenant = self._tenant(sequence)
        if not tenant.waiting:
            tenant.counter = max(tenant.counter, self._floor)
            tenant.tagged = tenant.counter
        charge = self._prompt * sequence.prompt_length / tenant.weight
        self._tags[sequence.id] = tenant.tagged + tenant.ahead
        tenant.waiting[sequence.id] = (sequence, charge)
        tenant.ahead += charge
        tenant.live += 1

    def _went(self, sequence: Sequence) -> Iterable[int]:
        stale: list[int] = []
        tenant = self.tenants[sequence.request.tenant]
        if sequence.id in tenant.waiting and sequence.service:  # admitted and ended between two counts
            self._admit(tenant, sequence.id)
        elif sequence.id in tenant.waiting:  # it left without service: nobody is behind it any more
            _, charge = tenant.waiting.pop(sequence.id)
            tenant.ahead -= charge
            stale = self._tag(tenant)
            if not tenant.waiting:
                self._last = tenant
        if sequence.id in self._charged:
            self._charge(sequence.id)
            del self._charged[sequence.id]
        del self._tags[sequence.id]
        tenant.live -= 1
        if not tenant.live:
            name = sequence.request.tenant
            self.idle[name] = self.tenants.pop(name)
            self._forget()
        return stale

    def _count(self) -> list[int]:
        """Charge what was admitted and produced since the last count; the sequences whose tags have changed by it."""
        self._counted = self._steps
        for tenant in self.tenants.values():
            for id in [id for id, (seq, _) in tenant.waiting.items() if seq.service or seq.view.length]:
                self._admit(tenant, id)
        for id in self._charged:
            self._charge(id)
        stale: list[int] = []
        for tenant in self.tenants.values():
            if tenant.counter - tenant.tagged >= DRIFT / tenant.weight:
                stale += self._tag(tenant)
        return stale

    def _admit(self, tenant: Tenant, id: int) -> None:
        sequence, charge = tenant.waiting.pop(id)
        tenant.counter += charge
        tenant.tagged += charge
        tenant.ahead -= charge
        self._charged[id] = (sequence, tenant, 0)
        if not tenant.waiting:
            tenant.ahead = 0.0  # what rounding has left
            self._last = tenant

    def _charge(self, id: int) -> None:
        sequence, tenant, counted = self._charged[id]
        tenant.counter += self._output * (sequence.output_length - counted) / tenant.weight
        self._charged[id] = (sequence, tenant, sequence.output_length)

    def _tag(self, tenant: Tenant) -> list[int]:
        tenant.tagged = tag = tenant.counter
        for id, (_, charge) in tenant.waiting.items():
            self._tags[id] = tag
            tag += charge
        return list(tenant.waiting)

    def _forget(self) -> None:
        """Let go of idle tenants: first those whom coming back would lift past their counter anyway."""
        if len(self.idle) <= KEPT:
            return
        floor = self._floor
        gone = [name for name, tenant in self.idle.items() if tenant.counter <= floor]
        for name in gone or [next(iter(self.idle))]:
            del self.idle[name]


def _weights(text: str) -> dict[str, float]:
    out = {}
    for item in filter(None, text.split("+")):
        name, equals, value = item.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or not name or name in out or not 0 < weight < math.inf:
            raise ValueError(f"fair-share: weights={text!r}: expected tenant=weight with weights above 0, joined by +")
        out[name] = weight
    return out


TECHNIQUE = Technique(
    name="fair-share",
    seam="scheduling",
    summary="the tenant that got the least service first, by weight",
    exact=True,
    sets={"scheduling.order": "fair-share"},
    options=Options,
    make=lambda context, options: FairShare(options),
    paper="Fairness in Serving Large Language Models (Sheng et al., 2024)",
)
