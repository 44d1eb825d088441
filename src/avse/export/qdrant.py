"""A local index copied into a collection of a Qdrant server, where every client of Qdrant can ask it by MaxSim.

The collection is an index of avse as well (``avse search qdrant://…``): this module only carries entries from one store
to the other. Knows no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avse.index import Index
from avse.index.home import find_home
from avse.index.living import progress_bar
from avse.index.manifest import Manifest
from avse.index.points import VECTOR, check_side


def send(index: str | Path, url: str, force: bool = False) -> dict[str, Any]:
    """Copy all entries of an index into a new collection; nothing is embedded.

    Interrupted, the collection has a part of the entries; the same call with ``force`` begins anew.

    Args:
        index: The index's folder.
        url: ``qdrant://host:port/name`` or ``qdrant+https://…``; an API key comes from ``QDRANT_API_KEY``.
        force: Replace the collection, if it is an index.

    Returns:
        The ``url``, the number of ``entries`` there, and the name of the ``vector`` to query.

    Raises:
        ValueError: No URL of a collection, the collection that is copied, or an index of texts, which MaxSim cannot
            rank.
        FileExistsError: The collection is there and not ``force``, or it is no index of avse.
        FileNotFoundError, StoreError: No index here, a damaged entry, or a server that fails.
        ImportError: qdrant-client is not installed.
    """
    if "://" not in url:
        raise ValueError(f"{url} is no qdrant://host:6333/name")
    from avse.index import server  # needs an extra

    if "://" in str(index) and server.parse_url(str(index))[:2] == server.parse_url(url)[:2]:
        raise ValueError(f"{url} is the collection that is copied: choose another name")
    with Index.open(index) as source:
        check_side(source.layout)
        home = find_home(url)
        home.check_room(force)
        said = source.facts()
        model = None if said["model"] == "never saved" else home.relative(source.path / str(said["model"]))
        pictures = None if source.source is None else home.relative(source.source)
        manifest = Manifest("server", source.layout, model, str(said["fingerprint"]), pictures)
        home.create(manifest, force)
        store = home.open(manifest)
        try:
            with progress_bar(len(source), "picture", True) as bar:
                for page in source.entries():
                    store.add(*source.get([name for name, _ in page]))
                    bar.update(len(page))
            return {"url": url, "entries": len(store), "vector": VECTOR}
        finally:
            store.close()
