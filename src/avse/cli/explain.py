"""`avse explain`: show which part of a picture answered which part of a sentence."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from avse import files
from avse.cli import common

if TYPE_CHECKING:
    from avse.explain import Explanation
    from avse.index import Index
    from avse.model import AVSE

NAMES = 200_000
"""Ids of an index that are looked through for the nearest one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source", metavar="INDEX|MODEL", help="an index of pictures, whose model explains, or a model folder"
    )
    parser.add_argument(
        "image", metavar="IMAGE", help="the id of a picture in the index, as avse search prints it, or a file"
    )
    parser.add_argument("sentence", metavar="SENTENCE", help="what the picture is asked about")
    parser.add_argument(
        "--out", metavar="PNG", help="draw it: the heat over the picture, the words shaded, the table of matches"
    )
    parser.add_argument("--model", metavar="DIR", help="folder of the model, where the index's own has moved")
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print matches and words, or one JSON object, and draw.

    Raises:
        MisuseError: --model beside a model folder.
        ValueError: no such picture, an empty sentence, an index of texts, a source that is neither index nor model.
        FileExistsError, IsADirectoryError: the picture to be drawn is there and not ``--force``, or is a folder.
    """
    if not args.sentence.strip():
        raise ValueError("the sentence is empty: give the words that the picture is asked about")
    if args.out:
        files.check_target(args.out, args.force)
    common.prepare_process()
    model, picture = _of_index(args) if _is_index(args.source) else _of_model(args)

    from avse.explain import explain
    from avse.explain.drawing import draw

    found = explain(model, picture, args.sentence)
    if args.json:
        common.emit({"image": args.image, **found.to_dict()})
    else:
        print(_table(found))
    if args.out:
        print(f"explanation in {draw(found, args.out, force=args.force)}", file=sys.stderr)
    return 0


def _is_index(source: str) -> bool:
    return "://" in source or (Path(source) / "index.json").is_file()


def _of_model(args: argparse.Namespace) -> tuple[AVSE, Path]:
    if args.model:
        raise common.MisuseError(f"--model goes with an index, and {args.source} is none: leave it out")
    picture = Path(args.image)
    if not picture.is_file():
        raise ValueError(f"{picture}: no such file (the ids of an index go with the index: avse explain INDEX ID …)")
    return common.load_model(args.source, common.device_of(args)), picture


def _of_index(args: argparse.Namespace) -> tuple[AVSE, Path]:
    from avse.index import Hit, Index

    device = common.device_of(args)
    with Index.open(args.source, model=args.model) as index:
        if index.side != "images":
            raise ValueError(
                f"{index.location} is an index of texts: what is explained is a picture, of an index of images"
            )
        ids, _, payloads = index.get([args.image])
        if ids:
            picture = index.picture(Hit(ids[0], 0.0, payloads[0]))
            if picture is None:
                raise ValueError(f"{index.location} does not know where the picture of {ids[0]!r} lies: name its file")
        elif not (picture := Path(args.image)).is_file():
            raise ValueError(
                f"{args.image!r} is neither an id in {index.location} nor a file{_nearest(index, args.image)}"
            )
        model = cast("AVSE", index.encoder)
    model.to(device)
    return model, picture


def _nearest(index: Index, wanted: str) -> str:
    names: list[str] = []
    for page in index.entries():
        names += [name for name, _ in page]
        if len(names) >= NAMES:
            break
    held = [name for name in names if wanted.casefold() in name.casefold()]
    close = held or difflib.get_close_matches(wanted, names, n=1, cutoff=0.4) or names
    return f"; did you mean {close[0]!r}?" if close else ", which is empty"


def _table(found: Explanation) -> str:
    lines = [f"S = {found.score:.4f} of at most {len(found.matches)} ({found.method})"]
    head = f"  {'share':>6}" if found.in_shares else ""

    def told(part: float) -> str:
        return f"{part:8.4f}  {part / found.score:6.1%}" if found.in_shares else f"{part:8.4f}"

    lines += [f"{'text block':>10}  {'view':>5}  {'image block':>11}  {'A_ij':>8}{head}"]
    lines += [f"{j:10d}  {view:5d}  {i:11d}  {told(score)}" for j, i, view, score, _ in found.matches]
    parts = [(word.word, word.score) for word in found.words]
    parts += [("(beside the words)", found.beside), ("(beyond the cells)", found.beyond)]
    wide = max(len(name) for name, _ in parts)
    lines += [f"{'word':{wide}}  {'score':>8}{head}", *(f"{name:{wide}}  {told(part)}" for name, part in parts)]
    return "\n".join(lines)
