"""kill -9 while adding: what was acknowledged stays, the index opens again and goes on."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

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
    for seconds in moments:
        last = _kill_while_adding(path, last + 1, seconds)
        _check(path, last)
    assert last > 0


def test_three_kills_lose_nothing(tmp_path, encoder, store):
    _kill_again_and_again(tmp_path / "i.avse", encoder, store, (0.02, 0.15, 0.4))


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path, encoder, store):
    pick = random.Random(0)
    _kill_again_and_again(tmp_path / "i.avse", encoder, store, [pick.uniform(0, 1) for _ in range(20)])
