"""`avse info`: the machine, a model, an index."""

from __future__ import annotations

import os


def test_the_machine(avse):
    said = avse("info")
    assert said.code == 0 and said.err == ""
    facts = dict(line.split(maxsplit=1) for line in said.out.splitlines() if not line.startswith("encoding"))
    assert facts["cores"] == str(os.cpu_count()) and facts["torch"][0].isdigit()
    assert avse("info", "--json").json[0]["torch"] == facts["torch"]


def test_a_model_and_an_index(avse, run_folder, scenes, tmp_path):
    model = run_folder / "model"
    [facts] = avse("info", model, "--json").json
    assert (facts["views V"], facts["image blocks P"], facts["text blocks Q"], facts["block width C"]) == (2, 4, 2, 8)
    assert avse("index", scenes / "images", "--out", tmp_path / "i.avse", "--model", model, "--json").code == 0
    [facts] = avse("info", tmp_path / "i.avse", "--json").json
    assert (facts["side"], facts["store"], facts["entries"]) == ("images", "embedded", 40)
