"""Pictures embedded by actors of a Ray cluster: paths go out, blocks and payloads stream back to the one who writes.

Ray Data runs the pipeline: rows of (id, path) → a pool of actors, each with the model loaded once → rows that the
driver takes as they come. A task lost with its machine is run again, and the driver lets each id pass once. Machines
share the storage that holds pictures and model. Knows no store; a file is read by `avse.index.feed` alone.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avse.extras import needs
from avse.index.contract import Skipped
from avse.index.feed import embed_files
from avse.index.pictures import Picture

_FIRST, _MOST = 1_000, 20_000  # pictures an actor in a run of the pipeline, which loads the model once
_TASK_BATCHES = 16  # of one task, at most: what is done again when a machine is lost
_CONNECT_SECONDS = 5.0
_STORE_BYTES = 512 << 20  # of the object store of a cluster of our own; rows pass through it
_COLUMNS = ("id", "blocks", "payload", "reason", "absent")

Rows = dict[str, NDArray[Any]]


def embed_with_ray(
    model_folder: str | Path,
    todo: Iterable[tuple[str, Path]],
    *,
    address: str | None = None,
    batch_size: int = 32,
    actors: int | None = None,
    gpus_per_actor: float = 0.0,
) -> Iterator[list[Picture | Skipped]]:
    """Embed pictures on a Ray cluster, each item of ``todo`` once, in any order; those unreadable are `Skipped`.

    Runs of the pipeline grow from 1,000 to 20,000 pictures an actor; ``todo`` is asked for the next one's while the
    actors work. A connection to Ray that is open already is used and left open; else one is made and closed in the end.

    Args:
        model_folder: Folder of a saved model, readable by every machine.
        todo: Pairs of id and path; ids are unique, paths readable by every machine.
        address: "host:port" of a cluster's head, "auto" for the one this machine is part of, None to start one here.
        batch_size: Pictures encoded together.
        actors: How many, at most; None for one a core, or as many as the GPUs take.
        gpus_per_actor: 0 computes on one core each; 1 or a part of 1 takes that much of a GPU, and a share of its
            machine's cores to read pictures.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``gpus_per_actor`` on a cluster without GPUs, or no such model folder.
        OSError: No cluster at ``address``, or one of its machines does not see a picture that this one sees.
        RuntimeError: An actor failed, for instance because it cannot load the model, or Ray lost pictures.
    """
    with needs("ray", "embedding on a Ray cluster"):
        import ray
    folder = Path(model_folder).resolve()
    if not folder.is_dir():
        raise ValueError(f"{model_folder}: no such model folder")
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(address)
        pool = _pool(actors, gpus_per_actor)
        pending = iter(todo)
        following = dict(itertools.islice(pending, _FIRST * pool.size))
        while waiting := following:
            following = {}
            for found in _run(str(folder), waiting, batch_size, pool):
                yield found
                room = _MOST * pool.size - len(following)  # items cost reading too: two for one, while the actors work
                following.update(itertools.islice(pending, min(2 * len(found), room)))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"embedding with Ray failed: {_reason(error)}") from error
    finally:
        if ours:
            ray.shutdown()


class _Pool(NamedTuple):
    """How many actors there may be, and what each takes."""

    size: int
    cores: int
    gpus: float


class _Embedder:
    """An actor: a model on one core or on its part of a GPU, beside it the processes that read pictures."""

    def __init__(self, model_folder: str, batch_size: int, pool: _Pool) -> None:
        import torch

        from avse.start import open_model

        torch.set_num_threads(1)
        self._batch_size, self._readers = batch_size, max(1, pool.cores - 1)
        self._model = open_model(model_folder)
        self._model.to("cuda" if pool.gpus else "cpu")

    def __call__(self, task: Rows) -> Iterator[Rows]:
        """Embed id and path: blocks (n, P, C) and payload as JSON; a reason in its place where a file is unreadable."""
        paths = {name: Path(os.fsdecode(path)) for name, path in zip(task["id"], task["path"])}
        none = np.zeros((self._model.num_image_blocks, self._model.block_width), np.float32)
        for part in embed_files(self._model, paths.items(), batch_size=self._batch_size, workers=self._readers):
            rows: list[tuple[Any, ...]] = []
            for item in part:
                if isinstance(item, Picture):
                    rows.append((item.id, item.blocks, json.dumps(item.payload), "", False))
                else:
                    rows.append((item.name, none, "", item.reason, not paths[item.name].exists()))
            yield {column: np.array(values) for column, values in zip(_COLUMNS, zip(*rows))}


def _run(folder: str, waiting: dict[str, Path], batch_size: int, pool: _Pool) -> Iterator[list[Picture | Skipped]]:
    """Run the pipeline over some items and yield each once; ``waiting`` is empty in the end."""
    import pyarrow as pa
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it says that bars are off
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    pairs, tables = list(waiting.items()), []
    step = batch_size * min(_TASK_BATCHES, max(1, len(pairs) // (4 * pool.size * batch_size)))
    for at in range(0, len(pairs), step):
        names, paths = zip(*pairs[at : at + step])
        encoded = pa.array([os.fsencode(path.absolute()) for path in paths], pa.binary())
        tables.append(pa.table({"id": pa.array(names, pa.string()), "path": encoded}))
    rows = data.from_arrow(tables).map_batches(
        _Embedder,
        fn_constructor_args=(folder, batch_size, pool),
        batch_size=None,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=1, max_size=pool.size),
        num_cpus=pool.cores,
        num_gpus=pool.gpus or None,
    )
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
        found: list[Picture | Skipped] = []
        for name, blocks, payload, reason, absent in zip(*(batch[column] for column in _COLUMNS)):
            if (path := waiting.pop(name, None)) is None:  # of a task that was run again
                continue
            if absent and path.exists():
                raise OSError(
                    f"{path} is missing on a machine of the cluster: keep pictures where all of them see them"
                )
            found.append(Picture(name, blocks, json.loads(payload)) if payload else Skipped(name, reason))
        if found:
            yield found
    if waiting:
        raise RuntimeError(f"Ray lost {len(waiting)} pictures, {next(iter(waiting))} among them: index again")


def _connect(address: str | None) -> None:
    """Connect to a cluster, or start one of this machine; Ray reports nothing to its makers and logs only errors."""
    import ray

    quiet = {"USAGE_STATS_ENABLED": "0", "BACKEND_LOG_LEVEL": "fatal", "ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    for name, value in quiet.items():
        os.environ.setdefault(f"RAY_{name}", value)
    own = {} if address else {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        if address not in (None, "auto"):  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            if not (host and port.isdecimal()):
                raise ValueError("a host and a port are wanted, such as 10.0.0.1:6379")
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(f"no Ray cluster at {address or 'this machine'} (auto or HOST:PORT): {_reason(error)}") from error


def _pool(actors: int | None, gpus_per_actor: float) -> _Pool:
    """Return the actors that the cluster can hold, or fewer if so asked."""
    import ray

    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    cores = [int(there.get("CPU", 0)) for there in machines]
    counts = [int(there.get("GPU", 0) / gpus_per_actor) for there in machines] if gpus_per_actor else cores
    share = min((have // count for have, count in zip(cores, counts) if count), default=0)
    if share < 1:
        raise ValueError(
            f"the Ray cluster cannot hold an actor of 1 core and {gpus_per_actor:g} GPUs (its machines have {cores} "
            f"cores and GPUs for {counts} actors): add machines, or ask for less (gpus_per_actor)"
        )
    return _Pool(min(actors or sum(counts), sum(counts)), share, gpus_per_actor)


def _reason(error: BaseException) -> str:
    """Return the last line of a report from another machine, which names what went wrong there."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
