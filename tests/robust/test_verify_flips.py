"""`avse verify` finds any flipped byte, and what was added, taken away, cut or exchanged, and names the file."""

import os
import random
import shutil

import pytest
from robust_indexes import IDS, fill, restore, unit
from robust_loaders import ColourEncoder, tiny_model

from avse import files
from avse.cli import main
from avse.index import Index, seal

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
    """A closed index with a journal, uploads and a deleted entry."""
    path = tmp_path / "i.avse"
    if request.param == "texts":
        with Index.create(path, ColourEncoder(), **STORES["texts"]) as made:
            made.add_texts(["a dog", "a cat", "snow"], progress=False)
    else:
        fill(path, **STORES[request.param])
        with Index.open(path, ColourEncoder()) as made:
            made.delete(IDS[:1])
    return path


def verify(path, capsys):
    """Return the exit status and what was said."""
    capsys.readouterr()
    status = main(["verify", str(path)])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("most", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_an_index(index, most):
    assert list(seal.find_damages(index)) == [] and (index / "lock").stat().st_size == 0
    found = files_of(index)
    assert len(found) >= 5
    for path in found:
        for at in positions(path.stat().st_size, most):
            flip(path, at, 1 << at % 8)
            said = list(seal.find_damages(index))
            assert said and any(str(path) in line for line in said), (path, at)
            flip(path, at, 1 << at % 8)
    assert list(seal.find_damages(index)) == []


def test_the_command_says_so_and_says_it_again(index, capsys):
    assert verify(index, capsys)[0] == 0
    largest = max(files_of(index), key=lambda path: path.stat().st_blocks)
    for path in {largest, index / "index.json", index / "seal.json"}:
        flip(path, path.stat().st_size - 2)
        for _ in range(2):  # what verify opens and closes does not become sound by that
            status, said = verify(index, capsys)
            assert status == 1 and str(path) in said, path
        flip(path, path.stat().st_size - 2)
        if path.name == "seal.json":
            with Index.open(index, ColourEncoder()) as made:
                made.add_texts(["x"]) if made.side == "texts" else made.add_embeddings(["x"], unit(1, 4, 8))
        assert verify(index, capsys)[0] == 0, path


@pytest.mark.parametrize("change", ["added", "removed", "cut", "longer", "swapped", "unsealed"])
def test_other_changes_of_an_index(index, change, capsys):
    names = {path.relative_to(index).as_posix(): path for path in files_of(index)}
    path = next(p for n, p in names.items() if n.endswith(("rows.jsonl", "mutable_id_tracker.mappings")))
    if change == "added":
        path = path.with_name("foreign")
        path.write_bytes(b"x")
    elif change == "removed":
        path.unlink()
    elif change == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "swapped":
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


@pytest.mark.parametrize("most", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_a_model(tmp_path, request, most):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    assert list(files.find_damages(folder, foreign=True)) == []
    for path in files_of(folder):
        for at in positions(path.stat().st_size, 4 * most if path.name == files.MANIFEST else most):
            flip(path, at, 1 << at % 8)
            said = [error.file for error in files.find_damages(folder, foreign=True)]
            assert any(name in (str(path), str(folder / files.MANIFEST)) for name in said), (path, at)
            assert path.name == files.MANIFEST or str(path) in said
            flip(path, at, 1 << at % 8)


@pytest.mark.parametrize("change", ["added", "removed", "cut", "swapped"])
def test_other_changes_of_a_model(tmp_path, request, change, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    assert verify(folder, capsys)[0] == 0
    path = folder / "config.json"
    if change == "added":
        path = folder / "text_encoder" / "foreign.py"
        path.write_text("x")
    elif change == "removed":
        path.unlink()
    elif change == "cut":
        os.truncate(path, 5)
    else:
        one, two = path.read_bytes(), (folder / "calibration.json").read_bytes()
        path.write_bytes(two)
        (folder / "calibration.json").write_bytes(one)
    status, said = verify(folder, capsys)
    assert status == 1 and str(path) in said
