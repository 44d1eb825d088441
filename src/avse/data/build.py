"""Make a data set's folder as a whole or not at all. Knows nothing of what is in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from avse.files import is_taken, replace_folder, write_json

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


log = logging.getLogger(__name__)

INFO = "dataset.json"


def build_folder(
    out: Path, settings: dict[str, Any], make: Callable[[Path], dict[str, Any]], *, force: bool = False
) -> dict[str, Any]:
    """Let ``make`` fill a folder that then takes the place of ``out``, and return its counts.

    ``make`` works in a hidden folder beside ``out``, so a run that was killed leaves nothing half done and can be
    started again; meanwhile no other process can build the same. What it returns is kept with ``settings`` in
    dataset.json; a folder of the same settings is reused.

    Raises:
        FileExistsError: ``out`` holds something else, or was made with other settings, and ``force`` is not set.
        BlockingIOError: Another process is building it.
    """
    if (counts := _reusable(out, settings, force)) is not None:
        return counts
    work = out.with_name(f".{out.name}.partial")
    with _lock(out):
        if (counts := _reusable(out, settings, force)) is not None:  # built by another meanwhile
            return counts
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            counts = make(work)
            write_json(work / INFO, {"settings": settings, "counts": counts})
            replace_folder(work, out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return counts


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep others from building ``out``, by a lock on a hidden file that the system frees when its holder dies."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise BlockingIOError(f"another process is building {out}: wait for it, or name another --out") from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems do not remove what is open; an empty file that stays does no harm
            path.unlink()
        os.close(handle)


def _reusable(out: Path, settings: dict[str, Any], force: bool) -> dict[str, Any] | None:
    if force or not is_taken(out):
        return None
    counts = _counts(out, settings)
    log.info("%s is complete and is reused (--force makes it anew)", out)
    return counts


def _counts(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        info = json.loads((out / INFO).read_text("utf-8"))
        found, counts = dict(info["settings"]), dict(info["counts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{out} holds something else: name another --out, or replace it with --force") from error
    for key in sorted(settings.keys() | found.keys()):
        if settings.get(key) != found.get(key):
            raise FileExistsError(
                f"{out} was made with {key} {found.get(key)!r}, {settings.get(key)!r} is wanted: name another --out, "
                "or replace it with --force"
            )
    return counts
