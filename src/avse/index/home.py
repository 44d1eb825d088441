"""Where an index lives, in a folder or in a collection of a server: its manifest, and the way to its store."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any, Protocol

from avse.files import is_taken, replace_folder
from avse.index.contract import Store
from avse.index.lock import IndexLock
from avse.index.manifest import Manifest, is_index, read_manifest, relative_folder
from avse.index.memory import MemoryStore


class Home(Protocol):
    """A place for one index; ``str()`` is what messages call it."""

    folder: Path | None
    """The index's folder; None for one on a server."""

    def check_room(self, force: bool) -> None:
        """Raise FileExistsError unless an index may be made here."""

    def create(self, manifest: Manifest, force: bool) -> None:
        """Make an empty index."""

    def read(self) -> Manifest:
        """Return the manifest of the index that is here; FileNotFoundError or StoreError where there is none."""

    def write(self, manifest: Manifest) -> None:
        """Replace the manifest."""

    def open(self, manifest: Manifest) -> Store:
        """Open the store."""

    def relative(self, target: Path) -> str:
        """Return how the manifest names another folder."""

    def resolve(self, name: str) -> Path:
        """Return the folder that the manifest names."""


def find_home(path: str | Path) -> Home:
    """Return the home at ``path``: a folder, or ``qdrant://host:port/name``.

    Raises:
        ValueError: A URL of another form.
        ImportError: A URL, and qdrant-client is not installed.
    """
    return ServerHome(str(path)) if "://" in str(path) else FolderHome(Path(path))


class FolderHome:
    """An index in a folder of this machine, in the memory or the embedded store."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self.folder: Path | None = folder
        self._folder = folder

    def __str__(self) -> str:
        """Return the folder's name."""
        return str(self._folder)

    def check_room(self, force: bool) -> None:
        """Accept a new or empty folder, or, with ``force``, an index that no process holds."""
        path = self._folder
        if not is_taken(path):
            return
        if not (path.is_dir() and is_index(path)):
            raise FileExistsError(f"{path} is there and is no index: choose another name (even force leaves it alone)")
        if not force:
            raise FileExistsError(f"{path} is an index already: open it, or replace it with force=True / --force")
        lock = IndexLock(path)
        lock.acquire()
        lock.release()

    def create(self, manifest: Manifest, force: bool) -> None:
        """Make the index beside its place and rename it there."""
        temporary = self._folder.with_name(f".{self._folder.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir(parents=True)
        try:
            if manifest.store == "memory":
                MemoryStore.create(temporary / manifest.store)
            elif manifest.shards > 1:
                _sharded().create(temporary / manifest.store, manifest.layout, manifest.shards)
            else:
                _embedded().create(temporary / manifest.store, manifest.layout)
            manifest.write(temporary)
            self.check_room(force)
            replace_folder(temporary, self._folder, replace=force)
        except OSError:
            self.check_room(force)  # another process may have made one meanwhile
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self) -> Manifest:
        """Read ``index.json``."""
        return read_manifest(self._folder)

    def write(self, manifest: Manifest) -> None:
        """Write ``index.json`` atomically."""
        manifest.write(self._folder)

    def open(self, manifest: Manifest) -> Store:
        """Open the store; the embedded one takes the lock."""
        place = self._folder / manifest.store, manifest.layout, IndexLock(self._folder, sealed=True)
        if manifest.store == "memory":
            return MemoryStore(*place)
        store: Store = _sharded()(*place, manifest.shards) if manifest.shards > 1 else _embedded()(*place)
        return store

    def relative(self, target: Path) -> str:
        """Return ``target`` relative to the folder where it can be."""
        return relative_folder(target, self._folder)

    def resolve(self, name: str) -> Path:
        """Return the folder, seen from this one."""
        return (self._folder.resolve() / name).resolve()


class ServerHome:
    """An index in a collection of a Qdrant server; folders are named absolutely, as this machine sees them."""

    folder: Path | None = None

    def __init__(self, url: str) -> None:
        """Read the URL; nothing is sent yet."""
        from avse.index import server

        self._server, self._address = server, server.parse_url(url)
        self._client = server.connect(self._address)

    def __str__(self) -> str:
        """Return the URL."""
        return self._address.url

    def check_room(self, force: bool) -> None:
        """Accept a name the server does not have, or, with ``force``, an index."""
        if not self._server.exists(self._client, self._address):
            return
        if not self._server.holds_index(self._client, self._address):
            raise FileExistsError(f"{self} is there and is no index: choose another name (even force leaves it alone)")
        if not force:
            raise FileExistsError(f"{self} is an index already: open it, or replace it with force=True / --force")

    def create(self, manifest: Manifest, force: bool) -> None:
        """Make the collection, in place of the former one with ``force``."""
        if force and self._server.exists(self._client, self._address):
            self._server.remove(self._client, self._address)
        self._server.ServerStore.create(self._client, self._address, manifest)

    def read(self) -> Manifest:
        """Read the collection's metadata."""
        return self._server.read(self._client, self._address)

    def write(self, manifest: Manifest) -> None:
        """Write the collection's metadata."""
        self._server.ServerStore(self._client, self._address, manifest.layout).write_manifest(manifest)

    def open(self, manifest: Manifest) -> Store:
        """Use the collection."""
        return self._server.ServerStore(self._client, self._address, manifest.layout)

    def relative(self, target: Path) -> str:
        """Return the absolute folder."""
        return target.resolve().as_posix()

    def resolve(self, name: str) -> Path:
        """Return the folder."""
        return Path(name)


def _embedded() -> Any:  # the class EmbeddedStore, whose engine loads only when it is needed
    from avse.index.embedded import EmbeddedStore

    return EmbeddedStore


def _sharded() -> Any:
    from avse.index.sharded import ShardedStore

    return ShardedStore
