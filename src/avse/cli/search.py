"""``avse search``: ask an index with a sentence, a picture, or both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from avse.cli.common import add_force, add_json, emit, positive_int, prepare_process

if TYPE_CHECKING:
    from avse.index import Hit, Index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("index", metavar="INDEX", help="folder of the index")
    parser.add_argument("query", nargs="?", metavar="SENTENCE", help="what to look for")
    parser.add_argument("--image", metavar="FILE", help="a picture to look for, alone or beside the sentence")
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help='only entries such as "folder = 2019 and width > 1000"; fields path, name, folder, width, height, '
        "bytes; "
        "operators = != < <= > >= in (a, b), and, or, not",
    )
    parser.add_argument("-k", type=positive_int, default=10, help="how many answers (default 10)")
    parser.add_argument("--model", metavar="DIR", help="folder of the model, where the index's own has moved")
    parser.add_argument("--approximate", action="store_true", help="use (and first build) the store's HNSW graph")
    parser.add_argument("--sheet", metavar="PNG", help="draw the answers on a contact sheet")
    add_force(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Search and print the answers, best first.

    Raises:
        ValueError: Nothing to look for, or what `Index.search` refuses.
        FileExistsError: The sheet is there and not ``--force``.
    """
    prepare_process()
    from avse.index import Index

    if args.query is None and args.image is None:
        raise ValueError("nothing to look for: give a sentence, --image FILE, or both")
    if args.sheet and Path(args.sheet).exists() and not args.force:
        raise FileExistsError(f"{args.sheet} is there already: choose another name or --force")
    with Index.open(args.index, model=args.model) as index:
        if args.sheet and index.side == "texts":
            raise ValueError(f"--sheet draws pictures, and {index.path} is an index of texts")
        hits = index.search(args.query, image=args.image, where=args.where, k=args.k, approximate=args.approximate)
        if args.sheet:
            _draw(args, index, hits)
            print(f"contact sheet in {args.sheet}", file=sys.stderr)
        if args.where and not hits:
            for line in index.unknown_fields(args.where):
                print(f"avse search: --where: {line}", file=sys.stderr)
    _print(hits, args.json)
    return 0


def _draw(args: argparse.Namespace, index: Index, hits: list[Hit]) -> None:
    from avse.sheet import Row, Tile, contact_sheet

    title = args.query or Path(args.image).name
    tiles = [Tile(index.picture(hit), hit.id, hit.score) for hit in hits]
    contact_sheet([Row(title, tiles, args.image)], args.sheet, force=args.force)


def _print(hits: list[Hit], as_json: bool) -> None:
    for rank, hit in enumerate(hits, start=1):
        if as_json:
            emit({"rank": rank, "score": hit.score, "id": hit.id, "payload": hit.payload})
        else:
            print(f"{rank:4d}  {hit.score:8.4f}  {hit.id}")
    if not hits and not as_json:
        print("no answers")
