"""The journal of a living collection: what is known of every path, and which entry of the store holds which content.

A SQLite file beside the store. It is derived: `Journal.rebuild` makes it from the payloads of the store, which is what
happens where there is none, or where it does not count as many entries as the store. Each change is committed after the
store has what it speaks of. Knows neither the store nor the folder; `avse.index.living` moves between them.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from avse.index.contract import Payload, StoreError
from avse.index.pictures import is_upload, microseconds

_log = logging.getLogger(__name__)
NAME = "journal.sqlite"
_VERSION = 1
_PAGE = 1000
_WAIT = 5.0  # seconds for another process that has the journal
_TABLES = """
CREATE TABLE IF NOT EXISTS paths (
    path TEXT PRIMARY KEY, bytes INTEGER, modified INTEGER, sha256 TEXT, reason TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS paths_of_content ON paths (sha256);
CREATE TABLE IF NOT EXISTS contents (
    sha256 TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, dirty INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dirty_contents ON contents (sha256) WHERE dirty;
CREATE TEMP TABLE todo (path TEXT PRIMARY KEY, bytes INTEGER, modified INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE gone (path TEXT PRIMARY KEY, sha256 TEXT, found INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX gone_of_content ON gone (sha256);
CREATE TEMP TABLE claims (path TEXT PRIMARY KEY, bytes INTEGER, modified INTEGER, sha256 TEXT) WITHOUT ROWID;
"""
UPLOAD = "upload:"
"""Before the content of an uploaded picture: it is in the index whatever becomes of any path, and never dirty."""
_DIRTY = "c.dirty"
_REBUILD = """
DELETE FROM paths WHERE reason IS NULL AND sha256 NOT IN (SELECT sha256 FROM contents);
INSERT OR IGNORE INTO paths SELECT path, bytes, modified, sha256, NULL FROM claims;
UPDATE contents SET dirty = 1 WHERE sha256 IN (
    SELECT c.sha256 FROM claims c LEFT JOIN paths p USING (path) WHERE p.sha256 IS NOT c.sha256
    UNION SELECT p.sha256 FROM paths p LEFT JOIN claims c USING (path) WHERE p.sha256 IS NOT c.sha256
);
DELETE FROM claims;
"""


class Seen(NamedTuple):
    """What is known of a path: size, time (microseconds since 1970; None: not to be relied on), content.

    One that is not in the index has a reason, and a content that is no entry's.
    """

    path: str
    bytes: int | None
    modified: int | None
    sha256: str | None = None
    reason: str | None = None


class Content(NamedTuple):
    """A content and the id of the entry that holds it."""

    sha256: str
    id: str


class Journal:
    """The journal in a file, or in a temporary one that goes with this object. Every method may raise `StoreError`."""

    def __init__(self, file: Path | None, *, anew: bool = True) -> None:
        """Open or make the journal; one that is no journal of this version is made anew, empty, if ``anew``."""
        self._file = file
        with self._errors():
            self._db = self._open(anew)

    def close(self) -> None:
        """Let go of the file; what was not committed is lost."""
        self._db.close()

    def commit(self) -> None:
        """Write what was said since the last commit to the disk; returns when it is there."""
        with self._errors():
            self._db.commit()

    def count(self) -> int:
        """Return how many entries the store should have."""
        return int(self._all("SELECT count(*) FROM contents")[0][0])

    def rebuild(self, pages: Iterable[list[tuple[str, Payload]]]) -> list[str]:
        """Agree with the store's entries, given page by page; what else is known of their paths stays.

        Returns:
            The ids of entries whose content another entry holds, too: the store should lose them.
        """
        doubles = []
        self._do("DELETE FROM contents")
        self._do("DELETE FROM claims")
        for name, payload in (entry for page in pages for entry in page):
            content = content_of(name, payload)
            spare = name == spare_id(content) and not content.startswith(UPLOAD)
            if not self._do("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", content, name, spare):
                doubles.append(name)
                continue
            if is_picture(name, payload):
                if not spare:
                    facts = (name, payload.get("bytes"), microseconds(payload.get("modified")), content)
                    self._do("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", *facts)
                for path in payload.get("paths", ()):
                    self._do("INSERT OR IGNORE INTO claims VALUES (?, NULL, NULL, ?)", path, content)
        for statement in _REBUILD.split(";"):
            self._do(statement)
        self.commit()
        return doubles

    def begin(self) -> None:
        """Forget what a former run was to do."""
        self._do("DELETE FROM todo")
        self._do("DELETE FROM gone")

    def rows(self, prefix: str) -> Iterator[Seen]:
        """Yield what is known of the paths that begin with ``prefix`` ("" or "folder/"), in their order."""
        last, end = prefix, prefix[:-1] + "0" if prefix else "\U0010ffff"  # "0" comes after "/"
        asked = "SELECT * FROM paths WHERE path > ? AND path < ? ORDER BY path LIMIT ?"
        while page := self._all(asked, last, end, _PAGE):
            yield from (Seen(*row) for row in page)
            last = page[-1][0]

    def row(self, path: str) -> Seen | None:
        """Return what is known of one path."""
        found = self._all("SELECT * FROM paths WHERE path = ?", path)
        return Seen(*found[0]) if found else None

    def put(self, row: Seen) -> None:
        """Take ``row`` as what is known of its path; the contents that gain or lose the path become dirty."""
        self._soil(row.path, row.sha256)
        self._do("INSERT OR REPLACE INTO paths VALUES (?, ?, ?, ?, ?)", *row)

    def drop(self, path: str) -> None:
        """Forget a path; its content becomes dirty."""
        self._soil(path, None)
        self._do("DELETE FROM paths WHERE path = ?", path)

    def _soil(self, path: str, content: str | None) -> None:
        self._do(
            "UPDATE contents SET dirty = 1 WHERE sha256 IN (?1, (SELECT sha256 FROM paths WHERE path = ?2)) "
            "AND NOT EXISTS (SELECT 1 FROM paths WHERE path = ?2 AND sha256 = ?1)",
            content,
            path,
        )

    def plan(self, row: Seen) -> None:
        """Put a path on the list of what is to be read in this run."""
        self._do("INSERT OR REPLACE INTO todo VALUES (?, ?, ?)", *row[:3])

    def planned(self) -> int:
        """Return how long that list is."""
        return int(self._all("SELECT count(*) FROM todo")[0][0])

    def plans(self) -> Iterator[Seen]:
        """Yield that list in the order of the paths."""
        last = ""
        while page := self._all("SELECT * FROM todo WHERE path > ? ORDER BY path LIMIT ?", last, _PAGE):
            yield from (Seen(*row) for row in page)
            last = page[-1][0]

    def lose(self, row: Seen) -> None:
        """Note that a path is gone."""
        self.drop(row.path)
        if row.reason is None:
            self._do("INSERT OR REPLACE INTO gone VALUES (?, ?, 0)", row.path, row.sha256)

    def find_again(self, content: str) -> bool:
        """Tell whether a path of this content is gone in this run; each is told of once."""
        chosen = "SELECT path FROM gone WHERE sha256 = ? AND NOT found LIMIT 1"
        return bool(self._do(f"UPDATE gone SET found = 1 WHERE path = ({chosen})", content))

    def gone(self) -> Iterator[str]:
        """Yield the paths that are gone in this run, found again or not."""
        last = ""
        while page := self._all("SELECT path FROM gone WHERE path > ? ORDER BY path LIMIT ?", last, _PAGE):
            yield from (path for (path,) in page)
            last = page[-1][0]

    def lost(self) -> int:
        """Return how many paths are gone and were not found again."""
        return int(self._all("SELECT count(*) FROM gone WHERE NOT found")[0][0])

    def holder(self, content: str) -> str | None:
        """Return the id of the entry with this content."""
        found = self._all("SELECT id FROM contents WHERE sha256 = ?", content)
        return found[0][0] if found else None

    def content_at(self, name: str) -> str | None:
        """Return the content that the entry ``name`` holds."""
        found = self._all("SELECT sha256 FROM contents WHERE id = ?", name)
        return found[0][0] if found else None

    def hold(self, content: str, name: str, dirty: bool = False) -> None:
        """Note that the entry ``name`` holds this content; ``dirty``: and does not say what it should."""
        self._do("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", content, name, dirty)

    def forget(self, content: str) -> None:
        """Forget a content and its paths."""
        self._do("DELETE FROM contents WHERE sha256 = ?", content)
        self._do("DELETE FROM paths WHERE sha256 = ?", content)

    def paths(self, content: str) -> list[str]:
        """Return the paths of a content, sorted."""
        return [row[0] for row in self._all("SELECT path FROM paths WHERE sha256 = ? ORDER BY path", content)]

    def freed(self) -> list[Content]:
        """Return some of the dirty contents that no path has any more."""
        return self._contents(f"{_DIRTY} AND NOT EXISTS (SELECT 1 FROM paths p WHERE p.sha256 = c.sha256)")

    def in_the_way(self) -> list[Content]:
        """Return some of the dirty contents under an id that is now the path of another content."""
        return self._contents(
            f"{_DIRTY} AND EXISTS (SELECT 1 FROM paths p WHERE p.path = c.id AND p.sha256 IS NOT c.sha256)"
        )

    def dirty(self) -> list[Content]:
        """Return some of the contents whose entry does not say what it should."""
        return self._contents(_DIRTY)

    def check(self, pages: Iterable[list[tuple[str, Payload]]]) -> Iterator[str]:
        """Yield what SQLite finds damaged, and each entry that is here and not in the store, given by its pages."""
        for (said,) in self._all("PRAGMA integrity_check(10)"):
            if said != "ok":
                yield f"{self._file} is damaged ({said}): delete it, the next run makes it anew"
        self._do("DELETE FROM claims")
        for name, payload in (entry for page in pages for entry in page):
            self._do("INSERT OR IGNORE INTO claims VALUES (?, NULL, NULL, ?)", name, content_of(name, payload))
        missing = (
            "SELECT c.id FROM contents c LEFT JOIN claims s ON s.path = c.id "
            "WHERE NOT c.dirty AND s.sha256 IS NOT c.sha256 ORDER BY c.id"
        )
        for (name,) in self._all(missing):
            yield f"{name}: the journal has it, the store has not, or with another content"

    def _open(self, anew: bool) -> sqlite3.Connection:
        for attempt in (1, 2):
            database = sqlite3.connect(self._file or "", check_same_thread=False, timeout=_WAIT)
            try:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _VERSION):
                    raise sqlite3.DatabaseError(f"version {version}, not {_VERSION}")
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(_TABLES)
                if not version:  # setting it writes, and what is only checked stays as it is
                    database.execute(f"PRAGMA user_version = {_VERSION}")
                return database
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # sqlite quotes damage as it stands
                database.close()
                if isinstance(error, sqlite3.OperationalError) or self._file is None or attempt == 2 or not anew:
                    raise
                _log.info("%s is no sound journal (%s): it is made anew from the index", self._file, error)
                forget(self._file.parent)
        raise AssertionError  # the loop returns or raises

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StoreError(
                f"{self._file or 'the temporary journal'}: {error}; what was reported as done is in the index: run the "
                "same command again when the disk can be written (a damaged journal may be deleted, it is made anew)"
            ) from error

    def _do(self, statement: str, *values: object) -> int:
        with self._errors():
            return self._db.execute(statement, values).rowcount

    def _all(self, statement: str, *values: object) -> list[Any]:
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    def _contents(self, condition: str) -> list[Content]:
        return [Content(*row) for row in self._all(f"SELECT sha256, id FROM contents c WHERE {condition} LIMIT 200")]


def forget(folder: Path) -> None:
    """Remove the journal of the index in ``folder``: the next run makes it anew from the store."""
    for name in (NAME, f"{NAME}-journal"):
        (folder / name).unlink(missing_ok=True)


def spare_id(content: str) -> str:
    """Return the id of an entry whose own was taken by another content, until its paths are known; no path has it."""
    return f"sha256:{content}"


def content_of(name: str, payload: Payload) -> str:
    """Return the content of an entry: its SHA-256, or "id:" and its id where the entry does not say it."""
    content = payload.get("sha256")
    if is_upload(payload):
        return f"{UPLOAD}{content}"
    return content if isinstance(content, str) and is_picture(name, payload) else f"id:{name}"


def is_picture(name: str, payload: Payload) -> bool:
    """Tell whether an entry is of a picture in a folder, by its id and its payload; an uploaded one is not."""
    if is_upload(payload):
        return False
    return isinstance(path := payload.get("path"), str) and name in (path, spare_id(str(payload.get("sha256"))))
