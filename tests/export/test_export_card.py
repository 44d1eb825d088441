"""The folder for the hub: it loads and verifies as the model does, and its card says what is recorded and no more.

huggingface_hub reads the card's metadata; its client really pushes, to a small HTTP server on this machine that plays
the hub. That the real hub takes it was not tried.
"""

import base64
import http.server
import json
import re
import shutil
import threading

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

from avse import AVSE, Trainer, load_dataset
from avse.checkpoint import CheckpointError
from avse.cli import main
from avse.config import ModelConfig, TrainConfig
from avse.data.scenes import make_scenes
from avse.export.card import write_folder
from avse.export.hub import push
from avse.metrics import retrieval_metrics, with_intervals


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_scenes(folder, count=40, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes, tiny_vit_folder, tiny_bert_folder):
    """A finished training, as its folder; the tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    sources = {"image_encoder": {"source": str(tiny_vit_folder)}, "text_encoder": {"source": str(tiny_bert_folder)}}
    model = AVSE(ModelConfig(embed_dim=16, block_width=8, **sources))
    splits = [load_dataset(scenes, split=split) for split in ("train", "val")]
    Trainer(model, TrainConfig(epochs=1, batch_size=14), cache=folder.parent / "cache", progress=False).fit(
        *splits, out=folder
    )
    return folder


@pytest.fixture(scope="module")
def folder(run, scenes, tmp_path_factory):
    """The folder with figures measured now."""
    out = tmp_path_factory.mktemp("hub") / "tiny-avse"
    said = write_folder(run / "model", out, data=scenes, licence="mit")
    assert said["split"] == "test" and said["files"] == sum(path.is_file() for path in out.rglob("*"))
    return out


def test_it_loads_and_verifies_and_may_be_edited(run, folder, tmp_path):
    theirs, ours = AVSE.from_pretrained(folder), AVSE.from_pretrained(run / "model")
    assert theirs.fingerprint == ours.fingerprint
    assert np.array_equal(theirs.encode_texts(["a red star"]), ours.encode_texts(["a red star"]))
    for name in ("model.safetensors", "config.json", "text_encoder/tokenizer.json"):
        assert (folder / name).read_bytes() == (run / "model" / name).read_bytes()
    out = tmp_path / "edited"
    write_folder(run / "model", out)
    (out / "README.md").write_text("my own words")
    assert main(["verify", str(out)]) == 0 and AVSE.from_pretrained(out).fingerprint == ours.fingerprint
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    assert main(["verify", str(out)]) == 1


def test_measured_figures_are_those_of_the_matrix(folder, scenes):
    model, test = AVSE.from_pretrained(folder), load_dataset(scenes, split="test")
    scores = model.similarity(model.encode_images(list(test.image_paths)), model.encode_texts(list(test.captions)))
    wanted = with_intervals(retrieval_metrics(scores, test.text_to_image))
    card = ModelCard.load(folder / "README.md")  # huggingface_hub's own reading
    found = {result.metric_type: result for result in card.data.eval_results}
    for side in ("i2t", "t2i"):
        for k in (1, 5, 10):
            assert found[f"{side}_r{k}"].metric_value == round(getattr(wanted, side).recalls[k], 2)
    rsum = found["rsum"]
    assert rsum.metric_value == round(wanted.rsum, 2) and rsum.metric_args["interval_95"][0] < wanted.rsum
    assert (rsum.dataset_name, rsum.dataset_split, rsum.task_type) == ("scenes", "test", "image-text-retrieval")
    assert (card.data.license, card.data.library_name) == ("mit", "avse")
    assert card.data.datasets is None  # a folder's name is no name of the hub
    row = next(line for line in card.text.splitlines() if line.startswith("| rSum |"))
    low, high = (float(end) for end in re.search(r"\| ([\d.]+) to ([\d.]+) \|", row).groups())
    assert [low, high] == pytest.approx(wanted.interval, abs=0.06)


def test_the_code_of_the_card_runs(folder, monkeypatch, capsys):
    Image.new("RGB", (40, 40), (200, 30, 30)).save(folder.parent / "photo.jpg")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert re.fullmatch(r"\[\[\S+\s+\S+\]\]\n", capsys.readouterr().out)


def test_the_card_says_what_run_json_says(run, folder):
    said, text = json.loads((run / "run.json").read_text()), (folder / "README.md").read_text()
    counts = said["data"]["train"]
    assert f"- train (learnt from): {counts['images']} pictures, {counts['pairs']} captions" in text
    assert f"torch {said['versions']['torch']}" in text and "epoch 1 of 1 was the best" in text
    assert "\nbatch_size: 14\n" in text and f"`{said['identity']['model']['image_encoder']['source']}` (frozen)" in text


def test_what_is_not_known_is_said_to_be_so(run, tmp_path):
    assert write_folder(run / "model", tmp_path / "val")["split"] == "val"
    text = (tmp_path / "val" / "README.md").read_text()
    best = json.loads((run / "run.json").read_text())["best"]
    assert f"| R@1, sentence to picture | {best['t2i']['r1']:.1f} | not recorded |" in text
    assert re.search(r"split val: \d+ pictures, \d+ captions; resolution 32, precision fp32, seed 0\.", text)
    assert "flatter it; no test figures are recorded: `avse export MODEL --to huggingface --data DATA" in text
    card = ModelCard.load(tmp_path / "val" / "README.md")
    assert card.data.license == "unknown" and card.data.eval_results is None
    assert "The model: unknown; nobody has stated one." in text
    AVSE.from_pretrained(run / "model").save_pretrained(tmp_path / "alone" / "model")
    assert write_folder(tmp_path / "alone" / "model", tmp_path / "bare")["split"] is None
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "Not recorded: no run.json of this very model" in text and "None are recorded; `avse export" in text


@pytest.mark.parametrize(
    ("found", "done", "said"),
    [(0, "warn", "0"), (2, "warn", "2 (they were kept)"), (1, "drop", "1 (they were left out)")],
)
def test_what_became_of_pictures_found_again_is_said_in_words(run, tmp_path, found, done, said):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["leaks"] = {"looked": True, "found": found, "done": done}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    write_folder(tmp_path / "run" / "model", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"- training pictures found again in validation or test: {said}\n" in text


def test_another_models_record_is_not_taken(run, tiny_vit_folder, tiny_bert_folder, tmp_path):
    sources = {"image_encoder": {"source": str(tiny_vit_folder)}, "text_encoder": {"source": str(tiny_bert_folder)}}
    AVSE.from_pretrained(run / "model").save_pretrained(tmp_path / "run" / "copy")
    AVSE(ModelConfig(embed_dim=16, block_width=8, **sources)).save_pretrained(tmp_path / "run" / "model")
    shutil.copy(run / "run.json", tmp_path / "run")
    assert write_folder(tmp_path / "run" / "copy", tmp_path / "same")["split"] == "val"
    assert write_folder(tmp_path / "run" / "model", tmp_path / "other")["split"] is None
    text = (tmp_path / "other" / "README.md").read_text()
    assert "Not recorded: no run.json of this very model" in text and "batch_size" not in text


def test_another_split_is_measured_when_asked(run, scenes, tmp_path):
    command = ["export", str(run / "model"), "--to", "huggingface", "--data", str(scenes), "--split", "val"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    val = load_dataset(scenes, split="val")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"scenes, split val: {val.num_images} pictures, {val.num_pairs} captions" in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {"data": [1]},
        {"data": {"x": 1}},
        {"data": {"name": "scenes", "train": {"images": "many"}}},
        {"identity": []},
        {"identity": {"config": {"lr": 1}}},
        {"command": 3},
        {"command": "avse train"},
        {"leaks": 1},
        {"versions": [1]},
        {"hardware": {"gpus": [1]}},
        {"seconds": {"train": "long"}},
        {"best_epoch": "last"},
        {"best": {"i2t": {"r1": 1}}},
    ],
)
def test_a_damaged_record_is_one_line_that_names_it(run, tmp_path, damage, capsys):
    home = tmp_path / "run"
    shutil.copytree(run / "model", home / "model")
    whole = json.loads((run / "run.json").read_text())
    (home / "run.json").write_text(json.dumps({**whole, **damage} if damage else damage))
    assert main(["export", str(home / "model"), "--to", "huggingface", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{home / 'run.json'} is damaged (" in said and "Traceback" not in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_demo_is_read(run, tmp_path):
    """What avse demo leaves beside its model, cut down to what a card is made of."""
    recalls = {"r1": 10.0, "r5": 20.0, "r10": 30.0}
    own = {"rsum": {"mean": 120.0, "ci": [100.5, 140.25]}, "i2t": recalls, "t2i": recalls}
    counts = {"train": 2000, "val": 300, "test": 289}
    report = {"dataset": "clip", "images": counts, "captions": counts, "pairs": 472, "resolution": 224}
    report |= {"precision": "fp32", "seeds": [0], "systems": {"avse": own}}
    home = tmp_path / "demo"
    AVSE.from_pretrained(run / "model").save_pretrained(home / "model")
    report["fingerprint"] = AVSE.from_pretrained(home / "model").fingerprint
    (home / "systems" / "avse-seed0").mkdir(parents=True)
    result = {"identity": {"train": {"epochs": 12, "lr": 0.002}}, "best_epoch": 9, "seconds": {"train": 113.8}}
    (home / "systems" / "avse-seed0" / "result.json").write_text(json.dumps(result))
    (home / "report.json").write_text(json.dumps(report))
    write_folder(home / "model", tmp_path / "one")
    text = (tmp_path / "one" / "README.md").read_text()
    assert "| rSum | 120.0 | 100.5 to 140.2 |" in text and "289 pictures, 472 captions" in text
    assert "epoch 10 of 12" in text and "- train (learnt from): 2,000 pictures, 2,000 captions" in text
    (home / "report.json").write_text(json.dumps({**report, "seeds": [0, 1]}))  # means: not this model's figures
    assert write_folder(home / "model", tmp_path / "two")["split"] is None
    (home / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json is damaged"):
        write_folder(home / "model", tmp_path / "three")
    for damage in ({"images": {"train": "many"}}, {"systems": {"avse": {}}}, {"seeds": 3}):
        (home / "report.json").write_text(json.dumps({**report, **damage}))
        with pytest.raises(ValueError, match=r"report\.json is damaged \("):
            write_folder(home / "model", tmp_path / "three")
    (home / "report.json").write_text(json.dumps(report))
    (home / "systems" / "avse-seed0" / "result.json").write_text('{"identity": []}')
    with pytest.raises(ValueError, match=r"result\.json is damaged \(identity"):
        write_folder(home / "model", tmp_path / "three")
    (home / "report.json").write_text(json.dumps({**report, "fingerprint": "another"}))
    assert write_folder(home / "model", tmp_path / "three")["split"] is None


def test_targets_and_sources_are_checked(run, folder, tmp_path, tiny_vit_folder):
    with pytest.raises(CheckpointError, match="save_pretrained"):
        write_folder(tiny_vit_folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match="--force"):
        write_folder(run / "model", folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    write_folder(run / "model", tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    shutil.copytree(run / "model", tmp_path / "model")
    for other in ("mine", "model"):
        with pytest.raises(FileExistsError, match="no export of kind huggingface: choose another name"):
            write_folder(run / "model", tmp_path / other, force=True)
    write_folder(run / "model", tmp_path / "out")
    write_folder(run / "model", tmp_path / "out", licence="mit", force=True)
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", ["onnx", "sentence-transformers", "huggingface"])
def test_the_exported_model_is_never_replaced(run, tmp_path, to, capsys):
    shutil.copytree(run / "model", tmp_path / "a" / "model")
    model = tmp_path / "a" / "model"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (model, model / "out", model / ".." / "model" / "x", model.parent):
        assert main(["export", str(model), "--to", to, "--out", str(out), "--force"]) == 1
        assert "choose a place beside it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "link").symlink_to(model)
    assert main(["export", str(model), "--to", to, "--out", str(tmp_path / "link"), "--force"]) == 1


class Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the hub for one commit of files that are sent as they are."""

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.heard.append((self.path, body, self.headers.get("Authorization")))
        address, status = f"http://127.0.0.1:{self.server.server_port}/me/model", self.server.status
        answer = {"_id": "1", "id": "me/model", "private": self.server.private, "siblings": []}
        if self.path.endswith("/create"):
            answer = {"url": address}
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        elif "/commit/" in self.path:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.heard, server.private, server.status = [], True, 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_every_file_is_pushed_as_it_is(hub, folder):
    assert push(folder, "me/model") == f"{constants.ENDPOINT}/me/model"
    created = next(json.loads(body) for path, body, _ in hub.heard if path.endswith("/create"))
    assert created == {"name": "model", "organization": "me", "visibility": "private"}
    path, body, key = next(sent for sent in hub.heard if "/commit/" in sent[0])
    values = [json.loads(line) for line in body.splitlines()]
    files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in values if v["key"] == "file"}
    assert files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert (path, key) == ("/api/models/me/model/commit/main", "Bearer hf_test")


@pytest.mark.parametrize("to", ["huggingface", "sentence-transformers"])
def test_an_export_is_pushed_as_it_lies_there(hub, run, tmp_path, to, capsys):
    out = str(tmp_path / "out")
    assert main(["export", str(run / "model"), "--to", to, "--out", out]) == 0
    (tmp_path / "out" / "README.md").write_text("my own words")
    capsys.readouterr()
    assert main(["export", out, "--push-to-hub", "me/model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": out, "url": f"{constants.ENDPOINT}/me/model"}
    body = next(body for path, body, _ in hub.heard if "/commit/" in path)
    values = [json.loads(line) for line in body.splitlines()]
    sent = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in values if v["key"] == "file"}
    assert sent["README.md"] == b"my own words"
    assert sent.keys() == {p.relative_to(out).as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert main(["export", str(run / "model"), "--push-to-hub", "me/model"]) == 1
    assert "no folder for the hub" in capsys.readouterr().err


def test_a_public_repository_and_refusals_end_in_a_line(hub, run, folder, monkeypatch):
    hub.private = False
    with pytest.raises(ValueError, match="me/model is public: push with private=False"):
        push(folder, "me/model")
    assert not [path for path, *_ in hub.heard if "/commit/" in path]
    push(folder, "me/model", private=False)
    assert len([path for path, *_ in hub.heard if "/commit/" in path]) == 1
    hub.private = True
    with pytest.raises(ValueError, match="me/model is private, and a push does not change that"):
        push(folder, "me/model", private=False)
    assert len([path for path, *_ in hub.heard if "/commit/" in path]) == 1
    for status, cure in ((401, "set HF_TOKEN to a token that may write"), (403, "the token may not write there")):
        hub.status = status
        with pytest.raises(ConnectionError, match=f"me/model was not pushed to {constants.ENDPOINT}: .*{cure}"):
            push(folder, "me/model")
    with pytest.raises(ValueError, match="OWNER/NAME is wanted"):
        push(folder, "me/a b/c")
    with pytest.raises(ValueError, match="no folder for the hub with its README.md: avse export MODEL --to"):
        push(run / "model", "me/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=f"avse export {re.escape(str(folder))} --push-to-hub me/model tries again"
    ):
        push(folder, "me/model")
