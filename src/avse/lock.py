"""One owner at a time: a lock file that names its holder and that the system frees when the holder dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from avse.index.contract import StoreError

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the holder's number, which others read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OwnerLock:
    """The right to change one index; taken by `acquire`, given back by `release` or by the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Name the index; nothing is locked yet."""
        self._folder = folder
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock, or keep it.

        Raises:
            StoreError: Another one holds it, whose process number is named where it can be read; or the lock file
                cannot be written (a read-only folder).
        """
        if self._handle is not None:
            return
        path = self._folder / "lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be changed (nor searched, unless it is in the memory store): its lock file "
                f"cannot be written ({error.strerror or error}): make the folder writable, or copy it to where you may"
            ) from error
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            raise StoreError(
                f"{self._folder} is in use by {_holder(path)}: close it there first, "
                "or ask a server that holds it (--url)"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; again is harmless."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _holder(path: Path) -> str:
    try:
        number = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        number = ""
    if number == str(os.getpid()):
        return f"this very process ({number})"
    return f"process {number}" if number.isdecimal() else "another process"
