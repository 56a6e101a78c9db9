"""What a workload can be replayed against: an engine in this process, or a server by its address."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from hasten.engine.config import EngineConfig
from hasten.engine.technique import ConfigError
from hasten.lab.bench.run import Run
from hasten.lab.workloads.base import Workload
from hasten.lab.workloads.transform import cut

Progress = Callable[[int, int], None]

PLAIN = "plain"
_WARM_UP = 4
"""Requests replayed once beforehand: first steps pack weights, start threads and open connections."""
_WORDS_SLACK = 0.9
"""Share of the context that a prompt of words may fill: their number of tokens is known on average only."""


class Target(Protocol):
    """`context`: tokens that prompt and output may have together, None where a server does not say."""

    name: str
    context: int | None

    def replay(self, workload: Workload, seed: int = 0, progress: Progress | None = None) -> Run: ...


class EngineTarget:
    """An engine in this process, built at once."""

    def __init__(self, config: EngineConfig, name: str = PLAIN) -> None:
        from hasten.engine.build import build
        from hasten.engine.text import load_text

        self.name = name
        self._tokenizer = load_text(config.model)[0]
        self._engine = build(config, eos=self._tokenizer.eos_ids).engine
        self.context: int | None = self._engine.max_length

    def replay(self, workload: Workload, seed: int = 0, progress: Progress | None = None) -> Run:
        from hasten.lab.bench.drive import replay

        encode = self._tokenizer.encode
        return replay(self._engine, workload, name=self.name, seed=seed, encode=encode, progress=progress)


class ServerTarget:
    """A server at `url`; `ids` False sends words in any case (see `openai_form.negotiate`)."""

    def __init__(self, url: str, key: str | None = None, *, ids: bool = True) -> None:
        from hasten.lab.bench.openai_form import negotiate

        self.name = self.url = url
        self.form = negotiate(url, key, ids=ids)
        self._key = key
        known = self.form.context
        self.context = known if known is None or self.form.ids else int(known * _WORDS_SLACK)

    def replay(self, workload: Workload, seed: int = 0, progress: Progress | None = None) -> Run:
        from hasten.lab.bench.http import replay_http

        return replay_http(self.url, workload, name=self.name, seed=seed, form=self.form, key=self._key, progress=progress)


def config_of(side: str, model: str | None, with_: list[str], set_: list[str]) -> EngineConfig:
    """The configuration a side of a comparison names: `plain`, a .toml file, or techniques as in --with. `with_` and `set_` are
    added to it."""
    file = side if side.endswith(".toml") else None
    own = [] if side == PLAIN or file is not None else [side]
    return EngineConfig.build(model, with_=[*own, *with_], set_=set_, file=file)


def is_server(side: str) -> bool:
    return side.startswith(("http://", "https://"))


def alike(a: Target, b: Target, key: str | None = None) -> tuple[Target, Target]:
    """The two, sending both words where one of them is a server that takes no token ids and the other one that does."""
    if isinstance(a, ServerTarget) and isinstance(b, ServerTarget) and a.form.ids != b.form.ids:
        words = ServerTarget(a.url if a.form.ids else b.url, key, ids=False)
        return (words, b) if a.form.ids else (a, words)
    return a, b


def warm_up(target: Target, workload: Workload, seed: int) -> None:
    """Have it do a little of the work once, at once and with prompts of its own (`seed`). Raises ConfigError when it fails."""
    few = cut(workload, 0, min(_WARM_UP, len(workload)))
    few = dataclasses.replace(few, requests=[dataclasses.replace(r, arrival_s=0.0, delay_s=0.0) for r in few])
    run = target.replay(few, seed)
    if run.errors:
        raise ConfigError(f"{target.name} fails at the first requests: {next(iter(run.errors.values()))}")
