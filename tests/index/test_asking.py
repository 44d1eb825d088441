"""Several questions at once are the same questions asked alone, and both are what a loop in float64 says."""

import numpy as np
import pytest

from avse.index import Index, Query
from avse.index.shown import Hits


def naive(index, query, encoder, score):
    names, blocks, _ = index.get(sorted(name for page in index.entries() for name, _ in page))
    if query.embedding is not None or query.image is None:
        asked = query.embedding if query.embedding is not None else encoder.encode_texts([query.text])[0]
        scores = [score(rows, asked) for rows in blocks]
    else:
        picture = encoder.encode_images([query.image])[0]
        scores = [score(rows, picture) / 4 for rows in blocks]
        if query.text is not None:
            text = encoder.encode_texts([query.text])[0]
            scores = [0.5 * score(rows, text) / 2 + 0.5 * own for rows, own in zip(blocks, scores)]
    return sorted(zip(names, scores), key=lambda pair: (-pair[1], pair[0]))[: query.k]


@pytest.fixture
def questions(pictures, unit):
    image = pictures / "2019" / "c.png"
    return [
        Query("a dog", k=3), Query("a cat"), Query(image=image, k=2), Query("a dog", image), Query("a tree", k=99),
        Query(embedding=unit(1, 2, 8)[0]), Query("a dog", where="folder = 2019"), Query("a dog", k=1),
        Query(image=image),
    ]  # fmt: skip


def test_together_is_alone(index, pictures, questions, encoder, score):
    index.add_images(pictures, progress=False)
    answers = index.search_many(questions)
    for query, hits in zip(questions, answers):
        alone = index.search(
            query.text, image=query.image, embedding=query.embedding, where=query.where, k=query.k,
        )  # fmt: skip
        assert [(hit.id, hit.payload) for hit in hits] == [(hit.id, hit.payload) for hit in alone]
        assert np.allclose([hit.score for hit in hits], [hit.score for hit in alone], rtol=0, atol=1e-6)
        assert isinstance(hits, Hits)
        if query.where is None:
            wanted = naive(index, query, encoder, score)
            assert [hit.id for hit in hits] == [name for name, _ in wanted]
            assert np.allclose([hit.score for hit in hits], [value for _, value in wanted], rtol=0, atol=1e-6)
    assert index.search_many([]) == []


def test_sentences_and_pictures_are_encoded_in_one_batch_each(index, pictures, questions, encoder, monkeypatch):
    index.add_images(pictures, progress=False)
    sizes = []
    for name in ("encode_texts", "encode_images"):
        encode = getattr(encoder, name)
        monkeypatch.setattr(encoder, name, lambda many, encode=encode: sizes.append(len(many)) or encode(many))
    index.search_many(questions)
    assert sizes == [6, 3]


@pytest.mark.parametrize("side", ["images", "texts"])
def test_the_memory_store_with_ties_and_dead_rows(tmp_path, encoder, unit, score, side):
    blocks = unit(300, 4 if side == "images" else 2, 8)
    blocks[50:120] = blocks[7]  # more copies than are looked at together
    with Index.create(tmp_path / "m.avse", encoder, store="memory", side=side) as index:
        names = [f"{number:03d}" for number in range(300)]
        index.add_embeddings(names, blocks)
        index.delete([f"{number:03d}" for number in range(3, 40, 3)])
        left = [number for number in range(300) if number not in range(3, 40, 3)]
        asked = unit(6, 2 if side == "images" else 4, 8, seed=3)
        queries = [Query(embedding=rows, k=k) for rows, k in zip(asked, (1, 5, 75, 286, 287, 500))]
        texts_first = side == "images"
        for query, hits in zip(queries, index.search_many(queries)):
            pairs = ((blocks[n], query.embedding) if texts_first else (query.embedding, blocks[n]) for n in left)
            scores = [score(*pair) for pair in pairs]
            wanted = sorted(zip(left, scores), key=lambda pair: (-round(pair[1], 9), pair[0]))[: query.k]
            assert [hit.id for hit in hits] == [f"{number:03d}" for number, _ in wanted]
            alone = index.search(embedding=query.embedding, k=query.k)
            assert hits == alone


def test_the_first_unfit_question_is_told_before_anything_is_encoded(index, pictures, encoder, monkeypatch):
    index.add_images(pictures, progress=False)
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: pytest.fail("encoded"))
    for bad, message in [
        (Query(), "nothing to search for"), (Query(" "), "is empty"), (Query("a", k=0), "k=0"), (Query("a", k=True),
        "k=True"),
        (Query("a", where="x ="), "where"), (Query("a", embedding=[[1.0]]), "asked alone"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            index.search_many([Query("a dog"), bad])


def test_similar(index, pictures, score):
    index.add_images(pictures, progress=False)
    names, blocks, _ = index.get(sorted(name for page in index.entries() for name, _ in page))
    scores = {name: score(rows, blocks[0]) / 4 for name, rows in zip(names, blocks)}
    hits = index.similar(names[0], k=3)
    assert [hit.id for hit in hits] == sorted(set(names) - {names[0]}, key=lambda name: (-scores[name], name))[:3]
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-6)
    assert len(index.similar(names[0], k=99)) == len(names) - 1 and hits[0].confidence is None
    assert {hit.payload["folder"] for hit in index.similar(names[0], where="folder = 2020")} == {"2020"}
    with pytest.raises(ValueError, match="has no entry 'nothing'"):
        index.similar("nothing")
    with pytest.raises(ValueError, match="k=0"):
        index.similar(names[0], k=0)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_only_scores_of_a_sentence_and_a_picture_are_judged(tmp_path, encoder, pictures, side):
    class Judge:
        asked = []

        def judge(self, scores, gallery, direction):
            self.asked.append((len(scores), gallery, direction))
            return np.asarray(scores) / 10, np.asarray(scores) < 0

    encoder.calibration = Judge()
    with Index.create(tmp_path / "m.avse", encoder, store="memory", side=side) as index:
        image = pictures / "a.png"
        if side == "images":
            index.add_images(pictures, progress=False)
            judged, free = (
                Query("a dog", k=4),
                [Query(image=image), Query("a dog", image), Query(embedding=encoder.encode_texts(["a"])[0])],
            )
        else:
            index.add_texts(list("abcdef"), progress=False)
            judged, free = Query(image=image, k=4), [Query(embedding=encoder.encode_images([image])[0])]
        first, *rest = index.search_many([judged, *free])
        assert encoder.calibration.asked == [(4, 6, "t2i" if side == "images" else "i2t")]
        assert all(hit.confidence == pytest.approx(hit.score / 10) and hit.weak == (hit.score < 0) for hit in first)
        assert all(hit.confidence is hit.weak is None for hits in rest for hit in hits)
