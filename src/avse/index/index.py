"""`Index`: a collection of embedded pictures (or sentences) on the disk that answers sentences and pictures.

Checks what comes in, turns queries into blocks and leaves storing and searching to a store; knows a model only as an
`Encoder`.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from avse.files import replace_folder
from avse.images import ImageSource, list_images
from avse.index.binding import check_model, find_encoder, load_encoder
from avse.index.contract import (
    AddReport,
    Blocks,
    Encoder,
    Hit,
    Layout,
    Payload,
    Side,
    Skipped,
    Store,
    check_blocks,
    check_ids,
    check_payload,
)
from avse.index.lock import OwnerLock
from avse.index.manifest import STORES, Manifest, is_index, read_manifest, relative_folder
from avse.index.memory import MemoryStore
from avse.index.pictures import embed_pictures, picture_ids
from avse.index.where import fields, parse

SENTENCE_WEIGHT = 0.5
"""w of a sentence and a picture asked together: w·S/Q + (1-w)·S_II (method, section 3)."""
_FLUSH_SECONDS = 5.0


class Index:
    """An open index; made by `Index.create` or `Index.open`, best used as a context manager."""

    def __init__(self, path: Path, manifest: Manifest, store: Store, model: Encoder | Path | None) -> None:
        """Put the parts together; `create` and `open` are the ways in."""
        self.path, self._manifest, self._store = path, manifest, store
        self._model = model if isinstance(model, Path) else None
        self._encoder = None if isinstance(model, Path) else model

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: Encoder | str | Path,
        *,
        store: str = "embedded",
        side: Side = "images",
        source: str | Path | None = None,
        force: bool = False,
    ) -> Index:
        """Make an empty index in the new folder ``path`` and open it.

        Args:
            path: Where; a folder that is there is refused, unless it is empty or, with ``force``, an index.
            model: The encoder, or the folder of a saved model.
            store: "embedded" (Qdrant Edge) or "memory" (exact scan of a mapped file).
            side: What is held, "images" or "texts"; texts need the memory store.
            source: Folder that the payloads' "path" is relative to; `add_images` sets it by itself.
            force: Replace an index that is there.

        Raises:
            ValueError: Unknown store or side, or a store that cannot hold the side.
            FileExistsError: ``path`` is in use and may not be replaced.
            StoreError: The index to be replaced is open in a process.
        """
        path = Path(path)
        if store not in STORES or side not in ("images", "texts"):
            raise ValueError(f"store {store!r}, side {side!r}: stores are {', '.join(STORES)}, sides images and texts")
        _make_room(path, force)
        encoder = load_encoder(model) if isinstance(model, (str, Path)) else model
        layout = Layout(side, encoder.num_image_blocks, encoder.num_text_blocks, encoder.block_width)
        folder = relative_folder(Path(encoder.folder), path) if encoder.folder else None
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir(parents=True)
        try:
            if store == "memory":
                MemoryStore.create(temporary / store)
            else:
                _embedded().create(temporary / store, layout)
            root = relative_folder(Path(source), path) if source is not None else None
            Manifest(store, layout, folder, encoder.fingerprint, root).write(temporary)
            replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(path, encoder)

    @classmethod
    def open(cls, path: str | Path, model: Encoder | str | Path | None = None) -> Index:
        """Open the index in the folder ``path``; the model is loaded only when a query needs it.

        Args:
            path: The index's folder.
            model: An encoder, the folder of a saved model, or None for the folder the index remembers.

        Raises:
            FileNotFoundError: No such folder.
            ValueError: ``model`` is not the one the index was made with.
            StoreError: No index, damaged, of a later version, or open in another process.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if model is not None and not isinstance(model, (str, Path)):
            check_model(path, manifest, model)
        lock, opener = OwnerLock(path), MemoryStore if manifest.store == "memory" else _embedded()
        store: Store = opener(path / manifest.store, manifest.layout, lock)
        return cls(path, manifest, store, Path(model) if isinstance(model, str) else model)

    @property
    def side(self) -> Side:
        """What is held, "images" or "texts"."""
        return self._manifest.layout.side

    @property
    def store(self) -> str:
        """Where it is held, "embedded" or "memory"."""
        return self._manifest.store

    @property
    def source(self) -> Path | None:
        """The folder the pictures' paths are relative to; None before the first pictures came."""
        source = self._manifest.source
        return None if source is None else (self.path.resolve() / source).resolve()

    @property
    def encoder(self) -> Encoder:
        """The model, loaded now if need be.

        Raises:
            ValueError: It is not to be found, or not the one the index was made with.
        """
        if self._encoder is None:
            self._encoder = find_encoder(self.path, self._manifest, self._model)
        return self._encoder

    def add_images(
        self,
        folder_or_paths: str | Path | Sequence[str | Path],
        *,
        root: str | Path | None = None,
        batch_size: int = 32,
        only_new: bool = False,
        progress: bool = True,
    ) -> AddReport:
        """Embed pictures and add them under their paths relative to the index's folder of pictures.

        Pictures that cannot be read are listed in the report. What was added is on the disk when this returns, and
        every few seconds before. Payloads: path, name, folder, width, height (pixels, upright), bytes.

        Args:
            folder_or_paths: A folder, searched through, or single files.
            root: The folder that ids are relative to; by default the given folder, or the files' common one.
            batch_size: Pictures encoded together.
            only_new: Leave ids that are in the index alone.
            progress: Show a bar on standard error.

        Raises:
            ValueError: An index of texts, or pictures outside the folder of those that are in the index already.
        """
        self._want("images")
        if isinstance(folder_or_paths, (str, Path)):
            paths = list_images(folder_or_paths)
            root = root or folder_or_paths
        else:
            paths = [Path(path) for path in folder_or_paths]
            root = root or self.source or _common_folder(paths)
        if not paths:
            return AddReport(0)
        named, skipped = picture_ids(paths, self._set_source(Path(root).resolve()))
        known = self._store.known(list(named)) if only_new else set()
        todo = [(name, path) for name, path in named.items() if name not in known]
        added, flushed = 0, time.monotonic()
        wait = 0.5 if sys.stderr.isatty() else 10.0
        with tqdm(total=len(todo), unit="picture", disable=not progress, mininterval=wait, file=sys.stderr) as bar:
            for at in range(0, len(todo), batch_size):
                found, unreadable = embed_pictures(self.encoder.encode_images, todo[at : at + batch_size])
                if found:
                    ids, blocks, payloads = zip(*found)
                    self._add(ids, np.stack(blocks), payloads)
                if time.monotonic() - flushed > _FLUSH_SECONDS:
                    self._store.flush()
                    flushed = time.monotonic()
                skipped += unreadable
                added += len(found)
                bar.update(len(found) + len(unreadable))
        self._store.flush()
        return AddReport(added, len(known), tuple(skipped))

    def add_texts(
        self, lines: Sequence[str], *, batch_size: int = 256, only_new: bool = False, progress: bool = True
    ) -> AddReport:
        """Embed sentences and add each under itself as id; empty lines are listed, repeated ones are one entry.

        Raises:
            ValueError: An index of images.
        """
        self._want("texts")
        numbers: dict[str, int] = {}
        skipped = []
        for number, line in enumerate(lines, start=1):
            if text := line.strip():
                numbers.setdefault(text, number)
            else:
                skipped.append(Skipped(f"line {number}", "empty"))
        known = self._store.known(list(numbers)) if only_new else set()
        new = [text for text in numbers if text not in known]
        with tqdm(total=len(new), unit="text", disable=not progress, file=sys.stderr) as bar:
            for at in range(0, len(new), batch_size):
                part = new[at : at + batch_size]
                self._add(part, self.encoder.encode_texts(part), [{"text": t, "line": numbers[t]} for t in part])
                bar.update(len(part))
        self._store.flush()
        return AddReport(len(new), len(known), tuple(skipped))

    def add_embeddings(
        self, ids: Sequence[str], blocks: ArrayLike, payloads: Sequence[Payload] | None = None
    ) -> AddReport:
        """Add n embeddings that were made before; an id that is there is replaced. On the disk when this returns.

        Args:
            ids: n different strings.
            blocks: (n, P, C) for images, (n, Q, C) for texts: finite unit blocks.
            payloads: n dicts of plain JSON, empty ones by default.

        Raises:
            ValueError: Lengths that differ, ids twice, another shape, blocks that are not of unit length or not finite.
        """
        self._add(ids, blocks, [{}] * len(ids) if payloads is None else payloads)
        self._store.flush()
        return AddReport(len(ids))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries, on the disk when this returns; unknown ids are let be. Return how many were there."""
        gone = self._store.delete(check_ids(ids))
        self._store.flush()
        return gone

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of ``ids`` that are in the index."""
        return self._store.known(ids)

    def search(
        self,
        query: str | None = None,
        *,
        image: ImageSource | None = None,
        embedding: ArrayLike | None = None,
        where: str | None = None,
        k: int = 10,
        approximate: bool = False,
    ) -> list[Hit]:
        """Return the k best entries, best first, ties in the order of their ids.

        Args:
            query: A sentence: S(I, T) = Σ_j max_i <v_i, t_j>.
            image: A picture: S_II = (1/P) Σ_i max_i' <v_i, v'_i'>; with a sentence ½·S/Q + ½·S_II. In an index of texts
                a picture is what is asked, by S.
            embedding: In place of both: unit blocks (Q, C) for an index of images, (P, C) for one of texts, by S.
            where: A condition on the payload, such as ``folder = 2019 and width > 1000``.
            k: How many, at least 1.
            approximate: Let the embedded store use its HNSW graph, built now if it is missing.

        Raises:
            ValueError: Nothing, too much or something unfit is asked; no model is to be found.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r}: a whole number of at least 1 is wanted")
        condition = None if where is None else parse(where)
        return self._store.search(self._query_blocks(query, image, embedding), k, condition, approximate)

    def unknown_fields(self, where: str) -> list[str]:
        """Say of each field of a ``where`` expression that no entry has, that it is so, with the nearest name there is.

        Raises:
            ValueError: ``where`` is no expression.
        """
        wanted = fields(parse(where))
        found, there = self._store.fields(wanted)
        unknown = [name for name in wanted if name not in found] if len(self) else []
        return [f"no entry has the field {name!r}{_nearest(name, there)}" for name in unknown]

    def picture(self, hit: Hit) -> Path | None:
        """Return where the picture of a hit lies (or lay) in `source`; None where the index does not know."""
        source, path = self.source, hit.payload.get("path")
        if source is None or not isinstance(path, str):
            return None
        found = Path(os.path.normpath(source / path))
        return found if found.is_relative_to(source) else None

    def close(self) -> None:
        """Write what is left and let go of files and locks; again is harmless."""
        self._store.close()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._store)

    def __enter__(self) -> Index:
        """Return the index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the index."""
        self.close()

    def _want(self, side: Side) -> None:
        if self.side != side:
            raise ValueError(f"{self.path} is an index of {self.side}: make another one for {side}")

    def _set_source(self, root: Path) -> Path:
        if self.source is None:
            self._manifest = replace(self._manifest, source=relative_folder(root, self.path))
            self._manifest.write(self.path)
        elif root != self.source:
            raise ValueError(
                f"{self.path} holds the pictures of {self.source}, not of {root}: make another index, "
                "or this one anew with force=True / --force"
            )
        return root

    def _add(self, ids: Sequence[str], blocks: ArrayLike, payloads: Sequence[Payload]) -> None:
        names = check_ids(ids)
        checked = check_blocks(blocks, self._manifest.layout.document, "embeddings")
        if not len(names) == len(checked) == len(payloads):
            raise ValueError(f"{len(names)} ids, {len(checked)} embeddings, {len(payloads)} payloads: all must agree")
        self._store.add(names, checked, [check_payload(*entry) for entry in zip(names, payloads)])

    def _query_blocks(self, query: str | None, image: ImageSource | None, embedding: ArrayLike | None) -> Blocks:
        """Return the blocks (R, C) to ask a store for: MaxSim is linear in positive scales, so weights go into them."""
        layout = self._manifest.layout
        if embedding is not None:
            if query is not None or image is not None:
                raise ValueError("embedding= is asked alone, without a sentence or a picture")
            return check_blocks(np.asarray(embedding)[None], layout.query, "an embedding to search for")[0]
        if query is None and image is None:
            raise ValueError("nothing to search for: give a sentence, image= or embedding=")
        if self.side == "texts" and query is not None:
            raise ValueError(f"{self.path} is an index of texts, which answers pictures: give image=")
        if query is not None and not query.strip():
            raise ValueError("the sentence to search for is empty")
        text = None if query is None else self.encoder.encode_texts([query])[0]
        picture = None if image is None else self.encoder.encode_images([image])[0]
        if picture is None or self.side == "texts":
            return np.ascontiguousarray(text if picture is None else picture, np.float32)
        picture = picture / len(picture)
        if text is not None:
            text = text * (SENTENCE_WEIGHT / len(text))
            picture = np.concatenate([text, (1 - SENTENCE_WEIGHT) * picture])
        return np.ascontiguousarray(picture, np.float32)


def _nearest(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(names)[:12]) or 'none'}"


def _embedded() -> Any:  # the class EmbeddedStore, whose engine loads only when it is needed
    from avse.index.embedded import EmbeddedStore

    return EmbeddedStore


def _make_room(path: Path, force: bool) -> None:
    """Check that ``path`` may become an index."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path.is_dir() and is_index(path)):
        raise FileExistsError(f"{path} is there and is no index: choose another name (even force leaves it alone)")
    if not force:
        raise FileExistsError(f"{path} is an index already: open it, or replace it with force=True / --force")
    lock = OwnerLock(path)
    lock.acquire()
    lock.release()


def _common_folder(paths: Sequence[Path]) -> str:
    return os.path.commonpath([path.parent.resolve() for path in paths]) if paths else os.curdir
