"""run.json: what it holds, how each end is told, pieces of a resumed run, what is read of damaged and older folders."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone

import numpy
import pytest
import torch

from avse import __version__
from avse.files import write_json
from avse.trainer.record import RunRecord, hardware, read_run, versions

FACTS = {
    "identity": {"config": {"epochs": 3, "lr": 0.002}, "train": "ab", "val": "cd"},
    "device": "cpu",
    "steps_an_epoch": 9,
    "skipped": [["x.png", "cut short"]],
    "data": {"train": {"images": 28, "pairs": 110}, "val": {"images": 6, "pairs": 24}},
}
SECONDS = {"train": 1.25, "validate": 0.5, "wait": 0.125, "checkpoint": 0.25}


def entry(epoch, rsum):
    return {"epoch": epoch, "loss": 1.0, "val": {"rsum": rsum, "i2t": {"r1": 1.0}, "t2i": {"r1": 2.0}}}


def on_disk(folder):
    return json.loads((folder / "run.json").read_text())


def test_it_is_there_from_the_start_and_says_where_it_runs(tmp_path):
    RunRecord(tmp_path, FACTS)
    run = on_disk(tmp_path)
    assert run["status"] == "running" and run["best_epoch"] is None and run["last_epoch"] is None
    assert {key: run[key] for key in FACTS} == FACTS
    assert run["command"] == sys.argv
    age = datetime.now(timezone.utc) - datetime.fromisoformat(run["started"])
    assert age.total_seconds() < 60 and run["started"].endswith("+00:00")
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert run["versions"]["numpy"] == numpy.__version__ and run["versions"]["avse"] == __version__
    assert run["versions"]["python"] == platform.python_version()
    assert run["hardware"]["threads"] == torch.get_num_threads()


def test_the_hardware_is_this_machines():
    found = hardware()
    assert found["cores"] == os.cpu_count() and 1 <= found["usable_cores"] <= found["cores"]
    assert len(found["gpus"]) == torch.cuda.device_count()
    lines = open("/proc/meminfo").read().splitlines() if os.path.exists("/proc/meminfo") else []
    for line in lines[:1]:
        assert found["memory_gib"] == pytest.approx(int(line.split()[1]) / 2**20, abs=0.2)
    assert found["processor"] and set(versions()) >= {"torch", "transformers", "pillow", "platform"}


def test_the_best_epoch_and_the_durations_are_written(tmp_path):
    record = RunRecord(tmp_path, FACTS)
    history = [entry(0, 50.0), entry(1, 70.5), entry(2, 60.0)]
    record.update(27, seconds=SECONDS, history=history, best_epoch=1, views_overlap=0.8)
    run = on_disk(tmp_path)
    assert (run["best_epoch"], run["best_rsum"], run["last_epoch"], run["views_overlap"]) == (1, 70.5, 2, 0.8)
    assert run["best"] == history[1]["val"] and run["seconds"] == SECONDS and run["status"] == "running"
    assert [run["pieces"][0][key] for key in ("from_step", "to_step", "end")] == [0, 27, "running"]


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("leave", "status"), [(None, "stopped"), (KeyboardInterrupt(), "stopped"), (Broken("no\nsuch"), "failed")]
)
def test_each_end_is_told(tmp_path, leave, status):
    def run():
        with RunRecord(tmp_path, FACTS):
            if leave is not None:
                raise leave

    if leave is None:
        run()
    else:
        with pytest.raises(type(leave)):
            run()
    found = on_disk(tmp_path)
    assert found["status"] == found["pieces"][-1]["end"] == status
    assert found.get("error") == ("Broken: no such" if status == "failed" else None)


def test_finished_stays_finished(tmp_path):
    with RunRecord(tmp_path, FACTS) as record:
        record.finish()
    assert on_disk(tmp_path)["status"] == "finished"


def test_pieces_of_a_run_that_was_killed_stopped_and_resumed(tmp_path):
    record = RunRecord(tmp_path, FACTS)  # killed: it never says how it ended
    record.update(9, seconds=SECONDS, history=[entry(0, 50.0)], best_epoch=0)
    with RunRecord(tmp_path, FACTS, step=7, resume=True) as record:
        assert on_disk(tmp_path)["best_rsum"] == 50.0  # known before the resumed piece has an epoch of its own
        record.update(18, seconds={"train": 3.0}, history=[entry(0, 50.0), entry(1, 40.0)], best_epoch=0)
    with RunRecord(tmp_path, FACTS, step=18, resume=True) as record:
        record.finish()
    run = on_disk(tmp_path)
    told = [(piece["from_step"], piece["to_step"], piece["end"]) for piece in run["pieces"]]
    assert told == [(0, 9, "killed"), (7, 18, "stopped"), (18, 18, "finished")]
    assert run["started"] == run["pieces"][0]["started"] and run["seconds"] == {"train": 3.0}
    RunRecord(tmp_path, FACTS)
    assert len(on_disk(tmp_path)["pieces"]) == 1  # trained anew


def test_a_damaged_record_does_not_stop_a_resume(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "runn')
    RunRecord(tmp_path, FACTS, step=5, resume=True)
    assert [piece["from_step"] for piece in on_disk(tmp_path)["pieces"]] == [5]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunRecord(None, FACTS) as record:
        record.update(1, seconds={}, history=[], best_epoch=-1)
        record.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_the_error(tmp_path):
    code = (
        "import resource, signal, sys; from avse.trainer.record import RunRecord\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with RunRecord(sys.argv[1], {}):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "    raise ArithmeticError('the true one')\n"
    )
    pytest.importorskip("resource")
    env = {name: value for name, value in os.environ.items() if "COV" not in name}  # coverage has a file to write, too
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr.strip().endswith("ArithmeticError: the true one")
    assert on_disk(tmp_path)["status"] == "running"


def test_reading_gives_back_what_was_written(tmp_path):
    with RunRecord(tmp_path, FACTS) as record:
        record.update(9, seconds=SECONDS, history=[entry(0, 50.0)], best_epoch=0)
    write_json(tmp_path / "history.json", [entry(0, 50.0)])
    run = read_run(tmp_path)
    assert run["problem"] is None and run["status"] == "stopped" and run["history"] == [entry(0, 50.0)]
    assert (run["best_epoch"], run["best_rsum"], run["last_epoch"]) == (0, 50.0, 0)
    assert run["identity"] == FACTS["identity"] and run["seconds"] == SECONDS


def test_a_run_json_of_the_first_version(tmp_path):
    old = {
        "identity": FACTS["identity"],
        "best_epoch": 0,
        "best_rsum": 70.0,
        "seconds": {"train": 2.0},
        "device": "cpu",
    }
    write_json(tmp_path / "run.json", old)
    write_json(tmp_path / "history.json", [entry(0, 70.0), entry(1, 60.0)])
    (tmp_path / "model").mkdir()
    run = read_run(tmp_path)
    assert (run["status"], run["last_epoch"], run["best"]["rsum"], run["problem"]) == ("finished", 1, 70.0, None)


def test_a_checkpoint_alone_tells_its_settings(tmp_path):
    write_json(
        tmp_path / "checkpoints" / "step-00000009" / "manifest.json", {"files": {}, "identity": FACTS["identity"]}
    )
    write_json(tmp_path / "history.json", [entry(0, 20.0), entry(1, 30.0)])
    run = read_run(tmp_path)
    assert (run["status"], run["best_epoch"], run["best_rsum"], run["last_epoch"]) == ("stopped", 1, 30.0, 1)
    assert run["identity"]["config"]["epochs"] == 3 and run["problem"] is None


def test_a_result_of_an_ablation(tmp_path):
    identity = {"model": {"num_views": 2}, "train": {"epochs": 1}, "text_encoder": "ff"}
    write_json(
        tmp_path / "result.json",
        {"identity": identity, "history": [entry(0, 20.0)], "best_epoch": 0, "seconds": {"train": 1.0}},
    )
    run = read_run(tmp_path)
    assert run["status"] == "finished" and run["best_rsum"] == 20.0 and run["problem"] is None
    assert run["identity"] == {"model": {"num_views": 2}, "config": {"epochs": 1}, "text_encoder": "ff"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.json is damaged: Expecting value"),
        ("[1]", "run.json is damaged: it holds no dict"),
        ("\xff{", "damaged"),
    ],
)
def test_damage_is_said_and_the_rest_is_read(tmp_path, text, said):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    write_json(tmp_path / "history.json", [entry(0, 20.0), {"epoch": 1}])
    run = read_run(tmp_path)
    assert said in run["problem"] and run["status"] == "stopped" and run["best_rsum"] == 20.0
    assert run["identity"] == {} and run["seconds"] == {} and len(run["history"]) == 1


def test_an_empty_folder_says_so(tmp_path):
    run = read_run(tmp_path)
    assert run["status"] == "unknown" and "neither run.json nor history.json" in run["problem"]
