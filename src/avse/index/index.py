"""`Index`: a collection of embedded pictures (or sentences) on the disk that answers sentences and pictures.

Checks what comes in, turns queries into blocks and leaves storing and searching to a store; knows a model only as an
`Encoder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from numpy.typing import ArrayLike

from avse.files import write_json
from avse.images import ImageSource
from avse.index import journal
from avse.index.asking import Query, answer, check_query, judge, query_blocks, unknown_fields
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
    StoreError,
    check_blocks,
    check_ids,
    check_payload,
)
from avse.index.feed import embed_files
from avse.index.home import Home, find_home
from avse.index.living import Embedder, Sync, progress_bar
from avse.index.manifest import STORES, Manifest
from avse.index.memory import MemoryStore
from avse.index.pictures import Picture, picture_file
from avse.index.points import PointStore
from avse.index.sentences import add_lines
from avse.index.shown import Hits
from avse.index.uploads import check_uploads
from avse.index.where import parse

REPORT = "report.json"
"""In the index's folder: what the last `Index.add_images` or `Index.prune` did, and what it skipped."""


class Index:
    """An open index; made by `Index.create` or `Index.open`, best used as a context manager."""

    def __init__(self, home: Home, manifest: Manifest, store: Store, model: Encoder | Path | None) -> None:
        """Put the parts together; `create` and `open` are the ways in."""
        self._home, self._manifest, self._store = home, manifest, store
        self._model = model if isinstance(model, Path) else None
        self._encoder = None if isinstance(model, Path) else model

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: Encoder | str | Path,
        *,
        store: str | None = None,
        side: Side = "images",
        source: str | Path | None = None,
        force: bool = False,
        shards: int = 1,
        replicas: int = 1,
    ) -> Index:
        """Make an empty index in the new folder ``path``, or in a new collection of a Qdrant server, and open it.

        Args:
            path: Where; a folder that is there is refused, unless it is empty or, with ``force``, an index. Or
                ``qdrant://host:port/name`` (``qdrant+https://…``; the API key comes from ``QDRANT_API_KEY``).
            model: The encoder, or the folder of a saved model.
            store: "embedded" (Qdrant Edge, by default) or "memory" (exact scan of a mapped file) for a folder,
                "server" for a URL.
            side: What is held, "images" or "texts"; texts need the memory store.
            source: Folder that the payloads' "path" is relative to; `add_images` sets it by itself.
            force: Replace an index that is there.
            shards: Shards the entries are spread over; the memory store has one.
            replicas: Copies that a cluster keeps of each shard.

        Raises:
            ValueError: Unknown store or side, a store that cannot hold the side, or a number that does not fit it.
            FileExistsError: ``path`` is in use and may not be replaced.
            StoreError: The index to be replaced is open in a process, or the server fails.
        """
        home = find_home(path)
        store = store or ("embedded" if home.folder else "server")
        if store not in STORES or side not in ("images", "texts"):
            raise ValueError(f"store {store!r}, side {side!r}: stores are {', '.join(STORES)}, sides images and texts")
        if (store == "server") != (home.folder is None):
            raise ValueError(f"store {store!r} does not go with {home}: an index on a server has a qdrant:// URL")
        if min(shards, replicas) < 1 or (store == "memory" and shards > 1) or (store != "server" and replicas > 1):
            raise ValueError(f"{shards} shards, {replicas} replicas do not go with the {store} store: leave them at 1")
        home.check_room(force)
        encoder = load_encoder(model) if isinstance(model, (str, Path)) else model
        layout = Layout(side, encoder.num_image_blocks, encoder.num_text_blocks, encoder.block_width)
        folder = home.relative(Path(encoder.folder)) if encoder.folder else None
        root = home.relative(Path(source)) if source is not None else None
        manifest = Manifest(store, layout, folder, encoder.fingerprint, root, shards, replicas)
        home.create(manifest, force)
        return cls(home, manifest, home.open(manifest), encoder)

    @classmethod
    def open(cls, path: str | Path, model: Encoder | str | Path | None = None) -> Index:
        """Open the index at ``path``, a folder or a URL; the model is loaded only when a query needs it.

        Args:
            path: The index's folder or ``qdrant://host:port/name``.
            model: An encoder, the folder of a saved model, or None for the folder the index remembers.

        Raises:
            FileNotFoundError: No such folder or collection.
            ValueError: ``model`` is not the one the index was made with.
            StoreError: No index, damaged, of another version, open in another process, or a server that fails.
        """
        home = find_home(path)
        manifest = home.read()
        if model is not None and not isinstance(model, (str, Path)):
            check_model(str(home), manifest, model)
        return cls(home, manifest, home.open(manifest), Path(model) if isinstance(model, str) else model)

    @property
    def location(self) -> str:
        """What messages call the index: its folder or URL."""
        return str(self._home)

    @property
    def path(self) -> Path:
        """The index's folder.

        Raises:
            ValueError: It is on a server.
        """
        if self._home.folder is None:
            raise ValueError(f"{self.location} is on a server and has no folder of its own")
        return self._home.folder

    @property
    def side(self) -> Side:
        """What is held, "images" or "texts"."""
        return self._manifest.layout.side

    @property
    def store(self) -> str:
        """Where it is held, "embedded", "memory" or "server"."""
        return self._manifest.store

    @property
    def shards(self) -> int:
        """Over how many shards the entries are spread."""
        return self._manifest.shards

    @property
    def layout(self) -> Layout:
        """The side held and P, Q and C."""
        return self._manifest.layout

    @property
    def source(self) -> Path | None:
        """The folder the pictures' paths are relative to; None before the first pictures came."""
        source = self._manifest.source
        return None if source is None else self._home.resolve(source)

    @property
    def encoder(self) -> Encoder:
        """The model, loaded now if need be.

        Raises:
            ValueError: It is not to be found, or not the one the index was made with.
        """
        if self._encoder is None:
            self._encoder = find_encoder(self._home, self._manifest, self._model)
        return self._encoder

    def add_images(
        self,
        folder_or_paths: str | Path | Sequence[str | Path],
        *,
        root: str | Path | None = None,
        batch_size: int = 32,
        retry: bool = False,
        progress: bool = True,
        embed: Embedder | None = None,
    ) -> AddReport:
        """Bring a folder and the index together, or add single files; only what is new or changed is embedded.

        A path whose size and time are those the index knows is left alone. One content is one entry with all its
        paths, under the first of them that came, relative to the index's folder of pictures. Of a folder also what is
        gone is taken out. Pictures that cannot be read are listed in the report, and tried again once they change.
        Whatever ends the process, what was shown as done is in the index; the next run goes on from there. Payloads:
        path, paths, name, folder, width, height (pixels, upright), bytes, sha256, modified, date and year of EXIF.

        Args:
            folder_or_paths: A folder, the index's own or one in it, or files.
            root: The folder that ids are relative to; by default the given folder, or the files' common one.
            batch_size: Pictures encoded together.
            retry: Try again what could not be read before.
            progress: Show a bar on standard error.
            embed: What embeds files, by default `avse.index.feed.embed_files` with the index's encoder.

        Raises:
            ValueError: An index of texts, a folder without pictures, or one outside the index's own.
            StoreError: The index cannot be written; what was shown as done is in it.
        """

        def own(todo: Iterable[tuple[str, Path]]) -> Iterable[list[Picture | Skipped]]:
            return embed_files(self.encoder, todo, batch_size=batch_size)

        if not isinstance(folder_or_paths, (str, Path)):
            paths = [Path(path) for path in folder_or_paths]
            root = root or self.source or _common_folder(paths)
            return self._sync(Path(root), paths, embed or own, retry, progress) if paths else AddReport(0)
        folder = Path(folder_or_paths).resolve()
        root = root or (self.source if self.source and folder.is_relative_to(self.source) else folder)
        return self._sync(Path(root), folder, embed or own, retry, progress)

    def prune(self, folder: str | Path | None = None, *, progress: bool = True) -> AddReport:
        """Take out what is gone or has another content now, and give its space back; nothing is embedded.

        Args:
            folder: The index's own, which is the default, or one in it.
            progress: Show a bar on standard error.

        Raises:
            ValueError, StoreError: As `add_images`; also for an index that never had a folder.
        """
        if self.source is None:
            raise ValueError(f"{self.location} never had a folder of pictures (of a file of texts, index it again)")
        report = self._sync(self.source, Path(folder or self.source).resolve(), None, False, progress)
        self._store.compact()
        return report

    def add_texts(
        self, lines: Sequence[str], *, batch_size: int = 256, prune: bool = False, progress: bool = True
    ) -> AddReport:
        """Embed sentences and add each under itself as id; those that are there only get their line's number.

        Empty lines are listed, repeated ones are one entry. Payloads: text, line.

        Args:
            lines: Sentences.
            batch_size: Sentences encoded together.
            prune: Take out the sentences that are not in ``lines``.
            progress: Show a bar on standard error.

        Raises:
            ValueError: An index of images, or nothing but empty lines to ``prune`` by.
        """
        self._want("texts")
        return add_lines(self._store, self._add, lambda: self.encoder, lines, batch_size, prune, progress)

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
        self._forget_journal()
        self._add(ids, blocks, [{}] * len(ids) if payloads is None else payloads)
        self._store.flush()
        return AddReport(len(ids))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries, on the disk when this returns; unknown ids are let be. Return how many were there."""
        self._forget_journal()
        gone = self._store.delete(check_ids(ids))
        self._store.flush()
        return gone

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of ``ids`` that are in the index."""
        return self._store.known(ids)

    def get(self, ids: Sequence[str]) -> tuple[list[str], Blocks, list[Payload]]:
        """Return those of ``ids`` that are there, in the order asked, with blocks (n, P or Q, C) and payloads.

        Raises:
            StoreError: One of them is damaged.
        """
        return self._store.get(check_ids(ids))

    def entries(self, after: str | None = None) -> Iterator[list[tuple[str, Payload]]]:
        """Yield all ids with their payloads page by page, in memory that does not grow with the index.

        Those behind the place of the id ``after``, in an order of its own, a server gives and one embedded shard.

        Raises:
            ValueError: ``after`` for another store.
        """
        if after is None:
            return self._store.entries()
        if not isinstance(self._store, PointStore):
            raise ValueError(f"{self.location} lists its entries from the beginning alone: leave after= out")
        return self._store.entries(after)

    def verify(self) -> Iterator[str]:
        """Read everything and yield a sentence for each damage found; nothing where manifest and entries are whole.

        The journal is left out where another process is changing the index, or none may.
        """
        try:
            self._home.read()
        except OSError as error:
            yield str(error)
        yield from self._store.verify()
        if self._home.folder and (self._home.folder / "uploads").is_dir():
            yield from check_uploads(self._home.folder, self._store.entries())
        if self._home.folder and (self._home.folder / journal.NAME).is_file():
            try:
                self._own()
            except StoreError:
                return
            try:
                with closing(journal.Journal(self._home.folder / journal.NAME, anew=False)) as kept:
                    yield from kept.check(self._store.entries())
            except StoreError as error:
                yield f"the journal was not compared with the entries ({error})"

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
            query: A sentence: S(I, T) = Σ_j max_i ⟨v_i, t_j⟩.
            image: A picture: S_II = (1/P) Σ_i max_i' ⟨v_i, v'_i'⟩; with a sentence ½·S/Q + ½·S_II. In an index of texts
                a picture is what is asked, by S.
            embedding: In place of both: unit blocks (Q, C) for an index of images, (P, C) for one of texts, by S.
            where: A condition on the payload, such as ``folder = 2019 and width > 1000``.
            k: How many, at least 1.
            approximate: Let the embedded store use its HNSW graph, built now if it is missing.

        Raises:
            ValueError: Nothing, too much or something unfit is asked; no model is to be found.
        """
        return self.search_many([Query(query, image, embedding, where, k, approximate)])[0]

    def search_many(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several questions at once, each as `search` does: sentences and pictures are encoded in one batch.

        Raises:
            ValueError: As `search`, for the first that is unfit; none is answered then.
        """
        for query in queries:
            check_query(query, self.layout, self.location)
        blocks = query_blocks(queries, self.layout, lambda: self.encoder)
        answers = answer(self._store, queries, blocks)
        judge(queries, answers, self.layout, len(self), self._encoder)
        return [self._shown(hits) for hits in answers]

    def similar(self, name: str, *, k: int = 10, where: str | None = None) -> list[Hit]:
        """Return the k entries most like one of them, by S_II of the stored blocks, itself left out.

        Raises:
            ValueError: No entry has the id ``name``; k or where as in `search`.
        """
        check_query(Query(embedding=(), where=where, k=k), self.layout, self.location)
        _, blocks, _ = self.get([name])
        if not len(blocks):
            raise ValueError(f"{self.location} has no entry {name!r}")
        condition = None if where is None else parse(where)
        hits = self._store.search(blocks[0] / len(blocks[0]), k + 1, condition, False)
        return self._shown([hit for hit in hits if hit.id != name][:k])

    def unknown_fields(self, where: str) -> list[str]:
        """Say of each field of a ``where`` expression that no entry has, that it is so, with the nearest name there is.

        Raises:
            ValueError: ``where`` is no expression.
        """
        return unknown_fields(self._store, where)

    def picture(self, hit: Hit) -> Path | None:
        """Return where the picture of a hit lies (or lay), in `source` or the uploads; None where that is not known."""
        return picture_file(self._home.folder, self.source, hit.payload)

    def facts(self) -> dict[str, object]:
        """Return what the index is, in words and numbers, and what its last run did."""
        manifest, layout = self._manifest, self.layout
        facts: dict[str, object] = {"side": self.side, "store": self.store, "entries": len(self)}
        facts |= {"shards, replicas": f"{self.shards}, {manifest.replicas}"}
        facts |= {"blocks P, Q, width C": f"{layout.num_image_blocks}, {layout.num_text_blocks}, {layout.block_width}"}
        facts |= {"model": manifest.model or "never saved", "fingerprint": manifest.fingerprint}
        facts |= {"source": str(self.source or "none")}
        report = self._home.folder and self._home.folder / REPORT
        if report and report.is_file():
            try:
                said = dict(json.loads(report.read_text("utf-8")))
                facts |= {"last run": said.pop("finished"), "skipped then": len(said.pop("skipped"))}
                facts |= {f"{name} then": count for name, count in said.items() if count}
            except (ValueError, TypeError, KeyError):
                facts |= {"last run": f"{report} is damaged, the next run writes it anew"}
        return facts

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
            raise ValueError(f"{self.location} is an index of {self.side}: make another one for {side}")

    def _shown(self, hits: list[Hit]) -> list[Hit]:
        return Hits(hits, self.picture if self.side == "images" else None)

    def _sync(
        self, root: Path, what: Path | list[Path], embed: Embedder | None, retry: bool, progress: bool
    ) -> AddReport:
        self._want("images")
        folder = self._home.folder
        self._own()
        with closing(journal.Journal(folder and folder / journal.NAME)) as kept:
            root = root.resolve()
            if self.source is not None:
                self._set_source(root)
            run = Sync(kept, root, self._store, self._add, retry=retry)
            if isinstance(what, Path):
                run.folder(what)
            else:
                run.files(what)
            self._set_source(root)
            with progress_bar(kept.planned(), "picture", progress) as bar:
                run.run(embed, bar.update)
            report = run.report()
        if folder:
            write_json(folder / REPORT, {**asdict(report), "finished": datetime.now(timezone.utc).isoformat()})
        return report

    def _own(self) -> None:
        if isinstance(self._store, MemoryStore):  # the embedded one has been owned since it was opened
            self._store.own()

    def _forget_journal(self) -> None:
        self._own()
        if self._home.folder:
            journal.forget(self._home.folder)

    def _set_source(self, root: Path) -> Path:
        if self.source is None:
            self._manifest = replace(self._manifest, source=self._home.relative(root))
            self._home.write(self._manifest)
        elif root != self.source:
            raise ValueError(
                f"{self.location} holds the pictures of {self.source}, not of {root}: make another index, "
                "or this one anew with force=True / --force"
            )
        return root

    def _add(self, ids: Sequence[str], blocks: ArrayLike, payloads: Sequence[Payload]) -> None:
        names = check_ids(ids)
        checked = check_blocks(blocks, self._manifest.layout.document, "embeddings")
        if not len(names) == len(checked) == len(payloads):
            raise ValueError(f"{len(names)} ids, {len(checked)} embeddings, {len(payloads)} payloads: all must agree")
        self._store.add(names, checked, [check_payload(*entry) for entry in zip(names, payloads)])


def _common_folder(paths: Sequence[Path]) -> str:
    return os.path.commonpath([path.parent.resolve() for path in paths]) if paths else os.curdir
