"""The lock of an index, which says what its user can do, and the seal that is broken with it."""

from __future__ import annotations

from pathlib import Path

from avse.files import sync_folder
from avse.index import seal
from avse.index.contract import NotOwnedError
from avse.lock import LockError, OwnerLock


class IndexLock(OwnerLock):
    """The right to change one index."""

    def __init__(self, folder: Path, *, sealed: bool = False) -> None:
        """Name the folder; ``sealed``: it is a whole index, whose seal goes and comes with the lock."""
        super().__init__(folder)
        self._sealed = sealed
        self._kept: dict[str, str] = {}
        self._before: seal.Stats = {}
        self._lost = False

    def acquire(self) -> None:
        """Take the lock, or keep it; NotOwnedError where another one holds it, or the index is read-only."""
        if self.held:
            return
        was_sealed = self._sealed and seal.is_sealed(self._folder)
        try:
            super().acquire()
        except LockError as error:
            way = (
                "close it there first, or ask a server that holds it (--url)"
                if error.held
                else "it cannot be changed (nor searched, unless it is in the memory store): make the folder writable, "
                "or copy it to where you may"
            )
            raise NotOwnedError(f"{error}: {way}") from error
        if was_sealed or (self._sealed and (self._folder / seal.NAME).exists()):
            try:
                self._kept, self._before = seal.read(self._folder), seal.stats_of(self._folder)
            except (OSError, ValueError):  # it stays as it is until the index is changed: verify must go on saying so
                self._lost = True
                return
            (self._folder / seal.NAME).unlink(missing_ok=True)
            sync_folder(self._folder)

    def seal(self, changed: bool, again: str = "") -> None:
        """Seal the index before the lock is given back.

        Args:
            changed: Whether anything was written since; if not, a damaged seal is left to be found.
            again: The start of the paths that are read again after a change; see `avse.index.seal.write`.
        """
        if self._lost and not changed:
            self.restore()
        elif self._sealed and self.held:
            seal.write(self._folder, self._kept, self._before, again if changed else "")

    def restore(self) -> None:
        """Leave the former seal, as it was: nothing was written, or the index could not be opened at all."""
        if self._lost and self.held:
            seal.empty_lock(self._folder)
        elif self._kept and self.held:
            seal.put(self._folder, self._kept)
