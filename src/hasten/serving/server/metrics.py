"""Prometheus metrics of the server: latency as clients see it, outcomes, tokens, and the engine's latest state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hasten.engine.outputs import Delta
from hasten.engine.request import SLO

_TTFT_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60)
_TPOT_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_TOTAL_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class HasStats(Protocol):
    alive: bool

    def stats(self) -> dict[str, Any]: ...


class _EngineState(Collector):
    """Reads the engine's snapshot when Prometheus scrapes, so that serving tokens never pays for it."""

    gauges = (
        ("hasten_requests_running", "Sequences being computed", "running"),
        ("hasten_requests_waiting", "Sequences waiting to be scheduled", "waiting"),
        ("hasten_kv_blocks_total", "KV blocks of the pool", "total_blocks"),
        ("hasten_kv_blocks_free", "KV blocks free or evictable", "free_blocks"),
        ("hasten_chunk_blocks", "KV blocks that hold chunks for reuse at any position", "chunk_blocks"),
    )
    counters = (
        ("hasten_engine_steps", "Steps the engine ran", "steps_total"),
        ("hasten_engine_tokens", "Output tokens the engine committed", "tokens_total"),
        ("hasten_prefix_hit_tokens", "Prompt tokens whose KV was found in the cache", "prefix_hit_tokens"),
        ("hasten_preemptions", "Sequences that lost their KV for others", "preempted_total"),
        ("hasten_chunks_computed", "Chunks of prompts that were computed to be kept", "chunks_computed"),
        ("hasten_chunks_linked", "Chunks of prompts that were found and linked", "chunks_linked"),
        ("hasten_chunks_evicted", "Chunks of prompts that had to go", "chunks_evicted"),
        ("hasten_chunk_prompts_left", "Prompts whose chunks were left alone for want of memory", "chunk_prompts_left"),
        ("hasten_row_layers_skipped", "Layers that rows left a step before, summed over rows", "row_layers_skipped_total"),
        ("hasten_kv_chunks_loaded", "Chunks of KV brought back from slower tiers", "chunks_found"),
        ("hasten_kv_chunks_from_stores", "Those of them that came from disk or a peer", "chunks_from_stores"),
        ("hasten_kv_loads_failed", "Chunks that were to be loaded and had to be computed", "loads_failed"),
    )

    by_depth = (
        (
            "hasten_drafted_tokens",
            "Tokens that were drafted and verified, by how many drafted ones come before",
            "drafted_by_depth",
        ),
        ("hasten_accepted_tokens", "Those of them that were right", "accepted_by_depth"),
    )

    def __init__(self, engine: HasStats) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("hasten_engine_up", "1 while the engine process lives", float(self._engine.alive))
        stats = self._engine.stats()
        for name, text, key in self.gauges:
            if key in stats:
                yield GaugeMetricFamily(name, text, float(stats[key]))
        for name, text, key in self.counters:
            if key in stats:
                yield CounterMetricFamily(name, text, float(stats[key]))
        for name, text, key in self.by_depth:
            family = CounterMetricFamily(name, text, labels=["depth"])
            for depth, count in enumerate(stats.get(key, ())):
                family.add_metric([str(depth)], float(count))
            yield family


class Metrics:
    def __init__(self, engine: HasStats) -> None:
        registry = self.registry = CollectorRegistry()
        by = ["endpoint"]
        self.ttft = Histogram(
            "hasten_time_to_first_token_seconds", "From request to first token", by, registry=registry, buckets=_TTFT_S
        )
        self.tpot = Histogram(
            "hasten_time_per_output_token_seconds",
            "Mean time between the tokens of a choice, after its first",
            by,
            registry=registry,
            buckets=_TPOT_S,
        )
        self.total = Histogram("hasten_request_seconds", "From request to last byte", by, registry=registry, buckets=_TOTAL_S)
        self.requests = Counter("hasten_requests", "Requests by how they ended", [*by, "outcome"], registry=registry)
        self.tokens_in = Counter("hasten_prompt_tokens", "Prompt tokens of accepted requests", by, registry=registry)
        self.tokens_out = Counter("hasten_output_tokens", "Output tokens", by, registry=registry)
        self.objectives = Counter(
            "hasten_objectives",
            "Objectives of answered requests that had some (slo), by which and whether they were kept",
            [*by, "objective", "kept"],
            registry=registry,
        )
        registry.register(_EngineState(engine))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class Meter:
    """Times and counts one HTTP request, which may hold several prompts and choices."""

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self.start_s = time.monotonic()
        self._first_s: float | None = None
        self._choices: dict[int, list[float]] = {}  # index -> [time of first token, time of last, tokens]
        self._cached: dict[int, int] = {}
        self._drafted = self._accepted = 0
        self.prompt_tokens = 0
        self.tokens = 0
        self._slo = SLO()

    def accept(self, prompt_tokens: int, slo: SLO) -> None:
        self.prompt_tokens = prompt_tokens
        self._slo = slo
        self._metrics.tokens_in.labels(self._endpoint).inc(prompt_tokens)

    def add(self, prompt: int, choice: int, delta: Delta) -> None:
        if delta.reused > self._cached.get(prompt, 0):
            self._cached[prompt] = delta.reused
        self._drafted += delta.drafted
        self._accepted += delta.accepted
        count = len(delta.tokens)
        if not count:
            return
        now = time.monotonic()
        self.tokens += count
        times = self._choices.get(choice)
        if times is None:
            self._choices[choice] = [now, now, count]
            if self._first_s is None:
                self._first_s = now
        else:
            times[1] = now
            times[2] += count

    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
        if self._drafted:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": self._accepted,
                "rejected_prediction_tokens": self._drafted - self._accepted,
            }
        return usage

    def finish(self, outcome: str) -> None:
        """Count the request; latencies only of what was answered in full, so that refusals do not flatter them."""
        metrics, endpoint = self._metrics, self._endpoint
        metrics.requests.labels(endpoint, outcome).inc()
        if self.tokens:
            metrics.tokens_out.labels(endpoint).inc(self.tokens)
        if outcome != "completed":
            return
        total_s = time.monotonic() - self.start_s
        metrics.total.labels(endpoint).observe(total_s)
        self._judge("deadline_s", self._slo.deadline_s, total_s)
        if self._first_s is not None:
            metrics.ttft.labels(endpoint).observe(self._first_s - self.start_s)
            self._judge("ttft_s", self._slo.ttft_s, self._first_s - self.start_s)
        for first, last, count in self._choices.values():
            if count > 1:
                metrics.tpot.labels(endpoint).observe((last - first) / (count - 1))
                self._judge("tpot_s", self._slo.tpot_s, (last - first) / (count - 1))

    def _judge(self, objective: str, limit_s: float | None, took_s: float) -> None:
        if limit_s is not None:
            kept = "yes" if took_s <= limit_s else "no"
            self._metrics.objectives.labels(self._endpoint, objective, kept).inc()
