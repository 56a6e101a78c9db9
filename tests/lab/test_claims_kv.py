"""What the claims `kv-int8` and `kv-int4` measure: steps in turns over contexts that nobody computed."""

from __future__ import annotations

import pytest
import torch
from tests.engine import tiny

from hasten.lab.claims import kv_int4, kv_int8, rounded_kv
from hasten.lab.claims.quality import PLAIN
from hasten.lab.claims.sides import Side


def test_steps_are_timed_in_turns_over_whole_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_kv, "SHAPE", {**tiny.CONFIG, "hidden_size": 128, "head_dim": 32, "tie_word_embeddings": True})
    stepped: list[tuple[int, int]] = []
    step = rounded_kv._step

    def watched(built: object) -> tuple[float, int, float]:
        found = step(built)  # type: ignore[arg-type]
        for plane in built.parts.memory.planes:  # type: ignore[attr-defined]
            assert plane.dtype.is_floating_point is False or plane.isfinite().all()
        longest = max(len(seq.tokens) for seq in built.engine.ledger.sequences.values())  # type: ignore[attr-defined]
        stepped.append((id(built), longest))
        return found

    monkeypatch.setattr(rounded_kv, "_step", watched)
    told: list[float] = []
    small = Side("small", ("kv-int4",))
    times = rounded_kv.decode_times(
        (PLAIN, small), batch=3, context=200, rounds=2, progress=lambda what, share: told.append(share)
    )
    assert told == sorted(told) and told[-1] <= 1
    for of in (times.steps, times.attention):
        assert [len(of[name]) for name in ("plain", "small")] == [2, 2] and all(s > 0 for s in of["plain"] + of["small"])
    assert times.kv_bytes == {"plain": 2 * 2 * 2 * 32 * 2, "small": 2 * 2 * 2 * 18}
    assert times.step_bytes["plain"] - times.step_bytes["small"] == 3 * 200 * (512 - 144)
    assert all(200 < longest <= 200 + rounded_kv.ROOM for _, longest in stepped)
    dense, other = dict.fromkeys(built for built, _ in stepped)
    turns = [built for built, _ in stepped[-16:]]
    assert turns == 2 * [dense, dense, other, other, other, other, dense, dense]
    assert "predicted from the bytes read: attention 3.56x" in times.in_words(small)


def test_controls_take_as_many_bytes() -> None:
    for claim, bits in ((kv_int8, 8), (kv_int4, 4)):
        form = rounded_kv_form(claim.SIDE)
        planes = form.planes(2, 32, 32, torch.bfloat16)
        share = sum(plane.nbytes for plane in planes) / (2 * 2 * 32 * 32 * 2)
        assert float(claim.CONTROL.with_[0].rpartition("=")[2]) == pytest.approx(share, abs=0.005), bits


def rounded_kv_form(side: Side):
    from hasten.engine.config import EngineConfig

    return EngineConfig.build(with_=side.with_).form()
