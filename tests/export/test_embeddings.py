"""An archive of embeddings: its texts come back exactly, by numpy alone too, and cost what they hold."""

import tracemalloc

import numpy as np
import pytest
from index_kit import unit

from avse.export.embeddings import embeddings_writer, read_embeddings

FACTS = {"side": "texts", "P": 3, "Q": 1, "C": 2, "fingerprint": "f", "model": "m", "avse": "0"}


def write_out(path, ids, payloads):
    with embeddings_writer(path, FACTS, {}) as write:
        for start in range(0, len(ids), 256):
            part = slice(start, start + 256)
            write(ids[part], unit(len(ids), 1, 2)[part], payloads[part])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_every_text_survives(tmp_path, suffix):
    ids = ["a\0", "a", "\0", " ü\n", "🙂" * 3, "e\u0301", "ends in\0\0"]
    payloads = [{"said": name, "n": row} for row, name in enumerate(ids)]
    write_out(tmp_path / f"e{suffix}", ids, payloads)
    found = read_embeddings(tmp_path / f"e{suffix}")
    assert (found.ids, found.payloads) == (ids, payloads) and np.array_equal(found.blocks, unit(7, 1, 2))


def test_nothing_is_an_archive_too(tmp_path):
    write_out(tmp_path / "e.npz", [], [])
    with embeddings_writer(tmp_path / "e.npz", FACTS, {}):
        pass
    found = read_embeddings(tmp_path / "e.npz")
    assert found.ids == [] == found.payloads and found.blocks.shape == (0, 1, 2)


def test_one_long_text_among_many_costs_itself(tmp_path):
    ids = ["x" * 50_000, *(f"a line of a file, {row}" for row in range(2000))]
    tracemalloc.start()
    try:
        write_out(tmp_path / "e.npz", ids, [{"text": name} for name in ids])
        assert read_embeddings(tmp_path / "e.npz").ids == ids
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # as an array of texts, ids alone are 2,001 x 50,000 x 4 bytes
