"""`avse encode`: embed pictures or sentences and keep the embeddings as a file."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avse.cli import common

if TYPE_CHECKING:
    from avse.export.tables import Write
    from avse.index.contract import Blocks, Payload, Side
    from avse.index.pictures import Picture, Skipped
    from avse.model import AVSE

_TEXTS_AT_ONCE = 256
_LISTED = 20
_PICTURE_COLUMNS = dict.fromkeys(("path", "name", "folder", "modified", "date"), "string")
_PICTURE_COLUMNS |= dict.fromkeys(("width", "height", "bytes", "year"), "int64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model folder, such as RUN/model of a run of avse train")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="pictures, or folders of them")
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="sentences in place of pictures: a text file with one a line, or a data set (its folder, captions.jsonl, "
        "…) for its captions",
    )
    parser.add_argument("--split", help="with --texts of a data set: train, val, test or all (default: all)")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the file to write: .npz, or .parquet with columns for conditions"
    )
    parser.add_argument(
        "--batch-size", type=common.positive_int, default=32, metavar="N", help="pictures at once (default: 32)"
    )
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Embed, write the file, and print what is in it and what was left out.

    Raises:
        MisuseError: Neither or both of pictures and sentences, or --split without a data set.
        ValueError: Nothing could be embedded; no file is written then.
    """
    from avse import files
    from avse.export.embeddings import check_suffix, embeddings_writer
    from avse.export.tables import facts_of
    from avse.index.contract import Layout

    if bool(args.inputs) == (args.texts is not None):
        raise common.MisuseError("give pictures or folders of them, or --texts FILE")
    if args.split and (args.texts is None or _is_lines(Path(args.texts))):
        raise common.MisuseError("--split goes with --texts of a data set")
    check_suffix(args.out)
    files.check_target(args.out, args.force)
    common.prepare_process()
    skipped: list[Skipped] = []
    side: Side = "images" if args.texts is None else "texts"
    if args.texts is None:
        found, columns = _pictures(args.inputs, skipped), _PICTURE_COLUMNS
    else:
        texts, columns = _sentences(Path(args.texts), args.split or "all", skipped)
    model = common.load_model(args.model, common.device_of(args))
    layout = Layout(side, model.num_image_blocks, model.num_text_blocks, model.block_width)
    facts = facts_of(layout, model.fingerprint, args.model)
    with embeddings_writer(args.out, facts, columns) as write:
        if args.texts is None:
            count = _write_pictures(model, found, write, args.batch_size, skipped)
        else:
            count = _write_texts(model, texts, write)
        if not count:
            first = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
            raise ValueError(f"nothing could be embedded, {len(skipped):,} inputs were skipped{first}")
    shape = [count, *layout.document]
    if args.json:
        common.emit({"out": args.out, **facts, "shape": shape, "skipped": [skip._asdict() for skip in skipped]})
        return 0
    print(f"{args.out}: {count:,} {side}, blocks {tuple(shape)}" + (f", {len(skipped):,} skipped" if skipped else ""))
    for skip in skipped[:_LISTED]:
        print(f"  skipped {skip.name}: {skip.reason}")
    if len(skipped) > _LISTED:
        print(f"  and {len(skipped) - _LISTED:,} more (--json lists them all)")
    return 0


def _pictures(inputs: Sequence[str], skipped: list[Skipped]) -> dict[str, Path]:
    """Return ids and paths: below the folder where it is the only input, else as they are given."""
    from avse.images import walk_images
    from avse.index.contract import Skipped, is_unicode

    found: dict[str, Path] = {}
    for given in map(Path, inputs):
        if not given.is_dir():
            found[given.as_posix()] = given
            continue
        for path in walk_images(given, lambda error: print(f"avse encode: {error}", file=sys.stderr)):
            found[(path.relative_to(given) if len(inputs) == 1 else path).as_posix()] = path
    if not found:
        raise ValueError(f"no pictures in {', '.join(inputs)} (jpg, png, webp, gif, bmp, tif and a few more)")
    for name in [name for name in found if not is_unicode(name)]:
        del found[name]
        skipped.append(Skipped(name.encode("utf-8", "backslashreplace").decode(), "the name is not valid unicode"))
    return found


def _write_pictures(model: AVSE, found: dict[str, Path], write: Write, batch_size: int, skipped: list[Skipped]) -> int:
    """Write the pictures in the order of `found`, whichever is ready first, and return how many could be read."""
    from avse.index.feed import embed_files
    from avse.index.living import progress_bar
    from avse.index.pictures import Picture

    count = 0
    with progress_bar(len(found), "picture", True) as bar:
        for batch in _in_order(found, embed_files(model, found.items(), batch_size=batch_size)):
            pictures = [item for item in batch if isinstance(item, Picture)]
            skipped += [item for item in batch if not isinstance(item, Picture)]
            if pictures:
                _write(write, pictures)
            count += len(pictures)
            bar.update(len(batch))
    return count


def _in_order(names: Iterable[str], batches: Iterable[list[Picture | Skipped]]) -> Iterator[list[Picture | Skipped]]:
    """Hold back what came too early: a few batches at most, since no more are on their way."""
    from avse.index.pictures import Picture

    wanted, early = deque(names), dict[str, Any]()
    for batch in batches:
        early |= {item.id if isinstance(item, Picture) else item.name: item for item in batch}
        ready = []
        while wanted and wanted[0] in early:
            ready.append(early.pop(wanted.popleft()))
        if ready:
            yield ready


def _write(write: Write, pictures: Sequence[Picture]) -> None:
    import numpy as np

    names, blocks, payloads = zip(*pictures)
    write(names, np.stack(blocks), payloads)


def _is_lines(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in (".jsonl", ".csv", ".json")


def _sentences(path: Path, split: str, skipped: list[Skipped]) -> tuple[dict[str, tuple[str, Payload]], dict[str, str]]:
    """Return for each id its sentence and payload, and the columns these have."""
    from avse.data import load_dataset
    from avse.data.entries import read_lines
    from avse.index.contract import Skipped

    if not _is_lines(path):
        data = load_dataset(path, split=split, check_images=False)
        common.tell(data)
        found: dict[str, tuple[str, Payload]] = {}
        for image, name in enumerate(data.image_ids):
            for number, text in enumerate(data.captions_of(image)):
                found[f"{name}#{number}"] = text, {"text": text, "image": name}
        return found, {"text": "string", "image": "string"}
    lines: dict[str, tuple[str, Payload]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if name := (text := line.strip()):
            while name in lines:
                name = f"{name} (line {number})"
            lines[name] = text, {"text": text, "line": number}
        else:
            skipped.append(Skipped(f"line {number}", "empty"))
    return lines, {"text": "string", "line": "int64"}


def _write_texts(model: AVSE, texts: dict[str, tuple[str, Payload]], write: Write) -> int:
    from avse.index.living import progress_bar

    names = list(texts)
    with progress_bar(len(names), "text", True) as bar:
        for start in range(0, len(names), _TEXTS_AT_ONCE):
            part = names[start : start + _TEXTS_AT_ONCE]
            blocks: Blocks = model.encode_texts([texts[name][0] for name in part])
            write(part, blocks, [texts[name][1] for name in part])
            bar.update(len(part))
    return len(names)
