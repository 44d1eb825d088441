"""Webdataset shards of training pairs, streamed in a shuffled order that is known beforehand.

Every sample is counted before any is streamed, so an epoch's order, each reader's share of it and the place to go on
from are arithmetic on positions, and only what is wanted is read. Pictures stay bytes. Knows no model and no group of
processes; what a shard looks like inside is in `avse.data.tars`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avse.ahead import Ahead
from avse.data.dataset import Skip
from avse.data.entries import fields, read_json
from avse.data.tars import PICTURES, Sample, Shard, ShardError, count_samples, read_samples
from avse.files import write_json

__all__ = ["PairShards", "Sample", "ShardError"]

INFO = "shards.json"
"""What `avse.data.sharding` wrote, beside its shards."""
COUNTS = ".avse-shards.json"
"""Counts of shards that others wrote, kept beside them; each is valid for one size and time of change."""

_AHEAD = 16
"""Samples that a thread of `PairShards.read` keeps ready."""
_DRAWS = 4096


@dataclass(frozen=True)
class PairShards:
    """Shards of training pairs, each sample of which is counted.

    Attributes:
        name: What the set is called in tables.
        shards: The files, in the order of their names.
    """

    name: str
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, source: str | Path) -> PairShards:
        """Find shards and count their samples; shards that `write_shards` wrote are counted already.

        Counting reads headers and captions once, no picture, and keeps what it found in `COUNTS` where it can.

        Args:
            source: A folder, one .tar, or a pattern such as "train-{000000..000099}.tar" or "dir/*.tar".

        Raises:
            FileNotFoundError: No shard there, or one of a pattern is missing.
            ShardError: A shard that cannot be read or is cut off, or no sample in any of them.
        """
        shards = _listed(Path(source)) if Path(source, INFO).is_file() else _counted(_find(str(source)))
        if not shards:
            raise ShardError(source, "the names of shards", "none")
        found = cls(shards[0].path.resolve().parent.name, shards)
        if not found.num_images:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in Counter(skip.kind for skip in found.skipped).items())
            raise ShardError(source, f"samples: KEY.{'|'.join(PICTURES)} with KEY.txt or .json", kinds or "no files")
        return found

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(shard.path for shard in self.shards)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each file."""
        return tuple(shard.samples for shard in self.shards)

    @property
    def num_images(self) -> int:
        """N, the number of all samples."""
        return sum(self.counts)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Samples without a picture or a caption, which are not counted."""
        return tuple(Skip(f"{shard.path.name}/{key}", why) for shard in self.shards for _, key, why in shard.skipped)

    def summary(self) -> str:
        """One line for people."""
        out = f", {len(self.skipped)} left out" if self.skipped else ""
        return f"{self.name}, split train: {self.num_images} images in {len(self.shards)} shards{out}"

    def fingerprint(self) -> str:
        """Return the SHA-256 of the shards' names, sizes and counts, and of their digests where those are known."""
        said = [[shard.path.name, shard.size, shard.samples, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def share(self, rank: int, ranks: int) -> int:
        """Return how many samples of every epoch are those of one of ``ranks`` readers; they differ by 1 at most.

        Raises:
            ValueError: No such rank.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}: it must lie in 0..{ranks - 1}")
        return (rank + 1) * self.num_images // ranks - rank * self.num_images // ranks

    def stream(
        self,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        ranks: int = 1,
        worker: int = 0,
        workers: int = 1,
        start: int = 0,
        buffer: int = 1000,
    ) -> Iterator[Sample]:
        """Yield the samples of one reader from the one at ``start`` on.

        Shards are put in an order of (seed, epoch); all samples in that order are cut into ranks x workers ranges. A
        reader goes through its range once and yields, as if by a buffer of that many samples, one of the next
        ``buffer`` each time; it holds no more of them at once. The stream from ``start`` on is the tail of the whole.

        Raises:
            ValueError: No such rank or worker, a ``buffer`` below 1, or a ``start`` beyond the reader's samples.
            ShardError: A shard was changed since it was opened, or cannot be read.
        """
        if not 0 <= rank < ranks or not 0 <= worker < workers or buffer < 1:
            raise ValueError(
                f"rank {rank} of {ranks}, worker {worker} of {workers}, a buffer of {buffer}: ranks and workers count "
                "from 0, a buffer holds 1 sample or more"
            )
        reader = rank * workers + worker
        if not 0 <= start <= (count := self.share(reader, ranks * workers)):
            raise ValueError(f"start {start}: this reader has {count} samples an epoch, 0 to {count} can be given")
        order = _shuffled(count, buffer, np.random.default_rng((1, seed, epoch, rank, worker)))
        given = np.zeros(count, bool)
        for position in islice(order, start):
            given[position] = True
        held: dict[int, Sample] = {}
        first = reader * self.num_images // (ranks * workers)
        arriving = self._arriving(np.random.default_rng((0, seed, epoch)), first, given)
        for position in order:
            while position not in held:
                held.update([next(arriving)])
            yield held.pop(position)

    def read(
        self,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 2,
        start: int = 0,
        buffer: int = 1000,
    ) -> Generator[Sample, None, None]:
        """Yield the samples of a rank, one of each worker's `stream` in turn, from the one at ``start`` on.

        Each worker reads in a thread of its own, a few samples ahead; the threads end with the iterator. A worker holds
        ``buffer`` samples and those ahead.

        Raises:
            ValueError: As `stream`.
            ShardError: As `stream`, when the turn comes to the sample that could not be read.
        """
        shares = [self.share(rank * workers + worker, ranks * workers) for worker in range(workers)]
        if not 0 <= start <= sum(shares) or workers < 1:
            raise ValueError(f"start {start}, workers {workers}: start lies in 0..{sum(shares)}, workers are 1 or more")
        rounds = min(start // workers, min(shares))
        turn = [worker for worker in range(workers) if shares[worker] > rounds]
        served, turn = turn[: start - rounds * workers], turn[start - rounds * workers :]
        taken = [rounds + (worker in served) for worker in range(workers)]
        common = {"seed": seed, "epoch": epoch, "rank": rank, "ranks": ranks, "workers": workers, "buffer": buffer}
        with ExitStack() as stack:
            streams = [self.stream(worker=worker, start=taken[worker], **common) for worker in range(workers)]
            readers = [stack.enter_context(closing(Ahead(stream, _AHEAD))) for stream in streams]
            while turn:
                for worker in turn:
                    yield next(readers[worker])
                    taken[worker] += 1
                turn = [worker for worker in range(workers) if taken[worker] < shares[worker]]

    def _arriving(
        self, generator: np.random.Generator, first: int, given: NDArray[np.bool_]
    ) -> Iterator[tuple[int, Sample]]:
        """Yield the samples of the range from ``first`` on that are not ``given``, each with its position in it."""
        begin = -first
        for number in np.argsort(generator.random(len(self.shards)), kind="stable").tolist():
            shard = self.shards[number]
            low, high = max(begin, 0), min(begin + shard.samples, len(given))
            if low < high and len(wanted := low + np.flatnonzero(~given[low:high])):
                yield from zip(wanted.tolist(), read_samples(shard, (wanted - begin).tolist()))
            begin += shard.samples


def _shuffled(count: int, buffer: int, generator: np.random.Generator) -> Iterator[int]:
    """Yield 0 to count - 1, each drawn from the ``buffer`` lowest ones that a reader would hold."""
    slots = list(range(min(buffer, count)))
    coming = len(slots)
    while slots:
        for draw in generator.random(_DRAWS).tolist():
            chosen = int(draw * len(slots))
            yield slots[chosen]
            slots[chosen] = coming if coming < count else slots[-1]
            if coming < count:
                coming += 1
            else:
                slots.pop()
            if not slots:
                return


def _find(source: str) -> list[Path]:
    if os.path.isdir(source):
        found = sorted(path for path in Path(source).glob("*.tar") if not path.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"{source}: neither {INFO} nor any .tar file in the folder")
        return found
    paths: dict[Path, None] = {}
    for name in [source] if os.path.exists(source) else _expanded(source):
        found = [Path(name)] if os.path.exists(name) else [Path(path) for path in sorted(glob.glob(name))]
        if not found:
            raise FileNotFoundError(f"{name}: no such shard, folder or pattern of files on this machine's disks")
        paths |= dict.fromkeys(found)
    if not paths:
        raise FileNotFoundError(f"{source}: the pattern names no shard; {{000..099}} counts upwards")
    return list(paths)


def _expanded(pattern: str) -> list[str]:
    """Return what braces in a pattern stand for.

    >>> _expanded("a-{8..10}.tar")
    ['a-8.tar', 'a-9.tar', 'a-10.tar']
    >>> _expanded("{x,y}/{00..01}")
    ['x/00', 'x/01', 'y/00', 'y/01']
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, words = match.groups()
    parts = words.split(",") if words else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [pattern[: match.start()] + part + rest for part in parts for rest in _expanded(pattern[match.end() :])]


def _listed(folder: Path) -> tuple[Shard, ...]:
    """Return the shards that `write_shards` wrote, each looked for and its size compared."""
    info = read_json(folder / INFO, {"shards": list})
    if "counts" not in info:
        raise ShardError(folder, "finished shards", "an interrupted writing: the same avse data shards goes on with it")
    shards = []
    for said in info["shards"]:
        fields(said, {"name": str, "count": int, "bytes": int, "sha256": str}, f"{folder / INFO}: a shard")
        name = said["name"]
        if name != Path(name).name or "\\" in name or not name.isprintable() or len(name) > 255:
            raise ShardError(folder / INFO, "names of shards in its folder", f"{name!r:.80}")
        path = folder / name
        if (size := path.stat().st_size if path.is_file() else None) != said["bytes"]:
            raise ShardError(path, f"{said['bytes']:,} bytes", "no such file" if size is None else f"{size:,} bytes")
        shards.append(Shard(path, size, path.stat().st_mtime_ns, said["count"], sha256=said["sha256"]))
    return tuple(shards)


def _counted(paths: Sequence[Path]) -> tuple[Shard, ...]:
    """Return the shards with their counts: those kept beside them where they are valid, else by reading each once."""
    kept = {folder: _kept_counts(folder) for folder in {path.parent for path in paths}}
    todo = [path for path in paths if not _is_valid(kept[path.parent].get(path.name))]
    try:
        for path in tqdm(todo, desc="counting shards", unit="shard", disable=not todo):
            kept[path.parent][path.name] = count_samples(path)
    finally:
        for folder in {path.parent for path in todo}:
            with suppress(OSError):  # a folder that cannot be written to is counted again
                write_json(folder / COUNTS, {name: shard[1:5] for name, shard in kept[folder].items()})
    return tuple(kept[path.parent][path.name] for path in paths)


def _kept_counts(folder: Path) -> dict[str, Shard]:
    """Return the shards of a folder by name as they were counted; none where the file is not there or damaged."""
    try:
        kept = {}
        for name, (size, changed, count, skipped) in json.loads((folder / COUNTS).read_text("utf-8")).items():
            bad = tuple((int(number), str(key), str(why)) for number, key, why in skipped)
            name.encode()
            kept[name] = Shard(folder / name, int(size), int(changed), int(count), bad)
        return kept
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _is_valid(shard: Shard | None) -> bool:
    if shard is None:
        return False
    stat = shard.path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (shard.size, shard.mtime_ns)
