"""One owner at a time: a lock file that names its holder and that the system frees when the holder dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the holder's number, which others read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


NAME = "lock"


class LockError(OSError):
    """The right to change a folder cannot be had; ``held``: because somebody else has it, else it is not writable."""

    def __init__(self, told: str, held: bool) -> None:
        """Say what is in the way."""
        super().__init__(told)
        self.held = held


class OwnerLock:
    """The right to change one folder; taken by `acquire`, given back by `release` or by the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is locked yet."""
        self._folder = folder
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock, or keep it.

        Raises:
            LockError: Another one holds it, whose process number is named where it can be read; or the lock file
                cannot be written (a read-only folder).
        """
        if self._handle is not None:
            return
        path = self._folder / NAME
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise LockError(f"{self._folder}: its lock file cannot be written ({error.strerror})", False) from error
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            raise LockError(f"{self._folder} is in use by {_holder(path)}", True) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; again is harmless."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def is_locked(folder: Path) -> bool:
    """Tell whether a living process of this machine holds the lock of a folder; True where the system cannot say."""
    if sys.platform == "win32":
        return True
    try:
        with open(folder / NAME, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _holder(path: Path) -> str:
    try:
        number = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        number = ""
    if number == str(os.getpid()):
        return f"this very process ({number})"
    return f"process {number}" if number.isdecimal() else "another process"
