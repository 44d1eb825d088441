"""What a training left beside its model, checked: run.json, or of `avse demo` report.json and the first seed's result.

A record counts for the very model that it names by fingerprint and for no other. Knows files, no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

_RUN, _REPORT = "run.json", "report.json"
_DEMO = "systems/avse-seed0/result.json"
"""Of `avse demo`, whose model/ is the first seed's."""


def _with_epochs(settings: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(settings.get("epochs"), int):
        raise ValueError("epochs is missing or no number")
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_with_epochs)]
"""A training's, by name."""


class Counts(BaseModel):
    """Pictures and captions of a split."""

    images: int | None = None
    pairs: int | None = None


class Data(BaseModel):
    """What a training learnt from and chose by."""

    name: str
    train: Counts = Counts()
    val: Counts = Counts()


class Leaks(BaseModel):
    """Training pictures found again in validation or test, where that was looked for."""

    looked: bool = False
    found: int = 0
    done: str = ""


class Recalls(BaseModel):
    """R@1, R@5 and R@10 of one direction in percent."""

    r1: float
    r5: float
    r10: float


class Best(BaseModel):
    """Validation figures of the best epoch."""

    i2t: Recalls
    t2i: Recalls
    rsum: float


class RSum(BaseModel):
    """rSum and the ends of its interval."""

    mean: float
    ci: tuple[float, float]


class System(BaseModel):
    """Test figures of one system of a demo."""

    i2t: Recalls
    t2i: Recalls
    rsum: RSum


class Report(BaseModel):
    """What is read of a demo's report.json."""

    dataset: str
    images: dict[str, int]
    captions: dict[str, int]
    pairs: int
    resolution: int
    precision: str
    seeds: list[int]
    systems: dict[str, System]


class Gpu(BaseModel):
    """A GPU."""

    name: str


class Hardware(BaseModel):
    """The machine."""

    processor: str | None = None
    gpus: list[Gpu] = []


class Identity(BaseModel):
    """The settings of a training."""

    config: Settings | None = None


class Record(BaseModel):
    """What is read of run.json; empty where nothing is known."""

    data: Data | None = None
    leaks: Leaks = Leaks()
    identity: Identity = Identity()
    command: list[str] = []
    versions: dict[str, str | None] = {}
    hardware: Hardware = Hardware()
    seconds: dict[str, float] = {}
    best_epoch: int | None = None
    best: Best | None = None
    demo: Report | None = None


class _DemoIdentity(BaseModel):
    train: Settings


class _Result(BaseModel):
    identity: _DemoIdentity
    best_epoch: int | None = None
    seconds: dict[str, float] = {}


_Read = TypeVar("_Read", bound=BaseModel)


def read_record(model: Path, fingerprint: str | None) -> Record:
    """Return what lies in the folder that `model` is in, if it is of the model of this fingerprint, else nothing.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    home = model.resolve().parent
    for name in (_RUN, _REPORT):
        values = _load(home / name)
        if values and fingerprint and values.get("fingerprint") == fingerprint:
            if name == _RUN:
                return _parse(Record, values, home / name)
            return _of_demo(_parse(Report, values, home / name), home)
    return Record()


def _of_demo(report: Report, home: Path) -> Record:
    counts = {
        split: Counts(images=report.images.get(split), pairs=report.captions.get(split)) for split in ("train", "val")
    }
    record = Record(data=Data(name=report.dataset, **counts), demo=report)
    if values := _load(home / _DEMO):
        result = _parse(_Result, values, home / _DEMO)
        record.identity = Identity(config=result.identity.train)
        record.best_epoch, record.seconds = result.best_epoch, result.seconds
    return record


def _load(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no object")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return values


def _parse(kind: type[_Read], values: dict[str, Any], path: Path) -> _Read:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        said = str(error)
    return ValueError(f"{path} is damaged ({said}): take it away, and the card says that nothing is known")
