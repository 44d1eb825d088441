"""Pictures that came over the network: entries of their own, which no run over a local folder loses."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from avse.index import Hit, Index, StoreError
from avse.index.journal import Journal
from avse.index.uploads import Uploads, check_path

WHEN = "2019-06-08T13:20:00.000001+00:00"


def data_of(number, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


class Sender:
    """Does what the server's route does, without HTTP."""

    def __init__(self, index):
        self.index, self.uploads = index, Uploads(index)

    def send(self, path, data):
        if self.uploads.gain(path, sha(data)):
            return False
        return self.enter(path, data)

    def enter(self, path, data):
        """The second half, which may come much later."""
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return self.uploads.enter(path, picture, data, sha(data), WHEN)


@pytest.fixture(params=["memory", "embedded"])
def index(request, tmp_path, encoder):
    with Index.create(tmp_path / "i.avse", encoder, store=request.param) as made:
        yield made


def state(index):
    return {name: payload for page in index.entries() for name, payload in page}


def kept(index):
    return {file.name for file in (index.path / "uploads").glob("*/*")}


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_one_content_is_one_entry_with_all_its_paths(index, encoder):
    sender, one, two = Sender(index), data_of(1), data_of(2)
    assert sender.send("a/x.png", one) and not sender.send("b/y.png", one) and not sender.send("b/y.png", one)
    assert sender.send("z.png", two)
    found = state(index)
    assert found["a/x.png"]["paths"] == ["a/x.png", "b/y.png"] and set(found) == {"a/x.png", "z.png"}
    payload = found["a/x.png"]
    assert (payload["folder"], payload["name"], payload["modified"]) == ("a", "x.png", WHEN)
    assert (payload["width"], payload["height"], payload["bytes"], payload["sha256"]) == (5, 6, len(one), sha(one))
    assert kept(index) == {sha(one), sha(two)} and index.picture(Hit("", 0, payload)).read_bytes() == one
    assert np.array_equal(index.get(["z.png"])[1], encoder.encode_images([Image.open(io.BytesIO(two))]))
    assert not sender.send("b/y.png", two)  # the path has another content now
    assert state(index)["a/x.png"]["paths"] == ["a/x.png"] and state(index)["z.png"]["paths"] == ["b/y.png", "z.png"]
    assert sender.uploads.remove("z.png") and not sender.uploads.remove("z.png")
    assert state(index)["b/y.png"]["folder"] == "b" and set(state(index)) == {"a/x.png", "b/y.png"}
    assert sender.uploads.remove("b/y.png") and kept(index) == {sha(one)}
    assert list(index.verify()) == []
    again = Sender(index)  # what another process finds
    assert not again.send("a/x.png", one) and again.uploads.page("", 5) == (
        [("a/x.png", state(index)["a/x.png"])],
        None,
    )


def test_pages_are_in_order(index):
    sender = Sender(index)
    names = ["b.png", "ü.png", "a/z.png", "a.png", "c/a.png"]
    for number, name in enumerate(names):
        sender.send(name, data_of(number))
    sender.uploads.remove("a.png")
    seen, after = [], ""
    while after is not None:
        page, after = sender.uploads.page(after, 2)
        seen += page
    assert [name for name, _ in seen] == sorted(set(names) - {"a.png"})


def test_a_run_over_a_local_folder_loses_no_upload(index, pictures):
    sender = Sender(index)
    local = (pictures / "a.png").read_bytes()
    sender.send("up/x.png", data_of(1))
    sender.send("a.png", data_of(2))  # the name of a local one
    sender.send("up/same.png", local)  # the content of a local one
    before = state(index)
    report = index.add_images(pictures, progress=False)
    assert (report.added, report.removed, len(report.skipped)) == (6, 0, 2)
    uploads = {payload["sha256"]: payload for payload in state(index).values() if payload.get("uploaded")}
    assert set(uploads) == {payload["sha256"] for payload in before.values()} == kept(index)
    assert state(index)["a.png"]["sha256"] == sha(local) and not state(index)["a.png"].get("uploaded")
    assert all(index.picture(Hit("", 0, payload)).is_file() for payload in uploads.values())
    assert len(index) == 9 and list(index.verify()) == []
    report = index.add_images(pictures, progress=False)
    assert (report.known, report.added, report.removed) == (6, 0, 0) and len(index) == 9
    (pictures / "a.png").unlink()
    (pictures / "2019" / "c.png").rename(pictures / "up.png")
    sender.send("up.png2", data_of(9))
    report = index.prune(progress=False)
    assert (report.removed, report.moved) == (1, 1)
    assert {p["sha256"] for p in state(index).values() if p.get("uploaded")} == set(uploads) | {sha(data_of(9))}
    assert list(index.verify()) == []


def test_a_local_picture_that_moves_onto_an_uploads_name_displaces_it(index, pictures):
    index.add_images(pictures, progress=False)
    sender = Sender(index)
    sender.send("moved.png", data_of(1))
    index.add_images(pictures, progress=False)
    (pictures / "a.png").rename(pictures / "moved.png")
    index.add_images(pictures, progress=False)
    found = state(index)
    assert not found["moved.png"].get("uploaded")
    assert [payload["sha256"] for payload in found.values() if payload.get("uploaded")] == [sha(data_of(1))]
    with_journal = index.path / "journal.sqlite"
    with_journal.unlink()  # made anew from the entries
    index.add_images(pictures, progress=False)
    assert state(index) == found and list(index.verify()) == []


def test_an_upload_over_a_local_name_comes_back_with_the_next_run(index, pictures):
    index.add_images(pictures, progress=False)
    sender = Sender(index)
    assert not sender.send("a.png", (pictures / "a.png").read_bytes()) and not kept(index)  # it is there as it is
    assert sender.send("a.png", data_of(5)) and state(index)["a.png"]["uploaded"]
    index.add_images(pictures, progress=False)
    found = state(index)
    assert not found["a.png"].get("uploaded") and sum(bool(p.get("uploaded")) for p in found.values()) == 1
    assert sender.uploads is not None and Uploads(index).remove("b.jpg") and (pictures / "b.jpg").is_file()


def test_a_client_sees_uploads_as_pictures_of_its_folder(index):
    """The journal that a client makes of a server's entries, as `avse index --url` does."""
    from avse.index.remote import _picture

    Sender(index).send("a/x.png", data_of(1))
    journal = Journal(None)
    journal.rebuild([[(name, _picture(payload)) for name, payload in page] for page in index.entries()])
    assert journal.row("a/x.png").sha256 == sha(data_of(1)) and journal.row("a/x.png").bytes == len(data_of(1))
    journal.close()


def test_what_fails_leaves_no_file(index, monkeypatch):
    sender = Sender(index)

    def refuse(*_):
        raise OSError("full")

    monkeypatch.setattr(index, "add_embeddings", refuse)
    with pytest.raises(OSError, match="full"):
        sender.send("a.png", data_of(1))
    assert not kept(index) and len(index) == 0


def refused(*_):
    raise StoreError("full")


def test_what_was_read_in_part_is_read_again(index, monkeypatch):
    sender = Sender(index)
    for number, name in enumerate(["c.png", "a.png", "b.png"]):
        sender.send(name, data_of(number))
    uploads, whole = Uploads(index), state(index)

    def in_part():
        yield [("c.png", whole["c.png"])]
        refused()

    with monkeypatch.context() as during:
        during.setattr(index, "entries", in_part)
        with pytest.raises(StoreError, match="full"):
            uploads.page("", 5)
    assert uploads.page("", 5) == (sorted(whole.items()), None)


@pytest.mark.parametrize("fails", ["add_embeddings", "delete"])
def test_a_change_that_fails_can_be_made_again(index, monkeypatch, fails):
    sender = Sender(index)
    for path in ("a.png", "b.png"):
        sender.send(path, data_of(1))
    sender.send("z.png", data_of(2))
    with monkeypatch.context() as during:
        during.setattr(index, fails, refused)
        for change in (lambda: sender.uploads.remove("a.png"), lambda: sender.send("a.png", data_of(2))):
            with pytest.raises(StoreError, match="full"):
                change()
    assert sender.uploads.page("", 9) == (sorted(state(index).items()), None)
    assert sender.uploads.remove("a.png") and not sender.uploads.remove("a.png")
    assert {name: payload["paths"] for name, payload in state(index).items()} == {
        "b.png": ["b.png"],
        "z.png": ["z.png"],
    }
    assert list(index.verify()) == []


def test_a_picture_that_went_between_the_halves_of_another_upload_keeps_its_file(index):
    """Two clients send one content; the first is in and taken out again before the second goes on."""
    sender, one = Sender(index), data_of(1)
    assert not sender.uploads.gain("second.png", sha(one))
    assert sender.send("first.png", one) and sender.uploads.remove("first.png")
    assert sender.enter("second.png", one)
    assert kept(index) == {sha(one)} and list(index.verify()) == []


@pytest.mark.parametrize("own", ["2021", True, 1])
def test_a_field_named_uploaded_may_be_anybodys(index, unit, tmp_path, own):
    payload = {"path": "x.png", "uploaded": own, "paths": ["x.png"]}
    index.add_embeddings(["x.png"], unit(1, 4, 8), [payload])
    assert list(index.verify()) == [] and index.picture(Hit("x.png", 0.0, payload)) is None
    sender = Sender(index)
    assert sender.send("a.png", data_of(1)) and list(index.verify()) == []
    journal = Journal(None)
    assert journal.rebuild(index.entries()) == []
    journal.close()
    assert sender.uploads.remove("x.png") and set(state(index)) == {"a.png"}


def test_pages_of_a_server_show_what_others_wrote(local_server, encoder, unit):
    """Its own order begins again behind an id, which may have gone meanwhile."""
    with Index.create("qdrant://localhost/photos", encoder) as index:
        uploads = Uploads(index)
        assert uploads.page("", 3) == ([], None)
        others = Index.open("qdrant://localhost/photos", encoder)
        others.add_embeddings([f"{number}.png" for number in range(7)], unit(7, 4, 8))
        seen, after = [], ""
        while after is not None:
            page, after = uploads.page(after, 3)
            seen += [name for name, _ in page]
            if after is not None:
                others.delete([after])
        assert sorted(seen) == [f"{number}.png" for number in range(7)] and len(index) == 5
        assert [len(uploads.page("", limit)[0]) for limit in (4, 5, 6)] == [4, 5, 5]
        assert uploads.page("", 5)[1] is None
    with Index.create("qdrant://localhost/photos", encoder, force=True) as index, pytest.raises(StoreError):
        local_server.delete_collection("photos")
        Uploads(index).page("", 3)


def test_verify_names_a_damaged_upload(index):
    sender = Sender(index)
    for number in range(2):
        sender.send(f"{number}.png", data_of(number))
    (index.path / "uploads" / sha(data_of(0))[:2] / sha(data_of(0))).unlink()
    (index.path / "uploads" / sha(data_of(1))[:2] / sha(data_of(1))).write_bytes(b"x")
    said = sorted(index.verify())
    assert len(said) == 2 and "is gone" in said[0] and "something else than was uploaded" in said[1]
    index.delete(["0.png", "1.png"])
    (said,) = index.verify()
    assert sha(data_of(1)) in said and "no entry has this picture" in said


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/..", "a//b", "./a", "a\\b", "C:/a", "a\0b", "a\nb", "x" * 1001, "\udce4"]
)
def test_paths_that_are_refused(path):
    with pytest.raises(ValueError, match="a path"):
        check_path(path, WHEN)
    with pytest.raises(ValueError, match="modified"):
        check_path("a.png", "yesterday")


def test_a_store_without_places_refuses_to_list_from_one(tmp_path, encoder):
    with Index.create(tmp_path / "x.avse", encoder, store="memory") as index:
        with pytest.raises(ValueError, match="from the beginning alone"):
            index.entries("a")
        assert list(index.entries()) in ([], [[]])
