"""What the common tests of the stores do not say of shards: each entry has one place, and no shard may be missing."""

import shutil

import pytest

import avse.scale
from avse.cli import main
from avse.index import Index, StoreError
from avse.index.feed import embed_files
from avse.index.sharded import shard_of


@pytest.fixture
def filled(tmp_path, encoder, unit):
    """A closed index of 300 entries in three shards."""
    with Index.create(tmp_path / "i.avse", encoder, shards=3) as index:
        index.add_embeddings([f"{number}.jpg" for number in range(300)], unit(300, 4, 8), [{"n": 1}] * 300)
    return tmp_path / "i.avse" / "embedded"


def test_entries_are_spread_and_have_one_place(filled, unit):
    places = [shard_of(f"{number}.jpg", 3) for number in range(300)]
    assert set(places) == {0, 1, 2} and min(map(places.count, range(3))) > 70
    with Index.open(filled.parent) as index:
        index.add_embeddings([f"{number}.jpg" for number in reversed(range(300))], unit(300, 4, 8, seed=1))
        assert len(index) == 300 and not list(index.verify())


def test_shards_that_were_exchanged_are_found_by_verify(filled):
    (filled / "0").rename(filled / "x")
    (filled / "2").rename(filled / "0")
    (filled / "x").rename(filled / "2")
    with Index.open(filled.parent) as index:
        found = list(index.verify())
    assert any("lies in shard 0, its place is shard 2" in sentence for sentence in found)


def test_a_missing_or_damaged_shard_is_an_error_and_the_lock_is_free_again(filled):
    (filled / "1").rename(filled / "elsewhere")
    for _ in range(2):
        with pytest.raises(StoreError, match="1 is missing, one of 3 shards"):
            Index.open(filled.parent)
    (filled / "elsewhere").rename(filled / "1")
    Index.open(filled.parent).close()
    shutil.rmtree(filled / "2" / "segments")
    with pytest.raises(StoreError, match="2 is damaged"):
        Index.open(filled.parent)


def test_shards_and_ray_by_the_command_line(tmp_path, monkeypatch, pictures, saved_model, encoder, capsys):
    calls = []

    def embed_with_ray(folder, todo, **options):
        calls.append((folder, options))
        return embed_files(encoder, todo)

    monkeypatch.setattr(avse.scale, "embed_with_ray", embed_with_ray)
    out = str(tmp_path / "i.avse")
    index = ["index", str(pictures), "--out", out]
    assert main([*index, "--model", str(saved_model), "--shards", "3", "--ray", "head:6379"]) == 0
    assert calls == [(saved_model, {"address": "head:6379", "batch_size": 32, "gpus_per_actor": 0.0})]
    assert "6 added" in capsys.readouterr().out
    assert len(list((tmp_path / "i.avse" / "embedded").iterdir())) == 3
    assert main([*index, "--shards", "3", "--ray"]) == 0
    assert main([*index, "--shards", "2"]) == 1 and "has 3 shards, not 2" in capsys.readouterr().err
    assert main([*index, "--ray", "--device", "cpu"]) == 2 and "--gpus-per-actor" in capsys.readouterr().err
    sentences = tmp_path / "captions.txt"
    sentences.write_text("a dog")
    assert main(["index", str(sentences), "--out", str(tmp_path / "t"), "--ray"]) == 2
    assert "sentences" in capsys.readouterr().err
