"""Files that are whole or not there: atomic writes, folder replacement and SHA-256 manifests.

Knows nothing of models, pictures or indexes. Every write goes to a temporary file in the same folder, is flushed to the
disk and then renamed, so a crash or a full disk leaves the former file as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
HUB_FILES = ("README.md", ".gitattributes")
"""What a hub keeps beside a model and people edit: in no manifest, and no damage."""
_CHUNK = 1 << 20
_BLANK = "0" * 64


class MismatchError(ValueError):
    """A file is not what it should be; ``file`` is the path, ``expected`` and ``found`` are what disagrees."""

    def __init__(self, file: str | Path, expected: str, found: str) -> None:
        """Keep the three facts; they are also the arguments, so that the error survives pickling."""
        super().__init__(str(file), expected, found)
        self.file, self.expected, self.found = str(file), expected, found

    def __str__(self) -> str:
        """Say the file and the two values that disagree."""
        return f"{self.file}: expected {self.expected}, found {self.found}"


class ManifestError(MismatchError):
    """A folder is not what its manifest says."""


def check_target(path: str | Path, force: bool = False) -> None:
    """Refuse a file that may not be written, before the work is done.

    Raises:
        FileExistsError: it is there, and not ``force``.
        IsADirectoryError: it is a folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if Path(path).exists() and not force:
        raise FileExistsError(f"{path} is there already: choose another name or --force")


def is_taken(folder: str | Path) -> bool:
    """Tell whether a folder of this name would be replaced: an empty one is none."""
    folder = Path(folder)
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; missing parent folders are made.

    Raises:
        OSError: The disk refused (full, read-only, ...); it names ``path``, whose former content is untouched.
    """
    with replacing(path) as temporary:
        _write_synced(temporary, data)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; when the block ends, that file takes the place atomically.

    For what is too large to be held; missing parent folders are made.

    Raises:
        OSError: As `write_bytes`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:  # not the system's, and says all there is
            raise
        raise OSError(error.errno, f"{error.strerror or error}, the file is as it was before", str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically; errors as in `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:  # noqa: ANN401 - anything JSON can say
    """Write ``obj`` as indented JSON to ``path`` atomically; errors as in `write_bytes`.

    Raises:
        ValueError: ``obj`` holds NaN or an infinity, which JSON cannot say.
        TypeError: ``obj`` holds something else that JSON cannot say.
    """
    write_bytes(path, _text_of(obj))


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def former_folder(final: str | Path) -> Path:
    """Return where `replace_folder` keeps the former ``final`` while it is being replaced."""
    final = Path(final)
    return final.with_name(f".{final.name}.former")


def replace_folder(temporary: str | Path, final: str | Path, *, replace: bool = True) -> None:
    """Put the finished folder ``temporary`` in the place of ``final``; both lie on one file system.

    Without ``replace`` a ``final`` that holds anything is an error, whoever made it, and whenever.

    All files are flushed to the disk first. Where ``final`` exists there is one moment, between two renames, in which a
    crash leaves no ``final``: the former one then lies, whole, at `former_folder`, and `verify_manifest` says so.

    Raises:
        OSError: A rename failed, and the former ``final`` is back in its place; or it may not be replaced.
    """
    temporary, final, former = Path(temporary), Path(final), former_folder(final)
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(Path(folder, name))
        sync_folder(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        if replace:
            shutil.rmtree(former, ignore_errors=True)
            os.rename(final, former)
        else:
            final.rmdir()
    try:
        os.rename(temporary, final)
    except OSError:
        if former.exists() and not final.exists():
            os.rename(former, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def write_manifest(folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write ``folder/manifest.json`` with size and SHA-256 of every file in it; call it last.

    The content is ``{"files": {relative posix path: {"sha256", "bytes"}}, **extra}``; its own digest is taken with
    zeros in its place.

    Raises:
        ValueError: ``extra`` has a key "files".
    """
    folder = Path(folder)
    if extra and "files" in extra:
        raise ValueError('the manifest keeps "files" for itself: give the extra value another key')
    files = {p: {"sha256": sha256(folder / p), "bytes": (folder / p).stat().st_size} for p in _listed(folder)}
    put_manifest(folder, {"files": files, **(extra or {})})


def put_manifest(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Write a manifest of this content with a digest of its own; errors as in `write_json`."""
    facts = {"sha256": _BLANK, "bytes": 0}  # its size would be part of it
    manifest = {**manifest, "files": {**manifest["files"], MANIFEST: facts}}
    facts["sha256"] = hashlib.sha256(_text_of(manifest)).hexdigest()
    write_bytes(Path(folder) / MANIFEST, _text_of(manifest))


def _text_of(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def verify_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of ``folder`` after every file in it was found, with its size and its digest.

    Files the manifest does not list are let be.

    Raises:
        ManifestError: No manifest, one that is not JSON, or a file that is missing, of another size or another content.
    """
    for error in find_damages(folder):
        raise error
    return _read_manifest(Path(folder))


def find_damages(folder: str | Path, *, foreign: bool = False) -> Iterator[ManifestError]:
    """Yield each damage that `verify_manifest` would raise, file by file; ``foreign``: and files it does not list."""
    folder = Path(folder)
    try:
        manifest = _read_manifest(folder)
    except ManifestError as error:
        yield error
        return
    if foreign and MANIFEST not in manifest["files"]:
        yield ManifestError(folder / MANIFEST, f"{MANIFEST} among its files, with a digest of its own", "none")
    for name in sorted(set(_listed(folder)) - set(manifest["files"]) - set(HUB_FILES)) if foreign else ():
        yield ManifestError(folder / name, "no such file, for the manifest does not list it", "a file")
    for name, facts in manifest["files"].items():
        path = folder / name
        if name == MANIFEST:
            if problem := _own_damage(path, manifest):
                yield ManifestError(path, f"sha256 {facts['sha256']} with zeros in its place", problem)
        elif not path.is_file():
            yield ManifestError(path, f"a file of {facts['bytes']} bytes", "no such file")
        elif (size := path.stat().st_size) != facts["bytes"]:
            yield ManifestError(path, f"{facts['bytes']} bytes", f"{size} bytes")
        elif (digest := sha256(path)) != facts["sha256"]:
            yield ManifestError(path, f"sha256 {facts['sha256']}", f"sha256 {digest}")


def sync_folder(folder: str | Path) -> None:
    """Flush the folder's own entries (names, renames) to the disk where the system can."""
    if os.name == "posix":
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # Windows flushes what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view[: 1 << 30]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _listed(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST:
            yield name


def _own_damage(path: Path, manifest: dict[str, Any]) -> str:
    """Say what is found where a manifest is not, to the byte, what was written; empty where it is."""
    facts = manifest["files"][MANIFEST]
    blank = {**manifest, "files": {**manifest["files"], MANIFEST: {**facts, "sha256": _BLANK}}}
    if path.read_bytes() != _text_of(manifest):
        return "other spaces or signs than were written"
    found = hashlib.sha256(_text_of(blank)).hexdigest()
    return "" if found == facts["sha256"] else f"sha256 {found}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path, former = folder / MANIFEST, former_folder(folder)
    if not path.is_file():
        kept = f"; its former state is whole at {former}: rename it back" if former.exists() else ""
        raise ManifestError(path, "a manifest", "no such file" + kept)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        for name, facts in manifest["files"].items():
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or not name.isprintable() or len(name) > 1000:
                raise ManifestError(path, "paths inside the folder", f"{name!a:.80}")
            if not re.fullmatch("[0-9a-f]{64}", facts["sha256"]) or not isinstance(facts["bytes"], int):
                raise TypeError(name)
        _text_of(manifest)  # no halves of characters, which no file can be called
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ManifestError(path, "a manifest with size and sha256 of each file", found) from error
    return dict(manifest)
