"""The trainer in several processes: its step's gradients, whole runs by torchrun, and runs that were killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import warm
from avse import parallel
from avse.cli import main
from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, TrainConfig
from avse.data.scenes import make_scenes
from avse.model import AVSE
from avse.trainer.step import Batch, Step

TEXTS = ["a", "two red birds in the sky", "a dog", "the small cat sits on grass", "a house", "a  Dog", "a child runs"]
IDS = [0, 1, 2, 3, 4, 5, 1]
SHARES = {2: (5, 2), 4: (3, 1, 2, 1)}
"""Pairs of each process."""
SETTINGS = {
    "hinge, L_reg": {"objective": "hinge", "score_scale": "sum", "decorrelation_weight": 1.0},
    "infonce in chunks": {"objective": "infonce", "learn_temperature": True, "chunk_size": 2},
    "everything counted": {"objective": "hinge", "decorrelation_weight": 0.1, "decorrelation_form": "official"},
}


def build(vit, bert, masked):
    torch.manual_seed(0)
    model = AVSE(
        ModelConfig(
            image_encoder=ImageEncoderConfig(source=vit, frozen=False, sampling_stage="input"),
            text_encoder=TextEncoderConfig(source=bert, frozen=False),
            embed_dim=16,
            block_width=8,
            dropout=0.0,
            masked_batch_norm=masked,
        )
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with torch.no_grad():  # tokens that differ, so that no two scores are nearly equal
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model.double().train()


def gradients(folders, settings, share=slice(None)):
    """Loss parts, gradients and statistics that a step leaves for its rows of the batch."""
    model = build(*folders, masked="official" not in settings.values())
    step = Step(model, TrainConfig(**settings))
    step.infonce.double()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(len(TEXTS), 3, 32, 32, generator=generator).double()
    views = model.sampling((4, 4), len(TEXTS), generator)
    tokens = model.text_encoder.tokenize(TEXTS)
    own = [value[share] for value in (pixels, tokens.input_ids, tokens.attention_mask, views)]
    parts = step.backward(Batch(*own, None, IDS[share], TEXTS[share]), 5)
    named = [*model.named_parameters(), *step.infonce.named_parameters()]
    found = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return {name: torch.as_tensor(value).double() for name, value in parts.items()}, found, dict(model.named_buffers())


def worker(rank, port, folders, told, processes):
    torch.set_num_threads(1)
    alone = {name: gradients(folders, settings) for name, settings in SETTINGS.items()}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    parallel.start("cpu")
    shares = SHARES[processes]
    first = sum(shares[:rank])
    for name, settings in SETTINGS.items():
        found = gradients(folders, settings, slice(first, first + shares[rank]))
        for mine, expected in zip(found, alone[name]):
            assert mine.keys() == expected.keys() and mine
            scale = max(float(value.abs().max()) for value in expected.values())
            furthest = max(float((mine[key] - value).abs().max()) for key, value in expected.items()) / scale
            assert furthest < 1e-9, (name, furthest)
        (told / f"{name} {rank}").touch()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_of_several_processes_has_the_gradients_of_one(processes, tiny_vit_folder, tiny_bert_folder, tmp_path):
    port = free_port()
    folders = str(tiny_vit_folder), str(tiny_bert_folder)
    warm.together(worker, (port, folders, tmp_path, processes), processes)
    told = {f"{name} {rank}" for name in SETTINGS for rank in range(processes)}
    assert {path.name for path in tmp_path.iterdir()} == told


# Whole runs on the command line.
@pytest.fixture(scope="module")
def launch(tiny_vit_folder, tiny_bert_folder, tmp_path_factory):
    """Start `avse train` in one process, or in more by torchrun, without dropout: its draws differ by process."""
    folder = tmp_path_factory.mktemp("launch")
    make_scenes(folder / "scenes", count=40, size=64, seed=0)
    shutil.copytree(tiny_bert_folder, folder / "bert")
    config = json.loads((folder / "bert" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    settings = {
        "model.image_encoder": f"{{source: {tiny_vit_folder}, frozen: false}}",
        "model.text_encoder": f"{{source: {folder / 'bert'}, frozen: false}}",
        "model": "{embed_dim: 16, block_width: 8, dropout: 0.0}",
        "train": "{epochs: 2, batch_size: 10, objective: hinge, decorrelation_weight: 0.1, encoder_lr: 1.0e-4}",
        "train.size_augment": 0.2,
        "train.word_augment": True,
        "train.checkpoint_minutes": 0,
    }
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    several = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

    def start(processes, out, *further, torchrun=False):
        train = ("train", folder / "scenes", "--out", out, *words, *further)
        if torchrun:
            command = [*several, processes, "-m", "avse", *train]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            return subprocess.Popen(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
        return Together(processes, train)

    return start


class Together:
    """What torchrun starts, from a warm process: one process, or several that find each other."""

    def __init__(self, processes, words):
        place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        self.parts = [warm.avse(*words, env=env if processes > 1 else None) for env in ranks]

    @property
    def returncode(self):
        return next((code for code in map(warm.Run.poll, self.parts) if code), self.parts[0].returncode)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        for part in self.parts:
            part.send_signal(number)

    def communicate(self, timeout=300):
        said = [part.communicate(timeout) for part in self.parts]
        return "".join("".join(one) for one in said), None


def finished(process):
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    """A run of one process and one of two."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        said = finished(launch(processes, folder / str(processes), torchrun=processes > 1))
        assert said.count("best epoch") == 1, said  # only the first process speaks
    return folder


def history(run):
    return json.loads((run / "history.json").read_text())


def same_to_rounding(run, other):
    """Figures and weights; not rSum, where a rank moves at a tie, nor the bias whose gradient is rounding alone."""
    for mine, theirs in zip(history(run), history(other), strict=True):
        for name in ("loss", "matching", "decorrelation", "gradient", "spread_images", "spread_texts"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    mine, theirs = (AVSE.from_pretrained(folder / "model").state_dict() for folder in (run, other))
    free = {"text_head.mlp.0.bias", "text_head.mlp.1.running_mean"}
    differences = {name: float((mine[name] - value).abs().max()) for name, value in theirs.items() if name not in free}
    assert max(differences.values()) < 1e-4, max(differences, key=differences.get)  # a step of Adam is 2e-3


def reaches(process, step, run):
    """Wait for the checkpoint of a step, or of one after it."""
    until = time.monotonic() + 200
    while max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0) < step:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)


def killed_after(process, step, run):
    """Kill the processes that train once a step's checkpoint is there."""
    reaches(process, step, run)
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=100)[0]
    assert process.returncode != 0 and not (run / "model").exists(), said


@pytest.mark.slow
def test_two_processes_train_as_one(runs):
    same_to_rounding(runs / "2", runs / "1")
    assert json.loads((runs / "2" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_that_were_killed_and_resumed_end_with_the_same_bits(launch, runs, tmp_path):
    killed_after(launch(2, tmp_path / "run"), 2, tmp_path / "run")
    killed_after(launch(2, tmp_path / "run", "--resume"), 4, tmp_path / "run")
    finished(launch(2, tmp_path / "run", "--resume"))
    for name in ("history.json", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (runs / "2" / name).read_bytes(), name


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(launch, runs, tmp_path):
    killed_after(launch(2, tmp_path / "run"), 2, tmp_path / "run")
    said = finished(launch(1, tmp_path / "run", "--resume"))
    assert "was written by 2 processes, there are 1" in said
    same_to_rounding(tmp_path / "run", runs / "1")


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_stopped_by_a_signal(launch, runs, tmp_path):
    process = launch(1, tmp_path / "run")
    reaches(process, 2, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    assert "go on with: avse train" in finished(process)
    assert "was written by 1 processes, there are 2" in finished(launch(2, tmp_path / "run", "--resume"))
    same_to_rounding(tmp_path / "run", runs / "1")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", "one process"])
def test_a_signal_stops_all_processes_with_a_checkpoint(launch, runs, tmp_path, to):
    process = launch(2, tmp_path / "run", torchrun=to == "launcher")
    reaches(process, 2, tmp_path / "run")
    (process if to == "launcher" else process.parts[1]).send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == (1 if to == "launcher" else 0), said  # torchrun's own status after a signal
    assert (
        "stopped, with a checkpoint" in said and "next:" not in said and "as it was launched: … -m avse train" in said
    )
    finished(launch(2, tmp_path / "run", "--resume"))
    for name in ("history.json", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (runs / "2" / name).read_bytes(), name


@pytest.mark.slow
def test_shards_in_two_processes(launch, tmp_path):
    data = tmp_path / "scenes"
    make_scenes(data, count=40, size=64, seed=0)
    assert main(["data", "shards", str(data), "--out", str(tmp_path / "shards"), "--samples", "6"]) == 0
    broken = sorted((tmp_path / "shards").glob("train-*.tar"))[-1]
    content = broken.read_bytes()
    broken.write_bytes(content.replace(b"\x89PNG", b"\x89XXX", 1).replace(b"\xff\xd8\xff", b"\x00\x00\x00", 1))
    pattern = f"data.shards={tmp_path}/shards/train-*.tar"
    for name in ("whole", "parts"):
        process = launch(2, tmp_path / name, "--set", pattern)
        if name == "parts":
            killed_after(process, 3, tmp_path / name)
            said = launch(1, tmp_path / name, "--set", pattern, "--resume").communicate(timeout=100)[0]
            assert "was written with another processes: 2 there, 1 now" in said
            process = launch(2, tmp_path / name, "--set", pattern, "--resume")
        finished(process)
    for name in ("history.json", "model/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(json.loads((tmp_path / "whole" / "run.json").read_text())["unreadable"]) == 1
