"""run.json: what a training was, on what, for how long and how it ended; and the reading of it, whole or not.

Knows files and this machine, no model, no data, no loop; torch is loaded only to be asked for its threads and GPUs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from avse import __version__, files

RUN, HISTORY, MODEL = "run.json", "history.json", "model"
CHECKPOINTS = "checkpoints"
"""What tells the settings of a run whose run.json is lost."""
RESULT = "result.json"
"""What a training of `avse ablate` or `avse demo` leaves in the place of the first two."""
PACKAGES = ("torch", "transformers", "numpy", "pillow")

_Kind = TypeVar("_Kind", dict[str, Any], list[Any])


class RunRecord:
    """Keeps `run.json` of one training true while it runs; as a context it also says how the training ended.

    The end is "finished" after `finish`, "stopped" where the context is left before it or by Ctrl-C, and "failed" with
    the error after any other exception. A run that was killed stays "running" until it is resumed.

    Args:
        folder: where run.json lies; None: nothing is kept (no folder asked for, or not the first process).
        facts: what stays the same while it runs: identity, data (images and pairs of each split), skipped, leaks,
            device, processes, checkpoint_minutes, ...
        step: steps done before, when resumed.
        resume: keep the pieces of the run.json that is there.
    """

    def __init__(
        self, folder: str | Path | None, facts: Mapping[str, Any], *, step: int = 0, resume: bool = False
    ) -> None:
        self.folder = Path(folder) if folder is not None else None
        now = _now()
        former = _read(self.folder / RUN, dict, []) if resume and self.folder is not None else {}
        pieces = [_ended(piece) for piece in former.get("pieces", [])]
        pieces.append({"started": now, "updated": now, "from_step": step, "to_step": step, "end": "running"})
        self.run: dict[str, Any] = {
            "status": "running",
            "started": former.get("started", now),
            "updated": now,
            "command": sys.argv,
            "host": platform.node(),
            **facts,
            "versions": versions(),
            "hardware": hardware(),
            **{name: former.get(name) for name in ("best_epoch", "best_rsum", "best", "last_epoch")},
            "seconds": former.get("seconds", {}),
            "pieces": pieces,
        }
        self._write()

    def update(
        self,
        step: int,
        *,
        seconds: Mapping[str, float],
        history: Sequence[Mapping[str, Any]],
        best_epoch: int,
        **facts: Any,
    ) -> None:
        """Write how far it is: at every checkpoint and every epoch's end.

        Args:
            step: steps done.
            seconds: train, of it wait (for data), validate, save (checkpoints), ...: summed over all pieces.
            history: the entries so far; best epoch (0-based) and its figures are taken from it.
            best_epoch: -1: none yet.
            facts: what has become known since.
        """
        best = next((entry for entry in history if entry["epoch"] == best_epoch), None)
        self.run |= {
            **facts,
            "best_epoch": best["epoch"] if best else None,
            "best_rsum": best["val"]["rsum"] if best else None,
            "best": best["val"] if best else None,
            "last_epoch": history[-1]["epoch"] if history else None,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        self.run["pieces"][-1]["to_step"] = step
        self._write()

    def finish(self) -> None:
        """Say that nothing is left to do."""
        self._end("finished")

    def __enter__(self) -> RunRecord:
        """Return the record itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how it ended; the error goes on."""
        if self.run["status"] != "running":
            return
        if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self._end("stopped")
            return
        self.run["error"] = " ".join(f"{kind.__name__}: {error}".split())
        try:
            self._end("failed")
        except OSError:  # a full disk is what the training fails of: its error says so
            pass

    def _end(self, status: str) -> None:
        self.run["status"] = self.run["pieces"][-1]["end"] = status
        self._write()

    def _write(self) -> None:
        self.run["updated"] = self.run["pieces"][-1]["updated"] = _now()
        if self.folder is not None:
            files.write_json(self.folder / RUN, self.run)


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a training's: it has run.json, history.json, result.json or a checkpoint."""
    return (folder / CHECKPOINTS).is_dir() or any((folder / name).is_file() for name in (RUN, HISTORY, RESULT))


def refuse_to_replace(folder: Path, resume: bool) -> None:
    """Raise FileExistsError where a new training would replace what a folder holds; to `resume` is to go on with it."""
    model, stopped = (folder / MODEL).exists(), any(folder.glob(f"{CHECKPOINTS}/step-*"))
    if resume and model and not stopped:
        raise FileExistsError(f"{folder} holds a model and no checkpoint to go on from; --force trains anew")
    if not resume and (model or stopped):
        held = "a model already" if model else "a run that was stopped"
        raise FileExistsError(f"{folder} holds {held}; --resume goes on, --force trains anew")


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read a run's folder, also one of an ablation, or damaged, or stopped before run.json was written.

    Returns:
        What run.json says, and always: `status` (running, stopped, finished, failed, or unknown where nothing tells),
        `problem` (None, or what could not be read), `identity`, `history` (the entries), `best` (the validation figures
        of the best epoch), `best_epoch`, `best_rsum`, `last_epoch` (0-based), `seconds`: empty or None where not known.
    """
    folder = Path(folder)
    problems: list[str] = []
    run = _read(folder / RUN, dict, problems)
    result = {} if run else _read(folder / RESULT, dict, problems)
    if result:
        identity = {name: value for name, value in _mapping(result.get("identity")).items() if name != "train"}
        identity["config"] = _mapping(result.get("identity")).get("train")
        run = {**{name: result.get(name) for name in ("best_epoch", "seconds")}, "identity": identity}
    elif not run:
        newest = max(folder.glob(f"{CHECKPOINTS}/step-*/{files.MANIFEST}"), default=folder / CHECKPOINTS)
        run = {"identity": _read(newest, dict, problems).get("identity")} if newest.is_file() else {}
    history = result.get("history") or _read(folder / HISTORY, list, problems)
    history = [entry for entry in history if _is_entry(entry)] if isinstance(history, list) else []
    done = run.get("status") or ("finished" if (folder / MODEL).is_dir() or result else None)
    left = "stopped" if (folder / CHECKPOINTS).is_dir() or history else "unknown"
    if not (run.get("identity") or history or problems):
        problems.append(f"neither {RUN} nor {HISTORY} nor a checkpoint")
    best = run.get("best_epoch")
    if best is None and history:
        best = max(reversed(history), key=lambda entry: entry["val"].get("rsum", 0.0)).get("epoch")
    figures = next((entry["val"] for entry in history if entry.get("epoch") == best), None)
    for name in ("identity", "seconds"):
        if run.get(name) is not None and not isinstance(run[name], dict):
            problems.append(f"{name} is damaged: {str(run[name])[:40]!r}")
    found = {
        **run,
        "status": done or left,
        "identity": _mapping(run.get("identity")),
        "history": history,
        "best_epoch": best,
        "best": run.get("best") or figures,
        "best_rsum": run.get("best_rsum", (figures or {}).get("rsum")),
        "last_epoch": run.get("last_epoch", history[-1].get("epoch") if history else None),
        "seconds": _mapping(run.get("seconds")),
    }
    return _fitted(found, _SHAPE, problems, "") | {"problem": "; ".join(problems) or None}


_SHAPE: dict[str, Any] = {
    "status": str,
    **dict.fromkeys(("best_epoch", "last_epoch"), int),
    "best_rsum": (int, float),
    "best": {"i2t": {}, "t2i": {}},
    "seconds": (int, float),
    "identity": {"config": {}, "model": {"image_encoder": {}, "text_encoder": {}}},
    "data": {"train": {}, "val": {}},
    **dict.fromkeys(("versions", "hardware"), {}),
    "pieces": list,
}
"""What run.json must hold where it holds it: a kind, or an object of such; of `seconds` each value."""


def _fitted(values: dict[str, Any], shape: dict[str, Any], problems: list[str], where: str) -> dict[str, Any]:
    """Return an object with None in place of what is of another kind than `shape` says, which is a problem."""
    kept = dict(values)
    for name, kind in shape.items():
        value, place = values.get(name), f"{where}{name}"
        if value is None:
            continue
        if name == "seconds":
            kept[name] = _fitted(value, dict.fromkeys(value, kind), problems, f"{place}.")
            kept[name] = {part: number or 0.0 for part, number in kept[name].items()}
        elif isinstance(kind, dict) and isinstance(value, dict):
            kept[name] = _fitted(value, kind, problems, f"{place}.")
        elif not isinstance(value, dict if isinstance(kind, dict) else kind) or isinstance(value, bool):
            problems.append(f"{place} is damaged: {str(value)[:40]!r}")
            kept[name] = None
    return kept


def versions() -> dict[str, str | None]:
    """Return the versions of avse, Python, the system and the packages that decide a training's figures."""
    found: dict[str, str | None] = {
        "avse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Return this machine's processor, cores, torch's threads, memory in GiB, and the GPUs with their driver."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "cuda": torch.version.cuda if gpus else None,
        "driver": _line_of("/proc/driver/nvidia/version", "NVRM version") if gpus else None,
    }


def processor() -> str:
    """Return the processor's name as Linux knows it, else what Python knows."""
    return _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _line_of(path: str, key: str) -> str | None:
    """Return what stands behind `key:` in a file of the kernel's; None where there is none."""
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(found, None)


def _is_entry(entry: Any) -> bool:
    """Tell whether a line of a history can be compared with others."""
    if not isinstance(entry, dict) or not isinstance(entry.get("val"), dict):
        return False
    kinds = (type(entry.get("epoch", 0)), type(entry["val"].get("rsum", 0.0)))
    return kinds[0] is int and kinds[1] in (int, float)


def _ended(piece: dict[str, Any]) -> dict[str, Any]:
    """A piece that never said how it ended was killed, after its last word."""
    return {**piece, "end": "killed"} if piece.get("end") == "running" else piece


def _now() -> str:
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: Path, kind: type[_Kind], problems: list[str]) -> _Kind:
    """Read an object or a list; empty where there is no file or it is damaged, which `problems` then has."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} is damaged: {' '.join(str(error).split())}")
        return kind()
    if isinstance(value, kind):
        return value
    problems.append(f"{path.name} is damaged: it holds no {kind.__name__}")
    return kind()
