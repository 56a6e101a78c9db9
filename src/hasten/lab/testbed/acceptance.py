"""How often a draft model is right about the next token of a target that decodes greedily: what speculation could accept.

The target answers; the draft reads the question and the answer in one pass, and at every token of the answer its own most
probable one is compared. Drafts are made from the target's true prefix, so this is the share accepted per token, not per
round of several.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hasten.engine.llm import LLM
from hasten.engine.outputs import Completion
from hasten.engine.request import SamplingParams
from hasten.lab.testbed.evaluate import EvaluationFailed, Progress, draw, fingerprint, labelled, material_for, token_ids
from hasten.lab.testbed.material import Material
from hasten.lab.testbed.scores import Outcome, Scores, TaskScores, estimates
from hasten.lab.testbed.tasks.base import Example, Task
from hasten.lab.testbed.tasks.registry import notation

ACCEPTED = "accepted"


def acceptance(
    target: LLM, draft: LLM, tasks: Sequence[Task], n: int, *,
    seed: int = 0, material: Material | None = None, progress: Progress | None = None,
) -> Scores:  # fmt: skip
    """The share of the target's tokens that the draft would have proposed, by task. Of texts (tasks scored by likelihood) the
    first half is given, and the target goes on. Raises ValueError for models with different tokenizers."""
    tell = progress or (lambda what, done, total: None)
    probe = "".join(chr(c) for c in range(32, 127)) + "def main():\n    return 1\n"
    if token_ids(target, probe) != token_ids(draft, probe):
        raise ValueError("the draft and the target have different tokenizers")
    material = material or material_for(target)
    results = []
    for task in tasks:
        name = notation(task)
        examples = draw(task, name, n, seed, "held-out", material, tell)
        tell(name, 0, n)
        began = time.perf_counter()
        asked = [_beginning(target, task, example) for example in examples]
        lengths = [len(token_ids(target, e.answer)) // 2 if task.likelihood else e.max_tokens for e in examples]
        said = _whole(target.generate(asked, [SamplingParams(max_tokens=k, temperature=0) for k in lengths]))
        both = [[*ids, *one.choices[0].tokens] for ids, one in zip(asked, said, strict=True)]
        read = _whole(draft.generate(both, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)))
        outcomes = [_outcome(example, len(ids), one) for example, ids, one in zip(examples, asked, read, strict=True)]
        results.append(
            TaskScores(
                task=name,
                estimates=estimates(outcomes, [ACCEPTED]),
                outcomes=outcomes,
                seconds=time.perf_counter() - began,
                prompt_tokens=sum(map(len, asked)),
                output_tokens=sum(len(one.choices[0].tokens) for one in said),
            )
        )
        tell(name, n, n)
    return labelled(draft, results, seed, "held-out")


def _beginning(engine: LLM, task: Task, example: Example) -> list[int]:
    ids = token_ids(engine, example.prompt)
    if task.likelihood:
        answer = token_ids(engine, example.answer)
        ids = [*ids, *answer[: len(answer) // 2]]
    return ids


def _whole(done: list[Completion]) -> list[Completion]:
    for one in done:
        if one.choices[0].error is not None:
            raise EvaluationFailed(f"the engine failed at a question: {one.choices[0].error}")
    return done


def _outcome(example: Example, asked: int, read: Completion) -> Outcome:
    """One question: which of the tokens after the first `asked` are the draft's own choice."""
    assert read.prompt_logprobs is not None
    answered = [score for score in read.prompt_logprobs[asked:] if score is not None]
    agreed = [score.top[0][0] == score.token for score in answered]
    share = sum(agreed) / len(agreed) if agreed else 0.0
    return Outcome(question=fingerprint(example), answer="", output="", scores={ACCEPTED: share}, weight=len(agreed))
