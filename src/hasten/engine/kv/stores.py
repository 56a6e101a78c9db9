"""The stores beyond host memory that the knobs of `tiered` ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hasten.engine.kv.base import Store
from hasten.engine.kv.disk import Disk
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.host import SecondPool
from hasten.engine.kv.peer import Peer
from hasten.engine.kv.retention import Retention
from hasten.engine.technique import ConfigError

if TYPE_CHECKING:
    from hasten.engine.kv.tiered import Options

TOKEN = "HASTEN_CACHE_TOKEN"
"""The environment variable that names the shared token."""


def make_stores(
    second: SecondPool,
    options: Options,
    price: Callable[[int, int], float],
    retention: Callable[[], Retention],
    codec_name: str,
) -> list[Store]:
    """The disk, then the peer, as far as they are asked for. Raises ConfigError."""
    # What is wrong is said before a folder is taken.
    token = options.peer_token or os.environ.get(TOKEN, "")
    if options.peer and not token:
        raise ConfigError(f"tiered: peer={options.peer} wants a token: give peer_token, or set {TOKEN}")
    if options.peer and not 0 < options.peer_port < 65536:
        raise ConfigError(f"tiered: peer_port={options.peer_port}: ports are numbers from 1 to 65535")
    stores: list[Store] = []
    if options.disk:
        try:
            folder = Folder(options.disk)
        except OSError as error:
            raise ConfigError(f"tiered: disk={options.disk}: {error.strerror}") from None
        stores.append(
            Disk(
                folder,
                second,
                options.disk_bytes,
                retention(),
                price=price,
                codec_name=codec_name,
                rate=options.disk_rate,
            )
        )
    if options.peer:
        stores.append(
            Peer(
                f"{options.peer}:{options.peer_port}",
                token,
                second,
                price=price,
                codec_name=codec_name,
                rate=options.peer_rate,
                first_token_s=options.first_token_s,
                timeout_s=options.timeout_s,
            )
        )
    return stores
