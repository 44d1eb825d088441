"""Debian packages without root and without the machine's own package lists.

Knows apt-get and dpkg and what they say when they fail; nothing of what is in a package.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_UPDATE_LIMIT_S, _DOWNLOAD_LIMIT_S, _UNPACK_LIMIT_S = 300, 1800, 600


class DebianError(OSError):
    """A package cannot be had or unpacked on this machine; the message says why and what to do instead."""


def download_packages(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Download packages with apt-get into ``folder`` and return the path of each; state and cache lie in it too.

    Raises:
        DebianError: No apt-get, no network, or no such package in the machine's sources.
    """
    folder = folder.resolve()  # apt-get takes a relative state folder for one below the root
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State={folder / 'state'}", f"Dir::Cache={folder / 'cache'}", "Acquire::Retries=2"]
    options += ["Acquire::http::Timeout=30", "Acquire::https::Timeout=30"]
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    log.info("reading the package lists (apt-get update, in a folder of its own)")
    _run("apt-get update", [*apt, "update"], folder, _UPDATE_LIMIT_S)
    log.info("downloading %s (this may take minutes)", " and ".join(names))
    _run("apt-get download", [*apt, "download", *names], folder, _DOWNLOAD_LIMIT_S)
    return find_packages(names, folder)


def find_packages(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return the .deb file of each package in ``folder``; of several versions the last by name.

    Raises:
        DebianError: One is missing; the message names it and what lies there.
    """
    found = {}
    for name in names:
        candidates = sorted(folder.glob(f"{name}_*.deb"))
        if not candidates:
            there = ", ".join(sorted(path.name for path in folder.glob("*.deb"))) or "no .deb file"
            raise DebianError(f"{folder}: {name}_*.deb is wanted, {there} found")
        found[name] = candidates[-1]
    return found


def unpack_package(package: Path, folder: Path) -> None:
    """Unpack the files of a .deb below ``folder`` (dpkg -x: nothing is installed, no script of it is run).

    Raises:
        DebianError: No dpkg, or a damaged package.
    """
    command = ["dpkg", "-x", str(package.resolve()), str(folder.resolve())]
    _run(f"dpkg -x {package.name}", command, folder, _UNPACK_LIMIT_S)


def _run(step: str, command: list[str], folder: Path, limit_s: int) -> None:
    if shutil.which(command[0]) is None:
        raise DebianError(f"{command[0]} is not on this machine (it is part of Debian and Ubuntu)")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DebianError(f"{step} was not done after {limit_s} s") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:] or ["it said nothing"]
        raise DebianError(f"{step} failed ({done.returncode}): {'; '.join(errors[:3])}")
