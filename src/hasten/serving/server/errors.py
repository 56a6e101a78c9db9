"""Every error a client can get, in the OpenAI shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from hasten.engine.outputs import EngineDead, QueueFull
from hasten.engine.request import BadRequest

log = logging.getLogger("hasten.server")

RETRY_AFTER_S = 1
"""What a client is told to wait when the queue is full."""


class ApiError(Exception):
    """An answer other than 200. `code` is also the outcome that the metrics count."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def too_long(length: int, limit: int, param: str) -> ApiError:
    return invalid(
        f"this model's context holds {limit} tokens, at least one of them for output, and the prompt has {length}",
        param,
        "context_length_exceeded",
    )


def unauthorised() -> ApiError:
    message = "a valid API key is needed: send the header 'Authorization: Bearer KEY'"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(name: str, served: str) -> ApiError:
    shown = name if len(name) <= 100 else name[:100] + "…"
    return ApiError(
        404, f"the model {shown!r} does not exist; this server serves {served!r}", param="model", code="model_not_found"
    )


def body_too_large(limit: int) -> ApiError:
    message = f"the body is larger than the {limit} bytes this server accepts"
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


def queue_full(message: str) -> ApiError:
    return ApiError(
        429,
        f"the queue is full: {message}; try again later",
        type="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def timed_out(limit_s: float) -> ApiError:
    message = f"the request took longer than the {limit_s:g} s this server allows and was cancelled"
    return ApiError(504, message, type="timeout_error", code="request_timeout")


def unavailable(message: str, code: str = "engine_unavailable") -> ApiError:
    return ApiError(503, message, type="server_error", code=code)


def internal(message: str = "the server failed to answer this request; its log says why") -> ApiError:
    return ApiError(500, message, type="server_error", code="internal_error")


def from_exception(error: BaseException) -> ApiError:
    """The answer for what the engine or our own code raised; the unexpected is logged, never shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadRequest):
        return invalid(error.message, error.param)
    if isinstance(error, QueueFull):
        return queue_full(str(error))
    if isinstance(error, EngineDead):
        return unavailable(f"the engine is not running: {error}")
    log.error("unexpected error while answering a request", exc_info=error)
    return internal()


def install(app: FastAPI) -> None:
    """Make every error of `app`, also those of the router, answer in the OpenAI shape."""

    async def known(_: Request, error: Exception) -> Response:
        return from_exception(error).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        code = None
        if error.status_code == 404:
            message, code = f"unknown request URL: {request.method} {request.url.path}", "unknown_url"
        elif error.status_code == 405:
            message, code = f"{request.url.path} does not take {request.method}", "method_not_allowed"
        headers: Any = error.headers
        return ApiError(error.status_code, message, code=code, headers=headers).response()

    async def unexpected(_: Request, __: Exception) -> Response:
        return internal().response()  # Starlette logs it and serves on

    for kind in (ApiError, BadRequest, QueueFull, EngineDead):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
