"""The live table in a file and on a real terminal; TensorBoard's files read back; the curves."""

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avse.plots import draw_curves
from avse.trainer.board import Board
from avse.trainer.table import HEADER_EVERY, ProgressTable, memory_bytes

PARTS = {"loss": 2.0, "matching": 1.5, "decorrelation": 0.5, "gradient": 3.0, "violations": 0.25}


def entry(epoch, rsum):
    return {
        "epoch": epoch,
        "lr": [2e-3 / (epoch + 1), 5e-5 / (epoch + 1)],
        "loss": 2.0 / (epoch + 1),
        "matching": 1.5 / (epoch + 1),
        "decorrelation": 0.5,
        "gradient": 1.0,
        "skipped_steps": 0,
        "violations": 0.5,
        "collapse": None,
        "frozen": epoch == 0,
        "val": {
            "rsum": rsum,
            "i2t": {"r1": 10.5, "r5": 20.0, "r10": 30.0},
            "t2i": {"r1": 8.25, "r5": 16.0, "r10": 24.0},
            "duplicate_aware_rsum": None,
        },
    }


def rows(text):
    """Rows of figures as mappings from title to cell."""
    titles, found = [], []
    for line in text.splitlines():
        cells = re.split(r" {2,}", line.strip())
        if cells[0] == "epoch":
            titles = cells
        elif len(cells) == len(titles):
            found.append(dict(zip(titles, cells)))
    return found


def test_a_file_gets_rows_of_means_and_no_bar():
    out = io.StringIO()
    with ProgressTable(4, every_seconds=0, epochs=2, stream=out) as table:
        table.every_seconds = 3600
        table.step(PARTS, 32, 0.0)
        table.step({}, 32, 0.0)  # a step that was left out
        table.step({**PARTS, "loss": 4.0, "violations": 0.75}, 32, 0.0)
        table.epoch(entry(0, 90.0))
        table.note("a warning")
        table.step(PARTS, 32, 0.0)
        table.epoch(entry(1, 80.0))
    text = out.getvalue()
    assert "\r" not in text and "%|" not in text and "\x1b" not in text
    first, second = rows(text)
    assert (first["epoch"], first["step"], first["loss"], first["viol %"], first["L_m"]) == (
        "1/2",
        "3",
        "3",
        "50.0",
        "1.5",
    )
    assert (second["epoch"], second["step"], second["loss"], second["grad"]) == ("2/2", "4", "2", "3")
    assert "1/2  validation rSum 90.0, R@1 i2t 10.5, t2i 8.2, the best so far\n" in text
    assert "2/2  validation rSum 80.0, R@1 i2t 10.5, t2i 8.2\n" in text and "\na warning\n" in text


def test_rate_and_waiting_are_of_the_steps_without_the_validation():
    out = io.StringIO()
    with ProgressTable(2, every_seconds=3600, stream=out) as table:
        started = time.perf_counter()
        time.sleep(0.2)
        table.step(PARTS, 100, 0.1)
        seconds = time.perf_counter() - started
        time.sleep(0.3)  # the validation
        table.epoch(entry(0, 1.0))
    [row] = rows(out.getvalue())
    assert float(row["pic/s"]) == pytest.approx(100 / seconds, rel=0.1)
    assert float(row["wait %"]) == pytest.approx(100 * 0.1 / seconds, abs=2)


def test_rows_come_by_time_and_the_header_again():
    out = io.StringIO()
    with ProgressTable(100, every_seconds=0, stream=out) as table:
        for _ in range(HEADER_EVERY + 1):
            table.step(PARTS, 1, 0.0)
    assert out.getvalue().count("pic/s") == 2 and len(rows(out.getvalue())) == HEADER_EVERY + 1
    quiet = io.StringIO()
    with ProgressTable(100, every_seconds=3600, stream=quiet) as table:
        for _ in range(50):
            table.step(PARTS, 1, 0.0)
    assert quiet.getvalue() == ""


def test_a_resumed_run_knows_its_step_epoch_and_best():
    out = io.StringIO()
    with ProgressTable(
        40, 21, every_seconds=0, epochs=4, history=[entry(0, 50.0), entry(1, 90.0)], stream=out
    ) as table:
        table.step(PARTS, 1, 0.0)
        table.epoch(entry(2, 70.0))
    assert rows(out.getvalue())[0]["epoch"] == "3/4" and rows(out.getvalue())[0]["step"] == "22"
    assert "the best so far" not in out.getvalue()


def test_disabled_writes_nothing():
    out = io.StringIO()
    with ProgressTable(2, enabled=False, every_seconds=0, stream=out) as table:
        table.step(PARTS, 1, 0.0)
        table.epoch(entry(0, 1.0))
        table.note("x")
    assert out.getvalue() == ""


TERMINAL = """
import sys, time
from avse.trainer.table import ProgressTable
sys.path.insert(0, {here!r})
from test_table import PARTS, entry
with ProgressTable(6, every_seconds=0, epochs=1) as table:
    for _ in range(6):
        table.step(PARTS, 32, 0.0)
        time.sleep(0.15)
    table.epoch(entry(0, 90.0))
"""


@pytest.mark.parametrize("width", [120, 60, 20])
def test_a_terminal_gets_a_bar_below_rows_that_fit(width):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    import struct

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    code = TERMINAL.format(here=str(Path(__file__).parent))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"COLUMNS": str(width)}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        data += part
        if not part:
            break
    assert child.wait() == 0, data.decode()
    screen = data.decode()
    assert re.search(r"training: +\d+%", screen) and ("<" in screen or width == 20)
    table = [line for line in re.split(r"[\r\n]+", screen) if "loss" in line or re.match(r" +1/1 +\d", line)]
    assert len(table) == 7
    if width > 20:  # epoch, step and loss stay whatever happens
        assert max(map(len, table)) < width
    assert ("viol %" in table[0]) == (width >= 60) and ("memory" in table[0]) == (width == 120)


def test_memory_is_this_processes():
    if memory_bytes() is None:
        pytest.skip("no /proc")
    code = (
        "from avse.trainer.table import memory_bytes\n"
        "before = memory_bytes(); held = bytearray(b'1') * (64 << 20); print(memory_bytes() - before)"
    )
    found = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 60 << 20 < found < 80 << 20


# TensorBoard.
def read_board(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_board_holds_every_scalar_and_a_resumed_run_drops_later_steps(tmp_path):
    pytest.importorskip("tensorboard")
    with Board(tmp_path) as board:
        for step in range(6):
            board.step(step, {"loss": 10.0 - step})
            if step % 3 == 2:
                board.epoch(step, entry(step // 3, 50.0 + step))
    first = read_board(tmp_path)
    assert first["train/loss"] == [(step, 10.0 - step) for step in range(6)]
    assert first["val/rsum"] == [(2, 52.0), (5, 55.0)] and first["val/i2t_r1"] == [(2, 10.5), (5, 10.5)]
    assert first["epoch/lr_1"] == [(2, 5e-5), (5, 2.5e-5)] and first["epoch/frozen"] == [(2, 1.0), (5, 0.0)]
    assert not {"epoch/collapse", "val/duplicate_aware_rsum", "epoch/val"} & set(first)
    time.sleep(1.1)  # files are read in the order of the second in their name
    with Board(tmp_path, purge_step=4) as board:  # killed: step 4 is done again
        board.step(4, {"loss": 1.0})
    again = read_board(tmp_path)
    assert again["train/loss"] == [(0, 10.0), (1, 9.0), (2, 8.0), (3, 7.0), (4, 1.0)]
    assert again["val/rsum"] == [(2, 52.0)]


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "avse\[tensorboard\]"'):
        Board(tmp_path)


# Curves.
def lines_of(monkeypatch, histories, out):
    """Draw, and return label -> points of each panel by its title."""
    figures = pytest.importorskip("matplotlib.figure")
    kept = []
    save = figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    assert draw_curves(histories, out) and out.stat().st_size > 5000
    return {
        axes.get_title(): {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}
        for axes in kept[0].axes
    }


def test_curves_show_what_the_history_has(monkeypatch, tmp_path):
    history = [entry(0, 50.0), entry(1, 90.0), entry(2, 80.0)]
    history[2]["collapse"] = "hinge stays"
    panels = lines_of(monkeypatch, {"": history}, tmp_path / "curves.png")
    assert panels["training loss and its parts"]["loss"] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert panels["learning rates at the epoch's end"]["encoders"][0] == (1, 5e-5)
    assert panels["violations of the margin, spread (shares)"]["violations"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert panels["validation text to image, percent"]["R@5"][0] == (1, 16.0)
    marks = [x for x, _ in (points[0] for label, points in panels["validation rSum"].items() if label != "rSum")]
    assert marks == [2, 3]  # the epoch kept, then the collapse


def test_curves_of_older_histories_of_none_and_of_several(monkeypatch, tmp_path):
    old = [{"epoch": 0, "lr": [0.002], "loss": 1.0, "val": entry(0, 50.0)["val"]}]
    panels = lines_of(monkeypatch, {"": old}, tmp_path / "old.png")
    assert set(panels["training loss and its parts"]) >= {"loss"}
    assert not [name for name in panels["violations of the margin, spread (shares)"] if not name.startswith("_")]
    assert draw_curves({"": []}, tmp_path / "none.png")
    several = json.loads(json.dumps({"a": old, "b": [entry(0, 50.0), entry(1, 90.0)]}))
    assert draw_curves(several, tmp_path / "several.png")
