"""`avse runs`: which folders are runs, their rows, what is shared and what differs, and that it is light."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

from avse.config import ModelConfig, TrainConfig
from avse.files import write_json
from avse.trainer.record import RunRecord


def entry(epoch, rsum):
    side = {"r1": rsum / 20, "r5": 1.0, "r10": 2.0}
    return {"epoch": epoch, "loss": 1.0, "val": {"rsum": rsum, "i2t": side, "t2i": side, "duplicate_aware_rsum": None}}


def make(folder, rsums, end="finished", minutes=1.5, **settings):
    """A run with one epoch a given rSum."""
    config = TrainConfig(**{"epochs": 4, **settings})
    identity = {"config": config.model_dump(mode="json"), "model": ModelConfig().model_dump(mode="json"), "train": "ab"}
    counts = {"train": {"images": 1400, "pairs": 7000}}
    record = RunRecord(folder, {"identity": identity, "device": "cpu", "data": counts})
    history = [entry(i, rsum) for i, rsum in enumerate(rsums)]
    best = max(range(len(rsums)), key=rsums.__getitem__, default=-1)
    record.update(9, seconds={"train": 60 * minutes, "wait": 30 * minutes}, history=history, best_epoch=best)
    write_json(folder / "history.json", history)
    if end == "finished":
        record.finish()
    return record


def aged(folder, minutes):
    run = json.loads((folder / "run.json").read_text())
    run["host"] = "elsewhere"
    run["updated"] = (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    write_json(folder / "run.json", run)


@pytest.fixture
def runs(tmp_path):
    top = tmp_path / "runs"
    make(top / "a", [100.0, 140.0, 120.0, 110.0], lr=1e-3)
    make(top / "deep" / "b", [150.0], end="running", lr=5e-4, seed=3)
    aged(top / "deep" / "b", 1)
    make(top / "both" / "member-0", [130.0], minutes=90)
    make(top / "both" / "member-1", [131.0], seed=1)
    (top / "a" / "model").mkdir()
    write_json(top / "a" / "model" / "history.json", [])  # what lies in a model is no run
    write_json(top / "notes" / "other.json", {})
    return top


def table(out):
    """Rows by their first cell, as mappings from title to cell."""
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    heads = next(line for line in lines if line[0] == "name")
    return {line[0]: dict(zip(heads, line)) for line in lines[lines.index(heads) + 1 :]}


def test_every_run_has_a_row_and_what_all_share_is_told_once(avse, runs):
    said = avse("runs", runs)
    assert said.code == 0 and said.err == ""
    first, shared = said.out.splitlines()[:2]
    assert "validation split" in first
    assert shared == "all 4 runs: pictures 1400, objective infonce, batch 128, precision fp32, device cpu"
    rows = table(said.out)
    assert list(rows) == ["deep/b", "a", "both/member-1", "both/member-0"]  # the best first
    assert rows["a"] == {
        "name": "a", "status": "finished", "epochs": "4/4", "best epoch": "2", "val rSum": "140.0", "i2t R@1": "7.0",
        "t2i R@1": "7.0", "lr": "0.001", "seed": "0", "minutes": "1.5",
    }  # fmt: skip
    assert (rows["deep/b"]["status"], rows["deep/b"]["epochs"], rows["deep/b"]["seed"]) == ("running", "1/4", "3")


def test_order_columns_and_json(avse, runs):
    assert next(iter(table(avse("runs", runs, "--sort", "name").out))) == "a"
    assert next(iter(table(avse("runs", runs, "--sort", "minutes").out))) == "both/member-0"
    assert list(table(avse("runs", runs, "--sort", "started").out))
    full = avse("runs", runs, "--full").out
    assert "all 4 runs" not in full and {"batch", "precision", "torch", "images"} <= set(table(full)["a"])
    lines = avse("runs", runs, "--json").json
    assert [line["name"] for line in lines] == ["deep/b", "a", "both/member-1", "both/member-0"]
    assert lines[1]["val rSum"] == 140.0 and lines[1]["settings"]["config.lr"] == 1e-3


def test_diff_names_only_the_settings_that_differ(avse, runs):
    rows = table(avse("runs", runs, "--diff").out)
    assert rows["a"] == {"name": "a", "val rSum": "140.0", "config.lr": "0.001", "config.seed": "0"}
    assert avse("runs", runs, "--diff", "--json").json[0]["settings"] == {"config.lr": 5e-4, "config.seed": 3}


def test_several_folders_and_a_run_itself(avse, runs):
    assert list(table(avse("runs", runs / "a").out)) == ["a"]
    names = list(table(avse("runs", runs / "a", runs / "both", "--sort", "name").out))
    assert names == [(runs / name).as_posix() for name in ("a", "both/member-0", "both/member-1")]


def test_a_silent_run_is_doubted_with_its_age(avse, runs):
    for minutes, status in ((30, "running"), (40, "running? silent for 40 min"), (300, "running? silent for 5 h")):
        aged(runs / "deep" / "b", minutes)
        assert table(avse("runs", runs).out)["deep/b"]["status"] == status
    aged(runs / "deep" / "b", 4 * 1440)
    assert "silent for 4 d" in avse("runs", runs).out


def test_a_run_of_this_machine_without_a_process_was_killed(avse, runs):
    from avse.lock import OwnerLock

    make(runs / "c", [150.0], end="running")
    assert table(avse("runs", runs).out)["c"]["status"] == "killed"
    (runs / "c" / "checkpoints").mkdir()
    lock = OwnerLock(runs / "c" / "checkpoints")
    lock.acquire()
    assert table(avse("runs", runs).out)["c"]["status"] == "running"
    lock.release()
    assert table(avse("runs", runs).out)["c"]["status"] == "killed"


def test_runs_of_other_validation_pairs_are_told_apart(avse, runs):
    run = json.loads((runs / "a" / "run.json").read_text())
    assert "cannot be compared" not in avse("runs", runs).out
    run["identity"]["val"] = "f" * 64
    write_json(runs / "a" / "run.json", run)
    assert "runs of different validation pairs cannot be compared" in avse("runs", runs).out
    assert "ffffffff…" in avse("runs", runs, "--diff").out and "fffffffff" not in avse("runs", runs, "--diff").out


def test_damage_and_failure_are_rows_too(avse, runs):
    (runs / "a" / "run.json").write_text("{")
    with pytest.raises(ArithmeticError), make(runs / "c", [], end="failed"):
        raise ArithmeticError("loss or gradient not finite")
    said = avse("runs", runs)
    rows = table(said.out)
    assert said.code == 0 and len(rows) == 5
    assert (rows["a"]["status"], rows["a"]["val rSum"], rows["a"]["lr"]) == ("finished", "140.0", "-")
    assert (rows["c"]["status"], rows["c"]["epochs"], rows["c"]["val rSum"]) == ("failed", "0/4", "-")
    assert "avse runs: a: run.json is damaged" in said.err
    assert "avse runs: c: ArithmeticError: loss or gradient not finite" in said.err


def test_a_real_run_and_one_of_the_first_version(avse, run_folder, tmp_path):
    rows = table(avse("runs", run_folder).out)
    history = json.loads((run_folder / "history.json").read_text())
    best = max(history, key=lambda item: item["val"]["rsum"])["val"]
    row = rows["run"]
    assert (row["status"], row["epochs"], row["batch"]) == ("finished", "2/2", "10")
    assert row["val rSum"] == f"{best['rsum']:.1f}" and row["i2t R@1"] == f"{best['i2t']['r1']:.1f}"
    old = json.loads((run_folder / "run.json").read_text())
    kept = ("identity", "best_epoch", "best_rsum", "seconds", "skipped", "device")
    write_json(tmp_path / "old" / "run.json", {key: old[key] for key in kept})
    write_json(tmp_path / "old" / "history.json", history)
    (tmp_path / "old" / "model").mkdir()
    again = table(avse("runs", tmp_path).out)["old"]
    blank = {"name": "", "data": "", "pictures": "", "device": ""}
    assert {**again, **blank} == {**row, **blank}


def test_nothing_there_is_a_failure(avse, tmp_path, monkeypatch):
    said = avse("runs", tmp_path)
    assert said.code == 1 and "no run in or below" in said.err and len(said.lines) == 1
    said = avse("runs", tmp_path / "gone")
    assert said.code == 1 and "no folder" in said.err
    monkeypatch.chdir(tmp_path)
    assert avse("runs").code == 1
    with pytest.raises(SystemExit) as stop:
        avse("runs", "--sort", "luck")
    assert stop.value.code == 2


def test_it_loads_no_torch(runs):
    code = (
        f"import sys; from avse.cli import main; assert main(['runs', {str(runs)!r}]) == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
