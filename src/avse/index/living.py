"""A folder and its index brought together: what is new is embedded, what moved is renamed, what is gone goes.

Three steps. `Scan` walks the folder beside the journal and lists what must be read: paths whose size or time is another
one. `Sync` reads those: a content that is in the index only gains a path, a new one is embedded and acknowledged, which
means that the store has it on the disk and then the journal. At last the entries of contents that lost or gained paths
are set right. Whatever moment ends the process, the journal never says more than the store holds, and the next run goes
on from there. Knows no model: an embedder is given.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from avse.files import sha256
from avse.images import walk_images
from avse.index.contract import AddReport, Blocks, Payload, Skipped, Store, is_unicode
from avse.index.journal import UPLOAD, Content, Journal, Seen, content_of, spare_id
from avse.index.pictures import Picture, iso_time, path_payload, reason_of

Embedder = Callable[[Iterable[tuple[str, Path]]], Iterable[Sequence[Picture | Skipped]]]
"""Embeds (id, path) lazily, in memory that does not grow: each item comes back once, in any order."""

_WRITE_SECONDS, _WRITE_PICTURES = 1.0, 2048  # what is acknowledged together, at most
_UNCERTAIN_SECONDS = 2.0  # a file this young may change once more without its time showing it
_CHANGED = "it changed while it was read: the next run reads it again"
_VANISHED = "no such file"
_UNREAD = "unread:"  # before the content of a path that cannot be read, in the journal


class Scan:
    """Finds out what must be read; `counts` and `skipped` are filled here and by those who go on."""

    def __init__(self, journal: Journal, root: Path, *, retry: bool = False) -> None:
        """Begin a run over pictures whose ids are paths relative to ``root``, which is absolute and resolved."""
        self.journal, self.root, self._retry = journal, root, retry
        self.counts: Counter[str] = Counter()
        self.skipped: list[Skipped] = []
        self._young = int((time.time() - _UNCERTAIN_SECONDS) * 1e6)
        journal.begin()

    def folder(self, folder: Path) -> None:
        """List what is new or other below ``folder`` (``root`` or a folder in it), and take out what is gone.

        What lies below a folder that cannot be listed is left alone, and the folder reported.

        Raises:
            ValueError: No picture at all: the index is left as it is.
            OSError: ``folder`` cannot be listed.
        """
        within = folder.relative_to(self.root).as_posix()
        prefix = "" if within == "." else f"{within}/"
        closed: list[str] = []

        def on_error(error: OSError) -> None:
            closed.append(self._name(Path(os.fsdecode(error.filename))) + "/")
            self.skip(closed[-1], f"cannot be listed ({error.strerror}); what the index has of it stays")

        found = walk_images(folder, on_error)
        first = next(found, None)
        rows = self.journal.rows(prefix)
        row = next(rows, None)
        if first is None:
            kept = "" if row is None else "; what the index has of it stays (is a disk missing?)"
            raise ValueError(f"{folder} holds no pictures (jpg, png, webp, gif, bmp, tif and a few more){kept}")
        for path in chain([first], found):
            name = self._name(path)
            if not is_unicode(name):
                self.skip(name, "the name is not valid unicode")
                continue
            while row and row.path < name:
                self._lose(row, closed)
                row = next(rows, None)
            known = row if row and row.path == name else None
            row = next(rows, None) if known else row
            self._look(name, known)
        for rest in chain([row] if row else [], rows):
            self._lose(rest, closed)
        self.journal.commit()

    def files(self, paths: Iterable[Path]) -> None:
        """List those of ``paths`` that are new or other; nothing is taken out.

        Raises:
            ValueError: A path does not lie below ``root``.
        """
        for path in paths:
            absolute = path.parent.resolve() / path.name
            if not absolute.is_relative_to(self.root):
                raise ValueError(f"{path} does not lie in {self.root}, the folder of this index: make another index")
            name = self._name(absolute)
            if is_unicode(name):
                self._look(name, self.journal.row(name))
            else:
                self.skip(name, "the name is not valid unicode")

    def reread(self, row: Seen) -> Seen | None:
        """Return a planned row with its content, or None for a file that is skipped."""
        try:
            read = row._replace(sha256=sha256(self.root / row.path))
        except OSError as error:
            self.skip(row.path, _VANISHED if isinstance(error, FileNotFoundError) else reason_of(error))
            return None
        if not self.same(row):
            self.skip(row.path, _CHANGED)
            return None
        return read

    def same(self, row: Seen) -> bool:
        """Tell whether the file still has the size and the time of ``row``."""
        try:
            facts = (self.root / row.path).stat()
        except OSError:
            return False
        return (facts.st_size, facts.st_mtime_ns // 1000) == row[1:3]

    def record(self, row: Seen) -> None:
        """Take a row into the journal; the time of a file that is as young as this run is not relied on."""
        self.journal.put(row._replace(modified=None) if (row.modified or 0) > self._young else row)

    def skip(self, name: str, reason: str) -> None:
        """Report an input that is not in the index."""
        self.skipped.append(Skipped(name.encode("utf-8", "backslashreplace").decode(), reason))

    def report(self) -> AddReport:
        """Return what was counted."""
        counts = {name: self.counts[name] for name in ("added", "known", "changed", "moved", "duplicates")}
        return AddReport(skipped=tuple(sorted(self.skipped)), removed=self.journal.lost(), **counts)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _look(self, name: str, known: Seen | None) -> None:
        try:
            facts = (self.root / name).stat()
        except OSError as error:
            vanished = isinstance(error, FileNotFoundError)
            self.skip(name, _VANISHED if vanished else reason_of(error))
            return
        now = Seen(name, facts.st_size, facts.st_mtime_ns // 1000)
        if not stat.S_ISREG(facts.st_mode):
            self.skip(name, "no file but a folder or device")
        elif known is None or known[:3] != now[:3] or (self._retry and known.reason is not None):
            self.journal.plan(now)
        elif known.reason is not None:
            self.skip(name, known.reason)
        else:
            self.counts["known"] += 1

    def _lose(self, row: Seen, closed: list[str]) -> None:
        if not any(row.path.startswith(folder) for folder in closed):
            self.journal.lose(row)


def progress_bar(total: int, unit: str, show: bool) -> tqdm[Any]:
    """Return a bar on standard error, with pictures a second and time left; in a log it speaks every ten seconds."""
    wait = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, disable=not (show and total), mininterval=wait, file=sys.stderr)


class _Move(NamedTuple):
    content: Content
    id: str
    change: Payload


class Sync(Scan):
    """A run that changes a store; `scan` with `folder` or `files`, then `run`, then `report`.

    An embedder may take its items from another thread, so the journal is asked under a lock.
    """

    def __init__(
        self,
        journal: Journal,
        root: Path,
        store: Store,
        add: Callable[[Sequence[str], Blocks, Sequence[Payload]], None],
        *,
        retry: bool = False,
    ) -> None:
        """Begin; a journal that does not count what the store has is rebuilt. ``add`` checks, then adds to the store.

        Raises:
            StoreError: Store or journal cannot be used.
        """
        super().__init__(journal, root, retry=retry)
        self._store, self._add = store, add
        self._lock = threading.RLock()
        self._flying: dict[str, list[Seen]] = {}  # rows of each content on its way through the embedder
        self._contents: dict[str, str] = {}  # the contents of the ids that are on their way
        self._embeds = True
        self._unsaid, self._said = 0, time.monotonic()  # files done with whose journal rows wait for a commit
        if journal.count() != len(store):
            store.delete(journal.rebuild(store.entries()))
            store.flush()

    def run(self, embed: Embedder | None, advance: Callable[[int], object]) -> None:
        """Read what was listed and set the store right; without an embedder new contents are left for another run.

        Args:
            embed: Called at most once, and only where there is something to embed.
            advance: Told of so many more files done.

        Raises:
            StoreError: Store or journal refused; what was told of to ``advance`` is in the index.
        """
        self._embeds = embed is not None
        todo = self._todo(advance)
        first = next(todo, None)
        if first is not None and embed is not None:
            self._take(embed(chain([first], todo)), advance)
        if self._flying:
            raise ValueError(f"the embedder did not return {next(iter(self._contents))!r}")
        self._settle()
        advance(self._unsaid)

    def _todo(self, advance: Callable[[int], object]) -> Iterator[tuple[str, Path]]:
        """Yield the pictures to embed; all others are done with on the way."""
        for row in self.journal.plans():
            read = self.reread(row)
            with self._lock:
                new = read is not None and self._is_new(read)
            if new:
                yield row.path, self.root / row.path
            elif read is None or read.sha256 not in self._flying:
                with self._lock:
                    self._unsaid += 1
                    due = time.monotonic() - self._said > _WRITE_SECONDS
                    done = self._commit() if due else 0
                advance(done)

    def _is_new(self, row: Seen) -> bool:
        """Tell whether a row must be embedded; if not, it is done with, or waits for one that is being embedded."""
        journal, content = self.journal, str(row.sha256)
        before = journal.row(row.path)
        was_in = before is not None and before.reason is None
        if before is not None and before.sha256 == _UNREAD + content and before.reason and not self._retry:
            self.skip(row.path, before.reason)
            self.record(row._replace(sha256=before.sha256, reason=before.reason))
        elif before is not None and before.sha256 == content:
            self.counts["known"] += 1
            self.record(row)
        elif journal.holder(content) is not None:
            self.counts["changed" if was_in else "moved" if journal.find_again(content) else "duplicates"] += 1
            self.record(row)
        elif content in self._flying:
            self._flying[content].append(row)
        elif self._embeds:
            self._flying[content], self._contents[row.path] = [row], content
            return True
        elif was_in:
            self.counts["changed"] += 1
            journal.drop(row.path)
        return False

    def _take(self, results: Iterable[Sequence[Picture | Skipped]], advance: Callable[[int], object]) -> None:
        ready: list[Picture] = []
        written = time.monotonic()
        for batch in results:
            for item in batch:
                if isinstance(item, Picture):
                    ready.append(item)
                else:
                    self._refuse(item)
            if len(ready) >= _WRITE_PICTURES or time.monotonic() - written > _WRITE_SECONDS:
                advance(self._acknowledge(ready))
                ready, written = [], time.monotonic()
        advance(self._acknowledge(ready))

    def _commit(self) -> int:
        """Write the journal to the disk; return the number of files that may now be told of."""
        self.journal.commit()
        done, self._unsaid, self._said = self._unsaid, 0, time.monotonic()
        return done

    def _refuse(self, item: Skipped) -> None:
        """Remember that a content cannot be read, under all its paths."""
        with self._lock:
            rows = self._flying.pop(self._contents.pop(item.name))
            for row in rows:
                there = (self.root / row.path).exists()
                self.skip(row.path, item.reason if there else _VANISHED)
                if there:
                    self.record(row._replace(sha256=f"{_UNREAD}{row.sha256}", reason=item.reason))
            self._unsaid += len(rows)

    def _acknowledge(self, pictures: list[Picture]) -> int:
        """Write pictures to the store, then to the journal; return the number of files that are done with."""
        journal, done = self.journal, 0
        with self._lock:
            ready = []
            for picture in pictures:
                content = self._contents.pop(picture.id)
                rows = self._flying.pop(content)
                done += len(rows)
                if self.same(rows[0]):
                    ready.append((picture, content, rows))
                else:
                    for row in rows:
                        self.skip(row.path, _CHANGED)
            kinds = Counter(self._kind(row, picture.id) for picture, _, rows in ready for row in rows)
            if ready:
                holders = ((journal.content_at(picture.id), picture.id) for picture, _, _ in ready)
                self._displace([Content(content, name) for content, name in holders if content is not None])
                self._add(
                    [picture.id for picture, _, _ in ready],
                    np.stack([picture.blocks for picture, _, _ in ready]),
                    [_payload(*entry) for entry in ready],
                )
                self._store.flush()
            for picture, content, rows in ready:
                for row in rows:
                    self.record(row)
                journal.hold(content, picture.id)
            done += self._commit()
            self.counts += kinds
        return done

    def _kind(self, row: Seen, name: str) -> str:
        before = self.journal.row(row.path)
        if before is not None and before.reason is None:
            return "changed"
        return "added" if row.path == name else "duplicates"

    def _settle(self) -> None:
        """Set right the entries of contents that lost or gained paths, in an order that never overwrites one."""
        journal = self.journal
        journal.commit()
        while freed := journal.freed():
            self._store.delete([content.id for content in freed])
            self._store.flush()
            for content in freed:
                journal.forget(content.sha256)
            journal.commit()
        while page := journal.in_the_way():
            self._displace(page)
        while page := journal.dirty():
            moves = []
            for content in page:
                paths = journal.paths(content.sha256)
                name = content.id if content.id in paths else paths[0]
                row = journal.row(name)
                time_ = {"modified": iso_time(row.modified)} if row and row.modified is not None else {}
                moves.append(_Move(content, name, {**path_payload(name, paths), **time_}))
            holders = [(journal.content_at(move.id), move.id) for move in moves]
            self._displace([Content(held, name) for held, name in holders if held and held.startswith(UPLOAD)])
            self._move(moves, dirty=False)

    def _displace(self, contents: list[Content]) -> None:
        """Make room under ids that others take: the entries go to spare ids until their paths are known."""
        for content in contents:
            if content.sha256.startswith("id:"):  # an entry of unknown content has no other path
                self.journal.forget(content.sha256)
        kept = [content for content in contents if not content.sha256.startswith("id:")]
        self._move([_Move(content, spare_id(content.sha256), {"path": content.id}) for content in kept], dirty=True)

    def _move(self, moves: list[_Move], *, dirty: bool) -> None:
        """Give entries their ids and payloads, without embedding; first in the store, then in the journal."""
        if not moves:
            return
        # after a crash an entry may be where the journal does not say yet
        places = dict.fromkeys(name for move in moves for name in (move.content.id, spare_id(move.content[0]), move.id))
        entries = zip(*self._store.get(list(places)))
        found = {content_of(name, payload): (blocks, payload) for name, blocks, payload in entries}
        there = [move for move in moves if move.content.sha256 in found]
        if there:
            payloads = [{**found[move.content.sha256][1], **move.change} for move in there]
            self._add(
                [move.id for move in there], np.stack([found[move.content.sha256][0] for move in there]), payloads
            )
            self._store.delete([move.content.id for move in there if move.content.id != move.id])
            self._store.flush()
        for move in moves:
            if move.content.sha256 in found:
                self.journal.hold(move.content.sha256, move.id, dirty and not move.content.sha256.startswith(UPLOAD))
            else:
                for path in self.journal.paths(move.content.sha256):
                    self.skip(path, "its entry was lost: the next run embeds it again")
                self.journal.forget(move.content.sha256)
        self.journal.commit()


def _payload(picture: Picture, content: str, rows: list[Seen]) -> Payload:
    return {**picture.payload, "paths": sorted(row.path for row in rows), "sha256": content}
