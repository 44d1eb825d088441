"""Make a data set's folder as a whole or not at all. Knows nothing of what is in it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avse.files import replace_folder, write_json

log = logging.getLogger(__name__)

INFO = "dataset.json"


def build_folder(
    out: Path, settings: dict[str, Any], make: Callable[[Path], dict[str, Any]], *, force: bool = False
) -> dict[str, Any]:
    """Let ``make`` fill a folder that then takes the place of ``out``, and return its counts.

    ``make`` works in a hidden folder beside ``out``, so a run that was killed leaves nothing half done and can be
    started again. What it returns is kept with ``settings`` in dataset.json; a folder of the same settings is reused.

    Raises:
        FileExistsError: ``out`` holds something else, or was made with other settings, and ``force`` is not set.
    """
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        counts = _counts(out, settings)
        log.info("%s is complete and is reused (--force makes it anew)", out)
        return counts
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        counts = make(work)
        write_json(work / INFO, {"settings": settings, "counts": counts})
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
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
