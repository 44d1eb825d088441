"""`avse index` and `avse search`, from their arguments to what they print."""

import json
import os

import pytest
from PIL import Image

from avse.cli import main
from avse.index import Index


@pytest.fixture
def out(tmp_path):
    return tmp_path / "photos.avse"


def _json(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_index_search_and_again(tmp_path, out, pictures, saved_model, store, capsys):
    assert main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store]) == 0
    said = capsys.readouterr()
    assert "6 added, 2 skipped; 6 images in all" in said.out
    assert "  skipped 2019/broken.jpg: " in said.out and "picture/s" in said.err
    Image.new("RGB", (9, 9), "red").save(pictures / "new.png")
    assert main(["index", str(pictures), "--out", str(out), "--json"]) == 0
    (report,) = _json(capsys)
    assert (report["added"], report["known"], report["entries"], report["store"]) == (1, 6, 7, store)
    assert [skip["name"] for skip in report["skipped"]] == ["2019/broken.jpg", "empty.png"]

    assert main(["search", str(out), "a red dog", "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].split()[0] == "1" and lines[0].split()[2].endswith((".png", ".jpg"))
    assert main(["search", str(out), "--image", str(pictures / "a.png"), "--json"]) == 0
    hits = _json(capsys)
    assert [hit["rank"] for hit in hits] == list(range(1, 8))
    assert hits[0]["id"] == "a.png" and hits[0]["payload"]["width"] == 20 and hits[0]["score"] > hits[6]["score"]
    asked = ["a dog", "--image", str(pictures / "a.png"), "--where", "folder=2019"]
    assert main(["search", str(out), *asked, "--json"]) == 0
    assert {hit["id"] for hit in _json(capsys)} == {"2019/c.png", "2019/d ü.png"}
    assert main(["search", str(out), "a dog", "--where", "folder = nowhere"]) == 0
    assert capsys.readouterr().out == "no answers\n"


def test_sheet(tmp_path, out, pictures, saved_model, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model)])
    (pictures / "a.png").unlink()
    sheet = tmp_path / "sheet.png"
    assert main(["search", str(out), "a dog", "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 1000
    before = sheet.read_bytes()
    assert main(["search", str(out), "another", "--sheet", str(sheet)]) == 1
    assert "--force" in capsys.readouterr().err and sheet.read_bytes() == before
    assert main(["search", str(out), "another", "--sheet", str(sheet), "--force"]) == 0
    assert sheet.read_bytes() != before


def test_texts(tmp_path, out, pictures, saved_model, capsys):
    (tmp_path / "lines.txt").write_text("a dog\na boat\n\n", "utf-8")
    assert main(["index", str(tmp_path / "lines.txt"), "--out", str(out), "--model", str(saved_model), "--json"]) == 0
    (report,) = _json(capsys)
    assert (report["side"], report["store"], report["added"]) == ("texts", "memory", 2)
    assert main(["search", str(out), "--image", str(pictures / "a.png"), "--json"]) == 0
    assert {hit["id"] for hit in _json(capsys)} == {"a dog", "a boat"}
    assert main(["search", str(out), "--image", str(pictures / "a.png"), "--sheet", str(tmp_path / "s.png")]) == 1
    assert "index of texts" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, out, pictures, saved_model, capsys):
    def fails(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        return said.err

    (tmp_path / "empty").mkdir()
    model = ("--model", saved_model)
    assert "holds no pictures" in fails("index", tmp_path / "empty", "--out", out, *model)
    assert "neither a folder" in fails("index", tmp_path / "gone", "--out", out, *model)
    assert "--model DIR" in fails("index", pictures, "--out", out)
    assert "no such model folder" in fails("index", pictures, "--out", out, "--model", tmp_path / "gone")
    assert "not an index" in fails("index", pictures, "--out", pictures, *model)
    assert "no such index" in fails("search", out, "a dog")
    assert not out.exists()
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model)])
    capsys.readouterr()
    assert "holds the pictures of" in fails("index", tmp_path, "--out", out)
    assert "embedded store, not memory" in fails("index", pictures, "--out", out, "--store", "memory")
    assert "no such file" in fails("search", out, "--image", tmp_path / "gone.png")
    assert "position 4" in fails("search", out, "a dog", "--where", "a >")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    assert "not UTF-8" in fails("index", tmp_path / "bytes.txt", "--out", tmp_path / "t", *model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "i", "a dog", "-k", "0"], "argument -k: 0: a whole number of at least 1 is wanted"),
        (["search", "i", "a dog", "-k", "1.5"], "argument -k: 1.5: a whole number of at least 1 is wanted"),
        (["index", "p", "--out", "i", "--batch-size", "-2"], "argument --batch-size: -2: a whole number of at least 1"),
    ],
)
def test_misuse_names_option_value_and_limit(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_field_that_no_entry_has_is_named(out, pictures, saved_model, store, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store])

    def asked(where):
        capsys.readouterr()
        assert main(["search", str(out), "a dog", "--where", where]) == 0
        said = capsys.readouterr()
        assert said.out == "no answers\n"
        return said.err

    assert asked("widht > 10") == "avse search: --where: no entry has the field 'widht'; did you mean 'width'?\n"
    assert "'date'; it comes from EXIF, which no picture here has" in asked("date > 2019-01-01")
    assert asked("zz = 2019 and width > 10").endswith(
        "; there are bytes, folder, height, modified, name, path, paths, sha256, width\n"
    )
    assert asked("width > 1000000") == ""
    assert asked("'a b' = 1 and zz.z = 2").count("no entry has") == 2


def _fails(capsys, *arguments, code=1):
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_the_second_time_says_what_became_of_every_file(tmp_path, out, pictures, saved_model, store, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store])
    (pictures / "a.png").rename(pictures / "z.png")
    (pictures / "2020" / "e.png").unlink()
    (pictures / "copy.jpg").write_bytes((pictures / "b.jpg").read_bytes())
    Image.new("RGB", (7, 7), "navy").save(pictures / "2019" / "c.png")
    capsys.readouterr()
    assert main(["index", str(pictures), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = "1 changed, 1 moved, 1 doubled (only their paths were added), 1 removed, 3 unchanged, 2 skipped"
    assert lines[0] == f"{out}: {said}; 5 images in all"
    assert lines[1].startswith("  skipped 2019/broken.jpg: ") and lines[2] == "  skipped empty.png: empty (0 bytes)"
    assert main(["search", str(out), "--image", str(pictures / "copy.jpg"), "-k", "1", "--json"]) == 0
    (hit,) = _json(capsys)
    assert hit["id"] == "b.jpg" and hit["payload"]["paths"] == ["b.jpg", "copy.jpg"]


def test_prune_needs_neither_model_nor_folder(out, pictures, saved_model, store, capsys, tmp_path):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store])
    saved_model.rename(tmp_path / "elsewhere")
    (pictures / "a.png").unlink()
    capsys.readouterr()
    assert main(["index", "--prune", "--out", str(out), "--json"]) == 0
    (report,) = _json(capsys)
    assert (report["removed"], report["known"], report["entries"]) == (1, 5, 5)
    assert main(["index", str(pictures), "--out", str(out)]) == 0  # nothing new: no model is asked for
    assert "5 unchanged" in capsys.readouterr().out
    (pictures / "new.png").write_bytes((pictures / "2019" / "c.png").read_bytes() + b" ")
    assert main(["index", str(pictures), "--out", str(out)]) == 1 and "no model folder" in capsys.readouterr().err


def test_single_entries_are_taken_out_and_come_back(out, pictures, saved_model, store, capsys):
    make = ["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store]
    main(make)
    capsys.readouterr()
    assert main(["index", "--out", str(out), "--delete", "a.png", "--delete", "2019/c.png", "--json"]) == 0
    (report,) = _json(capsys)
    assert (report["removed"], report["entries"]) == (2, 4)
    with Index.open(out) as index:
        assert index.known(["a.png", "2019/c.png", "b.jpg"]) == {"b.jpg"}
    capsys.readouterr()
    assert main(["index", "--out", str(out), "--delete", "a.png"]) == 1
    assert "--delete a.png: no such entry" in capsys.readouterr().err
    assert main(["index", str(pictures), "--out", str(out), "--delete", "a.png"]) == 2
    capsys.readouterr()
    assert main([*make, "--json"]) == 0
    (report,) = _json(capsys)
    assert (report["added"], report["known"], report["entries"]) == (2, 4, 6)


def test_a_file_of_queries(tmp_path, out, pictures, saved_model, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model)])
    (tmp_path / "q.txt").write_text("a red dog\n\n  the sea \n", "utf-8")
    asked = ["search", str(out), "--queries", str(tmp_path / "q.txt"), "-k", "2"]
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    hits = _json(capsys)
    assert [hit["query"] for hit in hits] == ["a red dog"] * 2 + ["the sea"] * 2
    alone = []
    for sentence in ("a red dog", "the sea"):
        main(["search", str(out), sentence, "-k", "2", "--json"])
        alone += [{"query": sentence, **hit} for hit in _json(capsys)]
    assert hits == alone
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["a red dog", "the sea"] and len(lines) == 6
    (tmp_path / "empty.txt").write_text("\n")
    assert "no sentences" in _fails(capsys, "search", out, "--queries", tmp_path / "empty.txt")
    assert "goes without" in _fails(capsys, "search", out, "a dog", "--queries", tmp_path / "q.txt", code=2)


def test_approximate_prints_its_recall(out, pictures, saved_model, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model)])
    capsys.readouterr()
    assert main(["search", str(out), "a red dog", "--approximate", "-k", "3"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    # so few pictures have no graph: the answers are the exact ones
    assert "approximate: 100.0% of the exact answers to what is asked were found (recall@3), 100.0% to 6" in said.err


def test_a_file_of_sentences_that_changes(tmp_path, out, saved_model, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("a dog\na boat\na tree\n", "utf-8")
    main(["index", str(lines), "--out", str(out), "--model", str(saved_model)])
    lines.write_text("a boat\na house\na tree\n", "utf-8")
    capsys.readouterr()
    assert main(["index", str(lines), "--out", str(out), "--json"]) == 0
    (report,) = _json(capsys)
    counts = {name: report[name] for name in ("added", "changed", "removed", "known", "entries")}
    assert counts == {"added": 1, "changed": 1, "removed": 1, "known": 1, "entries": 3}
    lines.write_text("\n", "utf-8")
    assert "no sentences" in _fails(capsys, "index", lines, "--out", out)


def test_info_and_verify(tmp_path, out, pictures, saved_model, store, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store])
    capsys.readouterr()
    assert main(["info", str(out), "--json"]) == 0
    (facts,) = _json(capsys)
    assert (facts["store"], facts["side"], facts["entries"], facts["added then"]) == (store, "images", 6, 6)
    assert facts["skipped then"] == 2 and facts["source"] == str(pictures) and "model" in facts
    assert main(["verify", str(out)]) == 0 and capsys.readouterr().out == f"{out}: whole\n"
    with Index.open(out) as index:
        index._store.delete(["b.jpg"])  # behind the journal's back
    assert main(["verify", str(out), "--json"]) == 1
    *damages, last = _json(capsys)
    assert [damage["damage"].split(":")[0] for damage in damages] == ["b.jpg"]
    assert last == {"path": str(out), "whole": False, "damages": 1}
    (out / "index.json").write_text("{")
    assert main(["verify", str(out)]) == 1 and "damaged" in capsys.readouterr().out
    assert "neither an index nor a model" in _fails(capsys, "verify", pictures)
    assert f"{out.parent} is neither" in (told := _fails(capsys, "verify", out.parent)) and f"verify {out} ins" in told


def test_verify_lists_every_damage_of_a_model_folder(tmp_path, capsys):
    from avse.files import write_manifest

    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name * 10)
    write_manifest(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("bbbbbbbbbB")
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    assert ["no such file" in line or "sha256" in line for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_arguments_that_do_not_go_together(out, pictures, capsys):
    assert "--out INDEX, or --url" in _fails(capsys, "index", pictures, code=2)
    assert "--out INDEX, or --url" in _fails(capsys, "index", pictures, "--out", out, "--url", "http://x", code=2)
    assert "give a FOLDER" in _fails(capsys, "index", "--out", out, code=2)
    assert "http://host:port" in _fails(capsys, "search", "--url", "ftp://x", "a dog")
    assert "--gpus-per-actor is for --ray" in _fails(
        capsys, "index", pictures, "--out", out, "--gpus-per-actor", 1, code=2
    )
    said = _fails(capsys, "index", pictures, "--prune", "--out", out, "--model", "m", "--shards", 2, code=2)
    assert "--model, --shards does nothing beside --prune" in said
    said = _fails(capsys, "search", "--url", "http://x", "a dog", "--model", "m", code=2)
    assert "--model does nothing beside --url" in said
    assert "nothing to look for: give a sentence" in _fails(capsys, "search", out, code=2)


def test_an_index_in_use_names_its_holder_and_the_way_out(out, pictures, saved_model, store, capsys):
    main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store])
    capsys.readouterr()
    with Index.open(out) as index:
        if store == "memory":
            index._store.own()  # it may be read by many; the first change takes it
        said = _fails(capsys, "index", pictures, "--out", out)
        assert f"in use by this very process ({os.getpid()})" in said and "--url" in said
    assert main(["index", str(pictures), "--out", str(out)]) == 0
