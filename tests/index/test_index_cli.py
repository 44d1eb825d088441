"""`avse index` and `avse search`, from their arguments to what they print."""

import json

import pytest
from PIL import Image

from avse.cli import main


@pytest.fixture
def out(tmp_path):
    return tmp_path / "photos.avse"


def _json(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_index_search_and_again(tmp_path, out, pictures, saved_model, store, capsys):
    assert main(["index", str(pictures), "--out", str(out), "--model", str(saved_model), "--store", store]) == 0
    said = capsys.readouterr()
    assert "6 added, 0 were there already, 2 skipped; 6 images in all" in said.out
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
    assert "holds the pictures of" in fails("index", pictures / "2019", "--out", out)
    assert "embedded store, not memory" in fails("index", pictures, "--out", out, "--store", "memory")
    assert "give a sentence" in fails("search", out)
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
    assert asked("year = 2019 and width > 10").endswith("; there are bytes, folder, height, name, path, width\n")
    assert asked("width > 1000000") == ""
    assert asked("'a b' = 1 and zz.z = 2").count("no entry has") == 2
