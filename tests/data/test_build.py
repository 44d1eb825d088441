"""avse.data.build: whole or not there, reused or refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from avse.data.build import build_folder


def fill(text):
    def make(folder):
        (folder / "file.txt").write_text(text)
        return {"letters": len(text)}

    return make


def test_built_then_reused_then_forced(tmp_path):
    out = tmp_path / "deep" / "set"
    assert build_folder(out, {"size": 1}, fill("one")) == {"letters": 3}
    assert build_folder(out, {"size": 1}, fill("other")) == {"letters": 3}
    assert (out / "file.txt").read_text() == "one"
    with pytest.raises(FileExistsError, match="was made with size 1, 2 is wanted.*--force"):
        build_folder(out, {"size": 2}, fill("other"))
    assert build_folder(out, {"size": 2}, fill("other"), force=True) == {"letters": 5}
    assert (out / "file.txt").read_text() == "other"
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def test_something_else_is_not_touched(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("letters", "file"):
        with pytest.raises(FileExistsError, match=f"{name} holds something else"):
            build_folder(tmp_path / name, {}, fill("x"))
    assert (tmp_path / "letters" / "mine.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    assert build_folder(tmp_path / "empty", {}, fill("x")) == {"letters": 1}


def test_a_failure_leaves_the_former_and_no_rest(tmp_path):
    build_folder(tmp_path / "set", {}, fill("former"))

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        build_folder(tmp_path / "set", {}, fail, force=True)
    assert (tmp_path / "set" / "file.txt").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_in_the_middle_and_run_again(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from avse.data.build import build_folder\n"
        "def make(folder):\n    (folder / 'half.txt').write_text('half'); time.sleep(60); return {}\n"
        "build_folder(Path(sys.argv[1]), {}, make)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "set")])
    half = tmp_path / ".set.partial" / "half.txt"
    deadline = time.monotonic() + 20
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert half.exists() and not (tmp_path / "set").exists()
    assert build_folder(tmp_path / "set", {}, fill("whole")) == {"letters": 5}
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["dataset.json", "file.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_builders_do_not_share_a_folder(tmp_path):
    seen = []

    def make(folder):
        with pytest.raises(BlockingIOError, match="another process is building .*set: wait for it, or name another"):
            build_folder(tmp_path / "set", {}, fill("second"))
        assert build_folder(tmp_path / "other", {}, fill("other")) == {"letters": 5}
        seen.extend(folder.iterdir())
        return fill("first")(folder)

    assert build_folder(tmp_path / "set", {}, make) == {"letters": 5}
    assert seen == [] and (tmp_path / "set" / "file.txt").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]
