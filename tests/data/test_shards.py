"""Streaming of shards: nothing lost or doubled, exact resume, only what is wanted is read, and webdataset as oracle."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from itertools import permutations
from pathlib import Path

import braceexpand
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.data import shards, tars
from avse.data.shards import COUNTS, PairShards, Sample, ShardError

READERS = [(1, 1), (2, 1), (2, 3), (4, 2)]


def pack(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def make(folder: Path, counts: list[int], size: int = 40) -> PairShards:
    """Shards of so many samples; key k of shard s has the caption "s k" and a picture of ``size`` bytes."""
    for s, count in enumerate(counts):
        files = [(f"{s}/{k}.jpg", bytes([s, k % 256]) * (size // 2)) for k in range(count)]
        texts = [(f"{s}/{k}.txt", f"{s} {k}".encode()) for k in range(count)]
        pack(folder / f"t-{s:03d}.tar", [file for pair in zip(files, texts) for file in pair])
    return PairShards.open(folder)


def keys(samples) -> list[str]:
    return [sample.key for sample in samples]


@pytest.mark.parametrize("ranks, workers", READERS)
@pytest.mark.parametrize("counts", [[5, 3, 4], [7], [1, 1], [2, 0, 9, 1, 1]], ids=str)
def test_every_sample_is_given_exactly_once(tmp_path, counts, ranks, workers):
    data = make(tmp_path, counts)
    everything = sorted(f"{s}/{k}" for s, count in enumerate(counts) for k in range(count))
    assert data.counts == tuple(counts) and data.num_images == len(everything)
    parts = [
        list(data.stream(seed=1, epoch=2, rank=rank, ranks=ranks, worker=worker, workers=workers, buffer=3))
        for rank in range(ranks)
        for worker in range(workers)
    ]
    assert sorted(keys(sample for part in parts for sample in part)) == everything
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    merged = [list(data.read(seed=1, epoch=2, rank=r, ranks=ranks, workers=workers, buffer=3)) for r in range(ranks)]
    assert [len(part) for part in merged] == [data.share(rank, ranks) for rank in range(ranks)]
    assert sorted(sample for part in merged for sample in part) == sorted(sample for part in parts for sample in part)
    for sample in merged[0]:
        s, k = map(int, sample.key.split("/"))
        assert sample == Sample(f"{s}/{k}", bytes([s, k]) * 20, (f"{s} {k}",))


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(sum),
    ranks=st.integers(1, 4),
    workers=st.integers(1, 3),
    buffer=st.integers(1, 12),
    share=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_splits_and_resume_hold_for_any_shape(counts, ranks, workers, buffer, share):
    with tempfile.TemporaryDirectory() as folder:
        data, seen = make(Path(folder), counts), Counter()
        for rank in range(ranks):
            options = {"seed": 0, "epoch": 1, "rank": rank, "ranks": ranks, "workers": workers, "buffer": buffer}
            whole = list(data.read(**options))
            start = round(share * len(whole))
            assert list(data.read(**options, start=start)) == whole[start:]
            seen.update(keys(whole))
    assert seen == Counter(f"{s}/{k}" for s, count in enumerate(counts) for k in range(count))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_resume_at_every_sample_is_the_tail(tmp_path, workers, buffer):
    data = make(tmp_path, [4, 1, 6, 3])
    for rank in range(2):
        options = {"seed": 3, "epoch": 0, "rank": rank, "ranks": 2, "buffer": buffer}
        whole = list(data.read(**options, workers=workers))
        for start in range(len(whole) + 1):
            assert list(data.read(**options, workers=workers, start=start)) == whole[start:]
        alone = list(data.stream(**options, worker=workers - 1, workers=workers))
        for start in range(len(alone) + 1):
            assert list(data.stream(**options, worker=workers - 1, workers=workers, start=start)) == alone[start:]
        assert whole[workers - 1 :: workers][: len(alone) - 1] == alone[:-1]  # in turn, as long as all have some


def test_the_order_is_that_of_seed_and_epoch(tmp_path):
    data = make(tmp_path, [20, 20, 20])
    first = keys(data.stream(seed=0, epoch=0, buffer=30))
    assert keys(data.stream(seed=0, epoch=0, buffer=30)) == first
    others = [keys(data.stream(seed=seed, epoch=epoch, buffer=30)) for seed, epoch in [(0, 1), (1, 0), (1, 1)]]
    assert len({tuple(order) for order in [first, *others]}) == 4
    assert all(sorted(order) == sorted(first) for order in others)


def test_a_buffer_of_one_is_the_order_of_the_files(tmp_path):
    data = make(tmp_path, [4, 3, 5, 2])
    for epoch in range(4):
        order = keys(data.stream(seed=0, epoch=epoch, buffer=1))
        runs = list(dict.fromkeys(key.split("/")[0] for key in order))
        assert order == [f"{s}/{k}" for s in runs for k in range(data.counts[int(s)])]
        halves = [keys(data.stream(seed=0, epoch=epoch, rank=r, ranks=2, buffer=1)) for r in range(2)]
        assert halves[0] + halves[1] == order
    assert len({tuple(keys(data.stream(seed=0, epoch=e, buffer=1))) for e in range(8)}) > 3


def naive(items: list[int], buffer: int, draws) -> list[int]:
    """A shuffle buffer as everybody writes it."""
    coming, held, out = iter(items), [], []
    for item in coming:
        held.append(item)
        if len(held) == buffer:
            break
    while held:
        chosen = int(next(draws) * len(held))
        out.append(held[chosen])
        try:
            held[chosen] = next(coming)
        except StopIteration:
            held[chosen] = held[-1]
            held.pop()
    return out


@pytest.mark.parametrize("buffer", [1, 2, 17, 5000, 9000])
def test_the_order_is_that_of_a_real_buffer(buffer):
    draws = (x for generator in [np.random.default_rng(5)] for _ in range(3) for x in generator.random(4096).tolist())
    assert list(shards._shuffled(9000, buffer, np.random.default_rng(5))) == naive(list(range(9000)), buffer, draws)


def test_a_buffer_that_holds_all_gives_every_order_alike():
    counts = Counter(tuple(shards._shuffled(3, 9, np.random.default_rng((0, epoch)))) for epoch in range(3000))
    assert set(counts) == set(permutations(range(3)))
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 20.5  # chi square of 5 degrees, p = 0.001


class Counted(Sample):
    live, most, lock = 0, 0, threading.RLock()

    def __new__(cls, *fields):
        with Counted.lock:
            Counted.live += 1
            Counted.most = max(Counted.most, Counted.live)
        return super().__new__(cls, *fields)

    def __del__(self):
        with Counted.lock:
            Counted.live -= 1


def test_no_more_samples_are_held_than_buffers_and_queues(tmp_path, monkeypatch):
    data = make(tmp_path, [70, 70, 60])
    monkeypatch.setattr(tars, "Sample", Counted)
    for start in (0, 61):
        Counted.most = 0
        assert sum(1 for _ in data.stream(seed=0, epoch=0, buffer=10, start=start)) == 200 - start
        assert 8 < Counted.most <= 10 + 1 and not Counted.live  # and the one that was taken
    for workers in (1, 2):
        Counted.most = 0
        reader = data.read(seed=0, epoch=0, workers=workers, buffer=10)
        for taken in range(200):
            next(reader)
            if taken == 20:
                time.sleep(0.2)  # the threads read as far ahead as they may
        assert next(reader, None) is None
        each = 10 + shards._AHEAD + 1
        assert workers * shards._AHEAD < Counted.most <= workers * each + 1 and not Counted.live


class Counting(io.FileIO):
    total = 0

    def readinto(self, into):
        got = super().readinto(into)
        Counting.total += got
        return got

    def read(self, size=-1):
        got = super().read(size)
        Counting.total += len(got)
        return got

    def readall(self):
        raise AssertionError("a whole shard at once")


@pytest.mark.parametrize("buffer", [1, 8])
def test_what_is_not_wanted_is_not_read(tmp_path, monkeypatch, buffer):
    payload, header = 300_000, 3 * 8192  # of a sample: a block at each header
    made = []

    def counting(path, mode, buffering):
        made.append(Path(path).name)
        return io.BufferedReader(Counting(path, mode), buffering)

    monkeypatch.setattr(tars, "open", counting, raising=False)
    Counting.total = 0
    data = make(tmp_path, [10, 10, 10, 10], size=payload)
    assert Counting.total < 40 * header  # counting reads no picture
    for start in (0, 15, 35, 39, 40):
        Counting.total, made[:] = 0, []
        rest = list(data.stream(seed=0, epoch=0, buffer=buffer, start=start))
        assert len(rest) == 40 - start
        assert len(rest) * payload <= Counting.total <= len(rest) * (payload + 2 * header) + 10 * header
        assert len(made) == len({sample.key[0] for sample in rest})  # shards of which nothing is wanted stay closed
    Counting.total = 0
    assert len(list(data.stream(seed=0, epoch=0, rank=1, ranks=4, buffer=buffer))) == 10
    assert Counting.total < 10 * (payload + 3 * header)


def test_threads_end_with_the_iterator(tmp_path):
    data, before = make(tmp_path, [90, 90]), threading.active_count()
    iterator = data.read(seed=0, epoch=0, workers=3, buffer=4)
    next(iterator)
    assert threading.active_count() == before + 3
    iterator.close()
    assert threading.active_count() == before
    iterator = data.read(seed=0, epoch=0, workers=3, buffer=4)
    next(iterator)
    del iterator
    gc.collect()
    assert threading.active_count() == before
    list(data.read(seed=0, epoch=0, workers=3, buffer=4))
    assert threading.active_count() == before


def test_the_process_ends_though_an_iterator_is_open(tmp_path):
    make(tmp_path, [90, 90])
    code = (
        "import sys; from avse.data.shards import PairShards\n"
        "it = PairShards.open(sys.argv[1]).read(seed=0, epoch=0); print(next(it).captions)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=30, stdout=subprocess.DEVNULL)


def test_wrong_readers_are_refused(tmp_path):
    data = make(tmp_path, [3, 3])
    for options in [{"rank": 2, "ranks": 2}, {"rank": -1}, {"worker": 1}, {"buffer": 0}]:
        with pytest.raises(ValueError, match="count from 0"):
            next(data.stream(seed=0, epoch=0, **options))
    with pytest.raises(ValueError, match="start 7: this reader has 6 samples"):
        next(data.stream(seed=0, epoch=0, start=7))
    with pytest.raises(ValueError, match=r"start lies in 0\.\.3"):
        next(data.read(seed=0, epoch=0, ranks=2, start=4))
    with pytest.raises(ValueError, match="workers are 1 or more"):
        next(data.read(seed=0, epoch=0, workers=0))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        data.share(2, 2)


def test_what_webdataset_wrote_is_read(tmp_path):
    generator, wanted = random.Random(0), []
    with webdataset.ShardWriter(str(tmp_path / "w-%05d.tar"), maxcount=7, verbose=0) as writer:
        for i in range(30):
            key, image = f"{'deep/' * (i % 3)}{i:04d}", generator.randbytes(generator.randrange(1, 4000))
            said, captions = [
                ({"txt": f" only {i} "}, (f"only {i}",)),
                ({"json": {"captions": [f"one ü {i}", f"two {i}"], "id": i}}, (f"one ü {i}", f"two {i}")),
                ({"json": {"caption": f"c {i}"}}, (f"c {i}",)),
                ({"json": {"text": f"t {i}"}}, (f"t {i}",)),
                ({"json": {"caption": f"other {i}"}, "txt": f"txt {i}"}, (f"txt {i}",)),
            ][i % 5]
            writer.write({"__key__": key, ["jpg", "png", "jpeg", "webp"][i % 4]: image, "cls": i, **said})
            wanted.append(Sample(key, image, captions))
    data = PairShards.open(tmp_path / "w-{00000..00004}.tar")
    assert data.counts == (7, 7, 7, 7, 2) and not data.skipped
    assert sorted(data.read(seed=0, epoch=0, workers=2)) == sorted(wanted)
    inside = [s for path in data.paths for s in PairShards.open(path).stream(seed=0, epoch=0, buffer=1)]
    assert inside == wanted  # a shard's own order is kept


def expect(path: Path) -> list[Sample]:
    """What the webdataset package finds in a shard, made a sample by hand."""
    found = []
    for said in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        picture = next((said[name] for name in ("jpg", "jpeg", "png", "webp") if said.get(name)), None)
        texts = [said["txt"].decode()] if "txt" in said else json.loads(said.get("json", b"{}")).get("captions", [])
        texts = tuple(text.strip() for text in texts if text.strip())
        if picture and texts:
            found.append(Sample(said["__key__"], picture, texts))
    return found


def test_names_are_grouped_as_webdataset_groups_them(tmp_path):
    files = [
        ("__meta__", b"{}"), ("__meta__/x.json", b"{}"), ("a.jpg", b"1"), ("a.txt", b" first \n"),
        ("b.JPG", b"2"), ("b.Txt", b"second"),
        ("d/c.x.jpg", b"no"), ("d/c.png", b"3"), ("d/c.json", b'{"captions": ["x", " ", "y"], "id": 7}'),
        ("d.e/c.txt", b"other folder"), ("d.e/c.webp", b"4"), ("./f.jpeg", b"5"), ("./f.txt", b"dot"),
        ("nothing", b"no suffix"), (".hidden.jpg", b"no"), ("g.seg.png", b"no"), ("g.jpg", b"6"), ("g.txt", b"g"),
        ("a.jpg", b"7"), ("a.txt", b"the same key again"), ("x" * 180 + ".jpg", b"8"), ("x" * 180 + ".txt", b"long"),
        ("ü.jpg", b"9"), ("ü.txt", "ü".encode()), ("m.jpg", b"10"), ("m.png", b"mask"), ("m.txt", b"two pictures"),
        ("z.jpg", b"11"), ("z.txt", b"txt wins"), ("z.json", b'{"captions": ["json"]}'), ("w.jpg", b"no caption"),
        ("e.txt", b"no picture"),
    ]  # fmt: skip
    path = pack(tmp_path / "names.tar", files)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    data = PairShards.open(path)
    found = list(data.stream(seed=0, epoch=0, buffer=1))
    assert found == expect(path) and len(found) == 11
    assert {(skip.name, skip.reason) for skip in data.skipped} == {
        ("names.tar/w", "no caption"),
        ("names.tar/e", "no picture"),
    }


def test_samples_that_cannot_be_used_are_listed_and_passed_over(tmp_path):
    texts = {
        "empty.txt": b"", "blank.txt": b" \n ", "latin.txt": b"\xe9t\xe9", "cut.json": b'{"captions": ["a"',
        "other.json": b'{"label": 3}', "number.json": b'{"caption": 3}', "dict.json": b'{"captions": {"a": "b"}}',
        "null.json": b'{"caption": null}', "mixed.json": b'{"captions": ["a", 1]}', "deep.json": b"[" * 100_000,
    }  # fmt: skip
    files = [("first.jpg", b"1"), ("first.txt", b"one")]
    for name, text in texts.items():
        files += [(f"{name.split('.')[0]}.jpg", b"p"), (name, text)]
    files += [
        ("zero.jpg", b""),
        ("zero.txt", b"a picture of no bytes"),
        ("last.png", b"2"),
        ("last.txt", b"\xef\xbb\xbfBOM"),
    ]
    path = pack(tmp_path / "s.tar", files)
    data = PairShards.open(tmp_path)
    assert data.num_images == 2 and data.name == tmp_path.name
    assert [(sample.key, sample.captions) for sample in data.stream(seed=0, epoch=0, buffer=1)] == [
        ("first", ("one",)),
        ("last", ("BOM",)),
    ]
    reasons = {skip.name.removeprefix("s.tar/"): skip.kind for skip in data.skipped}
    assert reasons == {
        "empty": "no caption", "blank": "no caption", "latin": "unreadable caption", "cut": "unreadable caption",
        "other": "no caption", "number": "unreadable caption", "dict": "unreadable caption", "null": "no caption",
        "mixed": "unreadable caption", "deep": "unreadable caption", "zero": "no picture",
    }  # fmt: skip
    assert PairShards.open(path).skipped == data.skipped  # from the kept counts
    pack(tmp_path / "bad" / "s.tar", {"a.jpg": b"1", "b.txt": b"x", "c.txt": b"y"})
    with pytest.raises(ShardError, match=r"bad: expected samples: KEY.jpg.* found 1 no caption, 2 no picture"):
        PairShards.open(tmp_path / "bad")


def test_one_file_twice_in_a_sample_is_an_error(tmp_path):
    pack(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", b"x"), ("a.JPG", b"2")])
    with pytest.raises(ShardError, match=r"s\.tar: .*a\.JPG twice"):
        PairShards.open(tmp_path)


@pytest.mark.parametrize("pattern", ["t-{000..002}.tar", "{t,u}-00{1,2}.tar", "t-{0..1}{00..11}.tar", "plain.tar"])
def test_braces_are_those_of_the_shell(pattern):
    assert shards._expanded(pattern) == list(braceexpand.braceexpand(pattern))


def test_sources_of_every_kind(tmp_path):
    make(tmp_path / "d", [1, 2, 3, 4])
    (tmp_path / "d" / "._t-000.tar").write_bytes(b"of another system")
    folder = str(tmp_path / "d")
    for source, counts in {
        folder: (1, 2, 3, 4),
        f"{folder}/t-002.tar": (3,),
        f"{folder}/t-{{001..003}}.tar": (2, 3, 4),
        f"{folder}/t-{{000,003}}.tar": (1, 4),
        f"{folder}/*.tar": (1, 2, 3, 4),
        f"{folder}/t-00[01].tar": (1, 2),
    }.items():
        data = PairShards.open(source)
        assert data.counts == counts and data.name == "d"
    for source, said in {
        f"{folder}/t-{{002..004}}.tar": r"t-004\.tar: no such shard",
        f"{folder}/t-{{3..1}}.tar": "names no shard",
        f"{folder}/x*.tar": "no such shard",
        str(tmp_path): "neither shards.json nor any .tar file",
        "pipe:cat x.tar": "no such shard",
    }.items():
        with pytest.raises(FileNotFoundError, match=said):
            PairShards.open(source)


def test_counts_are_kept_until_a_shard_changes(tmp_path, monkeypatch, capsys):
    data = make(tmp_path, [2, 3])
    assert "counting shards" in capsys.readouterr().err
    counted = []
    real = tars.count_samples
    monkeypatch.setattr(shards, "count_samples", lambda path: counted.append(path.name) or real(path))
    assert PairShards.open(tmp_path) == data and not counted
    assert "counting" not in capsys.readouterr().err
    pack(tmp_path / "t-001.tar", {"a.jpg": b"1", "a.txt": b"x"})
    changed = PairShards.open(tmp_path)
    assert counted == ["t-001.tar"] and changed.counts == (2, 1) and changed.fingerprint() != data.fingerprint()
    for damage in ("", "[]", '{"t-000.tar": 3}', '{"t-000.tar": [1, 2, 3, [4]]}'):
        (tmp_path / COUNTS).write_text(damage)
        assert PairShards.open(tmp_path) == changed
    (tmp_path / COUNTS).unlink()
    (tmp_path / COUNTS).mkdir()  # nothing can be kept here
    assert PairShards.open(tmp_path) == changed


def test_the_fingerprint_is_that_of_content_not_of_place(tmp_path):
    data = make(tmp_path / "a", [2, 3])
    os.utime(data.paths[0], ns=(1, 1))
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert PairShards.open(moved).fingerprint() == data.fingerprint()
    assert PairShards.open(moved / "t-000.tar").fingerprint() != PairShards.open(moved).fingerprint()


def test_a_shard_that_changed_or_went_is_named_by_every_way_of_reading(tmp_path):
    data, before = make(tmp_path, [40, 40]), threading.active_count()
    path, content = data.paths[1], data.paths[1].read_bytes()
    later = (data.shards[1].mtime_ns + 10**9,) * 2
    for change in (
        lambda: os.utime(path, ns=later),
        lambda: path.write_bytes(content[:-1024]),
        path.unlink,
    ):
        change()
        for reader in (data.stream, data.read):
            with pytest.raises(ShardError, match=r"t-001\.tar: expected .*, found ") as error:
                list(reader(seed=0, epoch=0, buffer=4))
            assert error.value.file == str(path)
        assert threading.active_count() == before
    lying = PairShards(data.name, (data.shards[0]._replace(samples=41),))
    with pytest.raises(ShardError, match=r"t-000\.tar: expected 41 samples, found 40"):
        list(lying.stream(seed=0, epoch=0))


def test_damaged_shards_are_named(tmp_path):
    make(tmp_path / "good", [5], size=2000)
    whole = (tmp_path / "good" / "t-000.tar").read_bytes()
    sample = 512 + 2048 + 512 + 512
    broken = bytearray(whole)
    broken[2 * sample + 148 : 2 * sample + 156] = b"\xff" * 8  # the checksum of the third sample's header
    cases = {
        "in a picture": whole[: 2 * sample + 1500],
        "in a header": whole[: 2 * sample + 100],
        "between two samples": whole[: 2 * sample],
        "in the last text": whole[: 5 * sample - 500],
        "header": bytes(broken),
        "compressed": gzip.compress(whole),
        "empty": b"",
        "no tar": b"hello" * 1000,
    }
    for name, content in cases.items():
        path = tmp_path / "bad.tar"
        path.write_bytes(content)
        with pytest.raises(ShardError, match=r"bad\.tar: expected a whole tar file"):
            PairShards.open(path)
            pytest.fail(name)


def test_random_damage_is_an_error_or_samples_and_never_a_crash(tmp_path):
    whole, random_, errors = make(tmp_path, [3]).paths[0].read_bytes(), random.Random(0), 0
    path = tmp_path / "bad.tar"
    for _ in range(500):
        broken = bytearray(whole)
        for _ in range(random_.randrange(1, 6)):
            broken[random_.randrange(6 * 1024)] = random_.choice([0, 32, 48, 55, 255, random_.randrange(256)])
        path.write_bytes(broken)
        try:
            shard = tars.count_samples(path)
            if shard.samples:
                assert len(list(tars.read_samples(shard, range(shard.samples)))) == shard.samples
        except ShardError as error:
            assert error.file == str(path)
            errors += 1
    assert 100 < errors < 500


def test_no_torch_is_loaded():
    code = "import sys, avse.data.shards, avse.data.sharding; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
