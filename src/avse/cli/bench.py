"""`avse bench`: measure speed on this machine, interleaved, medians, one thread unless said."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import bench_explain, bench_export, bench_serve, bench_soak, bench_weak, common, measured

_TRAIN_PARTS = ("encode", "step", "compile", "memory")
_PARTS = ("matrix", "top-k", "queries", "ranks")
KINDS = {
    "scoring": "matrix, first k, queries, ranks, and what one could use instead (what `avse bench` alone measures)",
    "matching": "a pair of cosine, AEOM and SCAN's cross-attention; growth of AEOM in C, D and the gallery",
    "index": "pictures indexed a second against the CPU seconds of each stage; a search in each store",
    "train": "evaluation encode, training step and memory against the plain way of research scripts, lever by lever",
    "evaluate": "the whole of an evaluation on random embeddings of COCO 5K's size: seconds and peak memory",
    "explain": "explanations against known boxes, and what deleting the explained patches does to the score",
    "export": "each format of avse export: largest difference of a score, size, time of a query",
    "serve": "latency and throughput of avse serve at 1, 8 and 32 clients, with and without batching; steady memory",
    "soak": "an index used without a pause for ten minutes: memory, file handles and disk stay flat, or exit 1",
    "weak": "how often a question without an answer passes as answered, and the recall that the threshold costs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; those of `scoring` also stand without its name."""
    _scoring_arguments(parser)
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", help=", ".join(KINDS))
    for name, text in KINDS.items():
        sub = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _ARGUMENTS[name](sub)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    common.prepare_process()
    return _RUNS[args.what or "scoring"](args)


def _scoring_arguments(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options of `scoring`; `again`: below its name, where the ones before it keep their values."""

    def add(name: str, value: Any, kind: Any, text: str, **more: Any) -> None:
        default = argparse.SUPPRESS if again else value
        parser.add_argument(name, type=kind, default=default, help=text, **more)

    def switch(name: str, text: str) -> None:
        parser.add_argument(name, action="store_true", default=argparse.SUPPRESS if again else False, help=text)

    count = common.positive_int
    add("--images", None, count, "pictures of the matrix (default: 1000; with --full 5000)")
    add("--texts", None, count, "texts of the matrix (default: 5000; with --full 25000)")
    add("--gallery", None, count, "pictures that queries are asked against (default: 20000; with --full 100000)")
    add(
        "--shape",
        (8, 4, 256),
        _shape,
        "blocks of a picture and of a text, and their width (default: 8,4,256)",
        metavar="P,Q,C",
    )
    add("-k", 10, count, "how many are found (default: 10)")
    add("--batch", 64, count, "queries asked at once (default: 64)")
    add("--runs", 7, count, "timed turns of each way (default: 7)")
    add("--threads", 1, count, "threads (default: 1)")
    add("--only", [], str, "measure this part alone (may be repeated)", action="append", choices=_PARTS)
    add(
        "--model",
        [],
        str,
        "a model's folder: the first k of its embeddings too (may be repeated)",
        action="append",
        metavar="DIR",
    )
    add("--data", [], str, "the data set of each --model, in their order", action="append", metavar="DIR")
    switch("--full", "the sizes that the targets are meant for; an hour or two")
    switch("--million", "one query against ten times the gallery too, from files")
    add("--out", None, str, "draw the figures (extra `plots`)", metavar="FILE.png")
    add("--out-json", None, str, "write the rows with the machine's line", metavar="FILE.json")
    switch("--force", "replace what is there")
    switch("--json", "one JSON object a line on stdout")


def _matching_arguments(parser: argparse.ArgumentParser) -> None:
    count = common.positive_int
    parser.add_argument("--images", type=count, default=256, help="pictures of a matrix (default: 256)")
    parser.add_argument("--texts", type=count, default=1280, help="texts of a matrix (default: 1280)")
    parser.add_argument("--runs", type=count, default=7, help="timed turns (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    parser.add_argument("--out", metavar="FILE.png", help="draw the figures (extra `plots`)")
    measured.add_device(parser)
    measured.add_outputs(parser)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    count = common.positive_int
    parser.add_argument("--images", type=count, default=5000, help="pictures, a multiple of 5 (default: 5000)")
    parser.add_argument("--captions", type=count, default=5, help="captions a picture (default: 5)")
    parser.add_argument("--shape", type=_shape, default=(8, 4, 256), metavar="P,Q,C", help="default: 8,4,256")
    parser.add_argument("--bootstrap", type=count, default=1000, help="resamples for the intervals (default: 1000)")
    parser.add_argument("--threads", type=count, default=2, help="threads (default: 2)")
    common.add_json(parser)


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    count, natural = common.positive_int, common.natural_int
    parser.add_argument("--pictures", metavar="DIR", help="one's own pictures (default: JPEGs made of noise)")
    parser.add_argument("--count", type=count, default=2000, help="made pictures of 500 x 375 px (default: 2000)")
    parser.add_argument("--large", type=natural, default=48, help="made pictures of 4000 x 3000 px (default: 48)")
    parser.add_argument("--sample", type=count, default=256, help="pictures for each stage alone (default: 256)")
    parser.add_argument("--model", metavar="DIR", help="a model's folder (default: EfficientNet-Lite0, random heads)")
    parser.add_argument(
        "--graph", type=natural, default=0, help="also an HNSW graph over so many entries (default: 0, it takes long)"
    )
    parser.add_argument("--entries", type=natural, default=50000, help="in each store (default: 50000; 0: no stores)")
    parser.add_argument(
        "--shape", type=_shape, default=(8, 4, 256), metavar="P,Q,C", help="in the stores (default: 8,4,256)"
    )
    parser.add_argument("-k", type=count, default=10, help="how many are found in the stores (default: 10)")
    parser.add_argument(
        "--runs", type=count, default=3, help="turns of indexing, a search twice as many + 1 (default: 3)"
    )
    parser.add_argument("--threads", type=count, default=2, help="cores for indexing (default: 2); a search has one")
    measured.add_outputs(parser)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    count = common.positive_int
    parser.add_argument("--images", type=count, default=16, help="pictures encoded, of 5 captions (default: 16)")
    parser.add_argument("--together", type=count, default=16, help="pictures encoded at a time (default: 16)")
    parser.add_argument("--batch", type=count, default=8, help="pairs of a step, 2 or more (default: 8)")
    parser.add_argument("--chunk", type=count, default=16, help="pairs of a chunk, for memory (default: 16)")
    parser.add_argument("--large", type=count, default=256, help="pairs of a batch in chunks (default: 256)")
    parser.add_argument("--runs", type=count, default=3, help="timed turns of each way (default: 3)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    parser.add_argument(
        "--only", action="append", choices=_TRAIN_PARTS, help="measure this part alone (may be repeated)"
    )
    parser.add_argument("--small", action="store_true", help="tiny encoders, to try it: their figures say nothing")
    measured.add_device(parser)
    measured.add_outputs(parser)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text}: three numbers P,Q,C are wanted")
    blocks, queries, width = map(common.positive_int, parts)
    return blocks, queries, width


def _scoring(args: argparse.Namespace) -> int:
    from pathlib import Path

    from avse.benchmarks import plot
    from avse.benchmarks.scoring import Sizes, measure_scoring

    if len(args.model) != len(args.data):
        raise ValueError(f"{len(args.model)} --model and {len(args.data)} --data: each model needs its data set")
    measured.check_outputs(args)
    images, texts, gallery = (5000, 25000, 100000) if args.full else (1000, 5000, 20000)
    sizes = Sizes(
        images=args.images or images,
        texts=args.texts or texts,
        shape=args.shape,
        gallery=args.gallery or gallery,
        batch=args.batch,
        k=args.k,
        tenfold=args.million,
    )
    rows: list[dict[str, Any]] = []
    trained, parts = list(zip(args.model, args.data)), args.only or _PARTS
    for row in measure_scoring(sizes, runs=args.runs, threads=args.threads, trained=trained, parts=parts):
        if args.json:
            common.emit(row)
        else:
            print(_scoring_lines(row, rows[-1] if rows else None), flush=True)
        rows.append(row)
    told = {"parts": list(parts), "runs": args.runs, "sizes": vars(sizes)}
    line = measured.finish(args, rows, told, f"; medians of {args.runs}; targets are meant for the sizes of --full")
    if args.out:
        plot.draw_scoring(rows, Path(args.out), line)
    return 0


def _scoring_lines(row: dict[str, Any], former: dict[str, Any] | None) -> str:
    """Write a row, below a heading where another measure begins."""
    heads = [(one["measure"], one["data"], one["at"]) for one in (row, former) if one and one["measure"] != "limit"]
    head = ""
    if row["measure"] != "limit" and (len(heads) == 1 or heads[0] != heads[1]):
        head = f"{row['measure']}: {row['at']}" + ("" if row["data"] == "random" else f", {row['data']}") + "\n"
    if row["rate"] is None and row["seconds"] is None:
        return f"{head}  {row['way']:36} {row['note']}"
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.4f} s"
    told = [f"{row['rate']:.1f} {row['unit']}" if row["rate"] else ""]
    told.append(f"{row['ratio']:.2f}x" if row["ratio"] else "")
    told.append(f"{row['of_limit']:.2f} of the limit" if row["of_limit"] else "")
    told.append("" if row["error"] is None else f"error {row['error']:.0e}")
    told.append("" if row["differing"] is None else f"differing {row['differing']:.1e}")
    told.append(f"peak {row['peak_mib']:,} MiB" if row["peak_mib"] else "")
    told.append(row["note"] or "")
    text = f"{head}  {row['way']:36} {seconds:>10}  {', '.join(filter(None, told))}"
    return text + measured.targets(row)


def _matching(args: argparse.Namespace) -> int:
    from pathlib import Path

    from avse.benchmarks import plot
    from avse.benchmarks.matching import Sizes, measure_matching

    measured.check_outputs(args)
    sizes = Sizes(
        images=args.images,
        texts=args.texts,
        scan_batch=(min(64, args.images), min(16, args.texts)),
        gallery=(4 * args.images, 8 * args.images, 16 * args.images, 32 * args.images),
        queries=min(64, args.texts),
    )
    rows = measure_matching(sizes, runs=args.runs, threads=args.threads, device=args.device)
    for row in rows:
        common.emit(row) if args.json else print(_matching_line(row))
    line = measured.finish(args, rows, {"sizes": vars(sizes)}, f"; medians of {args.runs}")
    if args.out:
        plot.draw_matching(rows, Path(args.out), line)
    return 0


def _matching_line(row: dict[str, Any]) -> str:
    if row["measure"] == "pair":
        return (
            f"{row['way']:28} {row['us_per_pair']:10.3f} µs a pair  {row['against_aeom']:8.2f}x AEOM  "
            f"{row['against_cosine']:8.2f}x the cosine"
        )
    unit = "a query" if row["over"] == "gallery" else "a pair"
    points = "  ".join(f"{size:,}: {value:,.3g}" for size, value in row["points"])
    return (
        f"growth in {row['over']} at {row['at']}: exponent {row['exponent']:.2f}: {row['why']}\n    µs {unit}: {points}"
    )


def _index(args: argparse.Namespace) -> int:
    from avse.benchmarks.indexing import Sizes, measure_indexing
    from avse.benchmarks.stores import measure_graph, measure_stores

    measured.check_outputs(args)
    sizes = Sizes(small=args.count, large=args.large, sample=args.sample, runs=args.runs)
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        common.emit(row) if args.json else print(_index_line(row), flush=True)
        rows.append(row)

    for row in measure_indexing(sizes, folder=args.pictures, model=args.model, threads=args.threads):
        tell(row)
    if args.entries:
        for row in measure_stores(args.entries, args.shape, k=args.k, runs=2 * args.runs + 1):
            tell(row)
    if args.graph:
        for row in measure_graph(args.graph, args.shape, k=args.k, runs=2 * args.runs + 1):
            tell(row)
    own = {"pictures": args.pictures and "own", "model": args.model and "own"}
    measured.finish(args, rows, {"sizes": vars(sizes), **own})
    return 0


def _index_line(row: dict[str, Any]) -> str:
    if row["measure"] == "graph":
        return (
            f"embedded store, {row['entries']:,} random images, HNSW graph: built in {row['build_seconds']:.1f} s, "
            f"{1e3 * row['seconds']:.2f} ms a query, {1e3 * row['exact_seconds']:.2f} ms exact, "
            f"recall of the first {row['k']} {row['recall']:.3f}"
        )
    if row["measure"] == "stage":
        return f"{row['pictures']}: {row['stage']:8} {row['cpu_ms']:8.2f} ms of CPU a picture, alone"
    if row["measure"] == "index":
        readers = f" and {row['readers_mib']:,} MiB of those that read files" if row["readers_mib"] else ""
        return (
            f"{row['pictures']}: {row['n']:,} indexed in {row['seconds']:.1f} s, {row['per_second']:.1f} a second: "
            f"{row['of_sum']:.2f} of n / sum of the stages (to reach: 0.9), {row['of_cores']:.2f} of {row['threads']} "
            f"cores;\n    {row['cpu_ms']:.2f} ms of CPU a picture in all where the stages alone take "
            f"{row['sum_ms']:.2f}; peak {row['peak_mib']:,} MiB{readers}, {row['half_peak_mib']:,} MiB for half of them"
        )
    condition = f"where {row['where']}" if row["where"] else "without a condition"
    return (
        f"{row['store']:8} store, {row['entries']:,} images, first {row['k']} {condition}: "
        f"{1e3 * row['seconds']:.2f} ms a query ({1e3 * row['first_seconds']:.0f} the first time), "
        f"error {row['error']:.0e}, {row['entry_bytes']:,} bytes an entry on the disk"
    )


def _train(args: argparse.Namespace) -> int:
    from avse.benchmarks.training import Sizes, measure_training

    if args.batch < 2:
        raise common.MisuseError(f"--batch {args.batch}: a step needs 2 pairs or more, or there is no negative")
    measured.check_outputs(args)
    sizes = Sizes(
        args.images, batch=args.batch, together=args.together, chunk=args.chunk, large=args.large, small=args.small
    )
    rows: list[dict[str, Any]] = []
    for row in measure_training(
        sizes, runs=args.runs, threads=args.threads, parts=args.only or _TRAIN_PARTS, device=args.device
    ):
        if args.json:
            common.emit(row)
        else:
            head = "" if rows and rows[-1]["measure"] == row["measure"] else f"{row['measure']}: {row['at']}\n"
            print(head + _train_line(row) + measured.targets(row), flush=True)
        rows.append(row)
    told = {"runs": args.runs, "sizes": vars(sizes)}
    shapes = "tiny encoders" if args.small else "ViT-B/16 at 224 px and BERT-base, random weights"
    measured.finish(args, rows, told, f"; {shapes}; medians of {args.runs}")
    return 0


def _train_line(row: dict[str, Any]) -> str:
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.3f} s"
    told = [f"peak {row['peak_mib']:,} MiB" if row["peak_mib"] else ""]
    told.append(f"{row['ratio']:.2f}x" if row["ratio"] else "")
    told.append(f"{row['gain']:.2f}x the row before" if row["gain"] else "")
    told.append(f"bare encoders {row['share']:.2f} of it" if row["share"] else "")
    told.append("" if row["error"] is None else f"error {row['error']:.0e}")
    told.append(row["note"] or "")
    return f"  {row['way']:36} {seconds:>10}  {', '.join(filter(None, told))}"


def _evaluate(args: argparse.Namespace) -> int:
    from avse.benchmarks.evaluation import measure_evaluation

    row = measure_evaluation(args.images, args.captions, args.shape, resamples=args.bootstrap, threads=args.threads)
    if args.json:
        common.emit(row)
        return 0
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["parts"].items())
    print(
        f"{row['images']:,} x {row['captions']:,} at P,Q,C = {','.join(map(str, row['shape']))}, plain and five folds, "
        f"both duplicate-aware too, {row['resamples']:,} resamples each, {row['threads']} threads: "
        f"{row['seconds']:.1f} s ({parts}), peak {row['peak_mib']:,} MiB"
    )
    return 0


def _again(parser: argparse.ArgumentParser) -> None:
    _scoring_arguments(parser, again=True)


_ARGUMENTS = {
    "scoring": _again,
    "matching": _matching_arguments,
    "index": _index_arguments,
    "train": _train_arguments,
    "evaluate": _evaluate_arguments,
    "explain": bench_explain.add_arguments,
    "export": bench_export.add_arguments,
    "serve": bench_serve.add_arguments,
    "soak": bench_soak.add_arguments,
    "weak": bench_weak.add_arguments,
}
_RUNS = {
    "scoring": _scoring,
    "matching": _matching,
    "index": _index,
    "train": _train,
    "evaluate": _evaluate,
    "explain": bench_explain.run,
    "export": bench_export.run,
    "serve": bench_serve.run,
    "soak": bench_soak.run,
    "weak": bench_weak.run,
}
