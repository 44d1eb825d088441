from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avse.rowstore import RowStore

WRITER = """
import sys, time
from pathlib import Path
from avse.rowstore import RowStore

def row(item):
    return bytes([item % 251, item // 251]) * 20_000

store = RowStore(Path(sys.argv[1]), {"of": "numbers"}, 40_000)
store.verify()
store.cut()
print("ready", store.done, flush=True)
while store.done < 400:
    items = range(store.done, store.done + 4)
    skips = {i: "seven" for i in items if i % 7 == 0}
    store.append(4, b"".join(row(i) for i in items if i not in skips), skips)
"""


def row(item: int) -> bytes:
    return bytes([item % 251, item // 251]) * 20_000


def expected(count: int) -> bytes:
    return b"".join(row(i) for i in range(count) if i % 7)


@pytest.fixture
def full(tmp_path):
    """Five steps of two items with two bytes a row, item 3 skipped."""
    store = RowStore(tmp_path / "s", {"a": (1, 2)}, 2)
    assert store.verify() and store.done == 0
    store.cut()
    for first in range(0, 10, 2):
        good = [i for i in (first, first + 1) if i != 3]
        store.append(2, bytes(b for i in good for b in (i, 100 + i)), {3: "why"} if first == 2 else {})
    return store


def reopened(store: RowStore, header=None) -> RowStore:
    other = RowStore(store.folder, header or {"a": [1, 2]}, 2)
    other.whole = other.verify()
    return other


def test_rows_come_back_in_order(full):
    store = reopened(full)
    assert store.whole and (store.done, store.rows, store.skips) == (10, 9, {3: "why"})
    rows = np.fromfile(store.data, np.uint8).reshape(-1, 2)
    assert rows[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9] and (rows[:, 1] == rows[:, 0] + 100).all()


def test_another_header_starts_again(full):
    store = reopened(full, {"a": [1, 3]})
    assert not store.whole and store.done == 0
    store.cut()
    assert store.data.stat().st_size == 0 and reopened(store, {"a": [1, 3]}).whole


@pytest.mark.parametrize(
    ("damage", "done"),
    [
        (lambda data, journal: (data[:-1], journal), 8),
        (lambda data, journal: (data + b"x", journal), 10),
        (lambda data, journal: (data[:4] + b"\xff" + data[5:], journal), 2),
        (lambda data, journal: (data, journal[:-3]), 8),
        (lambda data, journal: (data, journal.replace(b'"done": 6', b'"done": 7')), 4),
        (lambda data, journal: (data, journal.replace(b'"rows": 5', b'"rows": 4')), 4),
        (lambda data, journal: (data, journal.replace(b"why", b"wit")), 2),
        (lambda data, journal: (data, b"\xff\xfe" + journal), 0),
        (lambda data, journal: (data, b""), 0),
        (lambda data, journal: (b"", journal), 0),
    ],
)
def test_damage_is_cut_off_and_said(full, damage, done, caplog):
    journal = full.folder / "journal.txt"
    for path, content in zip((full.data, journal), damage(full.data.read_bytes(), journal.read_bytes())):
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        store = reopened(full)
    assert not store.whole and store.done == done
    store.cut()
    again = reopened(store)
    assert again.whole and (again.done, again.rows) == (done, done - (done > 3))
    assert again.data.stat().st_size == 2 * again.rows


def test_every_single_flipped_bit_is_found(full):
    whole = full.data.read_bytes(), (full.folder / "journal.txt").read_bytes()
    chosen = random.Random(0)
    for place in range(2):
        for _ in range(60):
            content = bytearray(whole[place])
            content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
            for path, data in zip((full.data, full.folder / "journal.txt"), whole):
                path.write_bytes(data)
            (full.data, full.folder / "journal.txt")[place].write_bytes(content)
            store = reopened(full)
            assert not store.whole and store.done < 10


def test_a_part_of_the_wrong_size_is_refused(full):
    with pytest.raises(ValueError, match="3 bytes, 2 items with 0 skips make 2 rows"):
        full.append(2, b"abc", {})


def _kill_and_resume(folder, kills: int, seed: int) -> int:
    """Kill the writer at random moments, then let it end; return how many runs began behind nothing."""
    chosen, resumed = random.Random(seed), 0
    for attempt in range(kills + 1):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        resumed += int(process.stdout.readline().split()[1]) > 0
        if attempt == kills:
            assert process.wait(60) == 0
        else:
            time.sleep(chosen.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        store = RowStore(folder, {"of": "numbers"}, 40_000)
        store.verify()
        content = store.data.read_bytes()
        assert content[: store.rows * 40_000] == expected(store.done)
    assert store.done == 400 and content == expected(400)
    assert store.skips == {i: "seven" for i in range(0, 400, 7)}
    return resumed


def test_a_killed_writer_resumes_without_a_wrong_row(tmp_path):
    assert _kill_and_resume(tmp_path / "s", kills=4, seed=0) >= 1


@pytest.mark.slow
def test_many_killed_writers_resume_without_a_wrong_row(tmp_path):
    for seed in range(10):
        _kill_and_resume(tmp_path / str(seed), kills=6, seed=seed)
