"""``avse search``: ask an index with a sentence, a picture, both, or a file of sentences."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avse.cli.common import MisuseError, add_force, add_json, add_remote, emit, positive_int, prepare_process

if TYPE_CHECKING:
    from avse.index import Hit, Index

_AT_ONCE = 256
"""Sentences of a file that are encoded and asked together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("index", nargs="?", metavar="INDEX", help="folder of the index, or qdrant://host:6333/name")
    parser.add_argument(
        "query", nargs="?", metavar="SENTENCE", help="what to look for (an index of sentences wants --image)"
    )
    parser.add_argument("--image", metavar="FILE", help="a picture to look for, alone or beside the sentence")
    parser.add_argument("--queries", metavar="FILE", help="a file of sentences, one a line, each looked for")
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help='only entries such as "folder = 2019 and width > 1000" or "date >= 2019-06-01"; fields path, name, '
        "folder, width, height, bytes, modified, date and year (of EXIF), sha256, paths; operators = != < <= > >= "
        "in (a, b), and, or, not; quotes around values with spaces; of sentences: text, line",
    )
    parser.add_argument("-k", type=positive_int, default=10, help="how many answers (default 10)")
    parser.add_argument("--model", metavar="DIR", help="folder of the model, where the index's own has moved")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="use (and first build) the HNSW graph of an embedded or qdrant:// index, and print the share of the exact "
        "answers it found: of what is asked, and of 20 queries made of stored blocks; the exact searches for this take "
        "their time",
    )
    parser.add_argument("--sheet", metavar="PNG", help="draw the answers on a contact sheet")
    add_remote(parser, "ask a running avse server in place of INDEX")
    add_force(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Search and print the answers, best first; weak ones are marked where the model is calibrated.

    Raises:
        MisuseError: Neither an index nor a server, or both; nothing to look for; options that do not go together.
        ValueError: What `Index.search` refuses.
        FileExistsError: The sheet is there and not ``--force``.
    """
    from avse.files import check_target

    prepare_process()
    if args.url and args.query is None:  # the first word is the sentence then
        args.index, args.query = None, args.index
    if (args.index is None) == (args.url is None):
        raise MisuseError("give an INDEX, or --url URL of a running server")
    if args.query is None and args.image is None and args.queries is None:
        raise MisuseError("nothing to look for: give a sentence, --image FILE, both, or --queries FILE")
    if args.queries and (args.query or args.image or args.sheet):
        raise MisuseError("--queries goes without a sentence, --image and --sheet")
    if args.url and args.model:
        raise MisuseError("--model does nothing beside --url (the server has its own): leave it out")
    if args.sheet and args.url:
        raise MisuseError("--sheet draws the files of a local index, not of a --url")
    if args.sheet:
        check_target(args.sheet, args.force)
    sentences = _sentences(Path(args.queries)) if args.queries else [args.query]
    if args.url:
        _search_remote(args, sentences)
    else:
        _search(args, sentences)
    return 0


def _sentences(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not any(lines):
        raise ValueError(f"{path} holds no sentences")
    return [line for line in lines if line]


def _search(args: argparse.Namespace, sentences: list[str]) -> None:
    from avse.index import Index
    from avse.index.asking import Query

    with Index.open(args.index, model=args.model) as index:
        if args.sheet and index.side == "texts":
            raise ValueError(f"--sheet draws pictures, and {index.location} is an index of texts")
        asked: list[dict[str, Any]] = [{"query": sentence, "image": args.image} for sentence in sentences]
        if args.queries and index.side == "texts":
            raise ValueError(f"{index.location} is an index of texts, which answers pictures: give --image FILE")
        empty = True
        for start in range(0, len(sentences), _AT_ONCE):
            part = sentences[start : start + _AT_ONCE]
            more: dict[str, Any] = {"where": args.where, "k": args.k, "approximate": args.approximate}
            answers = index.search_many([Query(text=sentence, image=args.image, **more) for sentence in part])
            for sentence, hits in zip(part, answers):
                empty = empty and not hits
                _print(args, hits, sentence)
        if args.sheet:
            _draw(args, index, hits)
            print(f"contact sheet in {args.sheet}", file=sys.stderr)
        if args.approximate:
            _tell_recall(args, index, asked)
        if args.where and empty:
            for line in index.unknown_fields(args.where):
                print(f"avse search: --where: {line}", file=sys.stderr)


def _search_remote(args: argparse.Namespace, sentences: list[str]) -> None:
    from avse.index.remote import Remote

    remote = Remote(args.url, args.token)
    for sentence in sentences:
        hits = remote.search(sentence, image=args.image, where=args.where, k=args.k, approximate=args.approximate)
        _print(args, hits, sentence)


def _tell_recall(args: argparse.Namespace, index: Index, asked: list[dict[str, Any]]) -> None:
    from avse.index.recall import measure_recall

    found = measure_recall(index, asked, args.k, args.where)
    if found.asked is not None and found.sampled is not None:
        print(
            f"approximate: {found.asked:.1%} of the exact answers to what is asked were found (recall@{args.k}), "
            f"{found.sampled:.1%} to {found.samples} queries made of stored blocks",
            file=sys.stderr,
        )


def _draw(args: argparse.Namespace, index: Index, hits: list[Hit]) -> None:
    from avse.sheet import Row, Tile, contact_sheet

    title = args.query or Path(args.image).name
    tiles = [Tile(index.picture(hit), hit.id, hit.score) for hit in hits]
    contact_sheet([Row(title, tiles, args.image)], args.sheet, force=args.force)


def _print(args: argparse.Namespace, hits: list[Hit], sentence: str | None) -> None:
    if args.queries and not args.json:
        print(sentence)
    for rank, hit in enumerate(hits, start=1):
        if args.json:
            query = {"query": sentence} if args.queries else {}
            judged = {"confidence": hit.confidence, "weak": hit.weak}
            emit({**query, "rank": rank, "score": hit.score, **judged, "id": hit.id, "payload": hit.payload})
        else:
            confidence = "" if hit.confidence is None else f"  {hit.confidence:4.0%}"
            print(f"{rank:4d}  {hit.score:8.4f}{confidence}  {hit.id}{'  (weak)' if hit.weak else ''}")
    if not hits and not args.json:
        print("no answers")
    if hits and all(hit.weak for hit in hits):
        print(f"no good match{f' for {sentence!r}' if sentence else ''}: every answer is weak", file=sys.stderr)
