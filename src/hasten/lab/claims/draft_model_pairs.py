"""What the claim `draft-model` measures: the built-in pair, how often its draws fall together, and a large shape that accepts
as many tokens a step as the built-in pair did."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hasten.lab.claims.base import Guard
from hasten.lab.planning.known_models import KNOWN

if TYPE_CHECKING:
    import torch

    from hasten.engine.build import Built
    from hasten.engine.decoding.base import Drawn, Row, TokenLogprobs
    from hasten.engine.executors.base import StepResult
    from hasten.engine.llm import LLM

TASKS = ("language", "language:source=python", "dialogue", "json")
TEXT, CODE = TASKS[:2]
OUTPUT = 96
"""Tokens of each answer."""
PROMPT = 192
"""Tokens of a text that is given; the model goes on."""
SERVED = {**KNOWN["llama-3.2-1b"], "max_position_embeddings": 4096}
DRAFT = {
    **SERVED,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
"""59 million weights, 49 million of them the head's."""
ONE_THREAD = ("executor.threads=1",)
"""Models of this size gain nothing from a second one, and lose much to it where the machine is shared."""
DUMMY = ("model.load_format=dummy", "model.dtype=bfloat16", "kv.reuse=none", "kv.memory_bytes=268435456")
STEPS = 4
"""Of a turn."""

Progress = Callable[[str, float], None]


# The built-in pair


@dataclass
class Said:
    """Of one task and side. `seconds` a token, by round; `steps`: tokens that each step gave; `drafts`: (drafted, accepted) of
    each draft."""

    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    drafts: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    def by_depth(self) -> list[float]:
        """Of the tokens drafted at each depth, the share that was accepted."""
        most = max(drafted for drafted, _ in self.drafts)
        reached = [[accepted > depth for drafted, accepted in self.drafts if drafted > depth] for depth in range(most)]
        return [fmean(found) for found in reached]


class Pair:
    """The built-in model without drafts and with its draft; they answer in turns, one question at a time."""

    def __init__(self, technique: str) -> None:
        from hasten.engine.llm import LLM
        from hasten.lab.testbed.evaluate import material_for

        self.plain, self.drafting = LLM(set_=ONE_THREAD), LLM(with_=(technique,), set_=ONE_THREAD)
        self._material = material_for(self.plain)

    def close(self) -> None:
        for llm in (self.plain, self.drafting):
            llm.engine.executor.close()

    def prompts(self, task: str, n: int, seed: int) -> list[list[int]]:
        """The questions of a task; of texts the beginnings."""
        from hasten.lab.testbed.evaluate import draw
        from hasten.lab.testbed.tasks.registry import find

        asked = find(task)
        examples = draw(asked, task, n, seed, "held-out", self._material, lambda what, done, total: None)
        texts = [example.prompt + example.answer if asked.likelihood else example.prompt for example in examples]
        return [self.plain.tokenizer.encode(text, add_special_tokens=False)[:PROMPT] for text in texts]

    def round(self, prompts: Sequence[list[int]], number: int, temperature: float, plain: Said, drafting: Said) -> None:
        """Answer all prompts on both sides and take down what it took."""
        from hasten.engine.request import SamplingParams

        took = [0.0, 0.0]
        sides = [(self.plain, plain, 0), (self.drafting, drafting, 1)]
        for at, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=OUTPUT, temperature=temperature, seed=1000 * number + at, ignore_eos=True)
            for llm, said, side in sides[:: 1 if (number + at) % 2 == 0 else -1]:
                begin = len(llm.engine.events)
                (done,) = llm.generate(prompt, sampling)
                assert done.tpot_s is not None
                took[side] += done.tpot_s
                said.tokens.append(done.choices[0].tokens)
                self._read(llm, begin, said)
        for said, seconds in zip((plain, drafting), took, strict=True):
            said.seconds.append(seconds / len(prompts))

    @staticmethod
    def _read(llm: LLM, begin: int, said: Said) -> None:
        from hasten.engine.events import Kind

        events = llm.engine.events.columns(begin)
        kinds, a, b = events["kind"], events["a"].astype(int), events["b"].astype(int)
        said.steps += a[kinds == Kind.TOKENS][1:].tolist()  # the prompt's gives one
        drafts = kinds == Kind.DRAFTED
        said.drafts += list(zip(a[drafts].tolist(), b[drafts].tolist(), strict=True))


def equal_answers(pair: Pair, technique: str, n: int, seed: int, threads: Sequence[str] = ONE_THREAD) -> Guard:
    """Greedy and drawn, with a penalty, three samples, little memory, chunks and the prefix cache. `threads`: the setting."""
    from hasten.engine.llm import LLM
    from hasten.engine.request import SamplingParams

    prompts = [prompt for task in TASKS for prompt in pair.prompts(task, n, seed)]
    answers, drafted = [], 0
    for with_, set_ in (((), ()), ((technique,), ("kv.memory_bytes=4000000", "scheduling.max_tokens=96"))):
        llm = LLM(with_=with_, set_=["model.dtype=float32", "executor.deterministic=true", *threads, *set_])
        sampling = [
            SamplingParams(max_tokens=32, temperature=heat, n=n, seed=seed, repetition_penalty=1.1, ignore_eos=True)
            for heat, n in ((0.0, 1), (1.0, 3))
        ]
        done = [one for params in sampling for one in llm.generate(prompts, params)]
        answers.append([choice.tokens for one in done for choice in one.choices])
        drafted = int(llm.engine.stats()["drafted_total"])
        llm.engine.executor.close()
    unlike = sum(a != b for a, b in zip(*answers, strict=True))
    return Guard(
        "greedy and drawn answers are those without drafts",
        not unlike and drafted > 0,
        f"{unlike} of {len(answers[0])} answers differ; {drafted} tokens drafted; float32, deterministic kernels",
    )


# Draws that fall together


@dataclass(frozen=True)
class Draws:
    """Shares of the served model's draws that a draft's draw equals, in per cent, at the positions of sampled texts."""

    same: float
    """As the engine draws: both by a race with the same key."""
    most: float
    """The mean sum of min(p, q): what rejection sampling reaches, and no two draws exceed."""
    cumulative: float
    """If both walked along their cumulative distributions with the same random number."""
    likeliest: float
    """If the draft named its likeliest token."""


def draws(pair: Pair, texts: Sequence[tuple[list[int], list[int]]], temperature: float, seed: int) -> Draws:
    """`texts`: prompts, and what the served model drew behind them at this temperature."""
    import torch

    proposer: Any = pair.drafting.engine.decoding.proposer
    random = torch.Generator().manual_seed(seed)
    found: list[list[float]] = []
    with torch.inference_mode():
        for prompt, said in texts:
            sides = (pair.plain.parts, proposer.second)
            both = [logits_of(side, prompt + said)[len(prompt) - 1 : -1] for side in sides]
            p, q = (torch.softmax(logits.double() / temperature, -1) for logits in both)
            keys = torch.randint(-(2**63), 2**63 - 1, (len(p),), generator=random)
            mine, theirs = (_drawn(pair.plain, logits, temperature, keys) for logits in both)
            u = torch.rand(len(p), 1, dtype=torch.float64, generator=random)
            walked = [torch.searchsorted(of.cumsum(-1), u) for of in (p, q)]
            found.append(
                [
                    float((mine == theirs).double().mean()),
                    float(torch.minimum(p, q).sum(-1).mean()),
                    float((walked[0] == walked[1]).double().mean()),
                    float(p.gather(1, q.argmax(-1)[:, None]).mean()),
                ]
            )
    return Draws(*(100 * fmean(column) for column in zip(*found, strict=True)))


def _drawn(llm: LLM, logits: torch.Tensor, temperature: float, keys: torch.Tensor) -> torch.Tensor:
    import torch

    rows = len(logits)
    off, none = torch.ones(rows), torch.zeros(rows)
    drawn: torch.Tensor = llm.parts.kernels.sample(logits, off * temperature, none.int(), off, none, keys)
    return drawn


def logits_of(side: Any, tokens: list[int]) -> torch.Tensor:
    """After every token, of a model with its own `books` and `executor`."""
    import numpy as np

    from hasten.engine.batch import BatchBuilder
    from hasten.engine.kv.base import ReuseKey
    from hasten.engine.request import Request
    from hasten.engine.sequence import Sequence as Tokens
    from hasten.engine.sequence import Span

    seq = Tokens(0, Request(id="read", prompt=np.array(tokens)), 0, 0, ReuseKey(""), 0.0)
    slots = side.books.append(seq.view, seq.positions)
    span = Span(seq, seq.length, seq.tokens, seq.positions, seq.segments, slots, logits=list(range(seq.length)))
    logits: torch.Tensor = side.executor.submit(BatchBuilder().build([span])).wait().logits.float()
    side.books.close(seq.view)
    return logits


# A large shape


class Replayed:
    """A sampler that draws as `inner` does, and then says what accepts as many drafted tokens as a trace says. One sequence."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.trace: Iterator[int] = cycle([0])

    def draw(self, result: StepResult, rows: Sequence[Row]) -> Drawn:
        drawn: Drawn = self._inner.draw(result, rows)
        accepted = min(next(self.trace), len(rows) - 1) if len(rows) > 1 else 0
        guesses = [row.path[-1] for row in rows[1:]]
        drawn.tokens[:accepted] = guesses[:accepted]
        if accepted < len(guesses) and drawn.tokens[accepted] == guesses[accepted]:
            drawn.tokens[accepted] = guesses[accepted] ^ 1
        return drawn

    def score(self, *asked: Any) -> list[TokenLogprobs]:
        scores: list[TokenLogprobs] = self._inner.score(*asked)
        return scores


@dataclass(frozen=True)
class Large:
    """Seconds a token, by round: without drafts, and with them by trace."""

    plain: list[float]
    drafting: dict[str, list[float]]
    draft_weights: int

    def faster(self, trace: str) -> list[float]:
        return [plain / mine for plain, mine in zip(self.plain, self.drafting[trace], strict=True)]


@contextmanager
def shapes(**configs: Mapping[str, Any]) -> Iterator[str]:
    """A folder that has for each name one with its `config.json`, for engines that are built with random weights."""
    with TemporaryDirectory(prefix="hasten-") as folder:
        for name, config in configs.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield folder


def large(technique: str, traces: dict[str, list[int]], *, rounds: int, turns: int, progress: Progress) -> Large:
    """Decode at batch 1 with random weights: without drafts, and with a draft that runs; how much is right is replayed. They
    take `turns` in a round."""
    from hasten.engine.build import build
    from hasten.engine.config import EngineConfig

    engines: list[Built] = []
    with shapes(served=SERVED, draft=DRAFT) as folder:
        for number, with_ in enumerate(((), (f"{technique}:model={folder}/draft",))):
            progress("random weights", 0.1 * number)
            engines.append(build(EngineConfig.build(f"{folder}/served", with_=with_, set_=DUMMY)))
    plain, drafting = engines
    replayed = drafting.engine.decoding.sampler = Replayed(drafting.engine.decoding.sampler)
    found = Large([], {trace: [] for trace in traces}, drafting.parts.facts["draft_weights"])
    for built in engines:
        begin(built)
    sources = {trace: cycle(lengths) for trace, lengths in traces.items()}
    for number in range(rounds):
        progress(f"1B shape, round {number + 1} of {rounds}", 0.2 + 0.8 * number / rounds)
        took: dict[str, list[float]] = {name: [0.0, 0.0] for name in ("", *traces)}
        for turn in range(turns):
            for name in list(took)[:: 1 if turn % 2 == 0 else -1]:
                if name:
                    replayed.trace = sources[name]
                for seconds, tokens in (step(drafting if name else plain) for _ in range(STEPS)):
                    took[name][0] += seconds
                    took[name][1] += tokens
        each = {name: seconds / tokens for name, (seconds, tokens) in took.items()}
        found.plain.append(each[""])
        for trace in traces:
            found.drafting[trace].append(each[trace])
    for built in engines:
        built.engine.cancel("large")
        built.engine.run()
        built.engine.executor.close()
    return found


def begin(built: Built) -> None:
    """A sequence that decodes, past its first steps, which are slower."""
    import numpy as np

    from hasten.engine.request import Request, SamplingParams

    prompt = np.random.default_rng(0).integers(16, 100_000, 64)
    built.engine.add(
        Request(id="large", prompt=prompt, sampling=SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True))
    )
    for _ in range(4):
        step(built)


def step(built: Built) -> tuple[float, int]:
    """Its seconds and tokens."""
    began = time.perf_counter()
    deltas = built.engine.step()
    seconds = time.perf_counter() - began
    if failed := [delta.error for delta in deltas if delta.error is not None]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    return seconds, sum(len(delta.tokens) for delta in deltas)
