"""A report as text, HTML and plain values: every figure, each a number of its own, stands where it belongs."""

from dataclasses import replace

import numpy as np

from avse import markup
from avse.metrics import Direction, Protocol, Ranks, RetrievalReport

RANKS = Ranks(*map(np.array, ([0, 9], [0, 7, 8], [0, 9], [0, 6, 8], [0, 1], [0, 0, 1])))


def told_report():
    """A report whose figures all differ, so that each place they are told at is known by its number."""
    return RetrievalReport(
        Direction({1: 10.0, 5: 20.0}, {1: 11.0, 5: 20.0}, 3.0, 4.3, {1: (9.0, 12.0), 5: (18.0, 23.0)}),
        Direction({1: 30.0, 5: 40.0}, {1: 30.0, 5: 44.0}, 5.0, 6.6, {1: (28.0, 33.0), 5: (36.0, 45.0)}),
        RANKS,
        Protocol(
            Direction({1: 15.0, 5: 25.0}, {1: 15.0, 5: 25.0}, 1.0, 1.5),
            Direction({1: 35.0, 5: 45.0}, {1: 35.0, 5: 45.0}, 2.0, 2.7),
            RANKS,
        ),
        0.251,
        {"i2t": 60.0, "t2i": 74.9},
        {"cxc": {"i2t": {"r1": 71.0, "r5": 72.0}, "t2i": {"r1": 73.0}}},
        {"split": "test", "seed": 4},
        interval=(90.0, 110.0),
    )


NOTES = [
    "cxc: i2t r1 71.0, i2t r5 72.0, t2i r1 73.0",
    "25.1 % of the texts stand on several images; knowing every text by heart gives R@1 60.0 i2t, 74.9 t2i in the "
    "plain protocol",
    "images 2, pairs 3, split test, seed 4",
]
TABLE = """
                   i2t R@1   i2t R@5   t2i R@1   t2i R@5      rSum   median / mean rank i2t, t2i
plain                  10.0      20.0      30.0      40.0    100.0   3 / 4.3, 5 / 6.6
  from                  9.0      18.0      28.0      36.0     90.0
  to                   12.0      23.0      33.0      45.0    110.0
  ties in favour       11.0      20.0      30.0      44.0    105.0
duplicate-aware        15.0      25.0      35.0      45.0    120.0   1 / 1.5, 2 / 2.7
rSum interval 90.0 to 110.0 (bootstrap over images)"""


def test_every_figure_stands_in_its_place_of_the_table():
    report = told_report()
    assert report.table().splitlines() == [*TABLE.splitlines()[1:], *NOTES]
    assert replace(report, further={}, ceiling={}).notes() == NOTES[2:]
    folded = replace(report, ranks=replace(RANKS, fold_starts=np.array([0, 1])))
    assert folded.notes() == [
        *NOTES[:2],
        "means over 2 folds of the images in order; each fold is its own gallery",
        NOTES[2],
    ]


def test_every_figure_stands_in_its_place_of_the_html():
    report = told_report()

    def both(value, ends):
        return markup.join([value, markup.Html(f"<span>{ends}</span>")])

    table = markup.table(
        ["protocol", "i2t R@1", "i2t R@5", "t2i R@1", "t2i R@5", "rSum", "i2t rank", "t2i rank"],
        [
            [
                "plain",
                both("10.0", "9.0 – 12.0"),
                both("20.0", "18.0 – 23.0"),
                both("30.0", "28.0 – 33.0"),
                both("40.0", "36.0 – 45.0"),
                both("100.0", "90.0 – 110.0"),
                "3 / 4.3",
                "5 / 6.6",
            ],
            ["ties in favour", "11.0", "20.0", "30.0", "44.0", "105.0", "", ""],
            ["duplicate-aware", "15.0", "25.0", "35.0", "45.0", "120.0", "1 / 1.5", "2 / 2.7"],
        ],
        "Recalls in percent, intervals below them; ranks are median / mean.",
    )
    notes = "".join(f'<p class="note">{line}</p>' for line in NOTES)
    assert report.to_html() == table + notes
    assert report._repr_html_() == markup.fragment(markup.Html(table + notes))


def test_every_figure_stands_under_its_name():
    told, aware = told_report(), told_report().duplicate_aware
    assert told.to_dict() == {
        "split": "test",
        "seed": 4,
        "images": 2,
        "pairs": 3,
        "rsum": 100.0,
        "rsum_ci": [90.0, 110.0],
        "i2t": {
            "r1": 10.0,
            "r5": 20.0,
            "median_rank": 3.0,
            "mean_rank": 4.3,
            "optimistic": {"r1": 11.0, "r5": 20.0},
            "ci": {"r1": [9.0, 12.0], "r5": [18.0, 23.0]},
        },
        "t2i": {
            "r1": 30.0,
            "r5": 40.0,
            "median_rank": 5.0,
            "mean_rank": 6.6,
            "optimistic": {"r1": 30.0, "r5": 44.0},
            "ci": {"r1": [28.0, 33.0], "r5": [36.0, 45.0]},
        },
        "duplicate_aware": aware.to_dict(),
        "shared_texts": 0.251,
        "ceiling_r1": {"i2t": 60.0, "t2i": 74.9},
        "ties": True,
        "cxc": {"i2t": {"r1": 71.0, "r5": 72.0}, "t2i": {"r1": 73.0}},
    }
    assert aware.to_dict() == {
        "rsum": 120.0,
        "rsum_ci": None,
        "i2t": {"r1": 15.0, "r5": 25.0, "median_rank": 1.0, "mean_rank": 1.5, "optimistic": {"r1": 15.0, "r5": 25.0}},
        "t2i": {"r1": 35.0, "r5": 45.0, "median_rank": 2.0, "mean_rank": 2.7, "optimistic": {"r1": 35.0, "r5": 45.0}},
    }
    bare = replace(told, duplicate_aware=None, ranks=replace(RANKS, fold_starts=np.array([0, 1]))).to_dict()
    assert bare["folds"] == 2 and bare["duplicate_aware"] is None


def test_ties_of_either_side_are_told():
    report = told_report()
    clear = replace(report.i2t, optimistic=report.i2t.recalls)
    assert replace(report, i2t=clear).has_ties and replace(report, t2i=clear).has_ties
    assert not replace(report, i2t=clear, t2i=clear).has_ties
