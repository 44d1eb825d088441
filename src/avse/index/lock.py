"""The lock of an index, which says what its user can do, and the seal that is broken with it."""

from __future__ import annotations

from pathlib import Path

from avse.files import sync_folder
from avse.index import seal
from avse.index.contract import StoreError
from avse.lock import LockError, OwnerLock


class IndexLock(OwnerLock):
    """The right to change one index."""

    def __init__(self, folder: Path, *, sealed: bool = False) -> None:
        """Name the folder; ``sealed``: it is a whole index, whose seal goes and comes with the lock."""
        super().__init__(folder)
        self._sealed = sealed
        self._kept: dict[str, str] = {}
        self._before: seal.Stats = {}

    def acquire(self) -> None:
        """Take the lock, or keep it; StoreError where another one holds it, or the index is read-only."""
        if self.held:
            return
        try:
            super().acquire()
        except LockError as error:
            way = (
                "close it there first, or ask a server that holds it (--url)"
                if error.held
                else "it cannot be changed (nor searched, unless it is in the memory store): make the folder writable, "
                "or copy it to where you may"
            )
            raise StoreError(f"{error}: {way}") from error
        if self._sealed and (self._folder / seal.NAME).exists():
            self._kept, self._before = seal.read(self._folder), seal.stats_of(self._folder)
            (self._folder / seal.NAME).unlink(missing_ok=True)
            sync_folder(self._folder)

    def seal(self, again: str = "") -> None:
        """Seal the index before the lock is given back; see `avse.index.seal.write`."""
        if self._sealed and self.held:
            seal.write(self._folder, self._kept, self._before, again)

    def restore(self) -> None:
        """Put the former seal back, as it was: the index could not be opened, and nothing was written."""
        if self._kept and self.held:
            seal.put(self._folder, self._kept)
