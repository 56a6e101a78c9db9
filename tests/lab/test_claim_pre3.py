"""What the claim pre3 measures, on little: verdicts, positions, batches, answers; peers where they are installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine import tiny

from hasten.lab.bench import mask_grammars, masks
from hasten.lab.bench.mask_peers import INSTALLED, Hasten, MaskEngine, XGrammar, peers
from hasten.lab.bench.mask_vocabulary import Words, _train, letters, of_tokenizer
from hasten.lab.claims import constrained, constrained_coverage, pre3

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
INSTANCES = [({"a": 1}, True), ({"a": "1"}, False), ({"a": 12345}, True)]


@pytest.fixture(scope="module")
def words() -> Words:
    texts = [json.dumps(value) for value, _ in INSTANCES] + [text for of in mask_grammars.TEXTS.values() for text, _ in of]
    return of_tokenizer(_train(texts, 400))


@pytest.fixture(scope="module")
def cases(words: Words, tmp_path_factory: pytest.TempPathFactory) -> list[masks.Case]:
    rows = [
        {"id": f"{group}{i}", "group": group, "schema": schema, "tests": [{"data": d, "valid": v} for d, v in INSTANCES]}
        for group, schemas in (("g", [SCHEMA, {"$dynamicRef": "#x"}, {"type": "string"}]), ("h", [SCHEMA] * 5))
        for i, schema in enumerate(schemas)
    ]
    file = tmp_path_factory.mktemp("cases") / "sample.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return masks.read(file, words)


def test_a_vocabulary_has_a_piece_for_every_row(words: Words) -> None:
    table = words.table(1000)
    assert len(table) == 1000 and all(table[1:]) and table[words.end] == b""
    assert words.decode(words.encode('{"a": 1}')) == '{"a": 1}'


def test_replays(words: Words, cases: list[masks.Case]) -> None:
    room = masks.room(words)
    right, refused, wrong = (masks.replay(Hasten(words), case, room, 3) for case in cases[:3])
    assert right.right and right.again > 0 and right.bytes > 0 and right.compiled is not None
    assert "$dynamicRef" in refused.refused and not refused.right
    assert wrong.wrong == [0, 2]
    read = [len(tokens) for tokens, valid in right.case.instances if valid]
    times = right.times
    assert len(times.firsts) == 3 and len(times.masks) == len(times.cold)
    assert sum(read) - 2 < len(times.masks) < sum(len(tokens) for tokens, _ in right.case.instances) - 2
    assert len(times.commits) == 3 * (len(times.masks) + 3 - 1), "all but the token that is refused, three times"
    assert masks.coverage([right, refused, wrong]) == pytest.approx(100 / 3)
    assert masks.per_group([right, refused, wrong]) == {"g": {"schemas": 3, "right": 1, "refused": 1, "wrong": 1}}
    kept = masks.compiled_by_all({"a": [right, refused], "b": [right, right]}, ["a", "b"])
    assert kept == {"a": [right], "b": [right]}


@pytest.mark.parametrize("engine", [Hasten, *(XGrammar for name in INSTALLED if name == "xgrammar")])
def test_verdicts_by_bytes_are_those_by_tokens(words: Words, cases: list[masks.Case], engine: type[MaskEngine]) -> None:
    small = letters()
    by_bytes, by_tokens = engine(small), engine(words)
    for case in cases[:3]:
        texts = [(small.split(words.decode(tokens)), valid) for tokens, valid in case.instances]
        read = replace(case, instances=texts)
        one, other = (
            masks.replay(*of, 1) for of in ((by_bytes, read, masks.room(small)), (by_tokens, case, masks.room(words)))
        )
        assert (one.wrong, bool(one.refused)) == (other.wrong, bool(other.refused))


def test_schemas_are_drawn_evenly(cases: list[masks.Case]) -> None:
    assert [case.id for case in masks.drawn(cases, 2)] == ["g0", "g1", "h0", "h2"]


def test_batches_have_states_of_all_texts(words: Words, cases: list[masks.Case]) -> None:
    engine = Hasten(words)
    results = masks.in_turns([engine], cases[:2], words, lambda what, share: None)
    filled = masks.batches([engine], results, (1, 5), words, 30)
    assert set(filled["hasten"]) == {1, 5} and all(seconds > 0 for seconds in filled["hasten"].values())
    assert set(pre3._batches({"hasten": dict.fromkeys(pre3.BATCHES, 1.0), "xgrammar": {64: 4.0}, "llguidance": {64: 0.1}})) == {
        *(f"batch-{size}" for size in pre3.BATCHES),
        "batch-64-share",
    }


def test_grammars_written_by_hand(words: Words) -> None:
    times = mask_grammars.measure([Hasten(words)], words)
    assert set(times) == {"json", "call", "arithmetic", "sql"} and all(len(of["hasten"].masks) > 20 for of in times.values())


@pytest.mark.skipif(not INSTALLED, reason="no peer is installed")
def test_peers_judge_as_we_do(words: Words, cases: list[masks.Case]) -> None:
    room = masks.room(words)
    engines: list[MaskEngine] = [Hasten(words), *peers(words)]
    assert all(masks.replay(engine, cases[0], room, 1).right for engine in engines)
    mask_grammars.measure(engines, words)
    results = masks.in_turns(engines, cases[:1], words, lambda what, share: None)
    assert all(of[3] > 0 for of in masks.batches(engines, results, (3,), words, 5).values())
    samples = pre3._speed(results, results["hasten"])
    assert {"mean-ahead", "p99-ahead", "max-ahead"} <= set(samples)
    assert pre3._plot(results).startswith(b"\x89PNG") and len(pre3._table(results)) == len(engines)


def test_engines_step_in_turns(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrained, "SHAPE", {**tiny.CONFIG, "vocab_size": len(words.all) + 20, "tie_word_embeddings": True})
    monkeypatch.setattr(constrained, "DUMMY", ("model.load_format=dummy", "model.dtype=float32", "kv.memory_bytes=8388608"))
    monkeypatch.setattr(constrained, "STEPS", {1: 2, 3: 1})
    monkeypatch.setattr(constrained, "FIRST", 10)
    told: list[float] = []
    kept = constrained.kept_speed(words, rounds=2, progress=lambda what, share: told.append(share))
    assert {batch: len(found) for batch, found in kept.items()} == {1: 2, 3: 2} and told == sorted(told)
    assert all(share > 0 for found in kept.values() for share in found)
    assert len(constrained.forced_speed(words, count=2, seed=0, progress=lambda what, share: None)) == 2


def test_a_second_file_is_told(words: Words, cases: list[masks.Case], tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    row = {"id": "x", "group": "g", "schema": {"type": "string"}, "tests": [{"data": 1, "valid": True}]}
    file.write_text(json.dumps(row))
    assert constrained_coverage.second(file, words) == "other.jsonl: 0 of 1 schemas right; not: x (instances [0])"


def test_what_is_required_is_what_was_asked_for() -> None:
    of = {requirement.name: requirement for requirement in pre3.CLAIM.requirements}
    most = {"mask-mean": 25, "mask-p99": 150, "mask-max": 1000, "first-p50": 5, "first-p95": 100, "again": 1}
    assert {name: of[name].at_most for name in most} == most
    least = {"coverage": 95, "valid": 100, "kept-1": 97, "kept-32": 97, "forced": 1}
    assert {name: of[name].at_least for name in least} == least
    assert ("coverage-ahead" in of) == bool(INSTALLED) and ("batch-64-share" in of) == ("xgrammar" in INSTALLED)
