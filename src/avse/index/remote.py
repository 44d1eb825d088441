"""An index behind a running avse server: the client of its API, and a folder brought together with it. Knows no model.

The API, under the header ``Authorization: Bearer TOKEN``; errors have a body {"detail": "..."}:

- ``POST /api/search`` {"query", "image" (base64), "where", "k", "approximate"} → {"hits": [{"id", "score", …}]}
- ``POST /api/images?path=&sha256=&modified=`` with a picture's bytes as body: 201 where it was embedded, 200 where its
  content was there and only gained the path, 415 or 422 where it is no picture, 413 where it is too large. A path has
  one content: another one takes it from its former entry.
- ``GET /api/images?after=&limit=`` → {"entries": [{"id", "payload"}], "next"}: page by page until next is null
- ``DELETE /api/images/{path}``: the entry loses the path, with its last path it goes; 204, or 404 where it is unknown

`avse serve` is that server. A hit has id, score, payload, confidence and weak, the last two null where the model was
not calibrated.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException, RemoteDisconnected
from pathlib import Path
from time import sleep
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from avse.index.contract import AddReport, Hit, Payload, StoreError
from avse.index.journal import Journal, Seen
from avse.index.living import Scan, progress_bar
from avse.index.pictures import UPLOADED, iso_time

_PAGE = 1000
TIMEOUT = 120.0
"""Seconds that the server may be silent."""
_TRIES = 6  # of a request that a busy server puts off; its Retry-After is doubled each time
_LONGEST_PAUSE = 30.0  # seconds


class RefusedError(ValueError):
    """The server cannot read a picture."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the token is for one server."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """A server at a URL. It is asked directly, whatever proxy the system has."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Name the server; nothing is sent yet.

        Args:
            url: http(s)://host:port.
            token: The server's; by default the environment variable AVSE_TOKEN.

        Raises:
            ValueError: Another form of URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"--url {url}: http://host:port of a running avse server is wanted")
        self.url = url.rstrip("/")
        token = token or os.environ.get("AVSE_TOKEN")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._most: int | None = None  # bytes of a picture that the server takes
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def search(
        self,
        query: str | None = None,
        *,
        image: str | Path | None = None,
        where: str | None = None,
        k: int = 10,
        approximate: bool = False,
    ) -> list[Hit]:
        """Ask as `avse.index.Index.search` does.

        Raises:
            ValueError: The server refuses the question.
            StoreError: The server does not answer, or not as it should.
        """
        picture = None if image is None else base64.b64encode(Path(image).read_bytes()).decode()
        asked = {"query": query, "image": picture, "where": where, "k": k, "approximate": approximate}
        _, found = self._ask("POST", "/api/search", json.dumps(asked).encode(), "application/json")
        with _as_expected(self.url):
            return [_hit(hit) for hit in found["hits"]]

    def entries(self) -> Iterator[list[tuple[str, Payload]]]:
        """Yield ids and payloads of all entries page by page."""
        after: str | None = None
        while True:
            asked = {"limit": _PAGE} | ({} if after is None else {"after": after})
            _, page = self._ask("GET", f"/api/images?{urlencode(asked)}")
            with _as_expected(self.url):
                entries = [(str(entry["id"]), _picture(entry["payload"])) for entry in page["entries"]]
                after = page["next"]
            yield entries
            if after is None:
                return

    def upload(self, file: Path, row: Seen) -> bool:
        """Send a picture under its path, and tell whether its content was new to the server.

        Raises:
            RefusedError: It is no picture.
            StoreError: The server does not answer.
        """
        if self._most is None:
            _, info = self._ask("GET", "/api/info")
            with _as_expected(self.url):
                self._most = int(info["limits"]["upload_bytes"])
        if (row.bytes or 0) > self._most:  # or the server would hang up in the middle of it
            raise RefusedError(f"{row.bytes:,} bytes, and the server takes {self._most:,}")
        said = {"path": row.path, "sha256": row.sha256, "modified": iso_time(row.modified or 0)}
        with open(file, "rb") as stream:
            status, _ = self._ask(
                "POST", f"/api/images?{urlencode(said)}", stream, "application/octet-stream", row.bytes
            )
        return status == 201

    def delete(self, path: str) -> bool:
        """Take a path out, and tell whether it was there."""
        status, _ = self._ask("DELETE", f"/api/images/{quote(path, safe='')}")
        return status != 404

    def _ask(
        self, method: str, path: str, body: bytes | IO[bytes] | None = None, kind: str = "", length: int | None = None
    ) -> tuple[int, Any]:
        headers = {**self._headers, **({"Content-Type": kind} if kind else {})}
        if length is not None:
            headers["Content-Length"] = str(length)
        for attempt in range(_TRIES):
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            request = urllib.request.Request(self.url + path, body, headers, method=method)
            try:
                with self._opener.open(request, timeout=TIMEOUT) as answer:
                    return answer.status, json.loads(answer.read() or b"null")
            except HTTPError as error:
                if error.code != 429 or attempt == _TRIES - 1:
                    self._refuse(method, error)
                    return error.code, None
                wanted = error.headers.get("Retry-After", "")
            except (URLError, HTTPException, OSError) as error:
                reason = error.reason if isinstance(error, URLError) else error
                if body is None or not _hung_up(reason) or attempt == _TRIES - 1:
                    said = f"{self.url} does not answer ({str(reason) or type(reason).__name__})"
                    raise StoreError(f"{said}: is an avse server running there?{_goes_on(path)}") from error
                wanted = ""
            except ValueError as error:
                raise StoreError(f"{self.url} answered {method} {path} with no JSON: {error}") from error
            sleep(min(_LONGEST_PAUSE, (int(wanted) if wanted.isdecimal() else 1) * 2.0**attempt))
        raise AssertionError("the last try returns or raises")

    def _refuse(self, method: str, error: HTTPError) -> None:
        """Return where an error is none: a path to delete is gone already; raise what it means otherwise."""
        try:
            detail = str(json.loads(error.read())["detail"])
        except (ValueError, KeyError, TypeError, OSError, HTTPException):
            detail = error.reason
        if error.code == 404 and method == "DELETE":
            return
        if error.code in (401, 403):
            raise StoreError(f"{self.url} refuses the token ({detail}): give it as --token or in AVSE_TOKEN") from error
        if error.code in (413, 415, 422) and method == "POST" and "/api/images" in error.url:
            raise RefusedError(detail) from error
        if error.code in (400, 422):
            raise ValueError(f"{self.url}: {detail}") from error
        hint = "it has too much to do." if error.code == 429 else "is it an avse server with an index?"
        raise StoreError(f"{self.url} answered {error.code} ({detail}): {hint}{_goes_on(error.url)}") from error


def _hit(said: dict[str, Any]) -> Hit:
    sure, weak = said.get("confidence"), said.get("weak")
    told = None if sure is None else float(sure), None if weak is None else bool(weak)
    return Hit(str(said["id"]), float(said["score"]), dict(said["payload"]), *told)


def _picture(payload: Payload) -> Payload:
    """Return a payload as that of a picture in a folder: here it does not matter how the server came to it."""
    return {name: value for name, value in dict(payload).items() if name != UPLOADED}


def _hung_up(reason: object) -> bool:
    """Tell whether a server closed in the middle of a body, as one does that refuses without reading: 429 is lost."""
    return isinstance(reason, (BrokenPipeError, ConnectionResetError)) and not isinstance(reason, RemoteDisconnected)


def _goes_on(path: str) -> str:
    """Say what became of an index that was being changed; a search changes nothing."""
    if "/api/search" in path:
        return ""
    return " What was reported as done is in its index, the same command goes on from there"


@contextmanager
def _as_expected(url: str) -> Iterator[None]:
    """Turn an answer of another shape into a `StoreError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{url} answered in another form than an avse server ({error!r})") from error


def sync_remote(remote: Remote, folder: Path, *, prune: bool = False, progress: bool = True) -> AddReport:
    """Bring a folder and a server's index together: what is new or changed is sent, the server embeds it.

    Others may send to the same server, so what is gone from the folder is taken out only to ``prune``, which sends no
    content that is new to the server. Paths are relative to the folder.

    Args:
        remote: The server.
        folder: The pictures.
        prune: Take out, and send nothing new.
        progress: Show a bar on standard error.

    Raises:
        ValueError: No pictures in the folder, or, to ``prune``, none of those that the server has.
        StoreError: The server fails; what was shown as done is in its index.
    """
    root = folder.resolve()
    with closing(Journal(None)) as journal:
        journal.rebuild(remote.entries())
        scan = Scan(journal, root)
        scan.folder(root)
        if prune and journal.lost() and not (scan.counts["known"] or any(map(journal.row, _planned(journal)))):
            raise ValueError(
                f"{remote.url} has {journal.lost():,} pictures, and none of them lies in {folder}: "
                "give the folder that they came from"
            )
        with progress_bar(journal.planned(), "picture", progress) as bar:
            for row in journal.plans():
                read = scan.reread(row)
                if read is not None:
                    _send(remote, scan, read, prune)
                bar.update()
        if prune:
            for path in journal.gone():
                remote.delete(path)
        report = scan.report()
    return report if prune else AddReport(**{**vars(report), "removed": 0})


def _planned(journal: Journal) -> Iterator[str]:
    return (row.path for row in journal.plans())


def _send(remote: Remote, scan: Scan, row: Seen, prune: bool) -> None:
    journal = scan.journal
    before, known = journal.row(row.path), journal.holder(str(row.sha256)) is not None
    if before is not None and before.sha256 == row.sha256:
        scan.counts["known"] += 1
        return
    if prune and not known:
        if before is not None:
            remote.delete(row.path)
            scan.counts["changed"] += 1
        return
    try:
        new = remote.upload(scan.root / row.path, row)
    except RefusedError as error:
        scan.skip(row.path, str(error))
        if before is not None:
            remote.delete(row.path)
        return
    except FileNotFoundError:
        scan.skip(row.path, "no such file")
        return
    moved = prune and journal.find_again(str(row.sha256))
    scan.counts["changed" if before else "added" if new else "moved" if moved else "duplicates"] += 1
