"""Rows of a mapped file: the very rows that indexing gives."""

import numpy as np
import pytest

from avse.scoring.rows import read_rows


def test_rows_of_a_mapped_file_by_plain_reads(tmp_path):
    whole = np.random.default_rng(0).standard_normal((300, 3, 5)).astype(np.float32)
    (tmp_path / "rows").write_bytes(b"x" * 4100 + whole.tobytes())
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", offset=4100, shape=(300, 3, 5))
    wanted = np.array([299, 0, 7, 7, 120])
    parts = [(mapped, whole), (mapped[100:250], whole[100:250]), (whole, whole), (mapped[:, 1:], whole[:, 1:])]
    for rows, expected in parts:
        chosen = wanted % len(rows)
        assert (read_rows(rows, chosen) == expected[chosen]).all()
    assert read_rows(mapped, wanted[:0]).shape == (0, 3, 5)
    with open(tmp_path / "rows", "rb+") as stream:
        stream.truncate(4100 + 200 * 60)
    with pytest.raises(OSError, match="row 299"):
        read_rows(mapped, wanted)
