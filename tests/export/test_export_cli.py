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
