"""The store on a Qdrant server or cluster, ``qdrant://host:port/name``: one collection, through qdrant-client.

The index's manifest lies in the collection's metadata (Qdrant 1.16 and later). Writes wait until the server has them
and are tried again when it stumbles; each goes under an id of its own, so a repetition does no harm. Searches are exact
unless asked otherwise. Knows no model. A Qdrant server could not be started where this was written: the tests run
through the client's local mode, and through a small HTTP server that refuses, breaks down and dies.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from avse.extras import needs
from avse.index.contract import Blocks, Layout, Payload, StoreError
from avse.index.manifest import Manifest, from_json
from avse.index.points import VECTOR, Kit, PointStore, check_side

with needs("server", "an index on a server"):
    from qdrant_client import QdrantClient, models
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_KEY = "avse"  # of the collection's metadata
_REQUEST_BYTES = 2 << 20  # of vectors in one request; as JSON some five times as much, the server takes 32 MiB
_PAUSES = (0.5, 1.0, 2.0)  # seconds before a request is repeated
_TIMEOUT = 60  # seconds of one request
_PORT = 6333


class Address(NamedTuple):
    """A collection on a server."""

    base: str
    """http(s)://host:port."""
    name: str
    """The collection's."""
    url: str
    """As the user wrote it."""


def parse_url(url: str) -> Address:
    """Read ``qdrant://host[:port]/name``, or ``qdrant+https://…``; the port is 6333 by default.

    Raises:
        ValueError: It is none; user names, queries and further path parts are refused too.

    >>> parse_url("qdrant+https://photos.example.org/holidays")[:2]
    ('https://photos.example.org:6333', 'holidays')
    """
    schemes = {"qdrant": "http", "qdrant+http": "http", "qdrant+https": "https"}
    try:
        parts = urlsplit(url)
        port, name = parts.port or _PORT, unquote(parts.path.strip("/"))
    except ValueError as error:
        raise ValueError(f"{url}: {error}; qdrant://host:{_PORT}/name is wanted") from error
    plain = parts.scheme in schemes and parts.hostname and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not plain or not name or "/" in name:
        raise ValueError(
            f"{url} is no qdrant://host:{_PORT}/name or qdrant+https://host:{_PORT}/name "
            "(an API key comes from the environment variable QDRANT_API_KEY)"
        )
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return Address(f"{schemes[parts.scheme]}://{host}:{port}", name, url)


def connect(address: Address) -> Any:
    """Return a client of the server; nothing is sent yet."""
    key = os.environ.get("QDRANT_API_KEY") or None
    return QdrantClient(url=address.base, api_key=key, timeout=_TIMEOUT, check_compatibility=False)


class ServerStore(PointStore):
    """A collection of (n, P, C) images on a Qdrant server."""

    kit = Kit(
        models,
        models.Range,
        models.DatetimeRange,
        lambda key: models.IsEmptyCondition(is_empty=models.PayloadField(key=key)),
    )

    def __init__(self, client: Any, address: Address, layout: Layout) -> None:
        """Use the collection at ``address``, whose layout was checked by `read`."""
        super().__init__(layout)
        self._client, self._address, self.place = client, address, address.url

    @staticmethod
    def create(client: Any, address: Address, manifest: Manifest) -> None:
        """Make the collection, with the manifest's shards and replicas.

        Raises:
            ValueError: The layout is of texts.
            StoreError: The server refuses, is not there, or is too old to keep the manifest.
        """
        check_side(manifest.layout)
        vectors = models.VectorParams(
            size=manifest.layout.block_width,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        )
        _ask(
            address,
            "creating the collection",
            lambda: client.create_collection(
                address.name,
                vectors_config={VECTOR: vectors},
                shard_number=manifest.shards,
                replication_factor=manifest.replicas,
                write_consistency_factor=manifest.replicas // 2 + 1,  # an acknowledged write is in most replicas
                metadata={_KEY: manifest.to_json()},
            ),
        )
        try:
            read(client, address)
        except StoreError:
            remove(client, address)
            raise

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest in the collection's metadata."""
        self._ask(
            "writing the manifest",
            lambda: self._client.update_collection(self._address.name, metadata={_KEY: manifest.to_json()}),
        )

    def flush(self) -> None:
        """Do nothing: every write waited for the server."""

    def compact(self) -> None:
        """Do nothing: the server cleans up by itself."""

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def _ask(self, doing: str, request: Callable[[], _T]) -> _T:
        return _ask(self._address, doing, request)

    def _upsert(self, points: Iterator[tuple[str, Blocks, Payload]], count: int) -> None:
        row_bytes = 4 * self._layout.document[0] * self._layout.document[1]
        done = 0
        while part := [_point(*point) for point in islice(points, max(1, _REQUEST_BYTES // row_bytes))]:
            self._ask(
                f"adding ({done:,} of these {count:,} entries are acknowledged, adding all of them again does no harm)",
                lambda part=part: self._client.upsert(self._address.name, part, wait=True),  # type: ignore[misc]
            )
            done += len(part)

    def _remove(self, keys: list[str]) -> None:
        points = models.PointIdsList(points=keys)
        self._ask("deleting", lambda: self._client.delete(self._address.name, points, wait=True))

    def _retrieve(self, keys: list[str], payload: bool | list[str], vectors: bool) -> list[Any]:
        if not keys:
            return []
        found = {"with_payload": payload, "with_vectors": vectors}
        return self._ask("reading", lambda: self._client.retrieve(self._address.name, keys, **found))

    def _scroll(self, offset: Any, limit: int, payload: bool | list[str], vectors: bool) -> tuple[list[Any], Any]:
        page = {"offset": offset, "limit": limit, "with_payload": payload, "with_vectors": vectors}
        return self._ask("reading", lambda: self._client.scroll(self._address.name, **page))

    def _count(self, condition: Any) -> int:
        asked = {"count_filter": condition, "exact": True}
        return self._ask("counting", lambda: self._client.count(self._address.name, **asked)).count

    def _nearest(self, query: Blocks, limit: int, condition: Any, exact: bool, above: float | None) -> list[Any]:
        asked = {
            "query": query.tolist(),
            "using": VECTOR,
            "limit": limit,
            "query_filter": condition,
            "search_params": models.SearchParams(exact=exact),
            "score_threshold": above,
            "with_payload": False,
        }
        return self._ask("searching", lambda: self._client.query_points(self._address.name, **asked)).points


def exists(client: Any, address: Address) -> bool:
    """Tell whether the server has a collection of that name, an index or not."""
    return bool(_ask(address, "looking for the collection", lambda: client.collection_exists(address.name)))


def holds_index(client: Any, address: Address) -> bool:
    """Tell whether the collection is an index, whole or damaged."""
    return _metadata(client, address)[1] is not None


def remove(client: Any, address: Address) -> None:
    """Delete the collection with all that is in it."""
    _ask(address, "deleting the collection", lambda: client.delete_collection(address.name))


def read(client: Any, address: Address) -> Manifest:
    """Return the manifest of the collection after checking that its vectors are as it says.

    Raises:
        FileNotFoundError: There is no such collection.
        StoreError: The server does not answer or refuses, or the collection is no index or of another layout.
    """
    if not exists(client, address):
        raise FileNotFoundError(f"{address.url}: no such index (avse index FOLDER --out {address.url} makes one)")
    config, found = _metadata(client, address)
    if found is None:
        raise StoreError(
            f"{address.url} is not an index: the collection has no metadata {_KEY!r}, "
            "which needs Qdrant 1.16 or later: choose another name, or update the server"
        )
    try:
        manifest = from_json(found, address.url)
    except ValueError as error:
        raise StoreError(
            f"{address.url}: its metadata {_KEY!r} are damaged ({error}): make it anew (--force)"
        ) from error
    vectors = config.params.vectors
    params = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    wanted = (manifest.layout.block_width, models.Distance.DOT, True)
    there = params and (params.size, params.distance, params.multivector_config is not None)
    if there != wanted:
        raise StoreError(
            f"{address.url}: its vectors {VECTOR!r} are (width, distance, several a point) {there}, not {wanted}: "
            "the collection was changed by something else; make it anew (--force)"
        )
    return manifest


def _metadata(client: Any, address: Address) -> tuple[Any, Any]:
    """Return the collection's configuration and what it says of an index."""
    config = _ask(address, "reading the collection", lambda: client.get_collection(address.name)).config
    return config, (getattr(config, "metadata", None) or {}).get(_KEY)


def _point(key: str, blocks: Blocks, payload: Payload) -> Any:
    return models.PointStruct(id=key, vector={VECTOR: blocks.tolist()}, payload=payload)


def _ask(address: Address, doing: str, request: Callable[[], _T]) -> _T:
    """Send a request, again after pauses where that may help.

    Raises:
        StoreError: The server is not there, refuses, or went away.
    """
    for pause in (*_PAUSES, None):
        try:
            return request()
        except (ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse) as error:
            status = getattr(error, "status_code", None)
            if pause is None or (isinstance(error, UnexpectedResponse) and status is not None and status < 500):
                raise StoreError(f"{address.url}: failed while {doing}: {_reason(address, error)}") from error
            _log.warning("%s: %s; trying again in %.1f s", address.url, _reason(address, error), pause)
            time.sleep(pause)
        except (ValueError, RuntimeError) as error:  # what the client itself refuses
            raise StoreError(f"{address.url}: failed while {doing}: {error}") from error
    raise AssertionError("the last try returns or raises")


def _reason(address: Address, error: Exception) -> str:
    if isinstance(error, ResponseHandlingException):
        return f"no answer from {address.base} ({error.source}): is a Qdrant server running there?"
    if isinstance(error, UnexpectedResponse):
        said = error.content.decode("utf-8", "replace")[:200].strip()
        cure = {
            401: "set QDRANT_API_KEY",
            403: "set QDRANT_API_KEY to a key that may do this",
            404: "no such collection",
        }
        hint = f"; {cure[error.status_code]}" if error.status_code in cure else ""
        return f"{address.base} answered {error.status_code} {error.reason_phrase} {said}{hint}"
    return str(error)
