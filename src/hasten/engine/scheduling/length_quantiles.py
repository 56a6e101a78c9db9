"""Output lengths by a learned quantile model: linear in features of the request, one set of weights for each quantile.

The quantiles of the logarithm of the length are linear in what is known beforehand: prompt length (piecewise linear, also
apart for each application and stage), application, stage, tenant, the request's limit, and hashed tokens of the prompt. Each
output that ends moves every quantile a little towards or away from it (the gradient of the pinball loss; Koenker and Bassett,
Regression Quantiles, 1978), which in the long run makes as many outputs fall below a quantile as it says, whatever the
features are worth (Gibbs and Candès, 2021); recent means of the weights predict (Polyak and Juditsky, 1992). Outputs that
were cut short are shared between where they were cut and beyond (Portnoy, 2003). What has been produced conditions the
answer, so it is refined with every token; beyond the last quantile the tail is a power law. Exact. O(quantiles x features) an
output and a question, some 50 µs; memory is two megabytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hasten.engine.request import Request
from hasten.engine.scheduling.lengths.saved import Arrays, Floats, Learning
from hasten.engine.scheduling.lengths.sketch import sketch
from hasten.engine.scheduling.lengths.survival import LEVELS, SAMPLES, UPPER, bin_of
from hasten.engine.technique import Technique

Ints = npt.NDArray[np.int64]

HASHED = 4096
"""Weights that named features share, by hash."""
TOKENS = 64
"""Width of the prompt's sketch."""
CAUTION = 16.0
"""How much faster the steps of the sketch's weights fall: there are many, and mostly they tell nothing."""
FORGET, RECENT = 4.0, 0.02
"""Of the means of weights: how much faster than a plain mean's the share of early ones falls, and the least share of the
newest."""
SETTLED = 0.03
"""The share of the first step that is still taken after many outputs, so that drift is followed."""
ARRAYS = ("hashed", "tokens", "mean_hashed", "mean_tokens", "seen", "seen_tokens")
_TOP = 1.0 / (2 * SAMPLES)
_CACHED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    rate: float = 0.2
    """How far the first outputs move the quantiles (of the logarithm); it falls with the root of their number."""
    file: str = ""
    """Where what was learned is kept; empty: nowhere."""


@dataclass(slots=True)
class Features:
    """What is known of a request: places int64 [f] in the hashed weights with their values float64 [f], and the prompt's
    sketch, float64 [TOKENS]."""

    places: Ints
    values: Floats
    tokens: Floats


def features(request: Request) -> Features:
    app, prompt = request.app.application, len(request.prompt)
    stage = f"{app}\0{request.app.stage}"
    step, share = divmod(math.log2(prompt), 1.0)
    limit = request.sampling.max_tokens or 0
    named = [("all", 1.0), (f"a{app}", 1.0), (f"s{stage}", 1.0), (f"t{request.tenant}", 1.0), (f"l{stage}\0{limit}", 1.0)]
    for at, value in ((step, 1.0 - share), (step + 1, share)):  # neighbouring knots: linear in between
        named += [(f"p{at}", value), (f"q{app}\0{at}", value), (f"r{stage}\0{at}", value)]
    places = [xxhash.xxh3_64_intdigest(name.encode()) % HASHED for name, _ in named]
    return Features(
        np.array(places, dtype=np.int64),
        np.array([value for _, value in named]),
        sketch(request.prompt, TOKENS, gram=1).astype(np.float64),
    )


@dataclass(slots=True)
class _Asked:
    """A request that was asked about: how much had been learned and the bin of what had been produced, and the answer then."""

    request: Request
    features: Features
    age: int = -1
    place: int = -1
    lengths: Floats = field(default_factory=lambda: np.empty(0))


class LengthQuantiles(Learning):
    name = "length-quantiles"

    def __init__(self, options: Options) -> None:
        if not 0 < options.rate <= 10:
            raise ValueError(f"length-quantiles: rate must be above 0 and at most 10, got {options.rate}")
        self._rate = options.rate
        self._hashed: Floats = np.zeros((SAMPLES, HASHED))
        self._tokens: Floats = np.zeros((SAMPLES, TOKENS))
        self._mean_hashed: Floats = np.zeros((SAMPLES, HASHED))
        self._mean_tokens: Floats = np.zeros((SAMPLES, TOKENS))
        """Recent means of the weights, which predict: the weights themselves jump with every output."""
        self._seen: Floats = np.zeros(HASHED)
        """Sum of squares of each hashed feature's values so far."""
        self._seen_tokens: Floats = np.zeros(TOKENS)
        self._learned = 0
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        """By request."""
        super().__init__(options.file)

    def observe(self, request: Request, output: int, *, ended: bool) -> None:
        asked = self._asked.get(request.id)
        known = asked.features if asked is not None and asked.request is request else features(request)
        if request.sampling.n == 1:
            self._asked.pop(request.id, None)
        y = math.log(output)
        if not self._learned:
            self._hashed[:, known.places[0]] = y + 0.5 * np.log(LEVELS / (1 - LEVELS))
            self._mean_hashed[:, known.places[0]] = self._hashed[:, known.places[0]]
        self._learned += 1
        found = self._hashed[:, known.places] @ known.values + self._tokens @ known.tokens
        if ended:
            up = LEVELS - (y < found)
        else:  # the share of it that a quantile beyond the cut should count as below
            before = float(np.interp(y, np.maximum.accumulate(found), LEVELS, left=0.0, right=1.0 - _TOP))
            up = np.where(found < y, LEVELS, LEVELS - np.maximum(LEVELS - before, 0.0) / (1.0 - before))
        np.add.at(self._seen, known.places, known.values**2)
        self._seen_tokens += known.tokens**2
        step = np.maximum(1.0 / np.sqrt(1.0 + self._seen[known.places]), SETTLED) * known.values
        step_tokens = np.maximum(1.0 / np.sqrt(1.0 + CAUTION * self._seen_tokens), SETTLED) * known.tokens
        for place, size in zip(known.places.tolist(), (self._rate * step).tolist(), strict=True):  # places may meet
            self._hashed[:, place] += size * up
        self._tokens += self._rate * up[:, None] * step_tokens
        for place in known.places.tolist():
            share = _share(float(self._seen[place]))
            self._mean_hashed[:, place] += share * (self._hashed[:, place] - self._mean_hashed[:, place])
        self._mean_tokens += _share(self._learned) * (self._tokens - self._mean_tokens)

    def _quantiles(self, known: Features) -> Floats:
        """Of the logarithm of the length, float64 [SAMPLES]; not sorted."""
        return self._mean_hashed[:, known.places] @ known.values + self._mean_tokens @ known.tokens

    def predict(self, request: Request, produced: int) -> Floats | None:
        if not self._learned:
            return None
        age = self._learned if self._learned < 256 else self._learned // 16
        place = bin_of(produced + 1)
        asked = self._asked.get(request.id)
        if asked is None or asked.request is not request:
            asked = self._asked[request.id] = _Asked(request, features(request))
            if len(self._asked) > _CACHED:
                self._asked.popitem(last=False)
        if asked.age != age or asked.place != place:
            asked.age, asked.place = age, place
            begin = int(UPPER[place - 1]) if place else 0
            asked.lengths = lengths(self._quantiles(asked.features), begin)
        return np.maximum(asked.lengths - produced, 1.0)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        return {"learned": self._learned}, {name: getattr(self, f"_{name}") for name in ARRAYS}

    def restore(self, meta: dict[str, Any], arrays: Arrays) -> None:
        for name in ARRAYS:
            own, found = getattr(self, f"_{name}"), arrays[name]
            if found.shape != own.shape or not np.isfinite(found).all():
                raise ValueError(f"{name} has the shape {found.shape}, or holds what is no number")
            setattr(self, f"_{name}", found.astype(np.float64))
        self._learned = int(meta["learned"])
        self._asked.clear()


def _share(count: float) -> float:
    """Of the newest weights in the mean of `count`: early ones count less and less (Shamir and Zhang, 2013)."""
    return min(1.0, max((1.0 + FORGET) / (count + FORGET), RECENT))


def lengths(quantiles: Floats, at_least: int) -> Floats:
    """Equally likely whole lengths float64 [SAMPLES], ascending, of outputs longer than `at_least`. `quantiles`: of the
    logarithm at `LEVELS`, in any order (linear models of neighbouring quantiles may cross)."""
    q = np.sort(quantiles)
    # The slope of a power law's tail: the upper quarter of the quantiles against the logarithm of what is left beyond them.
    quarter = SAMPLES // 4
    tail = max((q[-1] - q[-1 - quarter]) / math.log(2 * quarter + 1), 0.05)
    passed = 0.0
    if at_least > 0:
        y = math.log(at_least)
        if y < q[-1]:
            passed = float(np.interp(y, q, LEVELS, left=0.0))
        else:
            passed = 1.0 - _TOP * math.exp(-(y - q[-1]) / tail)
    levels = passed + (1.0 - passed) * LEVELS
    out = np.interp(levels, LEVELS, q)
    beyond = levels > LEVELS[-1]
    if beyond.any():
        out[beyond] = q[-1] + tail * np.log(_TOP / np.maximum(1.0 - levels[beyond], 1e-12))
    return np.maximum(np.ceil(np.exp(np.minimum(out, 20.0)) - 0.5), at_least + 1.0)


TECHNIQUE = Technique(
    name="length-quantiles",
    seam="scheduling",
    summary="quantiles of the output length, learned online from features of the request",
    exact=True,
    sets={"scheduling.lengths": "length-quantiles"},
    options=Options,
    make=lambda context, options: LengthQuantiles(options),
)
