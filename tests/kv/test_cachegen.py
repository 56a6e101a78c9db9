"""The codec in the tiers: restarts, peers with several qualities, links that are slow, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasten.engine.config import EngineConfig
from hasten.engine.executors.local import LocalExecutor
from hasten.engine.kv.base import Dearer, ReuseKey
from hasten.engine.kv.bitstream import chunk, levels, stream
from hasten.engine.kv.bitstream.chooser import Chooser, Ticket
from hasten.engine.kv.bitstream.native import PATH
from hasten.engine.kv.blockfile import Head, Plane, Planes, Unusable, name_after, root
from hasten.engine.kv.codecs import RAW, accepts, codec
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.jobs import STALE_S, Rate
from hasten.engine.kv.peer import PeerServer
from hasten.engine.llm import LLM
from hasten.engine.request import SamplingParams
from hasten.engine.technique import ConfigError

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="the library of entropy coding is not built")

TOKEN = "between us"
BLOCKS, SIZE = 4, 8
PROMPT = "The number of the quiet river is 7350. The keeper of the golden kettle came from the north, and said so. " * 14


def chunk_of(dtype: torch.dtype, start: int = 0, weights: str = "unknown") -> tuple[Head, Planes]:
    torch.manual_seed(start)
    name = str(dtype).removeprefix("torch.")
    planes = tuple(Plane(site, part, (2, SIZE, 16), name) for site in range(3) for part in ("k", "v"))
    tokens = np.arange(BLOCKS * SIZE, dtype=np.int32)
    first = root(ReuseKey(weights))
    head = Head(name_after(first, tokens), first, first, start, tokens, SIZE, planes, "cachegen", weights)
    values = [(3 + torch.randn(BLOCKS, *plane.shape)).to(dtype) for plane in planes]
    return head, [(v.view(torch.uint16) if dtype is torch.bfloat16 else v).numpy() for v in values]


def floats(plane: np.ndarray) -> np.ndarray:
    return (plane.astype(np.uint32) << 16).view(np.float32) if plane.dtype == np.uint16 else plane.astype(np.float32)


# -- the codec ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_planes_come_back_nearly(dtype: torch.dtype) -> None:
    head, planes = chunk_of(dtype)
    errors = []
    for level in range(len(levels.LEVELS)):
        coder = codec(f"cachegen-{level}")
        payload = coder.encode(planes, head)
        assert len(payload) < coder.most_bytes(head) and coder.loss == level + 1
        back = coder.decode(payload, head)
        assert [plane.dtype for plane in back] == [plane.dtype for plane in planes]
        errors.append(max(np.abs(floats(a) - floats(b)).max() for a, b in zip(planes, back, strict=True)))
    assert errors == sorted(errors) and errors[0] < 0.75 and codec(RAW).loss == 0


def test_no_payload_is_longer_than_is_said() -> None:
    head, planes = chunk_of(torch.float32)
    rng = np.random.default_rng(0)
    for wild in (1e30, 1e-30, 1e-38, 1e-44, 0.0):
        noise = [(rng.standard_cauchy(plane.shape) * wild).clip(-3e38, 3e38).astype(np.float32) for plane in planes]
        coder = codec("cachegen-0")
        payload = coder.encode(noise, head)
        assert len(payload) <= coder.most_bytes(head)
        assert all(np.isfinite(plane).all() for plane in coder.decode(payload, head))


def test_what_it_cannot_take_is_refused() -> None:
    head, planes = chunk_of(torch.float32)
    payload = codec("cachegen").encode(planes, head)
    for wrong in (
        replace(head, start=SIZE),
        replace(head, tokens=head.tokens[:SIZE]),
        replace(head, planes=head.planes[:4]),
        replace(head, planes=tuple(replace(plane, part="kv") for plane in head.planes)),
    ):
        with pytest.raises(Unusable):
            codec("cachegen").decode(payload, wrong)
    said = bytes(payload)
    for damaged in (b"", said[:1], said[:-1], said + b"\0", b"\1" + said[1:], b"\2" + said[1:]):
        with pytest.raises(Unusable):
            codec("cachegen").decode(damaged, head)
    with pytest.raises(ConfigError, match="level=9"):
        codec("cachegen-9")
    assert accepts("cachegen", "cachegen-2") and accepts("cachegen-1", RAW)
    assert not accepts(RAW, "cachegen") and not accepts("cachegen", "cachegenx")
    assert not accepts("cachegen", "cachegen-9"), "a level of some later version"


def test_what_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may say that they are gigabytes of symbols that cost next to nothing."""
    head, _ = chunk_of(torch.float32)
    rows = np.zeros((BLOCKS * SIZE, 2, 256), np.float32)
    payload = b"\0" + chunk.encode([(rows, rows)] * 3, 0, 0)
    monkeypatch.setattr(stream, "decode", lambda *arguments, **scheme: pytest.fail("it was decoded"))
    with pytest.raises(Unusable, match="another shape"):
        codec("cachegen").decode(payload, head)


def test_engines_of_one_model_share_what_is_known_of_it() -> None:
    """The one of shorter sequences takes nothing from the other."""
    head, planes = chunk_of(torch.float32, weights="of two lengths")
    coder = codec("cachegen")

    def prepare(length: int, sites: int = 3) -> None:
        site = SimpleNamespace(cos_sin=torch.randn(128, 2, 8, generator=torch.Generator().manual_seed(0))[:length])
        model = SimpleNamespace(fingerprint="of two lengths", sites=[site] * sites)
        coder.prepare(SimpleNamespace(model=model, config=EngineConfig()))

    prepare(64)
    payload = coder.encode(planes, head)
    for length, sites in ((16, 3), (128, 3), (16, 2)):
        prepare(length, sites)
        assert bytes(coder.encode(planes, head)) == bytes(payload)
        assert len(coder.decode(payload, head)) == len(planes)


def test_configurations_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs tiered"):
        EngineConfig.build(with_=["cachegen"])


# -- in an engine -------------------------------------------------------------------------------------------------------


def engine(*knobs: str, codec_on: bool = True) -> LLM:
    with_ = [":".join(["tiered", "chunk=64", "host_bytes=33554432", *knobs])] + ["cachegen"] * codec_on
    return LLM(with_=with_, set_=["kv.memory_bytes=16777216", "model.dtype=bfloat16", "executor.threads=2"])


def answer(llm: LLM, count: int = 2) -> tuple[list[int], int]:
    done = llm.generate(PROMPT, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))[0]
    return done.choices[0].tokens, done.reused


@pytest.fixture(scope="module")
def plain() -> tuple[list[int], int]:
    llm = LLM(set_=["kv.memory_bytes=16777216", "model.dtype=bfloat16", "executor.threads=2"])
    tokens = answer(llm)[0]
    length = len(llm.tokenizer.encode(PROMPT))
    llm.engine.executor.close()
    return tokens, length


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompt's KV as raw chunks and in all levels, as `hasten cache warm` stores it."""
    from hasten.cli.cache_work import opened, warmed
    from hasten.cli.options import Asked

    path = tmp_path_factory.mktemp("stored")
    codecs = [RAW, *(f"cachegen-{level}" for level in range(len(levels.LEVELS)))]
    llm = opened(Asked(None, None, ["model.dtype=bfloat16"]), path, 64, codecs, progress=False)
    warmed(llm, PROMPT, path, 64, codecs, lambda done, total: None)
    return path


def test_a_restarted_engine_goes_on_from_its_bitstreams(tmp_path: Path, plain: tuple[list[int], int]) -> None:
    tokens, length = plain
    first = engine(f"disk={tmp_path}")
    assert answer(first) == (tokens, 0)  # what it computed itself is exact
    first.engine.executor.close()
    files = list(Folder(tmp_path).list())
    assert len(files) == length // 64 and {one.head.codec for one in files} == {"cachegen"}
    assert all(one.nbytes < 0.35 * one.head.plain_bytes for one in files)
    second = engine(f"disk={tmp_path}", "margin=1e9")
    found, reused = answer(second)
    second.engine.executor.close()
    assert reused == (length - 1) // 64 * 64 and found == tokens


@pytest.fixture
def server(folder: Path) -> Iterator[PeerServer]:
    server = PeerServer(Folder(folder), TOKEN)
    yield server
    server.close()


def from_peer(server: PeerServer, *knobs: str) -> tuple[list[int], int, dict[str, float]]:
    host, port = server.address.split(":")
    llm = engine(f"peer={host}", f"peer_port={port}", f"peer_token={TOKEN}", *knobs)
    cache = llm.parts.books.reuse
    assert cache._stores[0].reachable.wait(5)
    tokens, reused = answer(llm)
    counts = cache.counts()
    cache.audit()
    llm.engine.executor.close()
    return tokens, reused, counts


def test_chunks_come_from_a_peer(server: PeerServer, plain: tuple[list[int], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalExecutor, "price", lambda self, shape: 1.0 * shape.tokens)
    tokens, length = plain
    found, reused, counts = from_peer(server, "first_token_s=60")
    assert found == tokens
    assert reused == (length - 1) // 64 * 64 and counts["chunks_from_stores"] == reused // 64


def test_where_the_link_is_slow_the_rest_is_computed(
    server: PeerServer, plain: tuple[list[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the chunk on that computing would give sooner; the peer is not held to have lost what it has."""
    monkeypatch.setattr(LocalExecutor, "price", lambda self, shape: 1.0 * shape.tokens)
    tokens, length = plain
    chosen: list[str] = []
    choose = Chooser.choose

    def slow(self: Chooser, ticket: Ticket) -> str:
        if len(chosen) == 2:
            self._bandwidth = 10.0
        chosen.append(choose(self, ticket))
        return chosen[-1]

    monkeypatch.setattr(Chooser, "choose", slow)
    found, reused, counts = from_peer(server, "first_token_s=0.001")
    assert found == tokens
    assert reused == 2 * 64 < length - 64 and len(chosen) == 2
    assert counts["chunks_computed_instead"] == (length - 1) // 64 - 2 and not counts["loads_failed"]


# -- the choice ---------------------------------------------------------------------------------------------------------

OFFERS = {RAW: (0, 1000), "cachegen-0": (1, 300), "cachegen-2": (3, 100)}


def chooser(bandwidth: float, deadline_s: float, chunks: int, compute_s: float) -> tuple[Chooser, list[Ticket]]:
    names = [bytes([i]) * 32 for i in range(chunks + 1)]
    made = Chooser(bandwidth, deadline_s, clock=lambda: 0.0)
    return made, [made.ask(names[i + 1], names[i], OFFERS, 1000, compute_s) for i in range(chunks)]


def chosen(made: Chooser, ticket: Ticket) -> str:
    with made.turn(ticket):
        return made.choose(ticket)


@pytest.mark.parametrize(
    ("bandwidth", "expected"), [(10_000, RAW), (1000, "cachegen-0"), (250, "cachegen-2"), (100, "cachegen-2")]
)
def test_the_best_quality_that_is_in_time(bandwidth: float, expected: str) -> None:
    made, tickets = chooser(bandwidth, 2.0, 4, 10.0)
    assert chosen(made, tickets[0]) == expected


def test_each_choice_rests_on_the_transfer_before() -> None:
    made, tickets = chooser(10_000, 2.0, 4, 10.0)
    assert chosen(made, tickets[0]) == RAW
    made.transferred(tickets[0], 1000, 4.0)
    made.over(tickets[0])
    assert chosen(made, tickets[1]) == "cachegen-2"
    made.transferred(tickets[1], 100, 100.0)
    made.over(tickets[1])
    with pytest.raises(Dearer):  # 100 s a chunk, where computing takes 10
        chosen(made, tickets[2])
    with pytest.raises(Dearer, match="before it"):
        chosen(made, tickets[3])
    for ticket in tickets[2:]:
        made.over(ticket)
    again = made.ask(tickets[3].name, tickets[2].name, {RAW: (0, 1)}, 1000, 10.0)
    assert chosen(made, again) == RAW  # asked for anew, it is looked at anew


def test_a_slow_moment_of_the_link_does_not_end_its_use() -> None:
    """Without transfers it would never be measured again."""
    now = 0.0
    made = Chooser(1000.0, 1.0, clock=lambda: now)
    ticket = made.ask(bytes(32), bytes(32), OFFERS, 1000, 10.0)
    made.transferred(ticket, 100, 100.0)
    made.over(ticket)
    assert made.seconds(1000) == pytest.approx(1000.0)
    now = STALE_S + 1
    assert made.seconds(1000) == pytest.approx(1.0)
    assert chosen(made, made.ask(bytes(32), bytes(32), {RAW: (0, 1000)}, 1000, 10.0)) == RAW

    disk = Rate(1000.0, clock=lambda: now)
    for _ in range(9):
        disk.asked(100)
        disk.over(100, 100.0)
    assert disk.seconds(1000) > 100.0
    now += STALE_S + 1
    assert disk.seconds(1000) == pytest.approx(1.0)


def test_without_a_price_nothing_is_computed_instead() -> None:
    made, tickets = chooser(1e-3, 1.0, 2, float("inf"))
    assert chosen(made, tickets[0]) == "cachegen-2"
    assert made.seconds(800) == pytest.approx(1e6)  # behind the two that were asked for
