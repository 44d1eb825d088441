"""kill -9 while adding: what was acknowledged stays, the index opens again and goes on."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avse.files import sha256
from avse.index import Index

ADDER = """
import sys
import numpy as np
from avse.index import Index
start = int(sys.argv[2])
with Index.open(sys.argv[1]) as index:
    print("ready", flush=True)
    for number in range(start, start + 100_000):
        rows = np.random.default_rng(number).standard_normal((20, 4, 8))
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        index.add_embeddings([f"{number}/{row}" for row in range(20)], rows, [{"batch": number}] * 20)
        if number % 7 == 3:
            index.delete([f"{number}/0"])
        print(number, flush=True)
"""


def _kill_while_adding(path, start, seconds):
    """Add batches in another process, kill it after some time, and return the last batch it acknowledged."""
    process = subprocess.Popen([sys.executable, "-c", ADDER, str(path), str(start)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split("\n")[:-1]  # a line cut short was not acknowledged
    process.wait()
    process.stdout.close()
    return int(said[-1]) if said else start - 1


def _check(path, last):
    with Index.open(path) as index:
        ids = [f"{number}/{row}" for number in range(last + 1) for row in range(20)]
        deleted = {f"{number}/0" for number in range(last + 1) if number % 7 == 3}
        assert set(ids) - index.known(ids) == deleted
        assert 0 <= len(index) - len(ids) + len(deleted) <= 20  # at most the one batch nobody heard of
        for number in {0, last // 2, last} if last >= 0 else ():
            rows = np.random.default_rng(number).standard_normal((20, 4, 8))
            rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
            (hit,) = index.search(embedding=rows[5, :2], k=1)
            assert hit.id == f"{number}/5" and hit.payload == {"batch": number}


def _kill_again_and_again(path, encoder, store, moments):
    Index.create(path, encoder, store=store).close()
    last = -1
    for number, seconds in enumerate((*moments, 5.0)):
        if number < len(moments) or last < 1:  # the last one for a machine too busy to acknowledge anything before
            last = _kill_while_adding(path, last + 1, seconds)
            _check(path, last)
    assert last > 0


def test_three_kills_lose_nothing(tmp_path, encoder, store):
    _kill_again_and_again(tmp_path / "i.avse", encoder, store, (0.02, 0.15, 0.4))


@pytest.mark.slow
def test_six_kills_lose_nothing(tmp_path, encoder, store):
    pick = random.Random(0)
    _kill_again_and_again(tmp_path / "i.avse", encoder, store, [pick.uniform(0, 0.8) for _ in range(6)])


LIVING = """
import sys, time
sys.path.insert(0, sys.argv[1])
import avse.index.index as face
import avse.index.living as living
from avse.index.pictures import Picture, picture_payload
from conftest import ColourEncoder

encoder, asked = ColourEncoder(), open(sys.argv[4], "a")

class Bar:
    def __init__(self, *_): self.done = 0
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def update(self, count):
        self.done += count
        print(self.done, flush=True)

def embed(todo):
    for name, path in todo:
        asked.write(name + "\\n")
        asked.flush()
        time.sleep(0.001)
        yield [Picture(name, encoder.encode_images([path])[0], picture_payload(name, path))]

face.progress_bar, living._WRITE_SECONDS = Bar, 0.03
with face.Index.open(sys.argv[2], encoder) as index:
    print("ready", flush=True)
    index.add_images(sys.argv[3], embed=embed)
    print("end", flush=True)
"""


def _paint(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(0, (10**9 + number) * 10**9))


def _index(path, photos, asked, seconds):
    """Bring folder and index together in another process, killed after some time if that is not None."""
    asked.write_text("")
    run = [sys.executable, "-c", LIVING, str(Path(__file__).parent), str(path), str(photos), str(asked)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    if seconds is not None:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    assert seconds is not None or said[-1] == "end"
    return [int(line) for line in said if line != "end"], asked.read_text().split("\n")[:-1]


def _contents(index, encoder, photos):
    """What an index holds by content: its paths and blocks; each content once, its blocks those of its picture."""
    found = {}
    for page in index.entries():
        names, blocks, payloads = index.get([name for name, _ in page])
        assert list(zip(names, payloads)) == page
        for rows, payload in zip(blocks, payloads):
            assert payload["sha256"] not in found
            found[payload["sha256"]] = payload["paths"], rows
    return found


def _acknowledged(path):
    with closing(sqlite3.connect(path / "journal.sqlite")) as journal:
        if len(journal.execute("SELECT 1 FROM sqlite_master WHERE name IN ('paths', 'contents')").fetchall()) < 2:
            return {}  # killed before there was a journal
        rows = journal.execute("SELECT p.path, p.sha256 FROM paths p JOIN contents c USING (sha256)").fetchall()
    return dict(rows)


def _live_through_kills(tmp_path, encoder, store, count, moments):
    photos, path, asked, pick = tmp_path / "photos", tmp_path / "i.avse", tmp_path / "asked", random.Random(1)
    for number in range(count):
        _paint(photos / f"{number % 7}" / f"{number:05}.png", number // 2 if number % 50 == 1 else number)
    Index.create(path, encoder, store=store).close()
    known, next_number = set(), count
    for seconds in moments:
        told, embedded = _index(path, photos, asked, seconds)
        assert not known & {sha256(photos / name) for name in embedded}, "embedded twice"
        journal = _acknowledged(path)
        assert len(journal) >= (told[-1] if told else 0)
        with Index.open(path, encoder) as index:
            held = _contents(index, encoder, photos)
            assert set(journal.values()) <= set(held)
            for name, content in list(journal.items())[:: max(1, len(journal) // 20)]:
                if (photos / name).exists() and sha256(photos / name) == content:  # else not come to yet
                    assert np.allclose(held[content][1], encoder.encode_images([photos / name])[0], atol=1e-6)
        known = set(journal.values())
        for file in pick.sample(sorted(photos.rglob("*.png")), 6):  # the folder lives on
            match pick.randrange(3):
                case 0:
                    file.rename(file.with_name(f"m{file.name}"))
                case 1:
                    file.unlink()
                case 2:
                    _paint(file, next_number)
                    next_number += 1
    _index(path, photos, asked, None)
    assert _index(path, photos, asked, None)[1] == []
    with Index.create(tmp_path / "one-go", encoder, store=store) as whole, Index.open(path, encoder) as index:
        whole.add_images(photos, progress=False)
        expected, found = _contents(whole, encoder, photos), _contents(index, encoder, photos)
        assert {key: value[0] for key, value in found.items()} == {key: value[0] for key, value in expected.items()}
        assert all(np.allclose(found[key][1], expected[key][1], atol=1e-6) for key in expected)
        assert list(index.verify()) == []


def test_three_kills_of_a_living_index(tmp_path, encoder, store):
    _live_through_kills(tmp_path, encoder, store, 200, (0.05, 0.2, 0.12))


@pytest.mark.slow
def test_six_kills_of_a_living_index(tmp_path, encoder, store):
    pick = random.Random(2)
    _live_through_kills(tmp_path, encoder, store, 600, [pick.uniform(0, 0.6) for _ in range(6)])
