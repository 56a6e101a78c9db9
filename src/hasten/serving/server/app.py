"""The HTTP application: its routes, around one engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from hasten.serving.server import chat, completions, errors
from hasten.serving.server.answer import answer
from hasten.serving.server.limits import check_key
from hasten.serving.server.service import Service
from hasten.serving.server.settings import Settings

if TYPE_CHECKING:
    from hasten.engine.async_engine import AsyncEngine

PAGE = Path(__file__).with_name("static") / "index.html"

_PAGE_HEADERS = {
    # The page is one file and talks to this server only; whatever a model writes, it can load nothing else.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def build(engine: AsyncEngine, settings: Settings | None = None) -> FastAPI:
    """The application; `app.state.service` is what its endpoints share."""
    service = Service(engine, settings or Settings())
    # No generated documentation: its page would load scripts from elsewhere, and the API is OpenAI's.
    app = FastAPI(title="hasten", openapi_url=None)
    app.state.service = service
    errors.install(app)
    page = PAGE.read_bytes()

    @app.post("/v1/completions")
    async def post_completions(request: Request) -> Response:
        return await answer(service, request, "completions", completions.prepare)

    @app.post("/v1/chat/completions")
    async def post_chat_completions(request: Request) -> Response:
        return await answer(service, request, "chat", chat.prepare)

    @app.get("/v1/models")
    async def get_models(request: Request) -> Response:
        check_key(request.headers.get("authorization"), service.settings.api_key)
        return _json({"object": "list", "data": [service.model_card()]})

    @app.get("/v1/models/{name:path}")
    async def get_model(request: Request, name: str) -> Response:
        check_key(request.headers.get("authorization"), service.settings.api_key)
        service.check_model(name)
        return _json(service.model_card())

    # The rest needs no key: it is for probes, scrapers and the page, which asks for the key itself.
    @app.get("/health")
    async def get_health() -> Response:
        status = "draining" if service.draining else "ok" if engine.alive else "engine dead"
        stats = engine.stats()
        facts = {"status": status, "running": stats.get("running", 0), "waiting": stats.get("waiting", 0)}
        return _json(facts, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def get_metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def get_page() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    return app


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
