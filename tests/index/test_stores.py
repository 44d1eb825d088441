"""All stores against a brute-force oracle in float64; a Qdrant server through the client's local mode.

A real server could not be started where this was written.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from avse.index import Index, StoreError

ODD_IDS = ["ü/ö.jpg", "日本語", "🐕 dog", "a'b\"c", "new\nline", "x" * 3000, "\u202eto the left", "nul\0byte", "A", "a"]


@pytest.fixture
def index(place, encoder):
    with place.create(encoder) as made:
        yield made


def _filled(index, unit, n=60, seed=0):
    blocks = unit(n, 4, 8, seed=seed)
    ids = [f"id {number:03d}" for number in range(n)]
    index.add_embeddings(ids, blocks, [{"year": 2000 + number % 10, "even": number % 2 == 0} for number in range(n)])
    return ids, blocks


def _expected(ids, blocks, query, score):
    return sorted(((score(row, query), name) for name, row in zip(ids, blocks)), key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("k", [1, 7, 60, 1000])
def test_scores_and_order_are_exact(index, unit, score, k):
    ids, blocks = _filled(index, unit)
    query = unit(1, 2, 8, seed=9)[0]
    hits = index.search(embedding=query, k=k)
    expected = _expected(ids, blocks, query, score)[:k]
    assert [hit.id for hit in hits] == [name for _, name in expected]
    assert np.allclose([hit.score for hit in hits], [value for value, _ in expected], atol=1e-5, rtol=0)
    assert hits[0].payload["year"] == 2000 + int(hits[0].id[3:]) % 10
    assert hits[0].confidence is None and hits[0].weak is None


def test_none_and_one(index, unit, score):
    query = unit(1, 2, 8, seed=3)[0]
    assert len(index) == 0 and index.search(embedding=query) == index.search(embedding=query, where="a = 1") == []
    assert index.add_embeddings([], np.zeros((0, 4, 8), np.float32)).added == 0
    (blocks,) = unit(1, 4, 8)
    index.add_embeddings(["only"], blocks[None])
    (hit,) = index.search(embedding=query)
    assert len(index) == 1 and hit.id == "only" and hit.payload == {}
    assert hit.score == pytest.approx(score(blocks, query), abs=1e-5)


def test_filter_is_exact_too(index, unit, score):
    ids, blocks = _filled(index, unit)
    query = unit(1, 2, 8, seed=5)[0]
    hits = index.search(embedding=query, where="year >= 2007 and even = true", k=5)
    wanted = [number for number in range(60) if number % 10 >= 7 and number % 2 == 0]
    expected = _expected([ids[number] for number in wanted], blocks[wanted], query, score)[:5]
    assert [hit.id for hit in hits] == [name for _, name in expected]
    assert index.search(embedding=query, where="year > 2009") == []


def test_a_filter_asked_again_sees_every_change(index, unit):
    blocks, query = unit(4, 4, 8), unit(1, 2, 8)[0]

    def matching():
        return sorted(hit.id for hit in index.search(embedding=query, where="n = 1"))

    index.add_embeddings(["a", "b", "c"], blocks[:3], [{"n": 1}, {"n": 2}, {"n": 1}])
    assert matching() == matching() == ["a", "c"]
    index.add_embeddings(["d", "a"], blocks[2:], [{"n": 1}, {"n": 2}])
    assert matching() == ["c", "d"]
    index.delete(["c", "d"])
    assert matching() == []
    index.add_embeddings(["b"], blocks[:1], [{"n": 1}])
    assert matching() == ["b"]
    for number in range(40):  # more filters than are kept
        assert len(index.search(embedding=query, where=f"n = {number}")) == (number in (1, 2))


def test_an_id_that_is_there_is_replaced(index, unit, score):
    ids, _ = _filled(index, unit)
    (blocks,) = unit(1, 4, 8, seed=77)
    index.add_embeddings([ids[4]], blocks[None], [{"new": [1, "two", None]}])
    query = unit(1, 2, 8, seed=5)[0]
    assert len(index) == 60
    (hit,) = [hit for hit in index.search(embedding=query, k=100) if hit.id == ids[4]]
    assert hit.payload == {"new": [1, "two", None]} and hit.score == pytest.approx(score(blocks, query), abs=1e-5)


def test_delete(index, unit):
    ids, _ = _filled(index, unit)
    assert index.delete([ids[0], ids[59], "never there"]) == 2
    assert index.delete([ids[0]]) == 0 and index.delete([]) == 0
    found = {hit.id for hit in index.search(embedding=unit(1, 2, 8)[0], k=100)}
    assert len(index) == 58 and found == set(ids) - {ids[0], ids[59]}
    assert index.known(ids[:3]) == {ids[1], ids[2]}
    index.add_embeddings([ids[0]], unit(1, 4, 8))
    assert len(index) == 59


def test_reopening_keeps_everything(place, encoder, unit):
    floats = np.random.default_rng(0).standard_normal(50).tolist()  # some engines give the last digit back otherwise
    payload = {"x": 1.5, "y": "ü", "z": {"deep": [True]}, "floats": floats, "big": 2**63 - 1, "zero": -0.0, "one": 1.0}
    with place.create(encoder) as index:
        ids, _ = _filled(index, unit)
        index.delete(ids[:2])
        index.add_embeddings(["late"], unit(1, 4, 8, seed=4), [payload])
        before = index.search(embedding=unit(1, 2, 8, seed=6)[0], k=100)
    index.close()
    with place.open() as index:
        kept_in = place.arguments.get("store", "server")
        assert (len(index), index.side, index.store) == (59, "images", kept_in)
        assert str(place.path) == index.location
        assert index.search(embedding=unit(1, 2, 8, seed=6)[0], k=100) == before
        assert {hit.id: hit.payload for hit in before}["late"] == payload
        assert list(index.verify()) == []


def test_any_string_is_an_id(index, unit):
    index.add_embeddings(ODD_IDS, unit(len(ODD_IDS), 4, 8), [{"id": name} for name in ODD_IDS])
    hits = index.search(embedding=unit(1, 2, 8)[0], k=100)
    assert {hit.id for hit in hits} == set(ODD_IDS) == index.known(ODD_IDS)
    assert all(hit.payload == {"id": hit.id} for hit in hits)


def test_ties_are_in_the_order_of_ids_even_across_the_cut(index, unit):
    same = np.repeat(unit(1, 4, 8), 40, axis=0)
    index.add_embeddings([f"{number:02d}" for number in reversed(range(40))], same)
    index.add_embeddings([f"x{number}" for number in range(300)], unit(300, 4, 8, seed=8))
    query = same[0, :2]
    assert [hit.id for hit in index.search(embedding=query, k=5)] == ["00", "01", "02", "03", "04"]
    assert [hit.id for hit in index.search(embedding=query, k=40)] == [f"{number:02d}" for number in range(40)]


def test_rows_that_float32_cannot_tell_apart_are_in_the_order_of_float64(index, unit, score):
    (base,) = unit(1, 4, 8, seed=2).astype(np.float64)
    moved = base + np.random.default_rng(0).standard_normal((300, 4, 8)) * 3e-8
    blocks = (moved / np.linalg.norm(moved, axis=-1, keepdims=True)).astype(np.float32)
    ids = [f"{number:03d}" for number in range(300)]
    index.add_embeddings(ids, blocks)
    query = unit(1, 2, 8, seed=3)[0]
    exact = (blocks.astype(np.float64)[:, :, None] * query.astype(np.float64)).sum(-1).max(1).sum(-1)
    order = sorted(range(300), key=lambda number: (-exact[number], number))
    assert [hit.id for hit in index.search(embedding=query, k=20)] == [ids[number] for number in order[:20]]


def test_get_and_entries_give_back_what_was_added(index, unit):
    ids, blocks = _filled(index, unit, n=30)
    index.delete(ids[3:5])
    index.add_embeddings([ids[7]], blocks[:1], [{"new": True}])
    names, found, payloads = index.get([ids[9], "never there", ids[7], ids[4], ids[0]])
    assert names == [ids[9], ids[7], ids[0]] and found.dtype == np.float32
    assert np.array_equal(found, np.stack([blocks[9], blocks[0], blocks[0]]))
    assert payloads == [{"year": 2009, "even": False}, {"new": True}, {"year": 2000, "even": True}]
    names, found, payloads = index.get(["never there"])
    assert names == payloads == [] and found.shape == (0, 4, 8)
    entries = [entry for page in index._store.entries() for entry in page]
    assert sorted(name for name, _ in entries) == sorted(set(ids) - set(ids[3:5]))
    assert dict(entries)[ids[7]] == {"new": True} and dict(entries)[ids[8]] == {"year": 2008, "even": True}


def test_compacting_changes_nothing_that_is_answered(place, encoder, unit):
    query = unit(1, 2, 8, seed=6)[0]
    with place.create(encoder) as index:
        ids, blocks = _filled(index, unit, n=1500)
        index.delete(ids[:700])
        index.add_embeddings(ids[800:900], blocks[:100])
        before = index.search(embedding=query, k=2000)
        index._store.compact()
        assert index.search(embedding=query, k=2000) == before and len(index) == 800
        index.add_embeddings(["after"], blocks[:1])
    with place.open() as index:
        assert len(index) == 801 and list(index.verify()) == []
        assert [hit for hit in index.search(embedding=query, k=2000) if hit.id != "after"] == before


def test_fields_that_no_entry_has_are_said_with_the_nearest_name(index, unit):
    index.add_embeddings(["a", "b"], unit(2, 4, 8), [{"year": 1, "none": None}, {"late": [], "tags": ["x"]}])
    (said,) = index.unknown_fields("year = 1 and yaer = 2 and tags = x")
    assert "'yaer'" in said and "did you mean 'year'" in said
    assert len(index.unknown_fields("none = 1 or late = 1")) == 2


def test_picture_sentence_and_both(index, encoder, pictures, score):
    index.add_images(pictures, progress=False)
    ids = ["a.png", "b.jpg", "2019/c.png", "2019/d ü.png", "2020/e.png", "2020/f.png"]
    blocks = encoder.encode_images([pictures / name for name in ids])
    text, asked = encoder.encode_texts(["a red dog"])[0], encoder.encode_images([pictures / "2019/c.png"])[0]
    forms = [
        (index.search("a red dog"), [score(row, text) for row in blocks]),
        (index.search(image=pictures / "2019/c.png"), [score(row, asked) / 4 for row in blocks]),
        (
            index.search("a red dog", image=pictures / "2019/c.png"),
            [0.5 * score(row, text) / 2 + 0.5 * score(row, asked) / 4 for row in blocks],
        ),
    ]
    for hits, expected in forms:
        order = sorted(range(6), key=lambda number: (-expected[number], ids[number]))
        assert [hit.id for hit in hits] == [ids[number] for number in order]
        assert np.allclose([hit.score for hit in hits], [expected[number] for number in order], atol=1e-5, rtol=0)
    assert forms[1][0][0].id == "2019/c.png" and forms[1][0][0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (np.ones((2, 3, 8), np.float32), r"\(2, 3, 8\).*\(n, 4, 8\)"),
        (np.ones((2, 32), np.float32), r"\(2, 32\).*\(n, 4, 8\)"),
        (np.full((2, 4, 8), np.nan), "length nan"),
        (np.full((2, 4, 8), np.inf), "length inf"),
        (np.zeros((2, 4, 8)), "length 0"),
        (np.ones((2, 4, 8)), "length 2.82"),
        (np.ones((2, 4, 8), int), "floats"),
        (np.full((1, 4, 8), 8**-0.5), "2 ids, 1 embeddings"),
    ],
)
def test_unfit_embeddings_are_refused(index, blocks, message):
    with pytest.raises(ValueError, match=message):
        index.add_embeddings(["a", "b"], blocks)
    assert len(index) == 0


def test_unfit_ids_and_payloads_are_refused(index, unit):
    two = unit(2, 4, 8)
    for second, message in [("a", "twice"), ("", "not empty"), (3, "strings"), ("\udc80", "unicode")]:
        with pytest.raises(ValueError, match=message):
            index.add_embeddings(["a", second], two)
    for payload in [{"x": float("nan")}, {"x": object()}, {"x": 2**70}, {"x": "\udc80"}, [1]]:
        with pytest.raises(ValueError, match="payload of 'b'"):
            index.add_embeddings(["a", "b"], two, [{}, payload])
    with pytest.raises(ValueError, match="1 payloads"):
        index.add_embeddings(["a", "b"], two, [{}])
    assert len(index) == 0


def test_unfit_questions_are_refused(index, unit):
    asked = unit(1, 2, 8)[0]
    for arguments, message in [
        ({}, "nothing to search for"),
        ({"query": "  "}, "empty"),
        ({"query": "a", "embedding": asked}, "alone"),
        ({"embedding": unit(1, 4, 8)[0]}, r"\(1, 4, 8\).*\(n, 2, 8\)"),
        ({"embedding": asked * 2}, "length 2"),
        ({"embedding": asked, "k": 0}, "k=0"),
        ({"embedding": asked, "k": True}, "k=True"),
        ({"embedding": asked, "where": "a >"}, "position 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(**arguments)


def test_approximate_needs_an_engine_that_has_it(tmp_path, encoder, unit):
    query = unit(1, 2, 8, seed=1)[0]
    with Index.create(tmp_path / "memory", encoder, store="memory") as index:
        with pytest.raises(ValueError, match="exact.*embedded"):
            index.search(embedding=query, approximate=True)
    wide = type("Wide", (type(encoder),), {"block_width": 64})()
    blocks = unit(3000, 4, 64)
    with Index.create(tmp_path / "embedded", wide) as index:
        index.add_embeddings([str(number) for number in range(3000)], blocks)
        for number in (5, 1700):
            hits = index.search(embedding=blocks[number, :2], approximate=True)
            assert hits[0].id == str(number) and len(hits) == 10
            assert hits[0].score == pytest.approx(2, abs=1e-5)
        assert index.search(embedding=blocks[5, :2])[0].id == "5"


def test_a_second_process_is_told_who_holds_the_index(tmp_path, encoder, unit, store):
    path = tmp_path / "i.avse"
    with Index.create(path, encoder, store=store) as index:
        index.add_embeddings(["a"], unit(1, 4, 8))
        script = (
            "import sys; from avse.index import Index\n"
            "try:\n    index = Index.open(sys.argv[1]); print(len(index)); index.delete(['a'])\n"
            "except OSError as error:\n    print(error)"
        )
        run = [sys.executable, "-c", script, str(path)]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert f"in use by process {os.getpid()}" in said
        assert said.startswith("1\n") == (store == "memory")  # the memory store may be read meanwhile
        with pytest.raises(StoreError, match="in use by this very process"):
            Index.create(path, encoder, force=True)
    assert "in use" not in subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_memory_writers_take_turns(tmp_path, encoder, unit):
    blocks = unit(3, 4, 8)
    with Index.create(tmp_path / "i", encoder, store="memory") as first:
        second = Index.open(tmp_path / "i")
        first.add_embeddings(["a"], blocks[:1])
    second.add_embeddings(["b"], blocks[1:2])
    second.close()
    with Index.open(tmp_path / "i") as third:
        assert len(third) == 2 and third.known(["a", "b"]) == {"a", "b"}


def test_memory_overwrites_what_a_crash_left_and_reports_what_is_lost(tmp_path, encoder, unit):
    folder = tmp_path / "i" / "memory"
    with Index.create(tmp_path / "i", encoder, store="memory") as index:
        index.add_embeddings(["a", "b"], unit(2, 4, 8))
    for name in ("blocks.f32", "rows.jsonl"):
        with open(folder / name, "ab") as stream:
            stream.write(b'{"id": "tor')
    with Index.open(tmp_path / "i") as index:
        index.add_embeddings(["c"], unit(1, 4, 8, seed=2))
    with Index.open(tmp_path / "i") as index:
        assert index.known(["a", "b", "c"]) == {"a", "b", "c"}
        assert index.search(embedding=unit(1, 4, 8, seed=2)[0, :2])[0].id == "c"
    for name in ("blocks.f32", "rows.jsonl", "state.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StoreError, match="damaged"):
            Index.open(tmp_path / "i")
        (folder / name).write_bytes(whole)
