"""Conversations whose context grows: each turn's prompt is everything said before plus a new message.

Defaults are the means of LMSYS-Chat-1M (Zheng et al., LMSYS-Chat-1M, ICLR 2024): 2.0 turns, 69.5 tokens a message, 214.5 an
answer. Our assumptions: the number of turns is geometric, lengths are log-normal with sigma 1, think times are exponential
with a mean of 30 s, every conversation begins with the same system prompt.
"""

from __future__ import annotations

import math

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.generate import arrivals, check_count, check_positive, lengths

BLOCK_TOKENS = 16
SIGMA = 1.0


def conversations(
    *,
    rate: float = 1.0,
    conversations: int = 200,
    turns: float = 2.0,
    message: float = 69.5,
    answer: float = 214.5,
    system: int = 128,
    think_s: float = 30.0,
    longest: int = 16_384,
    seed: int = 0,
) -> Workload:
    """Conversations with growing context, of which `rate` start a second (Poisson).

    `conversations`: how many. `turns`, `message`, `answer`, `think_s`: means of turns, of tokens in a message and in an answer,
    of seconds between an answer's end and the next turn. `system`: tokens of the system prompt. A conversation ends early when
    its prompt and answer would exceed `longest`. Blocks of BLOCK_TOKENS are shared with the history and, while it lasts, with
    the system prompt."""
    for name, value in (("message", message), ("answer", answer), ("think_s", think_s)):
        check_positive(name, value)
    check_count("conversations", conversations)
    check_count("system", system)
    check_count("longest", longest, low=2)
    if not math.isfinite(turns) or turns < 1:
        raise WorkloadError(f"turns must be a number from 1 on, got {turns}")
    of_arrivals, of_turns = np.random.default_rng(seed).spawn(2)
    starts_s = arrivals(of_arrivals, conversations, rate)
    shared = tuple(range(system // BLOCK_TOKENS))
    block = len(shared)
    requests: list[TimedRequest] = []
    for number in range(conversations):
        count = int(of_turns.geometric(1.0 / turns))
        messages = lengths(of_turns, count, message * math.exp(-(SIGMA**2) / 2), SIGMA, longest)
        answers = lengths(of_turns, count, answer * math.exp(-(SIGMA**2) / 2), SIGMA, longest)
        thinking_s = of_turns.exponential(think_s, count)
        history = system
        own = 0
        for turn in range(count):
            prompt, output = history + int(messages[turn]), int(answers[turn])
            if prompt + output > longest:
                if turn:
                    break
                prompt, output = min(prompt, longest - 1), min(output, max(1, longest - prompt))
            room = -(-prompt // BLOCK_TOKENS)
            own = max(0, room - len(shared))
            requests.append(
                TimedRequest(
                    id=f"{number}.{turn}",
                    arrival_s=0.0 if turn else float(starts_s[number]),
                    delay_s=float(thinking_s[turn]) if turn else 0.0,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    blocks=(shared + tuple(range(block, block + own)))[:room],
                    application="conversation",
                    workflow=str(number),
                    stage=f"turn {turn + 1}",
                    parents=(f"{number}.{turn - 1}",) if turn else (),
                )
            )
            history = prompt + output
        block += own
    source = (
        f"{conversations} conversations starting at {rate:g}/s (Poisson), means: {turns:g} turns, {message:g} tokens a "
        f"message, {answer:g} an answer, {think_s:g} s of thought; system prompt of {system}, seed {seed}"
    )
    return Workload(name="conversations", requests=requests, block_tokens=BLOCK_TOKENS, source=source)
