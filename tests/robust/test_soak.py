"""The judge of a soak against series made by hand, and a short soak of a real index with a real model."""

import sys

import pytest

from avse import AVSE
from avse.benchmarks.soak import Turn, judge, soak


def series(rss=lambda n: 100.0, disk=lambda n: 5.0, handles=lambda n: 8, turns=60):
    return [Turn(float(n), 10, rss(n), handles(n), disk(n)) for n in range(1, turns + 1)]


@pytest.mark.parametrize(
    ("turns", "flat"),
    [
        (series(), True),
        (series(rss=lambda n: 100 + min(n, 15)), True),  # warms up in the first quarter
        (series(rss=lambda n: 100 + n % 7), True),
        (series(rss=lambda n: 100 + 0.2 * n), False),  # 8 MiB of 108 in the last two thirds
        (series(disk=lambda n: 5 + 0.02 * n), True),  # 0.8 MiB: a log that fills
        (series(disk=lambda n: 5 + 0.3 * n), False),  # 12 MiB
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
