"""A folder that lives: what a second run does about files that are new, other, moved, doubled, gone or unreadable."""

import os
import shutil
import sqlite3
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from avse.index import Index, Skipped, StoreError
from avse.index.pictures import Picture, picture_payload


class Counting:
    """An embedder that says what it was asked for; optionally from another thread, in another order."""

    def __init__(self, encoder, odd=False):
        self.encoder, self.odd, self.asked = encoder, odd, []

    def __call__(self, todo):
        if self.odd:  # all taken by another thread first, then given back from the end
            items = []
            thread = threading.Thread(target=lambda: items.extend(todo))
            thread.start()
            thread.join()
            todo = reversed(items)
        for name, path in todo:
            self.asked.append(name)
            yield [Picture(name, self.encoder.encode_images([path])[0], picture_payload(name, path))]


@pytest.fixture(params=["in order", "odd"])
def embed(request, encoder):
    return Counting(encoder, odd=request.param == "odd")


@pytest.fixture
def photos(tmp_path):
    """Six plain pictures from the year 2001, whose times are to be relied on."""
    folder = tmp_path / "photos"
    for number in range(6):
        paint(folder / f"{'ab'[number % 2]}" / f"{number}.png", number)
    return folder


def paint(path, number):
    """Write a picture whose pixels follow from the number, with a time of its own, long past."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    os.utime(path, ns=(0, (1_000_000_000 + number) * 10**9))


def state(index):
    return {name: payload for page in index._store.entries() for name, payload in page}


def check(index, folder, encoder):
    """The index is exactly what the folder holds: by naive reading, without journal and walk."""
    contents = {}
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix()):
        contents.setdefault(path.read_bytes(), []).append(path.relative_to(folder).as_posix())
    found = state(index)
    assert sorted(payload["paths"] for payload in found.values()) == sorted(contents.values())
    for name, payload in found.items():
        assert payload["path"] == name in payload["paths"] and payload["name"] == name.rpartition("/")[2]
        assert payload["folder"] == name.rpartition("/")[0]
    names, blocks, _ = index.get(list(found))
    assert names == list(found) and len(index) == len(names)
    if names:
        assert np.allclose(blocks, encoder.encode_images([folder / name for name in names]), atol=1e-6)
    assert list(index.verify()) == []


def run(index, folder, embed, **more):
    embed.asked.clear()
    report = index.add_images(folder, progress=False, embed=embed, **more)
    return {name: value for name, value in vars(report).items() if value and name != "skipped"}


def test_a_second_run_reads_nothing_that_is_unchanged(index, photos, embed, encoder, monkeypatch):
    assert run(index, photos, embed) == {"added": 6} and len(embed.asked) == 6
    monkeypatch.setattr("avse.index.living.sha256", lambda path: pytest.fail(f"{path} was read"))
    assert run(index, photos, embed) == {"known": 6} and embed.asked == []
    check(index, photos, encoder)


def test_all_that_can_happen_to_files(index, photos, embed, encoder):
    run(index, photos, embed)
    paint(photos / "a" / "new.png", 10)
    paint(photos / "a" / "0.png", 11)  # changed
    (photos / "a" / "2.png").rename(photos / "b" / "moved.png")
    shutil.copy(photos / "a" / "4.png", photos / "copy.png")
    (photos / "b" / "1.png").unlink()
    os.utime(photos / "b" / "3.png")  # touched, same content
    told = run(index, photos, embed)
    assert told == {"added": 1, "changed": 1, "moved": 1, "duplicates": 1, "removed": 1, "known": 3}
    assert sorted(embed.asked) == ["a/0.png", "a/new.png"]
    check(index, photos, encoder)
    assert state(index)["a/4.png"]["paths"] == ["a/4.png", "copy.png"]
    (photos / "a" / "4.png").unlink()  # the entry lives on under its other path
    assert run(index, photos, embed) == {"known": 6, "removed": 1} and embed.asked == []
    check(index, photos, encoder)
    assert run(index, photos, embed) == {"known": 6}


def test_names_that_change_places(index, photos, embed, encoder):
    run(index, photos, embed)
    for ring in (["a/0.png", "a/2.png"], ["a/4.png", "b/1.png", "b/3.png", "b/5.png"]):
        for name in ring:
            (photos / name).rename(photos / f"{name}.tmp")
        for name, other in zip(ring, [*ring[1:], ring[0]]):
            (photos / f"{name}.tmp").rename(photos / other)
    assert run(index, photos, embed) == {"changed": 6} and embed.asked == []
    check(index, photos, encoder)
    # a new picture takes the name of one that is now behind it in the alphabet
    (photos / "a" / "0.png").rename(photos / "z.png")
    paint(photos / "a" / "0.png", 20)
    assert run(index, photos, embed)["changed"] == 1 and embed.asked == ["a/0.png"]
    check(index, photos, encoder)


def test_many_small_changes_by_chance(index, photos, embed, encoder):
    """A hundred random events between runs, the journal lost now and then: always the folder, never one twice."""
    pick = np.random.default_rng(5)
    names = [f"{folder}{number}.png" for folder in ("", "a/", "b/") for number in range(4)]
    for step in range(70):
        name, other = pick.choice(names, 2, replace=False)
        kind = pick.integers(4)
        if kind == 0 or not (photos / name).exists():
            paint(photos / name, int(pick.integers(6)))
            os.utime(photos / name, ns=(0, (2_000_000 + step) * 10**9))
        elif kind == 1:
            (photos / name).unlink()
        elif kind == 2:
            (photos / name).rename(photos / other)
        else:
            shutil.copy2(photos / name, photos / other)
        if step % 5 == 0 and any(photos.rglob("*.png")):
            before = {payload["sha256"] for payload in state(index).values()}
            if step % 35 == 0:
                (index.path / "journal.sqlite").unlink(missing_ok=True)
            run(index, photos, embed)
            check(index, photos, encoder)
            embedded = {state(index)[name]["sha256"] for name in embed.asked}
            assert not embedded & before and len(embedded) == len(embed.asked)


def test_a_folder_in_the_source_touches_only_what_is_below_it(index, photos, embed, encoder):
    run(index, photos, embed)
    shutil.rmtree(photos / "a")
    (photos / "b" / "1.png").unlink()
    paint(photos / "b2.png", 7)
    assert run(index, photos / "b", embed) == {"known": 2, "removed": 1}
    assert "a/0.png" in state(index) and "b2.png" not in state(index)
    assert run(index, photos, embed) == {"added": 1, "known": 2, "removed": 3}
    check(index, photos, encoder)


def test_an_empty_folder_does_not_empty_the_index(index, photos, embed, tmp_path):
    run(index, photos, embed)
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="no such folder"):
        run(index, photos, embed)
    photos.mkdir()
    with pytest.raises(ValueError, match="holds no pictures.*what the index has of it stays"):
        run(index, photos, embed)
    with pytest.raises(ValueError, match="holds no pictures"):
        index.prune(progress=False)
    assert len(index) == 6


def test_prune_removes_and_embeds_nothing(index, photos, encoder, embed):
    run(index, photos, embed)
    (photos / "a" / "0.png").unlink()
    (photos / "a" / "2.png").rename(photos / "moved.png")
    paint(photos / "b" / "1.png", 12)
    paint(photos / "new.png", 13)
    encoder.encode_images = lambda images: pytest.fail("a model was asked")
    report = index.prune(progress=False)
    assert (report.removed, report.moved, report.changed, report.known, report.added) == (1, 1, 1, 3, 0)
    assert set(state(index)) == {"moved.png", "a/4.png", "b/3.png", "b/5.png"}
    del encoder.encode_images
    assert run(index, photos, embed) == {"added": 2, "known": 4}
    check(index, photos, encoder)


def test_without_its_journal_nothing_is_embedded_again(index, photos, embed, encoder, monkeypatch):
    paint(photos / "a" / "twin.png", 0)
    run(index, photos, embed)
    journal = index.path / "journal.sqlite"
    read = []
    monkeypatch.setattr("avse.index.living.sha256", _reading(read))
    for damage in (b"", b"no journal at all " * 100, None):
        journal.unlink()
        if damage is not None:
            journal.write_bytes(damage)
        read.clear()
        assert run(index, photos, embed) == {"known": 7} and embed.asked == []
        assert read == ["twin.png"]  # the store tells size and time of an entry's first path alone
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    try:
        assert run(index, photos, embed) == {"known": 7}
    except StoreError as error:  # what is found only on the way says what to do
        assert "may be deleted" in str(error)
        journal.unlink()
        assert run(index, photos, embed) == {"known": 7}
    check(index, photos, encoder)


def _reading(names):
    from avse.files import sha256

    def read(path):
        names.append(path.name)
        return sha256(path)

    return read


def test_entries_added_or_deleted_by_hand(index, photos, embed, encoder, unit):
    run(index, photos, embed)
    index.add_embeddings(["mine"], unit(1, 4, 8), [{"title": "x"}])
    index.delete(["a/0.png"])
    assert run(index, photos, embed) == {"added": 1, "known": 5} and embed.asked == ["a/0.png"]
    assert len(index) == 7 and state(index)["mine"] == {"title": "x"}
    index.add_embeddings(["a/0.png"], unit(1, 4, 8), [{"title": "y"}])  # in the way of a picture
    run(index, photos, embed)
    assert embed.asked == ["a/0.png"] and state(index)["a/0.png"]["name"] == "0.png"
    index.delete(["mine"])
    run(index, photos, embed)
    check(index, photos, encoder)


def test_a_file_that_may_still_change_is_read_again(index, photos, embed, encoder):
    path = photos / "a" / "young.png"
    paint(path, 30)
    os.utime(path)
    run(index, photos, embed)
    facts = path.stat()
    data = path.read_bytes()
    paint(path, 31)
    other = path.read_bytes().ljust(len(data), b"\0")
    assert other != data
    path.write_bytes(other[: len(data)] if len(other) == len(data) else data[:-1] + b"x")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the same size and time, another content
    assert run(index, photos, embed)["changed"] == 1 and embed.asked == ["a/young.png"]


def test_a_file_that_changes_or_vanishes_on_the_way(index, photos, encoder):
    class Meddling(Counting):
        def __call__(self, todo):
            for batch in super().__call__(todo):
                if batch[0].id == "a/2.png":
                    paint(photos / "a" / "2.png", 40)
                elif batch[0].id == "b/1.png":
                    (photos / "b" / "1.png").unlink()
                yield batch

    report = index.add_images(photos, progress=False, embed=Meddling(encoder))
    assert report.added == 4 and [skip.name for skip in report.skipped] == ["a/2.png", "b/1.png"]
    assert "it changed while it was read" in report.skipped[0].reason
    assert run(index, photos, Counting(encoder)) == {"added": 1, "known": 4}
    check(index, photos, encoder)


def test_unreadable_pictures_are_remembered_until_they_change(index, photos, encoder):
    encode, seen = encoder.encode_images, []
    encoder.encode_images = lambda images: seen.extend(images) or encode(images)
    (photos / "a" / "bad.png").write_bytes(b"no picture")
    (photos / "a" / "none.png").write_bytes(b"")
    for name in ("bad", "none"):
        os.utime(photos / "a" / f"{name}.png", ns=(0, 10**18))
    first = index.add_images(photos, progress=False)
    assert [skip.name for skip in first.skipped] == ["a/bad.png", "a/none.png"] and first.added == 6
    seen.clear()
    assert index.add_images(photos, progress=False).skipped == first.skipped and seen == []
    os.utime(photos / "a" / "bad.png")
    assert index.add_images(photos, progress=False).skipped == first.skipped and seen == []
    assert index.add_images(photos, retry=True, progress=False).skipped == first.skipped and seen
    paint(photos / "a" / "bad.png", 50)
    paint(photos / "a" / "0.png", 0)
    (photos / "a" / "0.png").write_bytes(b"spoilt")  # an entry whose picture is no longer one
    report = index.add_images(photos, progress=False)
    assert (report.added, [skip.name for skip in report.skipped]) == (1, ["a/0.png", "a/none.png"])
    assert "a/0.png" not in state(index) and len(index) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="FIFOs, links, file names of arbitrary bytes")
def test_odd_things_in_a_folder(index, photos, embed, encoder):
    os.mkfifo(photos / "pipe.png")
    (photos / "loop").symlink_to(photos)
    (photos / "self.png").symlink_to("self.png")
    (photos / "dangling.png").symlink_to("nowhere.png")
    (photos / "folder.png").mkdir()
    shutil.copy(photos / "a" / "0.png", os.fsencode(photos) + b"/bad\xff.png")
    report = index.add_images(photos, progress=False, embed=embed)
    assert report.added == 6 and report.skipped == (Skipped("bad\\udcff.png", "the name is not valid unicode"),)
    report = index.add_images([photos / "pipe.png", photos / "folder.png"], progress=False, embed=embed)
    assert [skip.reason for skip in report.skipped] == ["no file but a folder or device"] * 2
    (photos / "link.png").symlink_to("a/0.png")
    assert run(index, photos, embed) == {"known": 6, "duplicates": 1}


def test_what_lies_in_a_folder_that_cannot_be_listed_stays(index, photos, embed, monkeypatch):
    run(index, photos, embed)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = index.add_images(photos, progress=False, embed=embed)
    assert (report.known, report.removed, len(index)) == (3, 0, 6)
    assert report.skipped[0].name == "a/" and "Permission denied" in report.skipped[0].reason


def test_dates_sizes_and_damaged_exif(index, photos, embed):
    def shoot(name, taken):
        exif = Image.Exif()
        if taken is not None:
            exif.get_ifd(0x8769)[0x9003] = taken
        Image.new("RGB", (8, 6), (len(name), 9, 9)).save(photos / name, exif=exif)

    shoot("taken.jpg", "2019:06:01 12:30:00")
    shoot("never.jpg", "0000:00:00 00:00:00")
    shoot("words.jpg", "last summer")
    shoot("without.jpg", None)
    run(index, photos, embed)
    found = state(index)
    assert (found["taken.jpg"]["date"], found["taken.jpg"]["year"]) == ("2019-06-01T12:30:00", 2019)
    for name in ("never.jpg", "words.jpg", "without.jpg"):
        assert not {"date", "year"} & found[name].keys()
    assert found["a/0.png"]["modified"] == "2001-09-09T01:46:40.000000+00:00"
    assert [hit.id for hit in index.search("x", where="year = 2019 and width > 7")] == ["taken.jpg"]


def test_the_report_is_kept(index, photos, embed):
    import json

    (photos / "bad.png").write_bytes(b"")
    index.add_images(photos, progress=False)
    kept = json.loads((index.path / "report.json").read_text())
    assert kept["added"] == 6 and kept["skipped"] == [["bad.png", "empty (0 bytes)"]] and kept["finished"]


def test_an_embedder_that_forgets_something_is_found_out(index, photos, encoder):
    def lazy(todo):
        for number, (name, path) in enumerate(todo):
            if number != 2:
                yield [Picture(name, encoder.encode_images([path])[0], picture_payload(name, path))]

    with pytest.raises(ValueError, match=r"did not return 'a/4\.png'"):
        index.add_images(photos, progress=False, embed=lazy)
    assert len(index) == 5


def test_a_journal_that_cannot_be_written_is_a_clear_error(index, photos, embed, monkeypatch):
    run(index, photos, embed)
    paint(photos / "new.png", 60)
    holder = sqlite3.connect(index.path / "journal.sqlite")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("avse.index.journal._WAIT", 0.05)
    with pytest.raises(StoreError, match=r"journal\.sqlite: database is locked; what was reported as done"):
        run(index, photos, embed)
    holder.rollback()
    assert run(index, photos, embed) == {"added": 1, "known": 6}


def test_verify_finds_what_the_journal_has_and_the_store_has_not(index, photos, embed, unit):
    run(index, photos, embed)
    assert list(index.verify()) == []
    _, blocks, payloads = index.get(["a/0.png"])
    index._store.delete(["a/0.png"])
    index._store.add(["a/x.png"], blocks, payloads)
    assert [line for line in index.verify() if "a/0.png" in line]


@pytest.mark.parametrize("store", ["memory"])  # the engine packs payloads
def test_verify_names_damaged_entries_beside_a_journal(index, photos, embed):
    run(index, photos, embed)
    index.close()
    (lines,) = index.path.rglob("rows.jsonl")
    lines.write_bytes(lines.read_bytes().replace(b'"width":5', b'"width":6', 2))
    with Index.open(index.path) as again:
        said = list(again.verify())
    assert ["its line has another checksum" in line for line in said[:2]] == [True, True]
    assert said[2].startswith("the journal was not compared") and len(said) == 3


def test_verify_says_what_is_wrong_with_the_journal_and_leaves_it(index, photos, embed, encoder):
    run(index, photos, embed)
    kept = index.path / "journal.sqlite"
    whole = kept.read_bytes()
    kept.write_bytes(b"x" + whole[1:])
    (said,) = index.verify()
    assert "not a database" in said and "made anew" in said and kept.read_bytes()[:1] == b"x"
    content = state(index)["a/0.png"]["sha256"].encode()
    kept.write_bytes(whole.replace(content, b"0" * 64, 1))  # in one of the tables and indexes that have it
    assert any("journal.sqlite is damaged" in line for line in index.verify())
    kept.unlink()
    assert run(index, photos, embed) == {"known": 6} and embed.asked == []
    check(index, photos, encoder)


def test_another_process_cannot_take_the_journal_away(tmp_path, photos, encoder, embed, unit):
    with Index.create(tmp_path / "i", encoder, store="memory") as index:
        run(index, photos, embed)
        with Index.open(tmp_path / "i") as other:
            for change in (
                lambda: other.delete(["a/0.png"]),
                lambda: other.add_embeddings(["x"], unit(1, 4, 8)),
            ):
                with pytest.raises(StoreError, match="in use"):
                    change()
            assert list(other.verify()) == []
        assert (tmp_path / "i" / "journal.sqlite").exists()


def test_every_store_lives(place, photos, embed, encoder):
    with Index.create(place.path, encoder, **place.arguments) as index:
        assert run(index, photos, embed) == {"added": 6}
        paint(photos / "a" / "0.png", 11)
        (photos / "a" / "2.png").rename(photos / "moved.png")
        shutil.copy(photos / "b" / "1.png", photos / "copy.png")
        (photos / "b" / "3.png").unlink()
        told = run(index, photos, embed)
        assert told == {"changed": 1, "moved": 1, "duplicates": 1, "removed": 1, "known": 3}
        assert embed.asked == ["a/0.png"]
    with Index.open(place.path, encoder) as index:
        assert run(index, photos, embed) == {"known": 6} and embed.asked == []
        (photos / "b" / "1.png").unlink()
        assert index.prune(progress=False).removed == 1
        check(index, photos, encoder)


def test_a_store_that_fails_in_the_middle_loses_nothing_acknowledged(index, photos, encoder, monkeypatch):
    monkeypatch.setattr("avse.index.living._WRITE_PICTURES", 2)
    add, calls = index._store.add, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise StoreError("the disk is full")
        add(*arguments)

    monkeypatch.setattr(index._store, "add", failing)
    embed = Counting(encoder)
    with pytest.raises(StoreError, match="the disk is full"):
        run(index, photos, embed)
    assert set(state(index)) == {"a/0.png", "a/2.png"}
    assert run(index, photos, embed) == {"added": 4, "known": 2} and len(embed.asked) == 4
    check(index, photos, encoder)
