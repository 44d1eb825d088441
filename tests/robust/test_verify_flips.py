"""`avse verify` finds any flipped byte, and what was added, taken away, cut or exchanged, and names the file."""

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from robust_indexes import restore, unit
from robust_loaders import ColourEncoder
from robust_models import tiny_model

from avse import files
from avse.cli import main
from avse.index import Index, seal, segments
from avse.index.uploads import Uploads

STORES = {
    "memory": {"store": "memory"},
    "embedded": {},
    "sharded": {"shards": 2},
    "texts": {"store": "memory", "side": "texts"},
}


def positions(size, most):
    """The first and the last bytes, and some by chance; all of a small file."""
    if size <= most:
        return range(size)
    ends = [*range(8), *range(size - 8, size)]
    return sorted({*ends, *random.Random(size).sample(range(size), most - len(ends))})


def flip(path, at, bits=0x20):
    """Change a byte as a bad disk does, which leaves the times as they are."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with open(path, "rb+") as stream:
        stream.seek(at)
        old = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([old ^ bits]))
    os.utime(path, ns=times)


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.fixture(params=STORES)
def index(request, tmp_path, monkeypatch):
    """A closed index; one of pictures has a journal, a report, an upload, an int8 copy and a deleted entry."""
    path = tmp_path / "i.avse"
    if request.param == "texts":
        with Index.create(path, ColourEncoder(), **STORES["texts"]) as made:
            made.add_texts(["a dog", "a cat", "snow"], progress=False)
        return path
    monkeypatch.setattr(segments, "ROWS", 4)
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(6):
        Image.new("RGB", (8, 6), (40 * n, 90, 200 - 30 * n)).save(photos / f"{n}.png")
    with Index.create(path, ColourEncoder(), **STORES[request.param]) as made:
        made.add_images(photos, progress=False)
        sent = (photos / "0.png").read_bytes() + b"\0"
        with Image.open(io.BytesIO(sent)) as picture:
            digest = hashlib.sha256(sent).hexdigest()
            assert Uploads(made).enter("sent.png", picture, sent, digest, "2026-01-01T00:00:00Z")
    (photos / "5.png").unlink()
    with Index.open(path, ColourEncoder()) as made:
        assert made.add_images(photos, progress=False).removed == 1 and len(made) == 6
    there = {file.relative_to(path).as_posix() for file in files_of(path)}
    assert {"journal.sqlite", "report.json", f"uploads/{digest[:2]}/{digest}", "index.json", "seal.json"} <= there
    assert request.param != "memory" or {"memory/rows.i8", "memory/segments.json"} <= there
    return path


def change(path):
    """Add an entry."""
    with Index.open(path, ColourEncoder()) as made:
        made.add_texts(["x"]) if made.side == "texts" else made.add_embeddings(["x"], unit(1, 4, 8))


def verify(path, capsys):
    """Return the exit status and what was said."""
    capsys.readouterr()
    status = main(["verify", str(path)])
    return status, capsys.readouterr().out


def rounds(paths, most):
    """Yield at every turn each file with one of its positions, until the one with the most has no more."""
    places = {path: positions(path.stat().st_size, most) for path in paths}
    for turn in range(max(map(len, places.values()))):
        yield [(path, found[turn]) for path, found in places.items() if turn < len(found)]


def named(sentences, paths):
    """Return the files that sentences begin with."""
    return sorted(path for path in paths if any(said.startswith(f"{path} ") for said in sentences))


@pytest.mark.parametrize("most", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_an_index(index, most):
    assert list(seal.find_damages(index)) == [] and (index / "lock").stat().st_size == 0
    found = files_of(index)
    assert len(found) >= 5
    for paths in ([index / seal.NAME], [path for path in found if path.name != seal.NAME]):
        for flips in rounds(paths, most):  # of all files at once, for all are read again each time
            for path, at in flips:
                flip(path, at, 1 << at % 8)
            said = [sentence for _, sentence in seal.find_damages(index)]
            assert named(said, paths) == [path for path, _ in flips] and len(said) == len(flips), (flips, said)
            for path, at in flips:
                flip(path, at, 1 << at % 8)
    assert list(seal.find_damages(index)) == []


def test_the_command_says_so_and_says_it_again(index, capsys):
    assert verify(index, capsys)[0] == 0
    largest = max(files_of(index), key=lambda path: path.stat().st_blocks)
    small = [path for path in (index / "report.json", index / "journal.sqlite") if path.exists()]
    for path in (*small, largest, index / "index.json", index / "seal.json"):
        flip(path, path.stat().st_size - 2)
        said = [verify(index, capsys) for _ in range(3)]  # what verify opens and closes does not become sound by that
        assert said[0][0] == 1 and str(path) in said[0][1] and said == said[:1] * 3, path
        flip(path, path.stat().st_size - 2)
        if path.name == "seal.json":
            change(index)
        assert verify(index, capsys) == (0, f"{index}: whole\n"), path


def test_the_command_changes_no_file_of_ours(index, capsys):
    engines = (index / "embedded", index / "seal.json")[: 2 * (index / "embedded").exists()]
    before = {path: path.read_bytes() for path in files_of(index) if not any(map(path.is_relative_to, engines))}
    assert len(before) >= 3 and verify(index, capsys)[0] == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", ["flipped", "removed", "added"])
def test_an_index_that_is_verified_first_when_it_is_damaged_has_that_damage_alone(index, capsys, damage):
    """The engine settles some files at the first opening after a change; they are not taken for damage then."""
    path, kept = index / "report.json", b""
    if damage == "added":
        path = index / "foreign"
        path.write_bytes(b"x")
    elif path.exists():
        kept = path.read_bytes()
        flip(path, 5) if damage == "flipped" else path.unlink()
    else:
        pytest.skip("an index of texts has no report")
    said = [verify(index, capsys) for _ in range(3)]
    assert said[0][0] == 1 and said[0][1].startswith(f"{path} is ") and said[0][1].count("\n") == 1
    assert said == said[:1] * 3
    path.write_bytes(kept) if kept else path.unlink()
    assert verify(index, capsys) == (0, f"{index}: whole\n")


@pytest.mark.parametrize("name", ["index.json", "seal.json"])
def test_a_manifest_that_is_gone_is_damage(index, capsys, name):
    kept = (index / name).read_bytes()
    (index / name).unlink()
    for _ in range(2):
        status, said = verify(index, capsys)
        assert status == 1 and f"{index / name}" in said and "gone" in said
    (index / name).write_bytes(kept)
    if name == "seal.json":
        change(index)  # it tells of files that the engine has settled since
    assert verify(index, capsys)[0] == 0


@pytest.mark.parametrize("damage", ["added", "removed", "cut", "longer", "swapped", "unsealed"])
def test_other_changes_of_an_index(index, damage, capsys):
    names = {path.relative_to(index).as_posix(): path for path in files_of(index)}
    path = next(p for n, p in names.items() if n.endswith(("rows.jsonl", "mutable_id_tracker.mappings")))
    if damage == "added":
        path = path.with_name("foreign")
        path.write_bytes(b"x")
    elif damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif damage == "swapped":
        other = index / "index.json"
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)
    else:
        path = index / "seal.json"
        path.unlink()
    status, said = verify(index, capsys)
    assert status == 1 and str(path) in said


def test_what_only_searches_leaves_damage_to_be_found(index, capsys):
    """An index of which nobody changes anything keeps its seal, byte for byte of every file that nothing touched."""
    path = next(p for p in files_of(index) if p.name in ("rows.jsonl", "page_0.dat"))
    at = path.stat().st_size - 1 if path.name == "page_0.dat" else 2  # behind all entries: nothing reads it
    flip(path, at)
    if path.name == "page_0.dat":
        with Index.open(index, ColourEncoder()) as made:
            assert len(made.search(embedding=unit(1, 2, 8)[0], k=2)) == 2
    status, said = verify(index, capsys)
    assert status == 1 and path.name in said


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_seal_is_said_until_the_index_is_changed(index, capsys, gone):
    """Searching writes no seal in place of one that is damaged or gone, or all other damage would be sealed in."""
    path = index / "seal.json"
    whole = path.read_bytes()
    other = next(p for p in files_of(index) if p.name in ("rows.jsonl", "page_0.dat"))
    if other.name == "page_0.dat":
        flip(other, other.stat().st_size - 1)  # behind all entries: nothing reads it
    path.unlink() if gone else flip(path, 20)
    for _ in range(2):
        with Index.open(index, ColourEncoder()) as made:
            query = unit(1, 4, 8)[0] if made.side == "texts" else unit(1, 2, 8)[0]
            assert len(made.search(embedding=query, k=2)) == 2
        status, said = verify(index, capsys)
        assert status == 1 and str(path) in said
    if other.name == "page_0.dat":
        path.write_bytes(whole)
        assert str(other) in verify(index, capsys)[1]
        path.unlink()
    change(index)
    assert verify(index, capsys)[0] == 0


@pytest.mark.parametrize("index", ["embedded", "sharded"], indirect=True)
def test_an_index_in_use_is_an_error_and_no_damage(index, capsys):
    code = "import sys; from avse.index import Index; i = Index.open(sys.argv[1]); print(); sys.stdin.read(); i.close()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        for more in ((), ("--json",)):
            assert main(["verify", str(index), *more]) == 1
            said = capsys.readouterr()
            assert said.out == "" and f"in use by process {other.pid}" in said.err and "--url" in said.err
        other.stdin.close()
    assert verify(index, capsys) == (0, f"{index}: whole\n")


def test_a_change_seals_anew_and_a_crash_leaves_none(index, capsys):
    made = Index.open(index, ColourEncoder())
    made.add_texts(["x"]) if made.side == "texts" else made.add_embeddings(["x"], unit(1, 4, 8))
    copy = index.with_name("copy")
    restore(index, copy)  # as a process that dies here leaves it
    assert not (copy / "seal.json").exists() and list(seal.find_damages(copy)) == []
    made.close()
    assert verify(index, capsys)[0] == 0 and (index / "seal.json").exists()
    assert verify(copy, capsys)[0] == 0 and verify(copy, capsys)[0] == 0


def test_copies_with_filled_holes_are_the_same(tmp_path):
    one, two = tmp_path / "holes", tmp_path / "filled"
    with open(one, "wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"x")
        stream.truncate(9 << 20)
    two.write_bytes(one.read_bytes())
    assert seal.digest(one) == seal.digest(two)
    for at in (0, 3 << 20, (3 << 20) + 1, (9 << 20) - 1):
        flip(two, at)
        assert seal.digest(one) != seal.digest(two)
        flip(two, at)


@pytest.mark.parametrize("most", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_a_model(tmp_path, request, most):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    assert list(files.find_damages(folder, foreign=True)) == []
    found = files_of(folder)
    for paths, count in (
        ([folder / files.MANIFEST], 4 * most),
        ([path for path in found if path.name != files.MANIFEST], most),
    ):
        for flips in rounds(paths, count):
            for path, at in flips:
                flip(path, at, 1 << at % 8)
            said = {error.file for error in files.find_damages(folder, foreign=True)}
            assert {str(path) for path, _ in flips} <= said, (flips, said)
            assert len(said) == len(flips) or paths == [folder / files.MANIFEST], said
            for path, at in flips:
                flip(path, at, 1 << at % 8)


def test_a_model_without_its_manifest_is_damaged_and_no_folder_at_all_is_none(tmp_path, request, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    (folder / "manifest.json").unlink()
    status, said = verify(folder, capsys)
    assert status == 1 and said == f"{folder / 'manifest.json'}: expected a manifest, found no such file\n"
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert f"{tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 1
    assert f"verify {folder} inside it" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["added", "removed", "cut", "swapped"])
def test_other_changes_of_a_model(tmp_path, request, damage, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    assert verify(folder, capsys)[0] == 0
    path = folder / "config.json"
    if damage == "added":
        path = folder / "text_encoder" / "foreign.py"
        path.write_text("x")
    elif damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 5)
    else:
        one, two = path.read_bytes(), (folder / "calibration.json").read_bytes()
        path.write_bytes(two)
        (folder / "calibration.json").write_bytes(one)
    status, said = verify(folder, capsys)
    assert status == 1 and str(path) in said
