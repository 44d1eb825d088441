"""`avse export`: what does not go together is misuse and says the way out; an index goes to its writer."""

from __future__ import annotations

import json

import pytest
from index_kit import make_index

from avse.cli import main


@pytest.fixture
def index(tmp_path):
    make_index(tmp_path / "index", 6, store="memory")
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "parquet", "--int8"], "--int8 belongs to --to onnx, not to parquet"),
        (["--to", "sentence-transformers", "--data", "x"], "--data belongs to --to onnx or huggingface"),
        (["--to", "onnx", "--data", "x"], "add --int8"),
        (["--to", "onnx", "--licence", "mit"], "--licence belongs to --to huggingface"),
        (["--to", "onnx", "--push-to-hub", "me/it"], "--push-to-hub belongs to --to huggingface or sentence-transf"),
        (["--to", "huggingface", "--push-to-hub", "it"], "USER/NAME is wanted"),
        (["--to", "huggingface", "--public"], "--public belongs to --push-to-hub"),
        (["--to", "parquet", "--split", "val"], "--split belongs to --to onnx or huggingface, not to parquet"),
        (["--to", "sentence-transformers", "--split", "val"], "--split belongs to --to onnx or huggingface"),
        (["--to", "huggingface", "--split", "val"], "--split names a split of --data: add it"),
        (["--push-to-hub", "me/it"], "--to FORMAT and --out PATH are wanted, or --push-to-hub alone"),
        (["--to", "qdrant"], "wants a collection's URL, such as qdrant://"),
        (["--to", "onnx"], "is an index, and --to onnx takes a model"),
    ],
)
def test_misuse_is_two_and_writes_nothing(index, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["export", str(index), *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and not out.exists()


def test_a_model_is_no_index(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", "parquet", "--out", str(tmp_path / "out.parquet")]) == 2
    assert "is no index, and --to parquet takes one" in capsys.readouterr().err
    assert main(["export", "no/such", "--to", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "no model folder 'no/such'" in capsys.readouterr().err


def test_an_index_becomes_a_table(index, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    assert main(["export", str(index), "--to", "parquet", "--out", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["format"] == "parquet" and row["entries"] == 5 and row["bytes"] == out.stat().st_size
    assert main(["export", str(index), "--to", "parquet", "--out", str(out)]) == 1
    assert main(["export", str(index), "--to", "parquet", "--out", str(out), "--force"]) == 0
    assert "entries 5" in capsys.readouterr().out


def test_without_a_format_only_a_push_has_a_meaning(index, tmp_path, capsys):
    for arguments in ([], ["--to", "parquet"], ["--json"]):
        assert main(["export", str(index), *arguments]) == 2
        assert "--to FORMAT and --out PATH are wanted" in capsys.readouterr().err
    for arguments, name in ((["--licence", "mit"], "licence"), (["--int8"], "int8"), (["--data", "x"], "data")):
        assert main(["export", str(index), "--push-to-hub", "me/it", *arguments]) == 2
        assert f"--{name} belongs to --to" in capsys.readouterr().err
    assert main(["export", str(index), "--push-to-hub", "me/it", "--force"]) == 2
    assert main(["export", str(index), "--push-to-hub", "me/it"]) == 1
    assert "is no folder for the hub with its README.md" in capsys.readouterr().err


def test_a_table_never_lies_in_its_index(index, tmp_path, capsys):
    before = sorted(index.rglob("*"))
    assert main(["export", str(index), "--to", "parquet", "--out", str(index / "index.json"), "--force"]) == 1
    assert main(["export", str(index), "--to", "parquet", "--out", str(index / "out.parquet")]) == 1
    assert capsys.readouterr().err.count("choose a place beside it") == 2 and sorted(index.rglob("*")) == before
