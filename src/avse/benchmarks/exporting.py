"""What each format of an export costs and loses against torch: largest score difference, size, time of a query.

A query is the same for every format: one sentence is embedded, scored against every picture of the index, and the best
k are found. The formats that hold pictures alone get the sentence from torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.benchmarks import interleaved
from avse.export.graphs import ExportError
from avse.export.onnx import INT8, TEXT, export_onnx, run_texts, session, text_reader
from avse.extras import MissingExtraError, needs
from avse.index import Index
from avse.model import AVSE
from avse.scoring import aeom

Blocks = NDArray[np.float32]
Ask = Callable[[str], dict[str, float]]
"""Sentence -> the best k, id -> score."""


def measure_exports(
    model: AVSE, index: str | Path, sentences: Sequence[str], *, k: int = 10, runs: int = 7
) -> Iterator[dict[str, Any]]:
    """Export a model and an index of its pictures to a temporary folder and compare the formats.

    Args:
        model: on the CPU; its threads are torch's.
        index: of pictures, made by this model.
        sentences: the questions; a timed turn asks all of them one by one.
        k: how many are found.
        runs: timed turns of each format, interleaved.

    Yields:
        A row a format: `format`, `what` is in it, `difference` (largest, of the scores of the k found, from torch's in
        float64), `bytes` of the files, `seconds` a query; what was left out has a `note` in their place.
    """
    with Index.open(index, model=model) as opened:
        names = [name for page in opened.entries() for name, _ in page]
        images = np.concatenate([opened.get(names[at : at + 1000])[1] for at in range(0, len(names), 1000)])
    with tempfile.TemporaryDirectory() as folder:
        asks, rows = _ways(model, index, Path(folder), names, images, k)
        exact = {
            one: aeom(images.astype(np.float64), model.encode_texts([one]).astype(np.float64))[:, 0]
            for one in sentences
        }
        place = {name: row for row, name in enumerate(names)}
        for row in rows:
            if row["format"] not in asks:
                continue
            found = {one: asks[row["format"]](one) for one in sentences}
            row["difference"] = max(
                abs(score - exact[one][place[name]]) for one in sentences for name, score in found[one].items()
            )
        ways = {name: _all(ask, sentences) for name, ask in asks.items()}
        seconds = interleaved(ways, runs)
        for row in rows:
            if row["format"] in seconds:
                row["seconds"] = seconds[row["format"]] / len(sentences)
            yield row


def _all(ask: Ask, sentences: Sequence[str]) -> Callable[[], None]:
    def turn() -> None:
        for one in sentences:
            ask(one)

    return turn


def _ways(
    model: AVSE, index: str | Path, folder: Path, names: list[str], images: Blocks, k: int
) -> tuple[dict[str, Ask], list[dict[str, Any]]]:
    """Make every format that can be made here; return how each is asked, and its row."""
    asks: dict[str, Ask] = {}
    rows: list[dict[str, Any]] = []

    def best(texts: Blocks) -> dict[str, float]:
        scores = aeom(images, texts)[:, 0]
        first = np.argsort(-scores, kind="stable")[:k]
        return {names[row]: float(scores[row]) for row in first}

    def add(name: str, what: str, make: Callable[[], tuple[Ask, int]]) -> None:
        row: dict[str, Any] = {
            "format": name,
            "what": what,
            "difference": None,
            "bytes": None,
            "seconds": None,
            "note": None,
        }
        rows.append(row)
        try:
            asks[name], row["bytes"] = make()
        except (MissingExtraError, ExportError) as error:
            row["note"] = " ".join(str(error).split())

    def onnx(file: str) -> tuple[Ask, int]:
        if not (folder / "onnx").exists():
            export_onnx(model, folder / "onnx", int8=True)
        opened, read = session(folder / "onnx" / file, _threads()), text_reader(model, folder / "onnx")
        other = {TEXT: INT8, INT8: TEXT}[file]
        return (lambda one: best(run_texts(opened, read, [one]))), _size(folder / "onnx", but=other)

    def torch_itself() -> tuple[Ask, int]:
        size = _size(model.save_pretrained(folder / "torch"))
        return (lambda one: best(model.encode_texts([one]))), size

    add("torch", "the model's folder", torch_itself)
    add("onnx", "both encoders", lambda: onnx(TEXT))
    add("onnx, int8 texts", "both encoders", lambda: onnx(INT8))
    add("sentence-transformers", "the model", lambda: _sentence_transformers(model, folder / "st", names, images, k))
    add("parquet, DuckDB", "the index", lambda: _parquet(model, index, folder / "index.parquet", k))
    add("qdrant, local mode", "the index", lambda: _qdrant(model, names, images, k))
    return asks, rows


def _sentence_transformers(model: AVSE, folder: Path, names: list[str], images: Blocks, k: int) -> tuple[Ask, int]:
    from avse.export.multivector import MultiVectorEncoder, export_sentence_transformers

    export_sentence_transformers(model, folder)
    encoder = MultiVectorEncoder(str(folder), trust_remote_code=True, device="cpu", local_files_only=True)

    def ask(one: str) -> dict[str, float]:
        scores = encoder.similarity(encoder.encode_query([one], show_progress_bar=False), images)[0].numpy()
        return {names[row]: float(scores[row]) for row in np.argsort(-scores, kind="stable")[:k]}

    return ask, _size(folder)


def _parquet(model: AVSE, index: str | Path, file: Path, k: int) -> tuple[Ask, int]:
    from avse.export.tables import RANKING_SQL, write_parquet

    with needs("bench", "ranking a table by DuckDB"):
        import duckdb
    write_parquet(index, file)
    base = duckdb.connect()
    base.execute(f"SET threads = {_threads()}")
    base.execute(f"CREATE VIEW entries AS FROM '{file}'")

    def ask(one: str) -> dict[str, float]:
        query = model.encode_texts([one])[0].tolist()
        return dict(base.execute(RANKING_SQL, {"query": query, "k": k}).fetchall())

    return ask, file.stat().st_size


def _qdrant(model: AVSE, names: list[str], images: Blocks, k: int) -> tuple[Ask, int]:
    with needs("server", "a Qdrant collection"):
        from qdrant_client import QdrantClient, models
    client = QdrantClient(":memory:")
    maxsim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = models.VectorParams(size=images.shape[2], distance=models.Distance.DOT, multivector_config=maxsim)
    client.create_collection("bench", vectors_config=vectors)
    points = [models.PointStruct(id=row, vector=blocks.tolist()) for row, blocks in enumerate(images)]
    client.upsert("bench", points)

    def ask(one: str) -> dict[str, float]:
        found = client.query_points("bench", query=model.encode_texts([one])[0].tolist(), limit=k)
        return {names[int(point.id)]: point.score for point in found.points}

    return ask, images.nbytes


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _size(folder: Path, but: str = "") -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != but)
