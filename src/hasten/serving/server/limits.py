"""What a client may not do: come without a key, send too much, or wait in a server that is going away."""

from __future__ import annotations

import asyncio
import hmac

from starlette.requests import ClientDisconnect, Request

from hasten.serving.server.errors import body_too_large, unauthorised

_LINGER_BYTES = 64 << 20
"""How much of an oversized body is read and dropped, so that a client still writing gets the answer and no broken pipe."""
_LINGER_S = 5.0


def check_key(authorization: str | None, key: str | None) -> None:
    """Raise 401 unless `authorization` bears `key` (None: everybody may come in). Takes the same time wherever it differs."""
    if key is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode())  # headers come as latin-1
    if scheme.lower() != "bearer" or not right:
        raise unauthorised()


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, or 413 when it is over `limit` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        # A client that asks first (Expect: 100-continue, as curl does) has sent nothing yet, so there is nothing to drop.
        if "100-continue" not in request.headers.get("expect", "").lower():
            await _drop(request)
        raise body_too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            await _drop(request)
            raise body_too_large(limit)
        parts.append(part)
    return b"".join(parts)


async def _drop(request: Request) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            dropped = 0
            while dropped < _LINGER_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
