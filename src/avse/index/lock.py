"""The lock of an index, which says what its user can do."""

from __future__ import annotations

from avse.index.contract import StoreError
from avse.lock import LockError, OwnerLock


class IndexLock(OwnerLock):
    """The right to change one index."""

    def acquire(self) -> None:
        """Take the lock, or keep it; StoreError where another one holds it, or the index is read-only."""
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
