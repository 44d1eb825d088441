"""``avse export``: a model or an index for other tools."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from avse.cli import common

FORMATS = {
    "onnx": "both encoders, for onnxruntime",
    "sentence-transformers": "a folder that MultiVectorEncoder loads",
    "parquet": "an index as a table of ids, blocks and payloads",
    "qdrant": "an index as a collection of a server, --out qdrant://host:6333/name",
    "huggingface": "the model's folder with a model card",
}
_FOLDERS = ("onnx", "sentence-transformers", "huggingface")
"""Formats of a model; the others are those of an index."""
_ONLY = {
    "int8": ("onnx",),
    "data": ("onnx", "huggingface"),
    "split": ("onnx", "huggingface"),
    "licence": ("huggingface",),
    "push_to_hub": ("huggingface", "sentence-transformers"),
}
"""Option -> the formats that it belongs to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source",
        metavar="MODEL_OR_INDEX",
        help="a model's folder, a pair of transformers, or an index; an exported folder for --push-to-hub alone",
    )
    told = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    parser.add_argument("--to", choices=FORMATS, metavar="FORMAT", help=told)
    parser.add_argument("--out", metavar="PATH", help="the folder or file to write, or a collection's URL")
    parser.add_argument("--int8", action="store_true", help="onnx: also the text side with int8 weights, and its loss")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="onnx: measure the loss of --int8 on it; huggingface: measure the card's figures on it",
    )
    parser.add_argument("--split", metavar="NAME", help="of --data (default: test)")
    parser.add_argument("--licence", metavar="NAME", help="huggingface: of the card, such as mit or cc-by-4.0")
    parser.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="upload the folder to a private repository of the Hugging Face hub"
    )
    parser.add_argument("--public", action="store_true", help="make that repository public")
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write what was asked for and say what it is.

    Raises:
        MisuseError: options that do not go together, or a source of the other kind.
    """
    _check(args)
    common.prepare_process()
    if args.to in _FOLDERS:
        from avse.export import check_folder

        check_folder(args.out, args.to, args.force, args.source)  # before anything is loaded
    row: dict[str, Any] = {"out": args.out or args.source}
    if args.to:
        row = {"format": args.to, **row, **_WRITERS[args.to](args)}
    lines = _lines(row) if args.to else []
    if args.push_to_hub:
        from avse.export.hub import push

        row["url"] = push(row["out"], args.push_to_hub, private=not args.public)
        lines.append(f"{row['out']}: uploaded to {row['url']}")
    if args.json:
        common.emit(row)
    else:
        print("\n".join(lines))
    return 0


def _check(args: argparse.Namespace) -> None:
    from pathlib import Path

    from avse.index.manifest import is_index

    if not (args.to and args.out) and (args.to or args.out or not args.push_to_hub):
        raise common.MisuseError("--to FORMAT and --out PATH are wanted, or --push-to-hub alone for an exported folder")
    for option, formats in _ONLY.items():
        if not args.to and option == "push_to_hub":
            continue
        if getattr(args, option) and args.to not in formats:
            name = option.replace("_", "-")
            raise common.MisuseError(
                f"--{name} belongs to --to {' or '.join(formats)}, not to {args.to or 'a push alone'}: leave it out"
            )
    if args.to == "onnx" and args.data and not args.int8:
        raise common.MisuseError("--data measures what int8 texts lose: add --int8, or leave it out")
    if args.split and not args.data:
        raise common.MisuseError("--split names a split of --data: add it, or leave --split out")
    if args.public and not args.push_to_hub:
        raise common.MisuseError("--public belongs to --push-to-hub USER/NAME: add it, or leave --public out")
    if args.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.push_to_hub):
        raise common.MisuseError(f"--push-to-hub {args.push_to_hub}: USER/NAME is wanted, such as me/my-model")
    if not args.to and args.force:
        raise common.MisuseError("--force replaces what is written, and a push alone writes nothing: leave it out")
    if not args.to:
        return
    if (args.to == "qdrant") != ("://" in args.out):
        wanted = "a collection's URL, such as qdrant://host:6333/name" if args.to == "qdrant" else "a path, not a URL"
        raise common.MisuseError(f"--out {args.out}: --to {args.to} wants {wanted}")
    indexed = "://" in args.source or is_index(Path(args.source))
    if indexed and args.to in _FOLDERS:
        raise common.MisuseError(
            f"{args.source} is an index, and --to {args.to} takes a model: name its folder (avse info {args.source} "
            "says which it is), or take --to parquet or qdrant"
        )
    if not indexed and args.to not in _FOLDERS and Path(args.source).is_dir():
        raise common.MisuseError(
            f"{args.source} is no index, and --to {args.to} takes one: avse index PICTURES --model MODEL --out "
            "NAME.avse makes it"
        )


def _onnx(args: argparse.Namespace) -> dict[str, Any]:
    from avse.export.onnx import check_packages, export_onnx

    model = common.load_model(args.source, "cpu")
    check_packages()
    data = None
    if args.data:
        from avse.data import load_dataset

        data = load_dataset(args.data, split=args.split or "test")
        common.tell(data)
    print("tracing both encoders, which takes a while", file=sys.stderr)
    return export_onnx(model, args.out, int8=args.int8, data=data, force=args.force)


def _sentence_transformers(args: argparse.Namespace) -> dict[str, Any]:
    from avse.export.multivector import export_sentence_transformers

    return export_sentence_transformers(common.load_model(args.source, "cpu"), args.out, force=args.force)


def _parquet(args: argparse.Namespace) -> dict[str, Any]:
    from avse.export.tables import write_parquet

    return write_parquet(args.source, args.out, force=args.force)


def _qdrant(args: argparse.Namespace) -> dict[str, Any]:
    from avse.export.qdrant import send

    return send(args.source, args.out, force=args.force)


def _huggingface(args: argparse.Namespace) -> dict[str, Any]:
    from avse.export.card import write_folder

    split = args.split or "test"
    return write_folder(args.source, args.out, args.data, licence=args.licence, force=args.force, split=split)


_WRITERS = {
    "onnx": _onnx,
    "sentence-transformers": _sentence_transformers,
    "parquet": _parquet,
    "qdrant": _qdrant,
    "huggingface": _huggingface,
}


def _lines(row: dict[str, Any]) -> list[str]:
    """Say what was written."""
    if row["format"] != "onnx":
        told = [f"{name} {value}" for name, value in row.items() if isinstance(value, (str, int))]
        return [f"{row['out']}: {', '.join(told[2:])}"]
    off, shape = row["differences"], [row[name] for name in ("image_blocks", "text_blocks", "block_width")]
    lines = [
        f"{row['out']}: ONNX opset {row['opset']}, P,Q,C = {','.join(map(str, shape))}",
        f"largest differences through onnxruntime: images {off['image']:.1e}, texts {off['text']:.1e}, "
        f"scores {off['score']:.1e}",
    ]
    if loss := row.get("int8"):
        lines.append(
            f"int8 texts: {loss['bytes'] / 1e6:.1f} MB instead of {loss['of_bytes'] / 1e6:.1f}; largest difference of "
            f"a score {loss['score']:.3f} ({loss['on']})"
        )
    if loss and "fp32" in loss:
        before, after = loss["fp32"], loss["int8"]
        named = {"i2t_r1": "i2t R@1", "t2i_r1": "t2i R@1", "rsum": "rSum"}
        told = [f"{name} {before[key]:.1f} -> {after[key]:.1f}" for key, name in named.items()]
        lines.append(f"  {', '.join(told)}")
    return lines
