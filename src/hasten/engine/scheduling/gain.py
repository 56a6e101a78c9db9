"""JITServe's arithmetic: what serving a sequence gains under its SLO, and what it takes.

Arrays float64 [n, 1], what depends on lengths [n, cases], of cases that are equally likely; moments in engine seconds,
`objectives.NEVER_S` where there is no objective. All of it assumes that a sequence is served from now on, one token a step of
`interval_s`, after its prompt. With a whole-response deadline

    gain = (prompt + w output) min(1, time allowed / time taken)^p

and, streaming, where token i is due `tpot_s` i after the first one was due,

    gain = prompt min(1, TTFT allowed / TTFT)^p + w output left (share of it that will be on schedule)^p

of which the prompt counts until the first token is out. The share on schedule is counted token by token in closed form: the
paper's "on-schedule ratio" leaves open how it is predicted. Ended calls of a workflow count with the live ones: all of it is
lost when the deadline is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.engine.scheduling.objectives import NEVER_S

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Standing:
    """Where sequences stand. `begin_s`: when the time of the deadline began to run. `wait_s`: until when its first token is
    in time, whether or not an objective says so; `first_s`: when the schedule of its tokens begins. `prompt`, `produced`
    tokens so far, `left` to produce (at least 1), `todo` known ones whose KV is missing before the next one can be drawn (0
    while decoding), `held` ones in KV, `copy_s` seconds until its KV is back from the slower tier."""

    arrival_s: Floats
    begin_s: Floats
    deadline_s: Floats
    wait_s: Floats
    first_s: Floats
    tpot_s: Floats
    prompt: Floats
    produced: Floats
    left: Floats
    todo: Floats
    held: Floats
    copy_s: Floats


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of engine time: `token_s` a prompt token, `row_s` a decode step of one row apart from what it reads, `cached_s`
    a cached token read in decoding, `pair_s` a pair of query and key in a prompt. `interval_s`: of a step. `chunk`: prompt
    tokens that a step takes up. `kv_tokens`: how many the KV pool holds; `occupied`: the share of them that a step reads."""

    interval_s: float
    token_s: float
    row_s: float
    cached_s: float
    pair_s: float
    chunk: float
    kv_tokens: float
    occupied: float


def prompt_s(standing: Standing, prices: Prices) -> Floats:
    """Seconds before the step that draws its next token can begin."""
    return standing.copy_s + np.ceil(standing.todo / prices.chunk) * prices.interval_s


def remaining_s(standing: Standing, prices: Prices) -> Floats:
    """Seconds until its last token, if it is in every step from now on."""
    return prompt_s(standing, prices) + standing.left * prices.interval_s


def engine_s(standing: Standing, prices: Prices) -> Floats:
    """Seconds of the engine that it takes: its share of the steps it will be in."""
    new, held, left = standing.todo, standing.held, standing.left
    prefill_s = new * prices.token_s + (new * held + new * new / 2) * prices.pair_s
    decode_s = left * (prices.row_s + (held + new + left / 2) * prices.cached_s)
    return standing.copy_s + prefill_s + decode_s


def memory_s(standing: Standing, prices: Prices) -> Floats:
    """Seconds of the whole KV pool that it takes: its share of the pool while it has it."""
    steps = np.ceil(standing.todo / prices.chunk) + standing.left
    return steps * prices.interval_s * (standing.held + standing.todo + standing.left / 2) / prices.kv_tokens


def work_s(standing: Standing, prices: Prices) -> Floats:
    """What others cannot have because of it: the engine's time and the pool's, the latter as far as memory is short."""
    return (1 - prices.occupied) * engine_s(standing, prices) + prices.occupied * memory_s(standing, prices)


def later_s(later: Floats, prices: Prices) -> Floats:
    """Seconds of what comes later, [..., patterns.LATER], if it is never kept waiting."""
    return (later[..., 0] + later[..., 1] / prices.chunk) * prices.interval_s + later[..., 2]


def on_schedule(standing: Standing, first_s: Floats, next_s: Floats, interval_s: float) -> Floats:
    """How many of the tokens left will be on schedule when the first one was due at `first_s`, the next one comes at `next_s`
    and each later one `interval_s` after. With a schedule slower than the steps a late sequence catches up; with a faster one
    it falls behind."""
    slack_s = first_s + standing.produced * standing.tpot_s - next_s  # of the next token
    gained_s = standing.tpot_s - interval_s  # from each token to the one after it
    left = standing.left
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.abs(slack_s / gained_s)
    kept = np.where(gained_s >= 0, left, np.minimum(left, np.floor(crossing) + 1))
    caught = np.where(gained_s > 0, np.maximum(0, left - np.ceil(crossing)), 0)
    return np.where(slack_s >= 0, kept, caught)


def kept_share(allowed_s: Floats, taken_s: Floats) -> Floats:
    """min(1, allowed / taken), and 1 for what takes no time."""
    return np.minimum(1.0, allowed_s / np.maximum(taken_s, 1e-9))


def streaming(standing: Standing, now_s: float, prices: Prices, weight: float, penalty: float) -> Floats:
    """The gain of each as a stream; a sequence without an objective for its first token has a schedule from then on."""
    next_s = now_s + prompt_s(standing, prices) + prices.interval_s
    first_s = np.where((standing.first_s >= NEVER_S) & (standing.produced == 0), next_s, standing.first_s)
    arrival_s = standing.arrival_s
    ttft_share = kept_share(standing.wait_s - arrival_s, next_s - arrival_s)
    prompt = np.where(standing.produced == 0, standing.prompt * ttft_share**penalty, 0.0)
    share = on_schedule(standing, first_s, next_s, prices.interval_s) / standing.left
    return prompt + weight * standing.left * share**penalty


def whole(standing: Standing, weight: float) -> Floats:
    """Tokens that count for a whole response: prompt + w output."""
    return standing.prompt + weight * (standing.produced + standing.left)
