"""`avse bench`: measure speed on this machine, interleaved, medians, one thread unless said."""

from __future__ import annotations

import argparse

from avse.cli import common

BENCHES = ("scoring",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "what", nargs="?", choices=BENCHES, default="scoring", help="what to measure (default: scoring)"
    )
    count = common.positive_int
    parser.add_argument("--images", type=count, default=1000, help="pictures (default: 1000)")
    parser.add_argument("--texts", type=count, default=5000, help="texts (default: 5000)")
    parser.add_argument("--shape", type=_shape, default=(8, 4, 256), metavar="P,Q,C", help="default: 8,4,256")
    parser.add_argument("--runs", type=count, default=7, help="timed runs of each way (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    common.add_json(parser)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text}: three numbers P,Q,C are wanted")
    blocks, queries, width = map(common.positive_int, parts)
    return blocks, queries, width


def run(args: argparse.Namespace) -> int:
    """Time the score matrix against the einsum and max that research code uses; agreement is checked first."""
    import statistics
    import time

    import numpy as np
    import torch

    from avse.scoring import aeom

    blocks, queries, width = args.shape
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(0)

    def units(count: int, parts: int) -> torch.Tensor:
        values = torch.from_numpy(random.standard_normal((count, parts, width)).astype(np.float32))
        return torch.nn.functional.normalize(values, dim=-1)

    images, texts = units(args.images, blocks), units(args.texts, queries)

    def einsum() -> torch.Tensor:
        parts = [torch.einsum("npc,mqc->nmqp", images, part).amax(-1).sum(-1) for part in torch.split(texts, 256)]
        return torch.cat(parts, dim=1)

    ways = {"avse.scoring.aeom": lambda: aeom(images, texts), "einsum + max, 256 texts at a time": einsum}
    truth = torch.einsum("npc,mqc->nmqp", images[:50].double(), texts[:200].double()).amax(-1).sum(-1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.runs + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            scores = way()
            if turn:
                times[name].append(time.perf_counter() - started)
            elif (worst := float((scores[:50, :200] - truth).abs().max())) > 1e-5:
                raise RuntimeError(f"{name} differs from float64 by {worst:.1e}")
    work = 2 * args.images * args.texts * blocks * queries * width
    base = statistics.median(times["einsum + max, 256 texts at a time"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = {
            "way": name,
            "seconds": round(median, 4),
            "gflops": round(work / median / 1e9, 1),
            "ratio": round(base / median, 2),
        }
        if args.json:
            common.emit({**row, "shape": [args.images, args.texts, blocks, queries, width], "threads": args.threads})
        else:
            print(
                f"{name:36} {row['seconds']:8.3f} s  {row['gflops']:7.1f} GFLOP/s  {row['ratio']:5.2f}x the einsum way"
            )
    return 0
