"""Tiers around a real model: bits that come back from host memory, disk and another engine are the bits that left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine import tiny
from tests.engine.test_exactness import WINDOW, answers, mixed_requests

from hasten.engine.config import EngineConfig
from hasten.engine.events import Kind
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.peer import Peer, PeerServer
from hasten.engine.kv.tiered_cache import TieredCache
from hasten.engine.technique import ConfigError


def loaded(built: tiny.Built) -> int:
    return int(built.engine.events.sums[Kind.LOADED])


def close(built: tiny.Built) -> None:
    built.engine.executor.close()


def forget_device(built: tiny.Built) -> None:
    cache = built.engine.ledger.books.reuse
    assert isinstance(cache, TieredCache)
    while cache.settle(wait=True):
        pass
    cache.evict(built.engine.ledger.books.pool.blocks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, WINDOW], ids=["llama", "window"])
def test_tokens_are_equal_bit_for_bit_from_every_tier(tmp_path: Path, device: str, dtype: str, changes: dict[str, Any]) -> None:
    path = tiny.folder(tmp_path / "model", **changes)
    settings: dict[str, Any] = {
        "model__dtype": dtype, "model__device": device, "executor__deterministic": True, "kv__block_size": 16,
    }  # fmt: skip
    plain = tiny.engine(path, kv__reuse=None, scheduling__max_rows=1, **settings)
    alone: dict[Any, Any] = {}
    for request in mixed_requests():
        alone.update(answers(plain, [request]))
    block = 16 * 2 * 2 * 2 * 16 * (4 if dtype == "float32" else 2)
    tiers = f"tiered:host_bytes={60 * block}:chunk=32:margin=1e9"

    def busy(extra: str = "", **more: Any) -> tiny.Built:
        return tiny.engine(
            path, with_=("stall-free:chunk=23", tiers + extra), kv__memory_bytes=26 * block, scheduling__max_tokens=37,
            **settings, **more,
        )  # fmt: skip

    disk = f":disk={tmp_path / 'cache'}"
    first = busy(disk)
    assert answers(first, mixed_requests()) == alone
    forget_device(first)
    before = loaded(first)
    assert answers(first, mixed_requests()) == alone
    assert loaded(first) > before, "host memory gave something back"
    with pytest.raises(ConfigError, match="another engine"):
        busy(disk)
    close(first)

    second = busy(disk)
    assert answers(second, mixed_requests()) == alone
    assert loaded(second) > 0, "what a restarted engine found on disk"
    close(second)

    other = busy(disk, weights__store="int8")
    one = mixed_requests()[2]
    assert tiny.run(other, [one])[(one.id, 0)][0].reused == 0, "never the KV of other weights"
    close(other)

    server = PeerServer(Folder(tmp_path / "cache"), "between us")
    third = busy(f":peer=127.0.0.1:peer_port={server.address.split(':')[1]}:peer_token=between us")
    cache = third.engine.ledger.books.reuse
    assert isinstance(cache, TieredCache)
    (peer,) = cache._stores
    assert isinstance(peer, Peer) and peer.reachable.wait(10)
    assert answers(third, mixed_requests()) == alone
    assert cache.counts()["chunks_from_stores"] > 0
    close(third)
    server.close()


@pytest.mark.parametrize(
    "wrong", [("tiered:{disk}:peer=somewhere", None), ("tiered:{disk}", "stall-free:chunk=0")], ids=["peer", "batching"]
)
def test_an_engine_that_was_refused_keeps_no_folder(tmp_path: Path, wrong: tuple[str, str | None]) -> None:
    path = tiny.folder(tmp_path / "model")
    disk = f"disk={tmp_path / 'cache'}"
    with pytest.raises(ValueError) as refused:
        tiny.engine(path, with_=tuple(text.format(disk=disk) for text in wrong if text is not None))
    right = tiny.engine(path, with_=(f"tiered:{disk}",))  # while `refused` keeps all that was made
    close(right)
    assert refused.value is not None


def test_names_depend_on_all_that_kv_does(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path / "model")
    changes: list[dict[str, Any]] = [
        {}, {"model__dtype": "bfloat16"}, {"kv__block_size": 8}, {"weights__store": "int8"}, {"executor__deterministic": True},
    ]  # fmt: skip
    contexts = set()
    for change in changes:
        built = tiny.engine(path, **change)
        contexts.add((built.parts.kv_context, built.parts.model.fingerprint))
        close(built)
    assert len(contexts) == len(changes)


def test_bad_knobs_are_refused(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path / "model")
    for knobs, said in (
        ("keep=best", "lru, cost-aware"),
        ("host_bytes=100", "hold no block"),
        ("host_bytes=200000", "less than two chunks"),
        ("codec=zip", "no technique is called"),
        ("peer_rate=0", "above 0"),
        ("disk_rate=-1", "above 0"),
        ("codec=fcfs", "no codec"),
        (f"disk={path}/config.json", "disk="),
        ("peer=somewhere", "wants a token"),
        ("disk_rate=0", "disk_rate must be above 0"),
        ("timeout_s=-1", "timeout_s must be above 0"),
        ("chunk=0", "chunk must be above 0"),
        ("peer=somewhere:peer_token=x:peer_port=0", "from 1 to 65535"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny.engine(path, with_=(f"tiered:{knobs}",))
    with pytest.raises(ConfigError, match=r"both decide kv\.reuse"):
        EngineConfig.build(with_=["tiered", "prefix-tree"])
