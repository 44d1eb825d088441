"""The command line `avse`: one file a verb; a verb's heavy imports happen when it runs.

Results go to stdout, logs and progress bars to stderr. Exit status: 0 done, 1 failed, 2 misuse.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import logging
import sys
from collections.abc import Sequence

from avse import __version__
from avse.cli.common import MisuseError

VERBS: dict[str, str] = {
    "demo": "the main job on real pictures: train, compare with baselines, index, search, report",
    "data": "obtain or make a set of pictures with captions, or check your own",
    "train": "train a model on pairs of pictures and captions",
    "runs": "compare trainings: how far each is, its validation figures, and the settings in which they differ",
    "evaluate": "measure models, or an ensemble of them, on a split: both directions, with intervals",
    "compare": "compare two systems by a paired test of their kept rankings",
    "ablate": "leave out or vary the parts of the method on your data: one table with intervals",
    "encode": "embed pictures or sentences and keep the embeddings as a file of arrays or a table",
    "index": "make a searchable index of a folder of pictures, or of a file of sentences",
    "search": "find pictures by a sentence, a picture, both, or a file of sentences",
    "explain": "show which part of a picture answered which part of a sentence",
    "serve": "answer on a page and over HTTP: search an index from the browser or a program",
    "verify": "read an index or a model folder from end to end and name every damage",
    "export": "hand a model or an index to other tools: ONNX, sentence-transformers, Parquet, Qdrant, Hugging Face",
    "import": "turn a checkpoint of the authors' code into a model folder of avse",
    "recipes": "list the shipped recipes, or print one",
    "bench": "measure speed on this machine",
    "info": "show versions and what this machine can do, or what a model or index is",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="avse",
        description="Image-text retrieval with Asymmetric Visual Semantic Embedding.",
        epilog="`avse VERB --help` tells the rest.",
    )
    parser.add_argument("--version", action="version", version=f"avse {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb == wanted:
            name = f"{verb}_" if keyword.iskeyword(verb) else verb
            module = importlib.import_module(f"avse.cli.{name}")
            module.add_arguments(sub)
    args = parser.parse_args(arguments)
    args.given = arguments
    if args.verb is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return int(module.run(args))
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        print(f"avse {args.verb}: {_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, MisuseError) else 1
    except KeyboardInterrupt:
        way = {"train": "; --resume goes on", "ablate": "; the same command goes on"}
        print(f"avse {args.verb}: interrupted{way.get(args.verb, '')}", file=sys.stderr)
        return 130


def _line(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
