"""The routes of the API over an engine. A picture is named by its entry's id; no path of a client touches the disk."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import HTTPException, Query, Request, Response
from fastapi import Path as InPath
from PIL import Image
from starlette.responses import JSONResponse, PlainTextResponse

from avse import __version__
from avse.images import ImageError, read_image, shrink
from avse.index import Hit, Index
from avse.index import Query as Question
from avse.index.asking import judge
from avse.index.contract import Payload
from avse.index.pictures import is_sha256, is_upload
from avse.index.uploads import LONGEST_PATH, Uploads, check_path
from avse.serve.asks import check_words, read_ask, unfit_picture
from avse.serve.engine import Engine
from avse.serve.facets import find_facets
from avse.serve.gate import COOKIE, Keys
from avse.serve.limits import Limits
from avse.serve.metrics import Metrics
from avse.serve.thumbnails import Thumbnail, Thumbnails, file_within
from avse.serve.wire import Session

_T = TypeVar("_T")
_DECODERS = 2
_FACETS_SECONDS = 10.0
Id = Annotated[str, Query(max_length=4 * LONGEST_PATH, examples=["2019/sea.jpg"])]
InId = Annotated[str, InPath(examples=["2019/sea.jpg"])]


class Api:
    """What each route does; its methods are registered by `avse.serve.app.create_app`."""

    def __init__(
        self, engine: Engine, keys: Keys, limits: Limits, metrics: Metrics, examples: list[str], log_queries: bool
    ) -> None:
        """Keep the parts; nothing is read yet."""
        self._engine, self._keys, self._limits, self._metrics = engine, keys, limits, metrics
        self._examples, self._log_queries = examples, log_queries
        self._index = engine.index
        self._thumbnails = Thumbnails(limits.thumbnail_bytes, limits.pixels)
        self._uploads = Uploads(engine.index)
        self._facets: asyncio.Future[list[dict[str, Any]]] | None = None
        self._facets_changed, self._facets_due = False, 0.0
        self.pool = ThreadPoolExecutor(_DECODERS, "avse-decode")

    async def search(self, request: Request) -> Response:
        """Find pictures by a sentence, a picture or both (sentences, in an index of texts, by a picture)."""
        began = time.perf_counter()
        ask, data = await read_ask(request, self._limits, self._aside)
        if ask.query is not None and self._index.side == "texts":
            raise HTTPException(422, "this is an index of texts, which answers pictures: give an image")
        if ask.query is None and data is None:
            raise HTTPException(422, "nothing to search for: give a query, an image or both")
        if ask.approximate and self._index.store == "memory":
            raise HTTPException(422, "the index is in the memory store, which is exact: leave approximate out")
        picture = None if data is None else await self._decoded(request, data)
        if self._log_queries and ask.query is not None:
            request.state.told["query"] = ask.query
        question = Question(ask.query, picture, None, ask.where, ask.k, ask.approximate)
        hits = await self._engine.search(question)
        upper = float(self._index.layout.num_text_blocks) if picture is None or self._index.side == "texts" else 1.0
        return await self._found(hits, upper, ask.where, began)

    async def similar(self, request: Request, id: InId, where: str | None = None, k: int = 10) -> Response:
        """Find the entries most like one of them: S_II of the stored blocks, itself left out."""
        began = time.perf_counter()
        check_words(None, where, k, self._limits)

        def work(index: Index) -> list[Hit] | None:
            try:
                return index.similar(id, k=k, where=where)
            except ValueError:
                if index.known([id]):
                    raise
                return None

        hits = await self._engine.call(work)
        if hits is None:
            raise _unknown()
        return await self._found(hits, 1.0, where, began)

    async def explain(self, request: Request, id: Id, query: str) -> Response:
        """Say which part of a picture answered which part of a sentence, and where the picture was hot."""
        check_words(query, None, 1, self._limits)
        if self._index.side == "texts":
            raise HTTPException(422, "this is an index of texts: only pictures are explained")
        payload = await self._entry(id)
        if (file := await self._aside(lambda: self._real_file(payload))) is None:
            raise HTTPException(404, "the picture of this entry is not there")
        picture = await self._decoded(request, file)
        said = await self._engine.call(lambda index: _explained(index, picture, query))
        return JSONResponse({"id": id, **said})

    async def info(self) -> Response:
        """Say what the index is, what may be asked of it, and which fields filters have."""
        fields = await self._fields()
        index, limits = self._index, self._limits
        p, q, c = index.layout.num_image_blocks, index.layout.num_text_blocks, index.layout.block_width
        return JSONResponse(
            {
                "entries": self._engine.entries,
                "side": index.side,
                "version": __version__,
                "blocks": {"P": p, "Q": q, "C": c},
                "calibrated": getattr(index.encoder, "calibration", None) is not None,
                "approximate": index.store != "memory",
                "examples": self._examples,
                "uploads": self._keys.wanted and self._takes_uploads(),
                "limits": {name: getattr(limits, name) for name in ("k", "query", "upload_bytes", "pixels")},
                "fields": fields,
            }
        )

    async def entries(self, after: Id = "", limit: int = 100) -> Response:
        """Return entries page by page, in the order of their ids (of a Qdrant server in its own)."""
        if not 1 <= limit <= self._limits.page:
            raise HTTPException(422, f"limit={limit}: 1 to {self._limits.page} entries make a page")
        page, following = await self._engine.call(lambda _: self._uploads.page(after, limit))
        return JSONResponse({"entries": [{"id": name, "payload": said} for name, said in page], "next": following})

    async def entry(self, id: InId) -> Response:
        """Return one entry."""
        payload = await self._entry(id)
        there = await self._aside(lambda: self._real_file(payload)) is not None
        return JSONResponse({"id": id, "payload": payload, "picture": there})

    async def thumbnail(self, request: Request, id: InId, size: Literal["320", "1280"] = "320") -> Response:
        """Return an entry's picture, made anew as a JPEG with a longer side of so many pixels at most."""
        payload = await self._entry(id)

        def work() -> Thumbnail | None:
            file = self._real_file(payload)
            known = request.headers.get("if-none-match", "")
            return None if file is None else self._thumbnails.find(file, int(size), known)

        try:
            made = await self._aside(work)
        except (OSError, ImageError):
            made = None
        if made is None:
            raise HTTPException(404, "the picture is gone or cannot be read")
        headers = {"ETag": f'"{made.tag}"'}
        if made.data is None:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type="image/jpeg", headers=headers)

    async def add(self, request: Request, path: str, sha256: str, modified: str) -> Response:
        """Add a picture: its bytes are the body. 200 where its content was there and only gained the path."""
        self._check_change()
        try:
            check_path(path, modified)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        if not is_sha256(sha256):
            raise HTTPException(422, "sha256: 64 lower-case hexadecimal digits are wanted")
        data = await request.body()
        if await self._aside(lambda: hashlib.sha256(data).hexdigest()) != sha256:
            raise HTTPException(422, "the body is not what sha256 says: it was cut or changed on its way")
        new = not await self._engine.call(lambda _: self._uploads.gain(path, sha256), changes=True)
        if new:
            picture = await self._decoded(request, data)
            new = await self._engine.call(
                lambda _: self._uploads.enter(path, picture, data, sha256, modified), changes=True
            )
        self._facets_changed = True
        return JSONResponse({"id": path}, 201 if new else 200)

    async def delete(self, id: InId) -> Response:
        """Take a path from its entry, which goes with its last one. A file of the index's own folder stays there."""
        self._check_change()
        if not await self._engine.call(lambda _: self._uploads.remove(id), changes=True):
            raise _unknown()
        self._facets_changed = True
        return Response(status_code=204)

    async def session(self, session: Session) -> Response:
        """Change the token for a cookie that a browser keeps: its pictures cannot be asked for with a header."""
        if not self._keys.fits(session.token):
            raise HTTPException(401, "this is not the server's token", {"WWW-Authenticate": "Bearer"})
        response = Response(status_code=204)
        response.set_cookie(COOKIE, self._keys.session, httponly=True, samesite="strict")
        return response

    async def health(self) -> Response:
        """Say whether the server answers."""
        running = self._engine.running
        said = {"status": "ok" if running else "stopping", "entries": self._engine.entries}
        return JSONResponse(said, 200 if running else 503)

    async def metrics(self) -> Response:
        """Return counts and latencies in Prometheus' form."""
        gauges = {
            "avse_queue_length": ("Questions that wait.", float(self._engine.waiting)),
            "avse_index_entries": ("Entries of the index.", float(self._engine.entries)),
        }
        text = self._metrics.text(gauges, self._engine.batches)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _found(self, hits: list[Hit], upper: float, where: str | None, began: float) -> Response:
        notes: list[str] = []
        if where is not None and not hits:
            notes = await self._engine.call(lambda index: index.unknown_fields(where))
        judged = [hit.weak for hit in hits if hit.weak is not None]
        return JSONResponse(
            {
                "hits": [hit._asdict() for hit in hits],
                "weak": all(judged) if judged else None,
                "gallery": self._engine.entries,
                "upper": upper,
                "took_ms": round(1e3 * (time.perf_counter() - began), 2),
                "notes": notes,
            }
        )

    async def _entry(self, name: str) -> Payload:
        _, _, found = await self._engine.call(lambda index: index.get([name] if name else []))
        if not found:
            raise _unknown()
        return found[0]

    def _real_file(self, payload: Payload) -> Path | None:
        file = self._index.picture(Hit("", 0.0, payload))
        return file_within(file, self._index.path if is_upload(payload) else self._index.source)

    async def _fields(self) -> list[dict[str, Any]]:
        """Return the facets, read once for all who ask; after changes again, but not all the time."""
        now, known = time.monotonic(), self._facets
        old = self._facets_changed and now >= self._facets_due
        if known is None or (known.done() and (old or known.cancelled() or known.exception())):
            work = self._engine.call(lambda index: find_facets(index.entries()), changes=True)
            self._facets = known = asyncio.ensure_future(work)
            self._facets_changed, self._facets_due = False, now + _FACETS_SECONDS
        return await asyncio.shield(known)

    async def _decoded(self, request: Request, data: bytes | Path) -> Image.Image:
        """Decode a picture aside and make it as small as the encoder sees it, which sees the same then."""
        spec = getattr(self._index.encoder, "pixels", None)

        def work() -> Image.Image:
            picture = read_image(data, max_pixels=self._limits.pixels, draft=spec.draft if spec else None)
            return shrink(picture, spec) if spec else picture

        try:
            picture = await self._aside(work)
        except ImageError as error:
            if isinstance(data, Path):
                raise HTTPException(404, f"the picture of this entry cannot be read: {error.reason}") from None
            raise unfit_picture(error) from None
        request.state.hold(4 * picture.width * picture.height)
        return picture

    async def _aside(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def _takes_uploads(self) -> bool:
        return self._index.side == "images" and self._index.store != "server"

    def _check_change(self) -> None:
        if not self._keys.wanted:
            raise HTTPException(403, "this server was started without --token and changes nothing")
        if not self._takes_uploads():
            raise HTTPException(403, "only an index of images in a folder takes pictures over HTTP")


def _unknown() -> HTTPException:
    return HTTPException(404, "no entry has this id")


def _explained(index: Index, picture: Image.Image, query: str) -> dict[str, Any]:
    from avse.explain import explain
    from avse.model import AVSE

    model = index.encoder
    if not isinstance(model, AVSE):
        raise HTTPException(501, "this index's model explains nothing")
    said = explain(model, picture, query)
    hits = [Hit("", said.score, {})]
    judge([Question(query)], [hits], index.layout, len(index), model)
    return {**said.to_dict(), "confidence": hits[0].confidence, "weak": hits[0].weak}


def detail_of(error: Exception, index: Index) -> tuple[int, str]:
    """Return status and words for an error of the index, without any path of this machine."""
    if isinstance(error, OSError):
        return 503, "the index cannot be used; the server's log says why"
    return 422, str(error).replace(index.location, "this index").encode("utf-8", "backslashreplace").decode()
