"""`create_app`: an index behind HTTP as an ASGI application. Routes, errors and OpenAPI are put together here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from avse import __version__
from avse.index import Index
from avse.serve import wire
from avse.serve.asks import sentence_of
from avse.serve.engine import BusyError, ClosedError, Engine
from avse.serve.gate import Gate, Keys, busy, needs_token
from avse.serve.limits import Limits
from avse.serve.metrics import Metrics
from avse.serve.routes import Api, detail_of

STATIC = Path(__file__).parent / "static"
_log = logging.getLogger(__name__)
_MEANINGS = {
    400: "Malformed.",
    401: "The token is missing or wrong.",
    403: "Not allowed here, or for this origin.",
    404: "No such entry, or its picture is gone.",
    408: "The body took too long to come.",
    413: "The body or the picture is too large.",
    415: "No picture of a known format, or a body of another kind.",
    422: "Unfit.",
    429: "Too much at once: see Retry-After.",
    501: "The model explains nothing.",
    503: "The index cannot be used, or the server is shutting down.",
}
_ALWAYS = (400, 401, 403, 422, 429, 503)


def create_app(
    index: Index,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    cors: Sequence[str] = (),
    any_host: bool = False,
    examples: Sequence[str] = (),
    log_queries: bool = False,
) -> FastAPI:
    """Return an application that answers for an index.

    While it runs, nobody else may use the index: a thread of the application owns it. It stays the caller's to close,
    after the application has shut down.

    Args:
        index: Open.
        token: What /api, /thumbnails and /metrics want as ``Authorization: Bearer``; None: nothing, and then nothing
            can be added or deleted.
        limits: What is accepted at most; by default `Limits()`.
        cors: Origins of other pages that may ask, such as https://example.org.
        any_host: Whether requests may name this machine otherwise than by its loopback, for servers that others
            reach; give a token then.
        examples: Sentences that a page suggests.
        log_queries: Whether the log tells sentences.

    Raises:
        ValueError: A token that is empty, or that no header can carry.
    """
    if token is not None and not (token := token.strip()):
        raise ValueError("the token is empty: give one that nobody guesses")
    if token and not all("!" <= letter <= "~" for letter in token):
        raise ValueError("the token has spaces or letters beyond ASCII within, which no header carries: give another")
    limits = limits or Limits()
    engine = Engine(index, batch=limits.batch, waiting=limits.waiting)
    keys, metrics = Keys(token), Metrics()
    api = Api(engine, keys, limits, metrics, list(examples), log_queries)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:  # also where a server is forced to end, which cancels this
            engine.close()
            api.pool.shutdown()

    app = FastAPI(
        title="avse",
        version=__version__,
        summary="Search pictures by sentences and pictures, and see why each was found.",
        docs_url=None,  # both pages are made of scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.add_middleware(Gate, keys=keys, limits=limits, metrics=metrics, origins=frozenset(cors), any_host=any_host)
    _add_errors(app, index)
    _add_routes(app, api)
    _document(app)
    return app


def _add_errors(app: FastAPI, index: Index) -> None:
    def plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    def unfit(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": sentence_of(error.errors())}, 422)

    def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, BusyError):
            return plain(request, busy(str(error)))
        return plain(request, HTTPException(503, str(error)))

    def failed(request: Request, error: Exception) -> Response:
        status, said = detail_of(error, index)
        if status >= 500:
            _log.error("the index failed: %s", error)
        return plain(request, HTTPException(status, said))

    app.add_exception_handler(StarletteHTTPException, plain)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(BusyError, refused)
    app.add_exception_handler(ClosedError, refused)
    app.add_exception_handler(ValueError, failed)
    app.add_exception_handler(OSError, failed)


def _add_routes(app: FastAPI, api: Api) -> None:
    def add(method: str, path: str, does: Callable[..., Any], model: Any, *statuses: int, **more: Any) -> None:
        told = {status: {"model": wire.Error, "description": _MEANINGS[status]} for status in (*_ALWAYS, *statuses)}
        more["responses"] = {**told, **more.get("responses", {})}
        app.add_api_route(path, does, methods=[method], response_model=model, **more)

    picture = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    add("POST", "/api/search", api.search, wire.Found, 408, 413, 415, openapi_extra={"requestBody": _ask_body()})
    add("GET", "/api/similar/{id:path}", api.similar, wire.Found, 404)
    add("GET", "/api/explain", api.explain, wire.Explained, 404, 501)
    add("GET", "/api/info", api.info, wire.Info)
    add("GET", "/api/images", api.entries, wire.Page)
    add(
        "POST",
        "/api/images",
        api.add,
        wire.Added,
        *(408, 413, 415),
        status_code=201,
        responses={200: {"model": wire.Added, "description": "The content was there and gained the path."}},
        openapi_extra={"requestBody": {"required": True, **picture}},
    )
    add("GET", "/api/images/{id:path}", api.entry, wire.EntryOut, 404)
    add("DELETE", "/api/images/{id:path}", api.delete, None, 404, status_code=204)
    add("POST", "/api/session", api.session, None, 408, 413, status_code=204)
    add(
        "GET",
        "/thumbnails/{id:path}",
        api.thumbnail,
        None,
        404,
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "The browser has it."}},
    )
    add("GET", "/healthz", api.health, wire.Health)
    text = {"content": {"text/plain": {"example": "avse_index_entries 2921\n"}}}
    add("GET", "/metrics", api.metrics, None, responses={200: text}, response_class=Response)

    async def page() -> Response:
        """Return the page."""
        if not (STATIC / "index.html").is_file():
            raise HTTPException(404, "this avse was installed without its page")
        return FileResponse(STATIC / "index.html")

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False))


def _document(app: FastAPI) -> None:
    """Let OpenAPI say which routes want the token; the gate asks for it."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        said = made()
        said["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in said["paths"].items():
            for operation in operations.values():
                operation["security"] = [{"token": []}] if needs_token(path) else []
        return said

    app.openapi = openapi  # type: ignore[method-assign]


def _ask_body() -> dict[str, Any]:
    asked = wire.Ask.model_json_schema()
    form = {**asked, "properties": {**asked["properties"], "image": {"type": "string", "format": "binary"}}}
    examples = {
        "sentence": {"summary": "A sentence", "value": {"query": "a red car on the beach", "k": 5}},
        "filter": {
            "summary": "With a condition",
            "value": {"query": "a dog", "where": "folder = 2019 and width > 1000"},
        },
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": asked, "examples": examples},
            "multipart/form-data": {"schema": form},
        },
    }
