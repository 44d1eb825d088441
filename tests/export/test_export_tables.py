"""Parquet: what DuckDB and pyarrow read of it is what the index holds, and the SQL ranks as loops in float64 do."""

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest
from index_kit import C, P, Q, make_index, naive_score, unit

from avse import __version__
from avse.export.embeddings import embeddings_writer, read_embeddings
from avse.export.tables import RANKING_SQL, RANKING_SQL_TEXTS, write_parquet
from avse.index import Index, StoreError


@pytest.fixture(params=["memory", "embedded", "sharded"])
def made(request, tmp_path):
    """An index in each store, and what is in it."""
    store = {"store": "embedded", "shards": 3} if request.param == "sharded" else {"store": request.param}
    return tmp_path / "i.avse", *make_index(tmp_path / "i.avse", **store)


def test_pyarrow_reads_back_what_the_index_holds(made, tmp_path):
    path, ids, blocks, payloads = made
    said = write_parquet(path, tmp_path / "i.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "i.parquet").sort_by("id")
    order = sorted(range(len(ids)), key=lambda row: ids[row].encode())
    assert table["id"].to_pylist() == [ids[row] for row in order]
    assert np.array_equal(np.array(table["blocks"].to_pylist(), np.float32), blocks[order])
    assert [json.loads(text) for text in table["payload"].to_pylist()] == [payloads[row] for row in order]
    facts = json.loads(table.schema.metadata[b"avse"])
    assert facts == {
        **{"side": "images", "P": P, "Q": Q, "C": C, "fingerprint": "shapes-0", "model": "never saved"},
        "avse": __version__,
    }
    # Of one kind in all entries: a column. Lists, mixed kinds, and a name that SQL takes for "id": in the JSON alone.
    assert table.column_names == ["id", "blocks", "payload", "folder", "late", "share", "year"] == said["columns"]
    assert table["late"].to_pylist() == [payloads[row].get("late") for row in order]
    assert table["share"].to_pylist() == [float(payloads[row]["share"]) for row in order]
    assert (said["entries"], said["bytes"]) == (len(ids), (tmp_path / "i.parquet").stat().st_size)


def test_the_sql_ranks_by_s(made, tmp_path):
    path, ids, blocks, payloads = made
    write_parquet(path, tmp_path / "i.parquet")
    query = unit(Q, C, seed=1)
    exact = {name: naive_score(image, query) for name, image in zip(ids, blocks)}
    with duckdb.connect() as base:
        base.execute(f"CREATE VIEW entries AS FROM '{tmp_path / 'i.parquet'}'")
        found = base.execute(RANKING_SQL, {"query": query.tolist(), "k": 10}).fetchall()
        assert [name for name, _ in found] == sorted(exact, key=exact.get, reverse=True)[:10]
        assert max(abs(score - exact[name]) for name, score in found) < 1e-12
        some = RANKING_SQL.replace("ORDER BY", "WHERE folder = 'f1' AND year >= $year ORDER BY")
        found = base.execute(some, {"query": query.tolist(), "k": 60, "year": 2018}).fetchall()
        said = dict(zip(ids, payloads))
        kept = [name for name in ids if said[name]["folder"] == "f1" and said[name]["year"] >= 2018]
        assert 3 < len(kept) < 20 and [name for name, _ in found] == sorted(kept, key=exact.get, reverse=True)
    with Index.open(path) as index:  # the same answers as avse's own
        assert [hit.id for hit in index.search(embedding=query, k=10)] == sorted(exact, key=exact.get, reverse=True)[
            :10
        ]


def test_the_page_shows_the_sql():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert f"```sql\n{RANKING_SQL}\n```" in page


def test_texts_are_ranked_for_a_picture(tmp_path):
    ids, blocks, _ = make_index(tmp_path / "t.avse", side="texts", store="memory")
    write_parquet(tmp_path / "t.avse", tmp_path / "t.parquet")
    picture = unit(P, C, seed=1)
    exact = {name: naive_score(picture, text) for name, text in zip(ids, blocks)}
    with duckdb.connect() as base:
        base.execute(f"CREATE VIEW entries AS FROM '{tmp_path / 't.parquet'}'")
        found = base.execute(RANKING_SQL_TEXTS, {"query": picture.tolist(), "k": 7}).fetchall()
    assert [name for name, _ in found] == sorted(exact, key=exact.get, reverse=True)[:7]
    assert max(abs(score - exact[name]) for name, score in found) < 1e-12


def test_many_entries_are_row_groups_and_an_empty_index_is_a_file(tmp_path):
    blocks = unit(2500, 1, 2)
    with embeddings_writer(tmp_path / "m.parquet", {"side": "texts", "P": 3, "Q": 1, "C": 2}, {}) as write:
        for start in range(0, 2500, 100):
            rows = range(start, start + 100)
            write([str(row) for row in rows], blocks[start : start + 100], [{}] * 100)
    file = pyarrow.parquet.ParquetFile(tmp_path / "m.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1000, 1000, 500]
    assert np.array_equal(read_embeddings(tmp_path / "m.parquet").blocks, blocks)
    make_index(tmp_path / "e.avse", count=1)
    assert write_parquet(tmp_path / "e.avse", tmp_path / "e.parquet")["entries"] == 0
    assert read_embeddings(tmp_path / "e.parquet").blocks.shape == (0, P, C)


def test_a_file_that_is_there_stays_whatever_happens(tmp_path):
    path, target = tmp_path / "i.avse", tmp_path / "i.parquet"
    ids, *_ = make_index(path, store="memory")
    target.write_bytes(b"kept")
    with pytest.raises(FileExistsError, match="--force"):
        write_parquet(path, target)
    with pytest.raises(FileNotFoundError, match="no such index"):
        write_parquet(tmp_path / "none", target, force=True)
    kept = path / "memory" / "blocks.f32"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"'{ids[-1]}' is damaged"):
        write_parquet(path, target, force=True)
    assert target.read_bytes() == b"kept" and sorted(tmp_path.iterdir()) == [path, target]
    kept.write_bytes(whole)
    write_parquet(path, target, force=True)
    assert pyarrow.parquet.read_table(target).num_rows == len(ids)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_reading_checks_side_model_and_whole(tmp_path, suffix):
    path = tmp_path / f"e{suffix}"
    facts = {"side": "images", "P": P, "Q": Q, "C": C, "fingerprint": "shapes-0", "model": "m", "avse": "0"}
    with embeddings_writer(path, facts, {"n": "int64"}) as write:
        write(["a", "ü"], unit(2, P, C), [{"n": 1}, {}])
    make_index(tmp_path / "i.avse", store="memory")
    make_index(tmp_path / "t.avse", store="memory", side="texts")
    with Index.open(tmp_path / "i.avse") as index, Index.open(tmp_path / "t.avse") as texts:
        found = read_embeddings(path, index)
        assert (found.ids, found.payloads, found.facts) == (["a", "ü"], [{"n": 1}, {}], facts)
        assert np.array_equal(found.blocks, unit(2, P, C))
        with pytest.raises(ValueError, match="has side images, .*t.avse texts"):
            read_embeddings(path, texts)
        with embeddings_writer(path, {**facts, "fingerprint": "other"}, {}) as write:
            write(["a"], unit(1, P, C), [{}])
        with pytest.raises(ValueError, match="has fingerprint other, .*i.avse shapes-0: encode with the index's own"):
            read_embeddings(path, index)
    whole = path.read_bytes()
    for content in (b"", b"nothing of the kind", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no embeddings that avse encode or avse export wrote"):
            read_embeddings(path)
    with pytest.raises(FileNotFoundError, match="avse encode makes one"):
        read_embeddings(tmp_path / f"none{suffix}")
    with pytest.raises(ValueError, match="as .npz or .parquet"):
        read_embeddings(tmp_path / "i.csv")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path):
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from avse.export.tables import write_parquet\n"
        "try:\n    write_parquet('i', 'o.parquet')\nexcept ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 'pip install "avse[parquet]"' in said
