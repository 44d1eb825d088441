"""The recall of an approximate search, counted by hand on an index whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from avse.index import Hit, Index
from avse.index.recall import measure_recall


def test_shares_are_counted_by_hand(unit):
    asked = []

    class Known:
        layout = SimpleNamespace(query=(2, 8))

        def entries(self):
            yield [(f"{number}", {}) for number in range(50)]

        def get(self, ids):
            return list(ids), unit(len(ids), 4, 8), [{}] * len(ids)

        def search(self, query=None, *, embedding=None, k, where, approximate=False):
            asked.append((query, None if embedding is None else embedding.shape, k, where))
            scores = [9.0, 8.0, 7.0, 7.0]  # the last two tie: either may come third
            exact = [Hit(name, score, {}) for name, score in zip("abcd", scores)][:k]
            if not approximate:
                return exact
            lost = [Hit("a", 9.0, {}), Hit("d", 7.0, {}), Hit("x", 3.0, {})]
            return exact if query == "found" else lost

    found = measure_recall(Known(), [{"query": "found"}, {"query": "lost"}], 3, "year = 1")
    assert found.asked == pytest.approx((3 + 2) / 6) and found.sampled == pytest.approx(2 / 3) and found.samples == 20
    assert {shape for _, shape, _, _ in asked} == {None, (2, 8)} and {row[2:] for row in asked} == {(3, "year = 1")}


@pytest.mark.slow
def test_a_graph_is_measured(tmp_path, encoder, unit):
    wide = type("Wide", (type(encoder),), {"block_width": 64})()
    blocks = unit(3000, 4, 64)
    with Index.create(tmp_path / "i.avse", wide) as index:
        index.add_embeddings([str(number) for number in range(3000)], blocks)
        query = {"embedding": blocks[7, :2]}
        found = measure_recall(index, [query], 10, None)
        exact = {hit.id for hit in index.search(**query)}
        near = {hit.id for hit in index.search(**query, approximate=True)}
        assert found.asked == len(exact & near) / 10 and 0 < found.sampled <= 1 and found.samples == 20
    with Index.create(tmp_path / "empty.avse", wide) as index:
        assert measure_recall(index, [{"embedding": np.eye(64, dtype=np.float32)[:2]}], 10, None)[:2] == (None, None)
