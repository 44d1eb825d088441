"""avse.files: whole or not there, and a manifest that notices one flipped bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle

import pytest

from avse import files


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "model"
    files.write_text(root / "config.json", '{"a": 1}')
    files.write_bytes(root / "deep" / "weights.bin", bytes(range(256)) * 8)
    files.write_manifest(root, {"kind": "test"})
    return root


def test_writes_what_was_given_and_leaves_no_temporary(tmp_path):
    files.write_bytes(tmp_path / "new" / "a.bin", b"\x00\xff")
    files.write_text(tmp_path / "b.txt", "naïve\n")
    files.write_json(tmp_path / "c.json", {"ü": [1, None]})
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b.txt").read_bytes() == "naïve\n".encode()
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"ü": [1, None]}
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.bin", "b.txt", "c.json", "new"]


def test_json_refuses_nan_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_leaves_the_former_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    files.write_text(path, "former")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device.*as it was before.*a\.txt") as caught:
        files.write_text(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_disk_full_in_the_middle_and_short_writes(tmp_path, monkeypatch):
    path, real, left = tmp_path / "a.bin", os.write, [10]

    def short(handle, data):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 3
        return real(handle, bytes(data[:3]))

    monkeypatch.setattr(os, "write", short)
    files.write_bytes(path, b"0123456789")  # four short writes fit
    assert path.read_bytes() == b"0123456789"
    left[0] = 6
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(path, b"abcdefghij")
    assert path.read_bytes() == b"0123456789"


def test_sha256_of_a_file_longer_than_a_chunk(tmp_path):
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "big").write_bytes(data)
    assert files.sha256(tmp_path / "big") == hashlib.sha256(data).hexdigest()


def test_manifest_round_trip(folder):
    manifest = files.verify_manifest(folder)
    assert manifest["kind"] == "test"
    assert manifest["files"].pop("manifest.json")["bytes"] == 0
    assert manifest["files"] == {
        "config.json": {"sha256": hashlib.sha256(b'{"a": 1}').hexdigest(), "bytes": 8},
        "deep/weights.bin": {"sha256": hashlib.sha256(bytes(range(256)) * 8).hexdigest(), "bytes": 2048},
    }


def test_flipped_bit_is_found(folder):
    path = folder / "deep" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        files.ManifestError, match=r"weights\.bin: expected sha256 [0-9a-f]{64}, found sha256"
    ) as caught:
        files.verify_manifest(folder)
    assert caught.value.file == str(path)
    assert caught.value.found == f"sha256 {hashlib.sha256(bytes(data)).hexdigest()}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_truncated_and_missing_files_are_found(folder):
    path = folder / "deep" / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(files.ManifestError, match=r"weights\.bin: expected 2048 bytes, found 2047 bytes"):
        files.verify_manifest(folder)
    path.unlink()
    with pytest.raises(files.ManifestError, match=r"weights\.bin: expected a file of 2048 bytes, found no such file"):
        files.verify_manifest(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "JSONDecodeError"),
        ('{"kind": 1}', "KeyError"),
        ('{"files": {"a": 3}}', "TypeError"),
        ('{"files": {"../a": {"sha256": "0", "bytes": 0}}}', r"\.\./a"),
        ('{"files": {"/etc/passwd": {"sha256": "0", "bytes": 0}}}', "/etc/passwd"),
    ],
)
def test_damaged_manifests_are_refused(folder, text, found):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(files.ManifestError, match=found):
        files.verify_manifest(folder)


def test_no_manifest_and_a_taken_key(folder, tmp_path):
    with pytest.raises(ValueError, match="another key"):
        files.write_manifest(folder, {"files": 1})
    (folder / "manifest.json").unlink()
    with pytest.raises(files.ManifestError, match="expected a manifest, found no such file"):
        files.verify_manifest(folder)


def test_replace_folder_puts_the_new_and_drops_the_former(folder, tmp_path):
    fresh = tmp_path / "fresh"
    files.write_text(fresh / "only.txt", "new")
    files.replace_folder(fresh, folder)
    assert [p.name for p in folder.iterdir()] == ["only.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_folder_made_at_the_last_moment_is_not_replaced(folder, tmp_path, monkeypatch):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.raises(OSError, match="not empty"):
        files.replace_folder(fresh, folder, replace=False)
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "exists", lambda _: False)  # looked before it was made
        with pytest.raises(OSError, match="not empty"):
            files.replace_folder(fresh, folder, replace=False)
    assert any(folder.iterdir()) and fresh.is_dir()
    (tmp_path / "empty").mkdir()
    files.replace_folder(fresh, tmp_path / "empty", replace=False)
    assert not fresh.exists()


def test_replace_folder_that_fails_puts_the_former_back(folder, tmp_path, monkeypatch):
    fresh, real = tmp_path / "fresh", os.rename
    fresh.mkdir()

    def refuse(source, target):
        if os.fspath(source) == os.fspath(fresh):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        files.replace_folder(fresh, folder)
    assert files.verify_manifest(folder)["kind"] == "test"


def test_a_crash_between_the_renames_is_explained(folder):
    os.rename(folder, files.former_folder(folder))
    with pytest.raises(files.ManifestError, match="rename it back"):
        files.verify_manifest(folder)
