"""`LLM` and `AsyncEngine` on a tiny model: what a user holds in the hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine import tiny

from hasten import LLM, AsyncEngine, ConstraintSpec, EngineConfig, Request, SamplingParams, Segment
from hasten.engine.request import BadRequest

SETTINGS = {"model.load_format": "dummy", "model.dtype": "float32", "kv.memory_bytes": 4 << 20}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny.folder(tmp_path_factory.mktemp("tiny")), set_=SETTINGS)


def test_many_prompts_come_back_in_order(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    together = llm.generate(["ab", [1, 2, 3], "xyz"], [sampling] * 3)
    assert [done.choices[0].tokens for done in together] == [
        llm.generate(prompt, sampling)[0].choices[0].tokens for prompt in ("ab", [1, 2, 3], "xyz")
    ]
    assert "".join(delta.text for delta in llm.stream("ab", sampling)) == together[0].text


def test_segments_make_one_prompt(llm: LLM, tmp_path: Path) -> None:
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    pieces = [Segment("ab"), Segment([5, 6, 7] * 20, cache=True), Segment("cd", cache=True), Segment([9])]
    request = llm.request(pieces, sampling)
    first, third = llm.tokenizer.encode("ab"), llm.tokenizer.encode("cd", add_special_tokens=False)
    assert request.prompt.tolist() == [*first, *[5, 6, 7] * 20, *third, 9]
    start = len(first)
    assert request.chunks == ((start, start + 60), (start + 60, start + 60 + len(third)))
    plain = llm.generate(request.prompt.tolist(), sampling)[0].choices[0].tokens
    assert llm.generate(pieces, sampling)[0].choices[0].tokens == plain, "marks are ignored by an engine without a repair"
    assert [done.choices[0].tokens for done in llm.generate([pieces, pieces], sampling)] == [plain, plain]
    with pytest.raises(BadRequest, match="last token"):
        llm.generate(pieces[:2], sampling)
    reusing = LLM(tiny.folder(tmp_path), with_=["mpic:first=4"], set_=SETTINGS)
    once, again = (reusing.generate(pieces, sampling)[0] for _ in range(2))
    assert once.choices[0].tokens == again.choices[0].tokens
    assert once.reused == 0 and again.reused == 56
    assert reusing.engine.stats()["chunks_linked"] == 2


def test_a_failing_request_leaves_the_others_and_the_next_call_alone(llm: LLM) -> None:
    llm.parts.model.embedding.weight[77] = float("nan")
    sampling = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    good, bad = llm.generate([[1, 2], [1, 77]], sampling)
    assert good.choices[0].finish == "length" and bad.choices[0].finish == "error"
    assert "not finite" in str(bad.choices[0].error)
    with pytest.raises(BadRequest):
        llm.generate([[1, 2], []], sampling)
    assert llm.generate([1, 2], sampling)[0].choices[0].tokens == good.choices[0].tokens


def test_one_thing_at_a_time_and_leaving_a_stream_cleans_up(llm: LLM) -> None:
    stream = llm.stream("abc", SamplingParams(max_tokens=100, temperature=0, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="still answering"):
        llm.generate("abc")
    stream.close()
    assert llm.engine.unfinished == 0
    assert llm.generate("abc", SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))


def test_the_engine_in_its_own_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = await AsyncEngine.start(EngineConfig.build(tiny.folder(tmp_path), set_=SETTINGS))

        def ask(id: str, tokens: int, **more: object) -> Request:
            return Request(
                id=id,
                prompt=np.array([1, 2, 3]),
                sampling=SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, **more),  # type: ignore[arg-type]
            )

        async def all_of(request: Request) -> list[int]:
            return [token for tokens in [delta.tokens async for delta in engine.generate(request)] for token in tokens]

        first = await all_of(ask("a", 6))
        assert len(first) == 6 and await all_of(ask("a", 6)) == first
        with pytest.raises(BadRequest, match="cannot be sent"):
            await all_of(ask("l", 3, constraint=lambda: 0))
        with pytest.raises(BadRequest, match="constraint"):
            await all_of(ask("c", 3, constraint="x"))
        held = ask("h", 40)
        sampling = replace(held.sampling, constraint=ConstraintSpec.of_choices(["yes", "no"]), ignore_eos=False)
        assert engine.tokenizer.decode(await all_of(replace(held, sampling=sampling))) in ("yes", "no")
        with pytest.raises(BadRequest, match="other"):
            await all_of(replace(held, sampling=replace(sampling, constraint=ConstraintSpec("ebnf", "start: other"))))
        long = asyncio.create_task(all_of(ask("long", 400)))
        await asyncio.sleep(0.05)
        await engine.cancel("long")
        assert len(await asyncio.wait_for(long, 10)) < 400
        await engine.drain(10)
        assert await all_of(ask("b", 6)) == first
        await engine.close()
        assert not engine.alive

    asyncio.run(scenario())
