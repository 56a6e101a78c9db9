"""The peer tier: chunks that another process has, and the server that gives ours to others."""

from __future__ import annotations

import hmac
import io
import logging
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any

from hasten.engine.kv.base import Handle
from hasten.engine.kv.bitstream.chooser import Chooser, Ticket
from hasten.engine.kv.blockfile import Head, Unusable, pack, read_chunk
from hasten.engine.kv.codecs import RAW, Codec, accepts, codec
from hasten.engine.kv.folder import Folder
from hasten.engine.kv.host import SecondPool
from hasten.engine.kv.jobs import submit
from hasten.engine.kv.retention import Facts
from hasten.engine.kv.wire import (
    _U64,
    NONCE_BYTES,
    SMALL,
    Kind,
    Offer,
    PeerClient,
    PeerError,
    Wire,
    pack_offers,
    proof,
)

_log = logging.getLogger(__name__)
MOST_CHUNK_BYTES = 1 << 30


class PeerServer:
    """Serves a folder's chunks at `host:port` (port 0: any free one; see `address`) to whoever knows `token`. `writable`:
    clients may put and drop too. `timeout_s` for each call, `idle_s` between calls; beyond `most_clients` at a time none is
    let in. Raises ValueError without a token, OSError
    when the address cannot be had."""

    def __init__(
        self,
        folder: Folder,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        writable: bool = False,
        timeout_s: float = 10.0,
        idle_s: float = 300.0,
        most_clients: int = 256,
    ) -> None:
        if not token:
            raise ValueError("a cache is served to those who know a token; give one")
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    outer._serve(self.request)

            def finish(self) -> None:
                outer._clients.discard(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def verify_request(self, request: Any, client_address: Any) -> bool:
                if len(outer._clients) >= most_clients:  # each has a thread, strangers too until they time out
                    return False
                outer._clients.add(request)
                return True

        self._clients: set[socket.socket] = set()
        self._folder = folder
        self._token = token
        self._writable = writable
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._server = Server((host, port), Handler)
        self.address = "{}:{}".format(*self._server.server_address[:2])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="hasten-peer", daemon=True)
        self._thread.start()

    def _serve(self, sock: socket.socket) -> None:
        wire = Wire(sock, self._timeout_s)
        nonce = secrets.token_bytes(NONCE_BYTES)
        wire.send(Kind.NONCE, nonce)
        kind, body = wire.receive(SMALL)
        if kind is not Kind.HELLO or not hmac.compare_digest(body, proof(self._token, nonce)):
            return
        wire.send(Kind.WELCOME)
        while True:
            kind, body = wire.receive(MOST_CHUNK_BYTES if self._writable else SMALL, patience_s=self._idle_s)
            if kind is Kind.LIST and len(body) == _U64.size:
                self._list(wire, _U64.unpack(body)[0])
            elif kind is Kind.GET and len(body) > 32:
                self._get(wire, body[:32], body[32:].decode(errors="replace"))
            elif kind is Kind.PUT and self._writable:
                self._put(wire, body)
            elif kind is Kind.DROP and self._writable and len(body) > 32:
                self._drop(wire, body[:32], body[32:].decode(errors="replace"))
            else:
                wire.send(Kind.REFUSED, b"this server only gives chunks" if not self._writable else b"a call it does not know")

    def _list(self, wire: Wire, since_ns: int) -> None:
        now = time.time_ns()
        # A file's time is when it was last used, which is no earlier than when it came.
        offers = [
            Offer(name, said, size) for used_s, size, name, said in self._folder.names() if used_s * 1e9 >= since_ns - 2e9
        ]
        wire.send(Kind.NAMES, pack_offers(now, offers))

    def _get(self, wire: Wire, name: bytes, codec_name: str) -> None:
        try:
            head, payload = self._folder.get(name, _plain(codec_name), MOST_CHUNK_BYTES)
        except (OSError, Unusable):
            wire.send(Kind.MISSING)
            return
        packed = pack(head, payload)
        wire.send(Kind.CHUNK, packed.prefix, packed.payload)

    def _put(self, wire: Wire, body: bytes) -> None:
        try:
            head, payload = read_chunk(io.BytesIO(body), len(body))
            _plain(head.codec)
            self._folder.put(head, pack(head, payload))
        except (OSError, Unusable) as error:
            wire.send(Kind.REFUSED, str(error).encode()[:SMALL])
        else:
            wire.send(Kind.DONE)

    def _drop(self, wire: Wire, name: bytes, codec_name: str) -> None:
        try:
            there = self._folder.drop(name, _plain(codec_name))
        except (OSError, Unusable):
            there = False
        wire.send(Kind.DONE if there else Kind.MISSING)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def _plain(codec_name: str) -> str:
    """Names of codecs become parts of file names."""
    if not codec_name.replace("-", "").replace("_", "").isalnum() or len(codec_name) > 40:
        raise Unusable(f"no codec is called {codec_name!r}")
    return codec_name


class Peer:
    """The `Store` of what the server at `address` has, which is asked every `refresh_s` for what is new and every
    `whole_list_s` for all. Nothing is stored there. `timeout_s`: of connecting and of each call. Chunks are transferred one
    after the other, while the one before is decoded.
    `price(start, tokens)`: seconds of computing so many tokens behind others; where there is one, each chunk comes in the
    quality that allows the first token in `first_token_s`, or not at all where computing is sooner (`bitstream/chooser.py`)."""

    def __init__(
        self,
        address: str,
        token: str,
        second: SecondPool,
        *,
        codec_name: str = RAW,
        rate: float = 1e8,
        price: Callable[[int, int], float] = lambda start, tokens: inf,
        first_token_s: float = 1.0,
        timeout_s: float = 5.0,
        refresh_s: float = 1.0,
        whole_list_s: float = 60.0,
    ) -> None:
        self._address = address
        self._token = token
        self._second = second
        self._codec = codec_name
        self._timeout_s = timeout_s
        self._price = price
        self._chooser = Chooser(rate, first_token_s)
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="hasten-peer-fetch")
        self._local = threading.local()
        self._offers: dict[bytes, dict[str, Offer]] = {}
        """What the peer said it has, by chunk and codec. Added to by the refresher, taken from by the engine's thread."""
        self._down_until = -inf
        self._closing = threading.Event()
        self.reachable = threading.Event()
        """Its list was read at least once."""
        self._refresher = threading.Thread(
            target=self._refresh, args=(refresh_s, whole_list_s), name="hasten-peer-list", daemon=True
        )
        self._refresher.start()

    def _refresh(self, every_s: float, whole_list_s: float) -> None:
        client: PeerClient | None = None
        since, whole_at, down_until = 0, -inf, -inf
        while not self._closing.is_set():
            if self._down_until != down_until:  # what it had is forgotten, so all of it is asked for anew
                since, down_until = 0, self._down_until
            now = time.monotonic()
            if now >= down_until:
                try:
                    if client is None:
                        client, since = PeerClient(self._address, self._token, self._timeout_s), 0
                    if since == 0 or now >= whole_at:  # what it dropped is in no list of what came since
                        since, whole_at = 0, now + whole_list_s
                    since = self._list(client, since)
                    self.reachable.set()
                except (OSError, Unusable) as error:
                    if client is not None:
                        client.close()
                        client = None
                    self._gone()
                    _log.debug("peer %s: %s", self._address, error)
            self._closing.wait(every_s)
        if client is not None:
            client.close()

    def _list(self, client: PeerClient, since: int) -> int:
        """Learn what the peer has: all of it, or what came `since`; what to ask with the next time."""
        now, offers = client.list(since)
        known = self._offers if since else {}
        for offer in offers:
            if accepts(self._codec, offer.codec):
                known[offer.name] = {**known.get(offer.name, {}), offer.codec: offer}
        self._offers = known
        return now

    def _gone(self) -> None:
        """Nothing is asked of it for a while: each question would cost its time limit."""
        self._down_until = time.monotonic() + 2 * self._timeout_s
        self._offers.clear()

    def holds(self, name: bytes) -> int | None:
        offers = self._offers.get(name)
        if not offers or time.monotonic() < self._down_until:
            return None
        return min(offer.nbytes for offer in offers.values())

    def used(self, name: bytes) -> None:
        """The peer sees for itself."""

    def fetch(self, wanted: Head, blocks: Seq[int]) -> Handle:
        offers = self._offers.get(wanted.name)
        if not offers:
            raise PeerError("the peer is gone, or has it no more")
        sizes = {name: (codec(name).loss, offer.nbytes) for name, offer in offers.items()}
        ticket = self._chooser.ask(
            wanted.name, wanted.parent, sizes, wanted.plain_bytes, self._price(wanted.start, len(wanted.tokens))
        )

        def work() -> None:
            try:
                with self._chooser.turn(ticket):
                    coder, head, payload = self._transferred(wanted, ticket)
                if not head.says(wanted):
                    raise Unusable("the peer sent KV of other tokens, or of another form")
                with self._chooser.decoding(ticket):
                    self._second.write(blocks, coder.decode(payload, head))
            finally:
                self._chooser.over(ticket)

        try:
            return submit(self._workers, None, 0, work)
        except RuntimeError:  # it was closed
            self._chooser.over(ticket)
            raise

    def _transferred(self, wanted: Head, ticket: Ticket) -> tuple[Codec, Head, bytes]:
        if time.monotonic() < self._down_until:
            raise PeerError("the peer is gone")
        name = self._chooser.choose(ticket)
        coder = codec(name)
        began = time.monotonic()
        got = self._get(wanted.name, name, coder.most_bytes(wanted))
        if got is None:
            raise PeerError("the peer has it no more")
        head, payload = got
        self._chooser.transferred(ticket, len(payload), time.monotonic() - began)
        return coder, head, payload

    def _get(self, name: bytes, codec_name: str, most: int) -> tuple[Head, bytes] | None:
        """In a worker, over its own connection, which the server may have closed since it was last used."""
        if getattr(self._local, "client", None) is not None:
            with suppress(ConnectionError):
                return self._called(name, codec_name, most)
        try:
            self._local.client = PeerClient(self._address, self._token, self._timeout_s)
            return self._called(name, codec_name, most)
        except OSError:
            self._gone()
            raise

    def _called(self, name: bytes, codec_name: str, most: int) -> tuple[Head, bytes] | None:
        client: PeerClient = self._local.client
        try:
            return client.get(name, codec_name, most)
        except (OSError, Unusable):
            client.close()
            self._local.client = None
            raise

    def keep(self, head: Head, blocks: Seq[int], facts: Facts) -> Handle | None:
        return None

    def lose(self, name: bytes) -> None:
        self._offers.pop(name, None)

    def seconds(self, nbytes: int) -> float:
        return self._chooser.seconds(nbytes)

    def audit(self) -> None: ...

    def close(self) -> None:
        self._closing.set()
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._refresher.join(self._timeout_s)
