"""`avse serve` as a process: what it refuses to start with, and that a signal ends it in order. Explanations, too."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from serve_kit import TOKEN, running

from avse.cli import main
from avse.index import Index
from avse.serve.wire import Explained


@pytest.fixture
def saved(tmp_path, photos, tiny_vit_folder, tiny_bert_folder):
    """An index of a small AVSE model of random weights."""
    import torch

    from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
    from avse.model import AVSE

    torch.manual_seed(0)
    config = ModelConfig(
        image_encoder=ImageEncoderConfig(source=str(tiny_vit_folder)),
        text_encoder=TextEncoderConfig(source=str(tiny_bert_folder)),
        embed_dim=16,
        block_width=8,
    )
    AVSE(config).eval().save_pretrained(tmp_path / "model")
    with Index.create(tmp_path / "served.avse", tmp_path / "model") as index:
        index.add_images(photos, progress=False)
    return tmp_path / "served.avse"


def fails(capsys, *arguments, code=1):
    capsys.readouterr()
    assert main(["serve", *map(str, arguments)]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("avse serve: "), said
    return said


def test_what_it_refuses_to_start_with(tmp_path, capsys, monkeypatch, saved):
    monkeypatch.delenv("AVSE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "give an INDEX or --demo" in fails(capsys, code=2)
    assert "goes without an INDEX" in fails(capsys, saved, "--demo", code=2)
    assert "run `avse demo` first" in fails(capsys, "--demo")
    assert "give a --token" in fails(capsys, saved, "--host", "0.0.0.0", code=2)
    assert "an origin such as" in fails(capsys, saved, "--cors", "example.org", code=2)
    assert "nothing.avse" in fails(capsys, tmp_path / "nothing.avse", "--port", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails(capsys, saved, "--port", port)
        assert f"127.0.0.1:{port}" in said and "choose another --port" in said and "n use" in said
    with Index.open(saved):
        assert "in use by" in fails(capsys, saved, "--port", 0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "avse.serve.run", raising=False)
    assert 'pip install "avse[serve]"' in fails(capsys, saved)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(saved, number):
    command = [sys.executable, "-m", "avse", "serve", str(saved), "--port", "0"]
    env = {**os.environ, "AVSE_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            lines = [process.stderr.readline()]
            while "serving on" not in lines[-1]:
                assert lines[-1], "".join(lines)
                lines.append(process.stderr.readline())
            url = re.search(r"http://127\.0\.0\.1:\d+/", lines[-1]).group()
            headers = {"Authorization": f"Bearer {TOKEN}"}
            answer = httpx.post(
                f"{url}api/search", json={"query": "secretive dog " * 60}, headers=headers, trust_env=False, timeout=60
            )
            assert answer.status_code == 200 and len(answer.json()["hits"]) == 10
            process.send_signal(number)
            rest = process.stderr.read()
        finally:
            process.wait(60)
    assert process.returncode == 0, rest
    assert "secretive" not in rest  # nor in the warning that it was cut
    assert TOKEN not in "".join(lines) + rest and "Traceback" not in rest and "the index is closed" in rest
    assert json.loads(rest.splitlines()[0])["route"] == "/api/search"
    with Index.open(saved) as index:  # the lock is free and its files are whole
        assert list(index.verify()) == []


def test_explanations_are_those_of_the_model(saved, photos):
    from avse.explain import explain

    with Index.open(saved) as index, running(index) as server:
        answer = server.client.get("/api/explain", params={"id": "sea/01 ü.png", "query": "a red dog"})
        assert answer.status_code == 200
        said, wanted = answer.json(), explain(index.encoder, photos / "sea" / "01 ü.png", "a red dog").to_dict()
        assert (said["id"], said["confidence"], said["weak"]) == ("sea/01 ü.png", None, None)
        assert np.allclose(said["heat"], wanted["heat"], atol=1e-6)
        hits = server.client.post("/api/search", json={"query": "a red dog", "k": 12}).json()["hits"]
        score = next(hit["score"] for hit in hits if hit["id"] == "sea/01 ü.png")
        assert said["score"] == pytest.approx(score, abs=1e-5)
        assert set(said) == set(Explained.model_fields) == {*wanted, "id", "confidence", "weak"}
        Explained.model_validate(said)
        for params in ({"id": "sea/01 ü.png", "query": " "}, {"id": "sea/01 ü.png", "query": "x" * 1001}):
            assert server.client.get("/api/explain", params=params).status_code == 422
        (photos / "sea" / "01 ü.png").write_bytes(b"no picture")
        answer = server.client.get("/api/explain", params={"id": "sea/01 ü.png", "query": "a"})
        assert answer.status_code == 404 and "sea" not in answer.json()["detail"]


def test_answers_do_not_wait_for_acknowledgements():
    """Asyncio sets TCP_NODELAY only where the listening socket names its protocol; without, an answer took 40 ms."""
    from avse.serve.run import listen

    with listen("127.0.0.1", 0) as made:
        assert made.proto == socket.IPPROTO_TCP
