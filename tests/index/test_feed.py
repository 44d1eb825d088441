"""Feeding: every picture once and as the encoder alone would read it, whatever the reading processes go through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avse.images import PixelSpec, load_pixels
from avse.index import Skipped, feed
from avse.index.feed import embed_files
from avse.index.pictures import Picture, picture_payload

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there the files are read in the caller's process")

_TROUBLE = """
import os, signal, time
from pathlib import Path
from avse.index import decoder
def read(name, path, spec, plain=decoder.read_picture):
    if name.startswith("stuck"):
        time.sleep(1000)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("odd"):
        raise KeyError(name)
    return plain(name, path, spec)
decoder.read_picture = read
"""


class PixelEncoder:
    """Blocks (P, C) = (2, 3) from the pixels' channels; keeps what it was given."""

    pixels = PixelSpec((6, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_pixels(self, pixels):
        self.batches.append(len(pixels))
        assert pixels.shape[1:] == (3, 6, 8) and pixels.dtype == np.float32
        return np.stack([pixels.mean((2, 3)), pixels.max((2, 3))], axis=1)

    def encode_images(self, images):
        return self.encode_pixels(np.stack([load_pixels(image, self.pixels) for image in images]))


@pytest.fixture
def started(monkeypatch):
    """The processes that are started, of which none may be left."""
    found, plain = [], subprocess.Popen

    def start(*args, **options):
        found.append(plain(*args, **options))
        return found[-1]

    monkeypatch.setattr(feed.subprocess, "Popen", start)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    yield found
    assert all(process.returncode is not None for process in found)
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def trouble(monkeypatch):
    """Pictures may be stuck, crash the process or raise, by their names."""
    monkeypatch.setattr(
        feed, "_PROGRAM", feed._PROGRAM.replace("from avse.index.decoder", f"{_TROUBLE}\nfrom avse.index.decoder")
    )


@pytest.fixture
def todo(tmp_path):
    """Nine readable pictures of all kinds under ids that are not their names."""
    random = np.random.default_rng(0)
    found = []
    for number, name in enumerate(["a.png", "b.jpg", "c d.jpg", "ü.png", "e.gif", "f.webp", "g.bmp", "h.tif", "i.jpg"]):
        image = Image.fromarray(random.integers(0, 256, (150 + number, 100, 3), dtype=np.uint8))
        exif = Image.Exif()
        if name == "b.jpg":
            exif[0x0112] = 6
            exif.get_ifd(0x8769)[0x9003] = "2019:06:08 13:20:00"
        image.save(tmp_path / name, exif=exif) if name == "b.jpg" else image.save(tmp_path / name)
        found.append((f"id {number}", tmp_path / name))
    return found


def flat(batches):
    return {item.id if isinstance(item, Picture) else item.name: item for batch in batches for item in batch}


def names(items):
    return [item.id if isinstance(item, Picture) else item.name for item in items]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_rows_and_payloads_are_those_of_the_file_alone(todo, workers, started):
    encoder = PixelEncoder()
    batches = list(embed_files(encoder, todo, batch_size=4, workers=workers))
    assert sorted(encoder.batches) == [1, 4, 4] and sorted(map(len, batches)) == [1, 4, 4]
    found = flat(batches)
    assert sum(map(len, batches)) == len(found) == 9
    for name, path in todo:
        assert np.array_equal(found[name].blocks, encoder.encode_images([path])[0])
        assert found[name].payload == picture_payload(name, path)
    turned = found["id 1"].payload
    assert (turned["width"], turned["height"], turned["year"]) == (151, 100, 2019)
    assert len(started) == workers


def test_rows_of_a_model_are_those_of_encode_images(todo, tiny_config, started):
    torch = pytest.importorskip("torch")
    from avse.model import AVSE

    torch.manual_seed(0)
    model = AVSE(tiny_config).eval()
    alone = flat(embed_files(model, todo, batch_size=1, workers=1))
    together = flat(embed_files(model, todo, batch_size=5, workers=1))
    for name, path in todo:
        expected = model.encode_images([path])[0]
        assert np.array_equal(alone[name].blocks, expected)
        assert np.abs(together[name].blocks - expected).max() < 1e-6


def test_what_cannot_be_read_is_set_aside_with_the_same_reason(todo, tmp_path, started):
    whole = (tmp_path / "i.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    bad = [(name, tmp_path / name) for name in ("cut.jpg", "empty.png", "text.jpg", "gone.jpg")]
    mixed = [*bad[:2], *todo, *bad[2:]]
    there, here = (flat(embed_files(PixelEncoder(), mixed, batch_size=3, workers=count)) for count in (2, 0))
    assert there.keys() == here.keys() == dict(mixed).keys()
    for name, _ in bad:
        assert isinstance(there[name], Skipped) and there[name] == here[name]
    assert "truncated" in there["cut.jpg"].reason and there["gone.jpg"].reason == "no such file"
    assert all(np.array_equal(there[name].blocks, here[name].blocks) for name, _ in todo)


def test_a_stuck_or_deadly_picture_is_set_aside_and_the_rest_goes_on(todo, trouble, started):
    path = todo[0][1]
    mixed = [("crash 1", path), *todo[:3], ("stuck", path), *todo[3:6], ("crash 2", path), ("odd", path), *todo[6:]]
    items = [item for batch in embed_files(PixelEncoder(), mixed, batch_size=3, workers=2, timeout=3) for item in batch]
    assert sorted(names(items)) == sorted(dict(mixed))
    reasons = {item.name: item.reason for item in items if isinstance(item, Skipped)}
    assert reasons == {
        "stuck": "not read within 3 s",
        "crash 1": "the process that read it died (SIGSEGV)",
        "crash 2": "the process that read it died (SIGSEGV)",
        "odd": "KeyError: 'odd'",
    }


def test_a_collection_of_deadly_pictures_ends(todo, trouble, started):
    mixed = [(f"crash {number}", todo[0][1]) for number in range(5)]
    items = [item for batch in embed_files(PixelEncoder(), mixed, batch_size=2, workers=1) for item in batch]
    assert sorted(names(items)) == sorted(dict(mixed)) and all(isinstance(item, Skipped) for item in items)


def test_todo_is_taken_as_it_is_needed(todo, started):
    taken, got, batch = 0, 0, 2

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield f"{taken}", todo[taken % 9][1]

    for items in embed_files(PixelEncoder(), endless(), batch_size=batch, workers=2):
        got += len(items)
        assert got <= taken <= got + 3 * batch
        if got > 60:
            break


def test_nothing_to_do_starts_nothing(started):
    assert list(embed_files(PixelEncoder(), [])) == [] and not started


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"timeout": 0}, {"workers": -1}])
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        list(embed_files(PixelEncoder(), [], **wrong))


def test_an_error_of_the_encoder_leaves_nothing_behind(todo, started):
    encoder = PixelEncoder()
    encoder.encode_pixels = lambda pixels: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(embed_files(encoder, todo, batch_size=2, workers=2))
    assert len(started) == 2


def test_a_process_that_does_not_start_is_an_error(todo, started, monkeypatch):
    monkeypatch.setattr(feed, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"did not start \(exit status 3\): pass workers=0"):
        list(embed_files(PixelEncoder(), todo, workers=1))


def test_an_encoder_that_takes_no_pixels_reads_the_files_itself(todo, encoder, started):
    found = flat(embed_files(encoder, todo, batch_size=4))
    assert found.keys() == dict(todo).keys() and encoder.largest_batch == 4 and not started
    assert np.array_equal(found["id 0"].blocks, encoder.encode_images([todo[0][1]])[0])


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not unicode")
def test_a_path_that_is_no_unicode(todo, tmp_path, started):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.write_bytes(todo[0][1].read_bytes())
    (item,) = flat(embed_files(PixelEncoder(), [("x", path)], workers=1)).values()
    assert isinstance(item, Picture)


_MAIN = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
sys.modules["torch"] = None  # importing it fails
import numpy as np
from pathlib import Path
from avse.images import PixelSpec
from avse.index import feed
encoder = types.SimpleNamespace(pixels=PixelSpec((4, 4), (0,) * 3, (1,) * 3), encode_pixels=lambda pixels: pixels)
start = feed.subprocess.Popen
def told(*args, **options):
    process = start(*args, **options)
    print(process.pid, flush=True)
    return process
feed.subprocess.Popen = told
for batch in feed.embed_files(encoder, ((str(i), Path(sys.argv[1])) for i in range(10**9)), batch_size=2, workers=2):
    print("batch", flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_caller(todo, tmp_path, sent):
    """A main program that is not written for being imported again, ended in the middle; Ctrl-C reaches the group."""
    (tmp_path / "main.py").write_text(_MAIN)
    command = [sys.executable, str(tmp_path / "main.py"), str(todo[0][1])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as main:
        readers = []
        while (line := main.stdout.readline()) != "batch\n" or len(readers) < 2:
            readers += [int(line)] if line.strip().isdigit() else []
            assert line
        os.kill(main.pid, sent) if sent == signal.SIGKILL else os.killpg(main.pid, sent)
        _, errors = main.communicate(timeout=20)
    assert errors.count("Traceback") == (sent == signal.SIGINT)
    deadline = time.monotonic() + 20
    while any(map(_alive, readers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_readers_load_no_torch():
    code = "import sys, avse.index.decoder; assert not {'torch', 'transformers', 'qdrant_edge'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
