"""What the claim `mirror-sd` measures: the built-in pair, whose landings are guessed at every layer, and a large shape with a
draft that runs, where what is accepted and what is hit is replayed from the built-in pair."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.draft_model_pairs import DUMMY, OUTPUT, SERVED, STEPS, begin, shapes, step

if TYPE_CHECKING:
    from hasten.engine.build import Built
    from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
    from hasten.engine.decoding.drafts.landing import Landing
    from hasten.engine.executors.base import StepResult

DRAFT = {
    **SERVED,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
"""100 million weights, 66 million of them the head's: a twelfth of the served model's."""
CORES = 2
MOST = 8
"""Landings that are guessed where hits are counted by how many of them."""

Progress = Callable[[str, float], None]
Step = tuple[int, bool]
"""Of a step that verified a draft: how much of it was accepted, and whether the landing had been rolled out."""


# The built-in pair


@dataclass
class Told:
    """Of one task. `seconds` a token by round, of each side; of the mirroring one hits and misses, and the seconds that
    rollouts took and were waited for."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    rolled_s: float = 0.0
    waited_s: float = 0.0


class Sides:
    """Engines of the built-in model that answer in turns."""

    def __init__(self, techniques: dict[str, tuple[str, ...]]) -> None:
        """`techniques`: of each side, and the settings that it has."""
        from hasten.engine.llm import LLM

        self.llms = {name: LLM(with_=with_[:1], set_=with_[1:]) for name, with_ in techniques.items()}
        self._threads = {name: int(llm.engine.executor.describe()["threads"]) for name, llm in self.llms.items()}

    def close(self) -> None:
        for llm in self.llms.values():
            llm.engine.executor.close()

    def round(self, prompts: Sequence[list[int]], number: int, temperature: float, told: Told) -> None:
        from hasten.engine.request import SamplingParams
        from hasten.kernels.cpu.native import use_threads

        took = dict.fromkeys(self.llms, 0.0)
        for at, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=OUTPUT, temperature=temperature, seed=1000 * number + at, ignore_eos=True)
            for name in list(self.llms)[:: 1 if (number + at) % 2 == 0 else -1]:
                llm = self.llms[name]
                proposer: Any = llm.engine.decoding.proposer
                before = _counted(proposer)
                use_threads(self._threads[name])
                (done,) = llm.generate(prompt, sampling)
                assert done.tpot_s is not None
                took[name] += done.tpot_s
                if before is not None:
                    self._read(proposer, before, told)
        for name, seconds in took.items():
            told.seconds.setdefault(name, []).append(seconds / len(prompts))

    @staticmethod
    def _read(proposer: Any, before: dict[str, float], told: Told) -> None:
        now = _counted(proposer)
        assert now is not None
        told.hits += round(now["hits"] - before["hits"])
        told.misses += round(now["misses"] - before["misses"])
        told.rolled_s += now["rolled"] - before["rolled"]
        told.waited_s += now["waited"] - before["waited"]


def _counted(proposer: Any) -> dict[str, float] | None:
    """What a mirroring proposer has counted so far; None of another."""
    counts = getattr(proposer, "counts", None)
    return None if counts is None else {"hits": counts["hits"], "misses": counts["misses"], **proposer.seconds}


@dataclass(frozen=True)
class Landed:
    """At one exit: hits by the rank that the exit gave the landing (None: it did not), and whether it was the draft's own."""

    counted: Counter[tuple[int | None, bool]]
    steps: list[Step]

    def rate(self, branches: int, own: bool) -> float:
        """Per cent of the landings that so many branches of the exit's would have hit, and the draft's own beside them."""
        hit = sum(
            count
            for (rank, is_own), count in self.counted.items()
            if (rank is not None and rank < branches) or (own and is_own)
        )
        return 100 * hit / max(1, sum(self.counted.values()))


def landed(
    technique: str, exits: Sequence[int], prompts: Sequence[list[int]], branches: int, most: int = MOST
) -> dict[int, Landed]:
    """Answer the prompts, greedy, with `most` landings guessed at each of these exits. Where what is drafted does not depend on
    hits, one run tells of any smaller number of branches. `steps`: with `branches` and the draft's own."""
    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams

    found = {}
    for layer in exits:
        llm = LLM(with_=(f"{technique}:exit={layer}:branches={most}",), set_=(f"executor.threads={CORES}",))
        proposer: Any = llm.engine.decoding.proposer
        if proposer.serial is not None:
            raise RuntimeError(f"nothing can be drafted beside a pass here: {proposer.serial}")
        steps: list[Step] = []
        for prompt in prompts:
            first = len(llm.engine.events)
            hits = _Hits(proposer, branches)
            llm.generate(prompt, SamplingParams(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True))
            steps += hits.beside(llm.engine.events.columns(first))
        found[layer] = Landed(Counter(proposer.landed), steps)
        llm.engine.executor.close()
    return found


class _Hits:
    """Of one answer, which steps' landings were hit, in order."""

    def __init__(self, proposer: Any, branches: int) -> None:
        self.said: list[bool] = []

        class Counted(Counter[tuple[int | None, bool]]):
            def __setitem__(counter, key: tuple[int | None, bool], value: int) -> None:
                rank, own = key
                self.said.append(own or (rank is not None and rank < branches))
                super().__setitem__(key, value)

        before, proposer.landed = proposer.landed, Counted()
        dict.update(proposer.landed, before)

    def beside(self, events: Any) -> list[Step]:
        """With what was accepted. The last landing ends the text, and nobody looks whether it was hit."""
        from hasten.engine.events import Kind

        accepted = events["b"][events["kind"] == Kind.DRAFTED].astype(int).tolist()
        return list(zip(accepted, self.said, strict=False))


# A large shape


class Replayed:
    """A sampler and a guesser of landings that do their work, and then say what a trace says: how much of the next draft is
    accepted, and whether the landing is among the branches. One sequence."""

    def __init__(self, built: Built) -> None:
        self._sampler: Any = built.engine.decoding.sampler
        built.engine.decoding.sampler = self
        self.trace: Iterator[Step] = cycle([(0, False)])
        self._now: Step | None = None
        self._branches: list[Landing] = []
        proposer: Any = built.engine.decoding.proposer
        if guess := getattr(proposer, "guess", None):
            self._landings, proposer.guess = guess, self._guess

    def _guess(self, chances: Any, draft: list[int], drawn: list[int], most: int, trust: float) -> list[Landing]:
        found: list[Landing] = self._landings(chances, draft, drawn, most, trust)
        self._now = accepted, hit = next(self.trace)
        accepted = min(accepted, len(draft))
        tokens = [token for _, token in found]
        self._branches = [(accepted if hit else (accepted + 1) % (len(draft) + 1), token) for token in tokens]
        return self._branches

    def draw(self, result: StepResult, rows: Sequence[Row]) -> Drawn:
        drawn: Drawn = self._sampler.draw(result, rows)
        if len(rows) == 1:
            return drawn
        accepted, hit = self._now if self._now is not None else next(self.trace)
        self._now = None
        accepted = min(accepted, len(rows) - 1)
        guesses = [row.path[-1] for row in rows[1:]]
        drawn.tokens[:accepted] = guesses[:accepted]
        landings = [token for prefix, token in self._branches if prefix == accepted]
        if hit and landings:
            drawn.tokens[accepted] = landings[0]
        elif accepted < len(guesses) and drawn.tokens[accepted] == guesses[accepted]:
            drawn.tokens[accepted] = guesses[accepted] ^ 1
        self._branches = []
        return drawn

    def score(self, *asked: Any) -> list[TokenLogprobs]:
        scores: list[TokenLogprobs] = self._sampler.score(*asked)
        return scores


@dataclass
class Mirrored:
    """Of one mirroring side, seconds: `step`; `exit` and whole `rollout` where there is one, `waited` for it, hit or missed;
    drafting `afresh` at a miss. `depth`: share of the blocks before the exit; `hit`: share of the landings; `tokens` a step."""

    step: float
    exit: float
    rollout: float
    waited: float
    afresh: float
    depth: float
    hit: float
    tokens: float


@dataclass
class Large:
    """`seconds` a token by round, of each side: the baseline on so many cores (`serial 1`, `serial 2`), and the mirroring ones
    by name. `passes`, `drafts`: seconds of a step of the baseline's that its draft takes, and all else."""

    seconds: dict[str, list[float]]
    passes: dict[str, float] = field(default_factory=dict)
    drafts: dict[str, float] = field(default_factory=dict)
    mirrored: dict[str, Mirrored] = field(default_factory=dict)
    draft_weights: int = 0

    def faster(self, side: str, baseline: str) -> list[float]:
        return [slow / fast for slow, fast in zip(self.seconds[baseline], self.seconds[side], strict=True)]

    def costed(self, side: str, baseline: str) -> float:
        """How many times faster than the baseline's a step would be with the draft on a second device, as fast as a core here,
        and the served model as fast as in the baseline: its pass, the exit, and of the draft what a hit does not hide."""
        m, whole = self.mirrored[side], self.passes[baseline]
        late = max(0.0, m.rollout - (1 - m.depth) * whole)
        step = whole + m.exit + m.hit * min(late, m.afresh) + (1 - m.hit) * m.afresh
        return (whole + self.drafts[baseline]) / step


def large(
    mirrors: dict[str, str],
    serial: str,
    traces: dict[str, dict[str, list[Step]]],
    *,
    rounds: int,
    turns: int,
    progress: Progress,
) -> dict[str, Large]:
    """Decode at batch 1 with random weights and a draft that runs; all sides take `turns` in a round, for one task after the
    other. `mirrors`: of each mirroring side its technique; `traces`: by task and such side what is accepted and hit. The
    baseline accepts as the first of them. One set of engines, since it holds four copies of the weights."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    built: dict[str, Built] = {}
    with shapes(served=SERVED, draft=DRAFT) as folder:
        for number, (name, technique) in enumerate([("serial", serial), *mirrors.items()]):
            progress("random weights", 0.07 * number)
            with_ = (f"{technique}:model={folder}/draft",)
            built[name] = build(EngineConfig.build(f"{folder}/served", with_=with_, set_=(*DUMMY, f"executor.threads={CORES}")))
    proposers: dict[str, Any] = {name: built[name].engine.decoding.proposer for name in mirrors}
    if reason := next((one.serial for one in proposers.values()), None):
        raise RuntimeError(f"nothing can be drafted beside a pass here: {reason}")
    replayed = {name: Replayed(one) for name, one in built.items()}
    for one in built.values():
        begin(one)
    clock = _Drafting(built["serial"])
    found = {}
    for place, (task, of) in enumerate(traces.items()):
        for name, replay in replayed.items():
            replay.trace = cycle(of[name if name in of else next(iter(of))])

        def tell(number: int, task: str = task, place: int = place) -> None:
            done = (place + number / rounds) / len(traces)
            progress(f"1B shape, {task}, round {number + 1} of {rounds}", 0.2 + 0.8 * done)

        found[task] = _measured(built, mirrors, clock, rounds, turns, tell)
    for one in built.values():
        one.engine.cancel("large")
        one.engine.run()
        one.engine.executor.close()
    return found


def _measured(
    built: dict[str, Built], mirrors: Iterable[str], clock: _Drafting, rounds: int, turns: int, tell: Callable[[int], None]
) -> Large:
    from hasten.kernels.cpu.native import use_threads

    proposers: dict[str, Any] = {name: built[name].engine.decoding.proposer for name in mirrors}
    for proposer in proposers.values():
        proposer.counts.clear()
        proposer.seconds = dict.fromkeys(proposer.seconds, 0.0)
    sides = {"serial 1": ("serial", 1), "serial 2": ("serial", 2), **{name: (name, CORES) for name in mirrors}}
    found = Large({name: [] for name in sides}, draft_weights=built["serial"].parts.facts["draft_weights"])
    drafts, spent, said = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0)
    steps = rounds * turns * STEPS
    for number in range(rounds):
        tell(number)
        took = {name: [0.0, 0.0] for name in sides}
        for turn in range(turns):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                use_threads(sides[name][1])
                for _ in range(STEPS):
                    clock.seconds = 0.0
                    seconds, tokens = step(built[sides[name][0]])
                    took[name][0] += seconds
                    took[name][1] += tokens
                    drafts[name] += clock.seconds
                    spent[name] += seconds
                    said[name] += tokens
        for name, (total_s, given) in took.items():
            found.seconds[name].append(total_s / given)
    for name in ("serial 1", "serial 2"):
        found.drafts[name], found.passes[name] = drafts[name] / steps, (spent[name] - drafts[name]) / steps
    for name, proposer in proposers.items():
        counts, of = Counter(proposer.counts), dict(proposer.seconds)
        parts = built[name].parts
        found.mirrored[name] = Mirrored(
            step=spent[name] / steps,
            exit=of["exit"] / max(1, counts["rollouts"]),
            rollout=_whole_rollouts(built[name], proposer),
            waited=of["waited"] / max(1, counts["rollouts"]),
            afresh=of["afresh"] / max(1, counts["misses"]),
            depth=parts.facts["mirror_exit"] / len(parts.model.blocks),
            hit=counts["hits"] / max(1, counts["hits"] + counts["misses"]),
            tokens=said[name] / steps,
        )
    return found


def _whole_rollouts(built: Built, proposer: Any) -> float:
    """Seconds of a rollout of which nothing is dropped, beside a pass."""
    from hasten.engine.decoding.drafts.aside import Rollout

    dropping, Rollout.only = Rollout.only, lambda rollout, lines: None  # type: ignore[assignment]
    try:
        rolled, rollouts = proposer.seconds["rolled"], proposer.counts["rollouts"]
        for _ in range(STEPS):
            step(built)
        proposer._drop()
        return float(proposer.seconds["rolled"] - rolled) / max(1, proposer.counts["rollouts"] - rollouts)
    finally:
        Rollout.only = dropping  # type: ignore[method-assign]


class _Drafting:
    """Seconds that an engine's proposer takes: `seconds`, to be set to 0."""

    def __init__(self, built: Built) -> None:
        proposer: Any = built.engine.decoding.proposer
        propose, self.seconds = proposer.propose, 0.0

        def timed(*asked: Any) -> Any:
            began = time.perf_counter()
            drafts = propose(*asked)
            self.seconds += time.perf_counter() - began
            return drafts

        proposer.propose = timed
