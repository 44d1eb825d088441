"""``avse index``: a folder of pictures, or a file of sentences, becomes an index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from avse.cli.common import add_device, add_force, add_json, device_of, emit, positive_int, prepare_process

if TYPE_CHECKING:
    from avse.index import AddReport, Index
    from avse.model import AVSE

_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="FOLDER", help="folder of pictures, or a .txt file with a sentence a line")
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index, such as photos.avse")
    parser.add_argument("--model", metavar="DIR", help="folder of a trained model (a known index remembers its own)")
    parser.add_argument("--store", choices=("embedded", "memory"), help="embedded (default) or memory (exact, texts)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="encoded at once (default 32)")
    add_device(parser)
    add_force(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Index, print the report, and return 1 if the index is empty then.

    Raises:
        ValueError: Nothing to index, or an index of something else.
    """
    prepare_process()
    from avse.images import list_images

    source = Path(args.source)
    texts = source.is_file() and source.suffix.lower() == ".txt"
    if not texts and not source.is_dir():
        raise ValueError(f"{source} is neither a folder of pictures nor a .txt file of sentences")
    if not texts and not list_images(source):
        raise ValueError(f"{source} holds no pictures (jpg, png, webp, gif, bmp, tif and a few more are looked for)")
    with _open(args, texts) as index:
        cast("AVSE", index.encoder).to(device_of(args))
        if texts:
            try:
                lines = source.read_text("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{source} is not UTF-8 text: {error}") from error
            report = index.add_texts(lines, only_new=True, batch_size=args.batch_size)
        else:
            report = index.add_images(source, only_new=True, batch_size=args.batch_size)
        _print(args, index, report)
        return 0 if len(index) else 1


def _open(args: argparse.Namespace, texts: bool) -> Index:
    from avse.index import Index

    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()) and not args.force:
        index = Index.open(out, model=args.model)
        if args.store not in (None, index.store):
            index.close()
            raise ValueError(f"{out} is in the {index.store} store, not {args.store}: leave --store out, or --force")
        return index
    if args.model is None:
        raise ValueError("a new index needs --model DIR, the folder of a trained model (avse demo makes one)")
    store = args.store or ("memory" if texts else "embedded")
    return Index.create(out, args.model, store=store, side="texts" if texts else "images", force=args.force)


def _print(args: argparse.Namespace, index: Index, report: AddReport) -> None:
    if args.json:
        skipped = [skip._asdict() for skip in report.skipped]
        counts = {"added": report.added, "known": report.known, "entries": len(index), "skipped": skipped}
        emit({"index": str(index.path), "side": index.side, "store": index.store, **counts})
        return
    print(
        f"{index.path}: {report.added:,} added, {report.known:,} were there already, "
        f"{len(report.skipped):,} skipped; {len(index):,} {index.side} in all"
    )
    for skip in report.skipped[:_LISTED]:
        print(f"  skipped {skip.name}: {skip.reason}")
    if len(report.skipped) > _LISTED:
        print(f"  and {len(report.skipped) - _LISTED:,} more (--json lists them all)")
