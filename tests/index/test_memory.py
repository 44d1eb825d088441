"""The memory store's int8 copy against brute force in float64, and what becomes of the copy and the files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.index import Index, StoreError, segments
from avse.scoring import query as scan_of_few


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "ROWS", 64)


def _normed(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _rows(kind, n, rng, number=4):
    """Blocks (n, number, 8): scattered, in tight clusters, all but equal, equal, or with few large numbers."""
    if kind == "scattered":
        return _normed(rng.standard_normal((n, number, 8)))
    if kind == "spikes":
        rows = rng.standard_normal((n, number, 8))
        rows[rng.random((n, number)) < 0.05, 0] = 50
        return _normed(rows)
    centres = rng.standard_normal((1 if kind != "clusters" else 5, number, 8))
    width = {"clusters": 0.02, "near": 1e-4, "equal": 0}[kind]
    return _normed(centres[rng.integers(len(centres), size=n)] + width * rng.standard_normal((n, number, 8)))


def _oracle(rows, query, side):
    similar = (rows.astype(np.float64)[:, None] * query.astype(np.float64)[None, :, None]).sum(-1)  # (n, R, blocks)
    return (similar.max(2) if side == "images" else similar.max(1)).sum(-1)


@given(
    kind=st.sampled_from(["scattered", "clusters", "near", "equal", "spikes"]),
    n=st.integers(1, 400),
    k=st.integers(1, 60),
    side=st.sampled_from(["images", "texts"]),
    where=st.sampled_from([None, "half = 1", "tenth = 3", "tenth = 3 or half = 0", "rare = 1"]),
    seed=st.integers(0, 2**20),
    close=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_first_k_are_those_of_float64(tmp_path_factory, encoder_class, kind, n, k, side, where, seed, close):
    rng = np.random.default_rng(seed)
    index = Index.create(tmp_path_factory.mktemp("m") / "i", encoder_class(), store="memory", side=side)
    blocks = _rows(kind, n, rng, 4 if side == "images" else 2)
    ids = [f"{number:04d}" for number in rng.permutation(n)]
    payloads = [{"half": number % 2, "tenth": number % 10, "rare": int(number % 97 == 0)} for number in range(n)]
    cut = int(rng.integers(0, n + 1))  # some in one call, some in another: the copy lags behind
    index.add_embeddings(ids[:cut], blocks[:cut], payloads[:cut])
    index._store.add(ids[cut:], blocks[cut:], payloads[cut:])
    gone = set(rng.choice(n, size=n // 5, replace=False).tolist())
    index.delete([ids[number] for number in gone])
    asked = 2 if side == "images" else 4
    query = blocks[rng.integers(n)][:1].repeat(asked, 0) if close else _normed(rng.standard_normal((asked, 8)))
    exact = _oracle(blocks, query, side)
    rules = {
        None: lambda p: True,
        "half = 1": lambda p: p["half"] == 1,
        "tenth = 3": lambda p: p["tenth"] == 3,
        "tenth = 3 or half = 0": lambda p: p["tenth"] == 3 or p["half"] == 0,
        "rare = 1": lambda p: p["rare"] == 1,
    }
    wanted = [number for number in range(n) if number not in gone and rules[where](payloads[number])]
    order = sorted(wanted, key=lambda number: (-exact[number], ids[number]))[:k]
    hits = index.search(embedding=query, k=k, where=where)
    assert [hit.id for hit in hits] == [ids[number] for number in order]
    assert [hit.score for hit in hits] == exact[order].tolist()
    assert [hit.payload for hit in hits] == [payloads[number] for number in order]
    assert list(index.verify()) == []
    index.close()


@pytest.fixture(scope="module")
def encoder_class():
    from conftest import ColourEncoder

    return ColourEncoder


def _covered(index):
    made = index._store._segments
    return len(made._entries) * made._rows


def test_a_sample_that_says_nothing_is_not_believed(tmp_path, encoder, monkeypatch):
    """The sampled rows have no error at all (one-hot blocks), the others all of it."""
    monkeypatch.setattr(scan_of_few, "SAMPLE", 5)
    rng = np.random.default_rng(0)
    blocks = _normed(rng.standard_normal((640, 4, 8)))
    sampled = np.unique(np.linspace(0, 639, 5).astype(int))
    blocks[sampled] = np.eye(8, dtype=np.float32)[:4]
    query = np.eye(8, dtype=np.float32)[:2]
    with Index.create(tmp_path / "i", encoder, store="memory") as index:
        index.add_embeddings([f"{number:03d}" for number in range(640)], blocks)
        assert _covered(index) == 640
        exact = _oracle(blocks, query, "images")
        order = sorted(range(640), key=lambda number: (-exact[number], number))
        for k in (1, 5, 6, 20, 100):
            assert [hit.id for hit in index.search(embedding=query, k=k)] == [f"{n:03d}" for n in order[:k]]


def test_the_copy_follows_changes_compaction_and_its_own_loss(tmp_path, encoder, unit):
    path, blocks, query = tmp_path / "i", unit(300, 4, 8), unit(1, 2, 8, seed=1)[0]
    ids = [f"{number:03d}" for number in range(300)]
    with Index.create(path, encoder, store="memory") as index:
        for at in range(0, 300, 50):
            index.add_embeddings(ids[at : at + 50], blocks[at : at + 50])
        assert _covered(index) == 256
        index.delete(ids[:100])
        before = index.search(embedding=query, k=200)
        index._store.compact()
        assert _covered(index) == 192 and index.search(embedding=query, k=200) == before
        assert (path / "memory" / "blocks.1.f32").stat().st_size == 200 * 4 * 8 * 4
        names = ["blocks.1.f32", "rows.1.i8", "rows.1.jsonl", "segments.1.json", "state.json"]
        assert sorted(entry.name for entry in (path / "memory").iterdir()) == names  # nothing of the former is left
    for name, content in (("segments.1.json", b"{"), ("rows.1.i8", b"cut"), ("segments.1.json", None)):
        if content is None:
            (path / "memory" / name).unlink()
        else:
            (path / "memory" / name).write_bytes(content)
        with Index.open(path) as reader:  # float32 does it alone, and nothing is written
            assert _covered(reader) == 0 and reader.search(embedding=query, k=200) == before
            assert list(reader.verify()) == []
        with Index.open(path) as writer:
            writer.delete(["never there"])
            writer.add_embeddings([ids[299]], blocks[299:])
            assert _covered(writer) == 192 and writer.search(embedding=query, k=200) == before


def test_a_flipped_byte_of_the_copy_is_found(tmp_path, encoder, unit):
    with Index.create(tmp_path / "i", encoder, store="memory") as index:
        index.add_embeddings([str(number) for number in range(200)], unit(200, 4, 8))
    file = tmp_path / "i" / "memory" / "rows.i8"
    data, at = file.read_bytes(), 64 * 4 * 8 + 5
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with Index.open(tmp_path / "i") as index:
        (said,) = index.verify()
        assert "segment 1 has another checksum" in said


def test_a_reader_is_told_when_the_index_was_compacted_under_it(tmp_path, encoder, unit):
    query = unit(1, 2, 8)[0]
    with Index.create(tmp_path / "i", encoder, store="memory") as writer:
        writer.add_embeddings(["a", "b"], unit(2, 4, 8))
        with Index.open(tmp_path / "i") as reader:
            writer.delete(["a"])
            writer._store.compact()
            with pytest.raises(StoreError, match="compacted the index; open it again"):
                reader.search(embedding=query)
    with Index.open(tmp_path / "i") as reader:
        assert [hit.id for hit in reader.search(embedding=query)] == ["b"]


def test_a_filter_sees_what_was_added_after_it_was_first_asked(tmp_path, encoder, unit):
    with Index.create(tmp_path / "i", encoder, store="memory") as index:
        index.add_embeddings(["a", "b"], unit(2, 4, 8), [{"x": 1}, {"y": [1, True]}])

        def matching(where):
            return {hit.id for hit in index.search(embedding=unit(1, 2, 8)[0], where=where, k=10)}

        assert matching("x = 1") == {"a"} and matching("x != 7") == {"a"} and matching("y = true") == {"b"}
        index.add_embeddings(["c", "a"], unit(2, 4, 8), [{"x": 1.0, "y": "1"}, {"x": [2, "1"]}])
        assert matching("x = 1") == {"a", "c"} and matching("x = 2") == {"a"} and matching("x = '1'") == {"a"}
        index.delete(["c"])
        assert matching("x = 1") == {"a"} and matching("y = 1 and not y = '1'") == {"b"}
        index._store.compact()
        assert matching("x = 1") == {"a"} and matching("y = true") == {"b"}
