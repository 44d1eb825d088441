"""The API of `avse serve` over a real index: what it answers is what the index answers."""

import asyncio
import base64
import io
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from serve_kit import TOKEN, ColourEncoder, naive_score, paint, running

from avse.images import ImageError, PixelSpec, read_image, seen_frame, shrink, to_pixels
from avse.index import Index, Query, StoreError
from avse.serve import Limits, create_app
from avse.serve.engine import Engine
from avse.serve.facets import find_facets


def same(answer, hits):
    found = answer.json()["hits"]
    assert [hit["id"] for hit in found] == [hit.id for hit in hits]
    assert np.allclose([hit["score"] for hit in found], [hit.score for hit in hits], rtol=0, atol=1e-12)
    assert [hit["payload"] for hit in found] == [hit.payload for hit in hits]


@pytest.mark.parametrize("store", ["memory", "embedded"], indirect=True)
def test_a_search_is_that_of_the_index(server, photos):
    client, index = server.client, server.index
    picture = photos / "sea" / "01 ü.png"
    coded = base64.b64encode(picture.read_bytes()).decode()
    same(client.post("/api/search", json={"query": "a dog", "k": 3}), index.search("a dog", k=3))
    same(client.post("/api/search", json={"image": coded}), index.search(image=picture))
    same(
        client.post("/api/search", json={"query": "a dog", "image": coded, "where": "folder = sea"}),
        index.search("a dog", image=picture, where="folder = sea"),
    )
    form = client.post("/api/search", data={"query": "a dog", "k": "3"}, files={"image": picture.read_bytes()})
    same(form, index.search("a dog", image=picture, k=3))
    fields = {"query": (None, "a dog"), "k": (None, "3")}
    same(client.post("/api/search", files=fields), index.search("a dog", k=3))
    assert client.post("/api/search", data={"query": "a dog"}).status_code == 415
    assert (form.json()["gallery"], form.json()["upper"], form.json()["weak"]) == (12, 1.0, None)
    answer = client.post("/api/search", json={"query": "a dog"}).json()
    assert answer["upper"] == 2.0 and answer["notes"] == [] and answer["took_ms"] > 0
    empty = client.post("/api/search", json={"query": "a dog", "where": "foldr = sea"}).json()
    assert empty["hits"] == [] and "did you mean 'folder'" in empty["notes"][0] and empty["weak"] is None


def test_more_like_this(server):
    client, index = server.client, server.index
    name = "sea/01 ü.png"
    names, blocks, _ = index.get(sorted(entry for page in index.entries() for entry, _ in page))
    own = blocks[names.index(name)]
    naive = {other: naive_score(rows, own) / 4 for other, rows in zip(names, blocks) if other != name}
    answer = client.get(f"/api/similar/{name}", params={"k": 12}).json()
    assert [hit["id"] for hit in answer["hits"]] == sorted(naive, key=lambda other: (-naive[other], other))
    assert answer["hits"][0]["score"] == pytest.approx(max(naive.values()), abs=1e-6) and answer["upper"] == 1.0
    some = client.get(f"/api/similar/{name}", params={"where": "folder = land", "k": 2}).json()["hits"]
    assert len(some) == 2 and all(hit["payload"]["folder"] == "land" for hit in some)
    assert client.get("/api/similar/unknown").status_code == 404
    assert client.get(f"/api/similar/{name}", params={"k": 0}).status_code == 422


def test_entries_info_and_health(server):
    client = server.client
    everything = {name: payload for page in server.index.entries() for name, payload in page}
    seen, after = [], ""
    while after is not None:
        page = client.get("/api/images", params={"after": after, "limit": 5}).json()
        seen += [(entry["id"], entry["payload"]) for entry in page["entries"]]
        after = page["next"]
    assert seen == sorted(everything.items())
    one = client.get("/api/images/sea/01 ü.png").json()
    assert one == {"id": "sea/01 ü.png", "payload": everything["sea/01 ü.png"], "picture": True}
    assert client.get("/api/images/sea").status_code == 404
    info = client.get("/api/info").json()
    assert (info["entries"], info["side"], info["blocks"]) == (12, "images", {"P": 4, "Q": 2, "C": 8})
    assert info["uploads"] and not info["calibrated"] and not info["approximate"] and info["limits"]["k"] == 200
    facets = {facet["name"]: facet for facet in info["fields"]}
    assert facets["folder"]["values"] == [{"value": "land", "count": 6}, {"value": "sea", "count": 6}]
    assert facets["width"] | {"values": 0} == {
        "name": "width", "kind": "number", "count": 12, "min": 60, "max": 60, "values": 0,
    }  # fmt: skip
    assert facets["modified"]["kind"] == "date" and not {"path", "sha256", "bytes", "name"} & set(facets)
    assert client.get("/healthz").json() == {"status": "ok", "entries": 12}
    text = client.get("/metrics").text
    assert 'avse_requests_total{method="GET",route="/api/info",status="200"} 1' in text
    assert 'route="/api/images/{id:path}",status="404"} 1' in text and "avse_index_entries 12" in text
    assert "sea" not in text  # no ids


def test_thumbnails_are_made_anew(server, photos):
    client = server.client
    paint(photos / "sea" / "01 ü.png", 5, size=(900, 1800))
    answer = client.get("/thumbnails/sea/01 ü.png")
    assert answer.headers["content-type"] == "image/jpeg" and answer.headers["cache-control"] == "private, no-cache"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (320, 160) and image.mode == "RGB"
    large = client.get("/thumbnails/sea/01 ü.png", params={"size": 1280})
    assert Image.open(io.BytesIO(large.content)).size == (1280, 640)
    assert client.get("/thumbnails/land/00 ü.png", params={"size": 1280}).status_code == 200
    assert Image.open(io.BytesIO(client.get("/thumbnails/land/00 ü.png").content)).size == (60, 40)  # never enlarged
    again = client.get("/thumbnails/sea/01 ü.png", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    paint(photos / "sea" / "01 ü.png", 6, size=(10, 20))
    assert client.get("/thumbnails/sea/01 ü.png", headers={"If-None-Match": answer.headers["etag"]}).status_code == 200
    (photos / "sea" / "01 ü.png").unlink()
    assert client.get("/thumbnails/sea/01 ü.png").status_code == 404
    assert client.get("/api/images/sea/01 ü.png").json()["picture"] is False
    assert client.get("/thumbnails/land/00 ü.png", params={"size": 5000}).status_code == 422


def test_many_at_once_get_their_own_answers(index):
    sentences = [f"sentence {number}" for number in range(40)]
    wanted = {sentence: index.search(sentence, k=3) for sentence in sentences}
    with running(index) as server:
        index.encoder.encode_texts = slowed(index.encoder.encode_texts)
        found, bad = {}, []

        def ask(sentence):
            found[sentence] = server.client.post("/api/search", json={"query": sentence, "k": 3})

        def ask_badly():
            bad.append(server.client.post("/api/search", json={"query": "a", "where": "x = "}).status_code)

        threads = [threading.Thread(target=ask, args=(sentence,)) for sentence in sentences]
        threads += [threading.Thread(target=ask_badly) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sentence in sentences:
            same(found[sentence], wanted[sentence])
        assert bad == [422] * 5
        batches = [line for line in server.client.get("/metrics").text.splitlines() if "avse_batch_size_count" in line]
        assert int(batches[0].split()[1]) < 45  # some were answered together


def slowed(encode):
    def slow(texts):
        threading.Event().wait(0.05)
        return encode(texts)

    return slow


def test_a_bad_picture_of_a_batch_fails_alone(index, monkeypatch):
    """The encoder itself refuses what was decoded: only that question is told."""
    encode = index.encoder.encode_images

    def picky(images):
        if any(getattr(image, "size", None) == (7, 7) for image in images):
            raise ImageError("7", "it is 7 x 7")
        return encode(images)

    monkeypatch.setattr(index.encoder, "encode_images", picky)
    pictures = [Image.new("RGB", (side, side)) for side in (5, 7, 9)]
    first, second, third = asked_together(index, [Query(image=picture) for picture in pictures])
    assert len(first) == len(third) == 10 and isinstance(second, ImageError)


def asked_together(index, queries):
    """What an engine answers to questions that waited for it together."""

    async def ask():
        engine = Engine(index, batch=32, waiting=64)
        engine._open = True
        asked = [asyncio.ensure_future(engine.search(query)) for query in queries]
        await asyncio.sleep(0)  # all are in the queue before it begins
        engine.start()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        engine.close()
        return answers

    return asyncio.run(ask())


def test_bad_questions_cost_the_others_little(index, monkeypatch):
    encode, calls = index.encoder.encode_texts, []

    def picky(texts):
        calls.append(len(texts))
        if "bad" in texts:
            raise ValueError("bad")
        return encode(texts)

    monkeypatch.setattr(index.encoder, "encode_texts", picky)
    sound = [Query(f"sentence {number}") for number in range(31)]
    *answers, error = asked_together(index, [*sound, Query("x", where="x = ")])
    assert calls == [31] and isinstance(error, ValueError)  # a condition is no condition without any encoding
    assert [hits[0].score for hits in answers] == [index.search(query.text)[0].score for query in sound]
    calls.clear()
    *answers, error = asked_together(index, [*sound, Query("bad")])
    assert len(calls) <= 11 and str(error) == "bad" and all(len(hits) == 10 for hits in answers)
    monkeypatch.setattr(index, "search_many", raising(StoreError("the server is down"), calls))
    calls.clear()
    assert all(isinstance(each, StoreError) for each in asked_together(index, sound)) and len(calls) == 1


def raising(error, calls):
    def fails(*_):
        calls.append(1)
        raise error

    return fails


def test_nothing_ends_the_engine():
    class Fails:
        """An index whose server is away, as one of qdrant:// may be."""

        error: BaseException | None = None
        size = 1

        def __len__(self):
            if self.error:
                raise self.error
            return self.size

    async def ask():
        index = Fails()
        engine = Engine(index, batch=8, waiting=8)
        engine.start()
        for error in (StoreError("away"), KeyboardInterrupt(), StopIteration(), SystemExit(1)):
            index.error = error
            with pytest.raises((StoreError, RuntimeError)):
                await asyncio.wait_for(engine.call(len), 5)
            assert await asyncio.wait_for(engine.call(lambda _: 7, changes=True), 5) == 7
            assert engine.running and engine.entries == 1
        index.error, index.size = None, 0
        assert await engine.call(len) == 0 and engine.entries == 1  # a question changes nothing
        assert await engine.call(len, changes=True) == 0 and engine.entries == 0
        engine.close()
        assert not engine.running
        engine.close()

    asyncio.run(ask())


def test_a_server_that_was_forced_to_end_leaves_no_engine(index):
    index.encoder.encode_texts = slowed(index.encoder.encode_texts)
    with running(index) as server:
        asked = threading.Thread(target=lambda: server.client.post("/api/search", json={"query": "a dog"}))
        asked.start()
        threading.Event().wait(0.03)
        assert engines()
        server.server.force_exit = server.server.should_exit = True  # as a second Ctrl-C does
        asked.join()
    assert not engines()


def engines():
    return [thread for thread in threading.enumerate() if thread.name == "avse-engine"]


@pytest.mark.parametrize(
    "spec",
    [
        PixelSpec((24, 32), (0.5,) * 3, (0.2,) * 3),
        PixelSpec((24, 24), (0.5,) * 3, (0.2,) * 3, shorter_side=28),
        PixelSpec((24, 24), (0.5,) * 3, (0.2,) * 3, resample="bilinear", shorter_side=20),
        PixelSpec((24, 24), (0.5,) * 3, (0.2,) * 3, method="official"),
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (199, 301), (10, 7), (32, 24), (1000, 3)])
def test_a_shrunk_picture_looks_the_same_to_the_encoder(spec, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    small = shrink(image, spec)
    assert np.array_equal(to_pixels(read_image(small), spec), to_pixels(image, spec))
    assert seen_frame(small.size, spec) == seen_frame(size, spec)
    assert small.size == size if spec.method == "official" else min(small.size) <= 32


def test_a_line_of_pixels_is_not_made_huge():
    spec = PixelSpec((224, 224), (0.5,) * 3, (0.2,) * 3, shorter_side=224)
    with pytest.raises(ImageError, match="too large"):
        shrink(Image.new("RGB", (1_000_000, 3)), spec)  # it would have 224 x 74,666,666


def test_what_waits_for_the_encoder_is_small(index, monkeypatch, photos):
    encode, seen = index.encoder.encode_images, []
    monkeypatch.setattr(index.encoder, "encode_images", lambda images: seen.extend(images) or encode(images))
    index.encoder.pixels = PixelSpec((16, 24), (0.5,) * 3, (0.2,) * 3)
    with running(index) as server:
        data = paint(photos / "large.png", 9, size=(900, 1200))
        assert server.client.post("/api/search", files={"image": data}).status_code == 200
    assert [image.size for image in seen] == [(24, 16)]


def test_a_thumbnail_is_made_once_for_all_who_ask(tmp_path, monkeypatch):
    import avse.serve.thumbnails as module

    made = []

    def slow(*arguments, **more):
        made.append(1)
        threading.Event().wait(0.1)
        return read_image(*arguments, **more)

    monkeypatch.setattr(module, "read_image", slow)
    paint(tmp_path / "a.png", 1)
    thumbnails = module.Thumbnails(1 << 20, 10_000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: thumbnails.find(tmp_path / "a.png", 320), range(4)))
    assert len(set(found)) == len(made) == 1 and found[0].data
    assert thumbnails.find(tmp_path / "a.png", 320, f'"{found[0].tag}"').data is None
    (tmp_path / "b.png").write_bytes(b"none")
    for _ in range(2):
        with pytest.raises(ImageError):
            thumbnails.find(tmp_path / "b.png", 320)


def test_facets_are_read_once_for_all_and_seldom(index, monkeypatch):
    entries, read = index.entries, []

    def counted():
        read.append(1)
        threading.Event().wait(0.1)
        return entries()

    import avse.serve.routes as module

    with running(index, token=TOKEN) as server:
        server.client.get("/api/images")
        monkeypatch.setattr(index, "entries", counted)
        with ThreadPoolExecutor(6) as pool:
            said = list(pool.map(lambda _: server.client.get("/api/info").json()["fields"], range(6)))
        assert len(read) == 1 and all(fields == said[0] for fields in said)
        for name in ("land/00 ü.png", "land/02 ü.png", "land/04 ü.png"):
            assert server.client.delete(f"/api/images/{name}").status_code == 204
            assert server.client.get("/api/info").json()["entries"] < 12
        assert len(read) == 1
        monkeypatch.setattr(module.time, "monotonic", lambda now=time.monotonic: now() + 60)
        fields = {field["name"]: field for field in server.client.get("/api/info").json()["fields"]}
        assert len(read) == 2 and fields["folder"]["values"][-1] == {"value": "land", "count": 3}


def test_titles_are_no_facet():
    entries = [(str(at), {"title": f"Title {at}", "licence": f"l{at % 30}", "few": f"f{at}"}) for at in range(60)]
    entries += [(f"x{at}", {"licence": "l1", "tags": [f"t{at % 7}", "all"]}) for at in range(60)]
    assert [facet["name"] for facet in find_facets([entries])] == ["licence", "tags"]
    assert [facet["name"] for facet in find_facets([entries[:20]])] == ["few", "licence", "title"]


def test_what_is_logged(index, caplog):
    with caplog.at_level(logging.INFO, "avse.serve.requests"):
        with running(index, token=TOKEN) as server:
            answer = server.client.post("/api/search", json={"query": "my secret wish"})
        with running(index, log_queries=True) as server:
            server.client.post("/api/search", json={"query": "an open\nwish"})
    first, second = [json.loads(record.message) for record in caplog.records if record.name == "avse.serve.requests"]
    assert first["request"] == answer.headers["x-request-id"] and first["bytes"] == len(answer.content)
    assert (first["method"], first["route"], first["status"]) == ("POST", "/api/search", 200) and first["ms"] > 0
    assert "secret" not in json.dumps(first) and TOKEN not in json.dumps(first)
    assert second["query"] == "an open\nwish" and "\n" not in caplog.records[-1].message


def test_an_index_of_texts(tmp_path):
    with Index.create(tmp_path / "t.avse", ColourEncoder(), store="memory", side="texts") as index:
        index.add_texts(["a dog", "a cat", "a tree by the sea"], progress=False)
        data = paint(tmp_path / "x.png", 3)
        with running(index, token=TOKEN) as server:
            same(server.client.post("/api/search", files={"image": data}), index.search(image=data))
            refused = server.client.post("/api/search", json={"query": "a dog"})
            assert refused.status_code == 422 and "index of texts" in refused.json()["detail"]
            assert server.client.get("/api/similar/a dog").json()["hits"][0]["id"] != "a dog"
            assert server.client.get("/thumbnails/a dog").status_code == 404
            said = {"path": "x.png", "sha256": "0" * 64, "modified": "2019-06-08T13:20:00.000001+00:00"}
            assert server.client.post("/api/images", params=said, content=b"x").status_code == 403
            assert server.client.get("/api/explain", params={"id": "a dog", "query": "x"}).status_code == 422


def test_confidence_is_that_of_the_calibration(index):
    class Judge:
        bar = 0.0

        def judge(self, scores, gallery, direction):
            assert (gallery, direction) == (12, "t2i")
            return np.asarray(scores) / 10, np.asarray(scores) < self.bar

    index.encoder.calibration = judge = Judge()
    judge.bar = sorted(hit.score for hit in index.search("a dog"))[-2]
    with running(index) as server:
        answer = server.client.post("/api/search", json={"query": "a dog"}).json()
        assert [hit["weak"] for hit in answer["hits"]] == [False, False] + [True] * 8 and answer["weak"] is False
        assert answer["hits"][0]["confidence"] == pytest.approx(answer["hits"][0]["score"] / 10)
        judge.bar = 99
        assert server.client.post("/api/search", json={"query": "a dog"}).json()["weak"] is True
        assert server.client.get("/api/info").json()["calibrated"]
        likes = server.client.get("/api/similar/sea/01 ü.png").json()
        assert likes["weak"] is None and likes["hits"][0]["confidence"] is None


def test_the_page_and_openapi_need_no_other_machine(open_server):
    client = open_server.client
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    said = client.get("/openapi.json")
    assert said.status_code == 200 and {"/api/search", "/thumbnails/{id}"} <= set(said.json()["paths"])
    page = client.get("/")
    assert page.status_code in (200, 404)
    assert client.head("/").status_code == page.status_code and client.head("/").content == b""
    assert client.get("/api/info/").status_code == 404  # no redirect, which would tell another Host
    for answer in (page, said, client.get("/api/nothing"), client.get("/static/nothing.js")):
        assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert "no-cache" in answer.headers["cache-control"]


def test_shutting_down_answers_what_was_asked(index):
    index.encoder.encode_texts = slowed(index.encoder.encode_texts)
    answers = []
    with running(index) as server:
        thread = threading.Thread(
            target=lambda: answers.append(server.client.post("/api/search", json={"query": "a dog"}).status_code)
        )
        thread.start()
        threading.Event().wait(0.03)
        server.server.stop()
        thread.join()
    assert answers == [200]
    assert index.search("a dog")  # its owner closes it


def test_limits_are_checked(index):
    with pytest.raises(ValueError, match="k=0: a limit is above 0"):
        Limits(k=0)
    with pytest.raises(ValueError, match="token is empty"):
        create_app(index, token=" ")
    for token in ("two words", "grün", "a\tb", "a\0b"):
        with pytest.raises(ValueError, match="no header carries"):
            create_app(index, token=token)
    with running(index, token=f" {TOKEN}\n") as server:  # as a file or a shell may give it
        assert server.client.get("/api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert os.environ.get("AVSE_TOKEN") is None
