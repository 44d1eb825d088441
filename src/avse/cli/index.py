"""``avse index``: a folder of pictures, or a file of sentences, and its index brought together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from avse.cli.common import (
    MisuseError,
    add_device,
    add_force,
    add_json,
    add_remote,
    device_of,
    emit,
    positive_int,
    positive_number,
    prepare_process,
)

if TYPE_CHECKING:
    from avse.index import AddReport, Index, Skipped
    from avse.index.contract import Side
    from avse.index.pictures import Picture
    from avse.model import AVSE

_LISTED = 20
_WORDS = {
    "added": "added",
    "changed": "changed",
    "moved": "moved",
    "duplicates": "doubled (only their paths were added)",
    "removed": "removed",
    "known": "unchanged",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Make an index of a folder of pictures or of a file of sentences, or bring it up to date: only what is new or "
        "changed is embedded, and what is gone is taken out. Killed at any moment, it goes on where it was."
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="FOLDER",
        help="folder of pictures, or a .txt file with a sentence a line; a folder within the one that was indexed "
        "brings only that part up to date",
    )
    parser.add_argument(
        "--out", metavar="INDEX", help="folder of the index, such as photos.avse, or qdrant://host:6333/name"
    )
    parser.add_argument("--model", metavar="DIR", help="folder of a trained model (a known index remembers its own)")
    parser.add_argument(
        "--store",
        choices=("embedded", "memory"),
        help="of a new index in a folder: embedded (Qdrant Edge, default for pictures; has --approximate) or memory "
        "(exact int8 scan; default, and the only one, for sentences)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, metavar="N", help="pictures encoded at once (default 32)"
    )
    parser.add_argument(
        "--prune", action="store_true", help="only take out what is gone or changed, and free its space; needs no model"
    )
    parser.add_argument(
        "--delete",
        metavar="ID",
        action="append",
        help="only take out this entry (may be repeated); a picture still in the folder comes back with the next run",
    )
    parser.add_argument("--retry", action="store_true", help="try again what could not be read before")
    parser.add_argument(
        "--shards",
        type=positive_int,
        metavar="N",
        help="spread a new index over N shards (folders, or a server's; default 1)",
    )
    parser.add_argument(
        "--replicas",
        type=positive_int,
        metavar="N",
        help="copies of each shard that a cluster keeps (new qdrant:// index; default 1)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="embed on a Ray cluster: HOST:PORT of its head, auto for the one this machine is in, nothing for one of "
        "this machine's cores; all machines must see pictures and model under the same paths",
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=positive_number,
        default=0.0,
        metavar="G",
        help="with --ray: GPUs (or a part of one) for each actor",
    )
    add_remote(
        parser,
        "send the pictures to a running avse server in place of --out (what is gone is taken out only with --prune)",
    )
    add_device(parser)
    add_force(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Index, print the report, and return 1 if the index is empty then.

    Raises:
        MisuseError: No folder, or neither or both of an index and a server.
        ValueError: Nothing to index, or an index of something else.
    """
    prepare_process()
    if (args.out is None) == (args.url is None):
        raise MisuseError("give --out INDEX, or --url URL of a running server")
    _refuse_unused(args)
    if args.delete:
        return _delete(args)
    if args.source is None and (args.url or not args.prune):
        raise MisuseError(
            "give a FOLDER of pictures or a .txt file of sentences (--prune of an --out knows its folder by itself)"
        )
    if args.ray is not None and (args.url or args.prune or args.device):
        raise MisuseError("--ray embeds into --out; it goes without --url, --prune and --device (see --gpus-per-actor)")
    if args.url:
        from avse.index.remote import Remote, sync_remote

        report = sync_remote(Remote(args.url, args.token), Path(args.source), prune=args.prune)
        _print(args, {"index": args.url}, report, "")
        return 0
    if args.prune:
        from avse.index import Index

        with Index.open(args.out) as index:
            return _done(args, index, index.prune(args.source))
    source = Path(args.source)
    texts = source.is_file() and source.suffix.lower() == ".txt"
    _check(source, texts)
    if texts and args.ray is not None:
        raise MisuseError("--ray embeds pictures: leave it out for a file of sentences")
    with _open(args, texts) as index:
        if texts:
            return _done(args, index, _add_texts(args, index, source))

        def embed(todo: Iterable[tuple[str, Path]]) -> Iterable[list[Picture | Skipped]]:
            if args.ray is not None:
                return _embed_with_ray(args, index, todo)
            from avse.index.feed import embed_files

            cast("AVSE", index.encoder).to(device_of(args))
            return embed_files(index.encoder, todo, batch_size=args.batch_size)

        return _done(args, index, index.add_images(source, retry=args.retry, embed=embed))


def _refuse_unused(args: argparse.Namespace) -> None:
    """Refuse options that would be let be without a word."""
    if args.gpus_per_actor and args.ray is None:
        raise MisuseError("--gpus-per-actor is for --ray: give --ray too, or --device cuda for a GPU of this machine")
    names = ("model", "store", "shards", "replicas", "retry", "device", "force")
    unused = ", ".join(f"--{name}" for name in names if getattr(args, name))
    verb = next((f"--{name}" for name in ("url", "prune", "delete") if getattr(args, name)), None)
    if unused and verb:
        raise MisuseError(f"{unused} does nothing beside {verb}: leave it out")


def _delete(args: argparse.Namespace) -> int:
    """Take out single entries; return 1 if none of them was there."""
    from avse.index import AddReport, Index
    from avse.index.remote import Remote

    if args.source is not None or args.prune or args.ray is not None:
        raise MisuseError("--delete goes without a FOLDER, --prune and --ray")
    if args.url:
        gone = sum(Remote(args.url, args.token).delete(name) for name in args.delete)
        _print(args, {"index": args.url}, AddReport(0, removed=gone), "")
        return 0 if gone else 1
    with Index.open(args.out) as index:
        there = index.known(args.delete)
        gone = index.delete(args.delete)
        _done(args, index, AddReport(0, removed=gone))
    for name in args.delete:
        if name not in there:
            print(f"avse index: --delete {name}: no such entry (search prints their ids)", file=sys.stderr)
    return 0 if gone else 1


def _embed_with_ray(
    args: argparse.Namespace, index: Index, todo: Iterable[tuple[str, Path]]
) -> Iterable[list[Picture | Skipped]]:
    from avse.scale import embed_with_ray

    folder = cast("AVSE", index.encoder).folder  # the index's own model: opening it has compared them
    assert folder is not None
    size, gpus = args.batch_size, args.gpus_per_actor
    return embed_with_ray(folder, todo, address=args.ray or None, batch_size=size, gpus_per_actor=gpus)


def _check(source: Path, texts: bool) -> None:
    """Refuse what is nothing to index, before an index is made for it."""
    from avse.images import walk_images

    if not texts and not source.is_dir():
        raise ValueError(f"{source} is neither a folder of pictures nor a .txt file of sentences")
    if not texts and next(walk_images(source, lambda _: None), None) is None:
        raise ValueError(f"{source} holds no pictures (jpg, png, webp, gif, bmp, tif and a few more are looked for)")


def _add_texts(args: argparse.Namespace, index: Index, source: Path) -> AddReport:
    try:
        lines = source.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from error
    cast("AVSE", index.encoder).to(device_of(args))
    return index.add_texts(lines, batch_size=args.batch_size, prune=True)


def _open(args: argparse.Namespace, texts: bool) -> Index:
    from avse.index import Index

    if not args.force and _is_there(args.out):
        index = Index.open(args.out, model=args.model)
        if args.store not in (None, index.store):
            index.close()
            raise ValueError(
                f"{args.out} is in the {index.store} store, not {args.store}: leave --store out, or --force"
            )
        if args.shards not in (None, index.shards):
            index.close()
            raise ValueError(f"{args.out} has {index.shards} shards, not {args.shards}: leave --shards out, or --force")
        return index
    if args.model is None:
        raise ValueError("a new index needs --model DIR, the folder of a trained model (avse demo makes one)")
    store = args.store or ("memory" if texts else None)
    side: Side = "texts" if texts else "images"
    shards, replicas = args.shards or 1, args.replicas or 1
    return Index.create(
        args.out, args.model, store=store, side=side, force=args.force, shards=shards, replicas=replicas
    )


def _is_there(out: str) -> bool:
    from avse.index.home import find_home

    if "://" not in out:
        return Path(out).is_dir() and any(Path(out).iterdir())
    try:
        find_home(out).read()
    except FileNotFoundError:
        return False
    return True


def _done(args: argparse.Namespace, index: Index, report: AddReport) -> int:
    facts = {"index": index.location, "side": index.side, "store": index.store, "entries": len(index)}
    _print(args, facts, report, f"; {len(index):,} {index.side} in all")
    return 0 if len(index) else 1


def _print(args: argparse.Namespace, facts: dict[str, object], report: AddReport, total: str) -> None:
    if args.json:
        emit({**facts, **asdict(report), "skipped": [skip._asdict() for skip in report.skipped]})
        return
    counts = {name: getattr(report, name) for name in _WORDS}
    said = [f"{count:,} {_WORDS[name]}" for name, count in counts.items() if count]
    said += [f"{len(report.skipped):,} skipped"] if report.skipped else []
    print(f"{facts['index']}: {', '.join(said) or 'nothing to do'}{total}")
    for skip in report.skipped[:_LISTED]:
        print(f"  skipped {skip.name}: {skip.reason}")
    if len(report.skipped) > _LISTED:
        print(f"  and {len(report.skipped) - _LISTED:,} more (--json lists them all)")
