"""`avse import`: a checkpoint of the authors' code as a model folder."""

from __future__ import annotations

import argparse

from avse.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    count = common.positive_int
    parser.add_argument("checkpoint", help="the authors' file, such as model_best.pth")
    parser.add_argument(
        "--image-encoder", required=True, metavar="DIR", help="folder with the ViT's config.json (weights not needed)"
    )
    parser.add_argument(
        "--text-encoder", required=True, metavar="DIR", help="folder with the BERT's config.json and tokenizer"
    )
    parser.add_argument(
        "--block-width", type=count, metavar="C", help="width of a block (default: the file's block_dim, else 256)"
    )
    parser.add_argument(
        "--resolution", type=count, metavar="PX", help="side of the pictures (default: as file and encoder say)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder to write")
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read, check, write the folder, and say what was left over."""
    import sys
    from pathlib import Path

    from avse.official import import_official

    if Path(args.out).exists() and not args.force:
        raise FileExistsError(f"{args.out} exists; pass --force to replace it")
    common.prepare_process()
    found = import_official(
        args.checkpoint,
        args.image_encoder,
        args.text_encoder,
        block_width=args.block_width,
        resolution=args.resolution,
    )
    model, facts = found.model, found.facts
    model.save_pretrained(args.out, force=args.force, extra=facts)
    blocks, side = (model.num_image_blocks, model.num_text_blocks, model.block_width), model.image_encoder.pixels.size
    if args.json:
        told = {"model": args.out, "shape": blocks, "resolution": side[0], "fingerprint": model.fingerprint}
        common.emit({**told, **facts, "unused": found.unused, "notes": found.notes})
        return 0
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{args.out}: D = {model.config.embed_dim}, V = {model.config.num_views}, "
        f"P,Q,C = {','.join(map(str, blocks))}, pictures at {side[0]} px"
    )
    print(f"from {facts['imported_from']}, sha256 {facts['imported_sha256']}, epoch {facts.get('epoch', 'unknown')}")
    if "reported_rsum" in facts:
        print(f"the file reports rSum {facts['reported_rsum']:.1f} on {facts['reported_on']}")
    print(f"not used, {len(found.unused)} weights: {', '.join(found.unused) or 'none'}")
    return 0
