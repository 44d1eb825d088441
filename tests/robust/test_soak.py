"""The judge of a soak against series made by hand, and a short soak of a real index with a real model."""

import sys

import numpy as np
import pytest
from robust_loaders import ColourEncoder

from avse import AVSE
from avse.benchmarks.soak import Turn, judge, soak
from avse.index import Index


def series(rss=lambda n: 100.0, disk=lambda n: 5.0, handles=lambda n: 8, log=lambda n: n % 64, turns=60):
    return [Turn(float(n), 10, rss(n), handles(n), disk(n), log(n)) for n in range(1, turns + 1)]


@pytest.mark.parametrize(
    ("turns", "flat"),
    [
        (series(), True),
        (series(rss=lambda n: 100 + min(n, 15)), True),  # warms up in the first quarter
        (series(rss=lambda n: 100 + n % 7), True),
        (series(rss=lambda n: 100 + 0.2 * n), False),  # 8 MiB of 108 in the last two thirds
        (series(disk=lambda n: 5 + 0.005 * n), True),  # 0.2 MiB of 5.2
        (series(disk=lambda n: 5 + 0.02 * n), False),  # 0.8 MiB of 5.8
        (series(log=lambda n: 1.2 * n), True),  # fills its two segments, and would be cut next
        (series(log=lambda n: 1.3 * n), False),  # 78 MiB
        (series(handles=lambda n: 8 + n // 45), False),
        (series(handles=lambda n: 8 + n % 2), True),
    ],
)
def test_what_counts_as_flat(turns, flat):
    assert judge(turns)["flat"] is flat


def test_growth_is_that_of_the_line():
    # from 21 s to 60 s a line of 0.2 a second rises by 7.8 around the mean 100 + 0.2 * 40.5
    assert judge(series(rss=lambda n: 100 + 0.2 * n))["rss_mib"]["growth"] == pytest.approx(7.8 / 108.1, abs=1e-4)
    with pytest.raises(ValueError, match="9 turns tell nothing"):
        judge(series(turns=9))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files that are open stay")
def test_a_short_soak_is_flat_beyond_a_reopening(tmp_path, tiny_config):
    """Of many turns the second is compared with the last; between them the index is pruned and opened anew."""
    AVSE(tiny_config).save_pretrained(tmp_path / "model")
    turns = list(soak(600, turns=6, model=tmp_path / "model"))
    assert len(turns) == 6 and {turn.entries for turn in turns} == {64}
    assert turns[-1].handles <= turns[1].handles, turns
    assert turns[-1].rss_mib < turns[1].rss_mib + 96, turns  # with the first pruning a segment of 64 MiB is laid out
    assert turns[-1].rss_mib < turns[2].rss_mib + 16, turns
    assert all(0 < turn.log_mib < 8 and 0 < turn.disk_mib < 8 for turn in turns), turns


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files have no blocks to count")
def test_the_engines_log_is_cut_again_and_again(tmp_path):
    """105 MiB of blocks come and go: the folder holds at most two of the log's segments of 32 MiB, and falls back."""

    class Wide(ColourEncoder):
        num_image_blocks, num_text_blocks, block_width = 2, 1, 512

    blocks = ColourEncoder.unit(np.random.default_rng(0).standard_normal((64, 2, 512)))
    sizes = []
    with Index.create(tmp_path / "i", Wide(), store="embedded") as index:
        for turn in range(400):
            names = [f"{turn}-{n}" for n in range(64)]
            index.add_embeddings(names, blocks)
            index.delete(names)
            if turn % 10 == 9:
                index._store.compact()
                sizes.append(sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file()))
    assert max(sizes) < 72 << 20
    assert sum(later < earlier - (16 << 20) for earlier, later in zip(sizes, sizes[1:])) >= 2
