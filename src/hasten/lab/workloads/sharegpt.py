"""Loader of ShareGPT-style conversations: a JSON list of {"conversations": [{"from": "human" | "gpt", "value": text}, ...]}
or of {"messages": [{"role": "user" | "assistant", "content": text}, ...]}.

Every answered turn becomes a request whose prompt is the whole conversation before the answer. A later turn comes when the
answer before it has ended and the user has thought; both are our modelling, since such files hold no times: conversations
start as a Poisson process, think times are exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.lab.workloads.base import TimedRequest, Workload, WorkloadError
from hasten.lab.workloads.reading import counted, json_file

BLOCK_TOKENS = 16
CHARACTERS_PER_TOKEN = 4
"""The usual rule of thumb for English, where no tokenizer is given."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def load(
    path: Path,
    *,
    conversations: int | None = None,
    rate: float = 1.0,
    think_s: float = 30.0,
    text: bool = False,
    encode: Callable[[str], Sequence[int]] | None = None,
    seed: int = 0,
) -> Workload:
    """The turns of each conversation, later ones with the earlier as parent.

    `conversations`: only the first so many. `rate`: conversations that start a second. `think_s`: mean of the exponential time
    between an answer's end and the next turn. `text`: requests carry their prompt's text (which repeats the history in every
    turn: memory grows with the square of the turns); otherwise block numbers stand for it, so that later turns share the blocks
    of their history. `encode`: counts tokens; without it a token is CHARACTERS_PER_TOKEN characters. Turns without an answer
    are left out. The history is the recorded one, not what the engine answers. Raises WorkloadError for broken entries."""
    for name, value in (("rate", rate), ("think_s", think_s)):
        if not np.isfinite(value) or value <= 0:
            raise WorkloadError(f"{name} must be a positive number, got {value}")
    if conversations is not None and conversations < 1:
        raise WorkloadError(f"conversations must be at least 1, got {conversations}")
    content = json_file(path)
    if not isinstance(content, list) or not content:
        raise WorkloadError(f"{path}: expected a list of conversations")
    content = content[:conversations]
    rng = np.random.default_rng(seed)
    at_s = 0.0
    block = 0
    requests: list[TimedRequest] = []
    for number, entry in enumerate(counted(content, len(content), "counting tokens")):
        turns = _turns(entry, f"{path}: conversation {number}", encode)
        if not turns:
            continue
        for turn, (prompt, prompt_tokens, output_tokens) in enumerate(turns):
            requests.append(
                TimedRequest(
                    id=f"{number}.{turn}",
                    arrival_s=0.0 if turn else at_s,
                    delay_s=float(rng.exponential(think_s)) if turn else 0.0,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    blocks=() if text else tuple(range(block, block - (-prompt_tokens // BLOCK_TOKENS))),
                    text=prompt if text else None,
                    application="conversation",
                    workflow=str(number),
                    stage=f"turn {turn + 1}",
                    parents=(f"{number}.{turn - 1}",) if turn else (),
                )
            )
        block -= -turns[-1][1] // BLOCK_TOKENS
        at_s += float(rng.exponential(1.0 / rate))
    if not requests:
        raise WorkloadError(f"{path}: no conversation in it has a turn with an answer")
    how = "" if encode else f", {CHARACTERS_PER_TOKEN} characters a token"
    source = (
        f"{path.name}: {len(content):,} conversations of {len(requests):,} turns{how}; starts Poisson at {rate:g}/s, "
        f"think times exponential with mean {think_s:g} s, seed {seed}"
    )
    return Workload(name=path.stem, requests=requests, block_tokens=BLOCK_TOKENS, source=source)


def _turns(entry: Any, place: str, encode: Callable[[str], Sequence[int]] | None) -> list[tuple[str, int, int]]:
    """(prompt, prompt tokens, output tokens) of each answered turn."""
    messages = (entry.get("conversations") or entry.get("messages")) if isinstance(entry, dict) else None
    if messages is None and isinstance(entry, dict) and ("conversations" in entry or "messages" in entry):
        return []
    if not isinstance(messages, list):
        raise WorkloadError(f"{place}: expected an object with a list 'conversations' or 'messages'")
    history, tokens = "", 0
    asked = False
    turns = []
    for index, message in enumerate(messages):
        role, said = _message(message, f"{place}: message {index}")
        count = len(encode(said)) if encode else -(-len(said) // CHARACTERS_PER_TOKEN)
        if role == "assistant" and asked and count:
            turns.append((history + "assistant: ", tokens + 1, count))
            asked = False
        elif role == "user":
            asked = True
        # A token more a message: the role's mark.
        history, tokens = f"{history}{role}: {said}\n", tokens + count + 1
    return turns


def _message(message: Any, place: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise WorkloadError(f"{place}: expected an object, got {message!r}")
    role = message.get("from", message.get("role"))
    said = message.get("value", message.get("content"))
    if role not in ROLES:
        raise WorkloadError(f"{place}: its role must be one of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(said, str):
        raise WorkloadError(f"{place}: its text must be a string, got {said!r}")
    return ROLES[role], said
