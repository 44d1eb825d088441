"""Indexes cut short, flipped, on a full disk, read-only: a clear error each, and nothing acknowledged lost."""

import os
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from avse.index import Index, StoreError, embedded, points

IDS = [f"picture {number}" for number in range(5)]


@pytest.fixture
def filled(tmp_path, encoder, store, unit):
    """An index of five pictures, closed, its folder and its blocks."""
    blocks = unit(5, 4, 8)
    with Index.create(tmp_path / "i", encoder, store=store) as index:
        index.add_embeddings(IDS, blocks, [{"word": f"wörd {number}", "n": number} for number in range(5)])
    return tmp_path / "i", blocks


def _flip(folder, content):
    """Flip the last bit in the middle of ``content``, in the one file that holds it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "wal" not in path.parts and content in (data := path.read_bytes()):
            at = data.index(content) + len(content) // 2
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            return
    raise AssertionError("nowhere")


def _complaints(path, query):
    """What verify says, and what a search that reaches the damaged entry says."""
    with Index.open(path) as index:
        said = list(index.verify())
        with pytest.raises(StoreError) as error:
            index.search(embedding=query, k=5)
    return said, str(error.value)


def test_a_flipped_bit_in_the_blocks_is_found(filled, unit):
    path, blocks = filled
    _flip(path, blocks[3].tobytes())
    said, searched = _complaints(path, unit(1, 2, 8)[0])
    assert len(said) == 1
    for text in (*said, searched):
        assert (
            "'picture 3' is damaged (its blocks have another checksum): take it out (--delete ID) and index again"
            in text
        )
    with Index.open(path) as index:
        with pytest.raises(StoreError, match="'picture 3'"):
            index.get(IDS)
        assert index.get(IDS[:3])[0] == IDS[:3]
        index.add_embeddings([IDS[3]], blocks[3:4])
        assert list(index.verify()) == [] and len(index.search(embedding=unit(1, 2, 8)[0])) == 5


@pytest.mark.parametrize("store", ["memory"])  # the engine packs payloads: a flip there is below
@pytest.mark.parametrize("content", ["wörd 2".encode(), b'"n":2', b"picture 2"])
def test_a_flipped_bit_in_a_line_is_found(filled, unit, content):
    path, _ = filled
    _flip(path, content)
    said, searched = _complaints(path, unit(1, 2, 8)[0])
    assert len(said) == 1 and "its line has another checksum" in said[0] and "its line has another" in searched
    with Index.open(path) as index, pytest.raises(StoreError, match="checksum"):
        index.search(embedding=unit(1, 2, 8)[0], where="n = 1")  # a filter trusts no damaged line


@pytest.mark.parametrize("store", ["memory", "embedded"])
def test_every_flipped_bit_of_payloads_is_found_or_harmless(filled, unit, store):
    """Bits all over the files that hold payloads: whatever is answered is what was written, or an error."""
    path, blocks = filled
    query = unit(1, 2, 8)[0]
    with Index.open(path) as index:
        whole = index.search(embedding=query)
    (file,) = path.rglob("rows.jsonl" if store == "memory" else "page_0.dat")
    data = file.read_bytes()
    used = len(data.rstrip(b"\0"))
    sizes = path / "embedded" / "closed.json"
    kept = sizes.read_bytes() if store == "embedded" else b""
    found = 0
    for at in np.linspace(0, used - 1, 40 if store == "memory" else 15).astype(int):
        file.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            with Index.open(path) as index:
                said = list(index.verify())
                assert said or index.search(embedding=query) == whole, at
                found += bool(said)
        except StoreError:
            found += 1
        file.write_bytes(data)
        if kept:
            sizes.write_bytes(kept)
    assert found > 10


def test_a_file_that_was_cut_or_is_gone_is_named(filled):
    path, _ = filled
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    for file in files:
        if file.name in ("lock", "seal.json", "closed.json", "segments.json", "rows.i8"):
            continue
        data = file.read_bytes()
        for cut in (data[: len(data) // 2], None):
            kept = {other: other.read_bytes() for other in path.rglob("closed.json")}
            file.unlink() if cut is None else file.write_bytes(cut)
            with pytest.raises(StoreError, match=r"damaged|is not an index"):
                Index.open(path)
            file.write_bytes(data)
            for other, content in kept.items():
                other.write_bytes(content)
    with Index.open(path) as index:
        assert len(index) == 5 and list(index.verify()) == []


@pytest.mark.parametrize("store", ["embedded"])
def test_what_the_engine_says_of_damage_is_a_store_error(filled):
    path, _ = filled
    (path / "embedded" / "closed.json").unlink()  # as after a crash: sizes are not known
    config = path / "embedded" / "edge_config.json"
    whole = config.read_bytes()
    config.write_text("{")
    for _ in range(2):  # the lock is given back after the first failure
        with pytest.raises(StoreError, match="failed while opening"):
            Index.open(path)
    config.write_bytes(whole)
    (path / "embedded" / "closed.json").write_text("[1")
    with pytest.raises(StoreError, match="closed.json is damaged.*remove it"):
        Index.open(path)
    (path / "embedded" / "closed.json").unlink()
    (path / "embedded" / "segments").rename(path.parent / "gone")
    with pytest.raises(StoreError, match="no segments"):
        Index.open(path)


class PanicException(BaseException):
    """What the engine raises when it panics has this name and is no Exception."""


@pytest.mark.parametrize("store", ["embedded"])
def test_a_panic_of_the_engine_is_a_store_error(filled, monkeypatch, unit):
    class Shard:
        def __getattr__(self, name):
            def fail(*_, **__):
                raise PanicException("index out of bounds")

            return fail

    path, _ = filled
    index = Index.open(path)
    shard, index._store._shard = index._store._shard, Shard()
    with pytest.raises(StoreError, match="failed while counting: index out of bounds"):
        index.search(embedding=unit(1, 2, 8)[0])
    (said,) = index.verify()
    assert "index out of bounds" in said and "the rest was not read" in said
    with pytest.raises(StoreError, match="failed while flushing"):
        index.close()
    shard.close()
    Index.open(path).close()  # the lock was given back all the same


@pytest.mark.parametrize("store", ["embedded"])
def test_an_index_that_could_not_be_flushed_can_be_opened_again_in_the_same_process(filled, monkeypatch):
    path, _ = filled
    index = Index.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(index._store, "flush", lambda: (_ for _ in ()).throw(StoreError("the disk is full")))
        with pytest.raises(StoreError, match="the disk is full"):
            index.close()
    with Index.open(path) as again:
        assert len(again) == 5 and list(again.verify()) == []


@pytest.mark.parametrize("store", ["embedded"])
def test_what_filters_see_must_be_the_payload(filled, monkeypatch):
    path, blocks = filled

    def other(name, rows, payload):
        return {**points._kept(name, rows, payload), "p": {**payload, "n": 7}}

    with Index.open(path) as index:
        store = index._store
        store._upsert(iter([(points.key_of("odd"), blocks[0], other("odd", blocks[0], {"n": 1}))]), 1)
        key = points.key_of("other id")
        store._upsert(iter([(key, blocks[0], points._kept("odd", blocks[0], {}))]), 1)
        said = sorted(index.verify())
        assert len(said) == 2 and "do not fit the point" in said[0] and "what filters see differs" in said[1]


ADDER = """
import resource, sys
import numpy as np
from avse.index import Index
rows = np.random.default_rng(0).standard_normal((4000, 4, 64)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
with Index.open(sys.argv[1]) as index:
    index.add_embeddings([f"a{n}" for n in range(10)], rows[:10])
    print("10 acknowledged", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        index.add_embeddings([f"b{n}" for n in range(4000)], rows)
    except OSError as error:
        print(type(error).__name__, error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(index), len(index.search(embedding=rows[0, :2], k=5)), flush=True)
    index.add_embeddings(["c"], rows[:1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_a_disk_that_takes_no_more_loses_nothing_in_the_memory_store(tmp_path, encoder):
    wide = type("Wide", (type(encoder),), {"block_width": 64})()
    Index.create(tmp_path / "i", wide, store="memory").close()
    run = [sys.executable, "-c", ADDER, str(tmp_path / "i")]
    first, second, third = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first == "10 acknowledged" and third == "10 5"
    assert second.startswith("StoreError") and "nothing of this call was kept" in second and "make room" in second
    with Index.open(tmp_path / "i") as index:
        assert index.known([f"a{n}" for n in range(10)] + ["b0", "c"]) == {f"a{n}" for n in range(10)} | {"c"}
        assert list(index.verify()) == []


def test_a_full_disk_is_seen_before_the_engine_writes(tmp_path, encoder, unit, monkeypatch):
    with Index.create(tmp_path / "i", encoder) as index:
        index.add_embeddings(["a"], unit(1, 4, 8))
        with monkeypatch.context() as patch:
            patch.setattr(embedded.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
            with pytest.raises(StoreError, match="5 MiB are free.*nothing is lost.*make room"):
                index.add_embeddings(["b"], unit(1, 4, 8))
        assert len(index) == 1
    with Index.open(tmp_path / "i") as index:
        assert index.known(["a", "b"]) == {"a"} and list(index.verify()) == []


def test_a_read_only_index(filled, store, unit, monkeypatch):
    path, blocks = filled
    really = os.open

    def refuse(name, flags, *mode):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(name))
        return really(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    if store == "embedded":
        with pytest.raises(StoreError, match="lock file cannot be written .Permission denied.*writable"):
            Index.open(path)
        return
    with Index.open(path) as index:
        assert len(index.search(embedding=unit(1, 2, 8)[0])) == 5 and list(index.verify()) == []
        with pytest.raises(StoreError, match="lock file cannot be written"):
            index.add_embeddings(["new"], blocks[:1])
        with pytest.raises(StoreError, match="lock file cannot be written"):
            index.delete(IDS)
        assert len(index) == 5


def test_a_manifest_that_was_damaged_since_is_found(filled):
    path, _ = filled
    with Index.open(path) as index:
        (path / "index.json").write_text("{}")
        (said,) = index.verify()
        assert "index.json is damaged" in said


def test_the_checksum_is_that_of_the_blocks_as_they_lie():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert points._kept("a", rows, {})["crc"] == [zlib.crc32(b"{}"), zlib.crc32(rows.tobytes())]
