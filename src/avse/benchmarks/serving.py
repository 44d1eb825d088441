"""The server under load from another process: latency and throughput with and without batching, and its memory.

The servers of both ways take turns over one open index, and beside each turn of one client the bare encode and search
is measured in this process, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avse.benchmarks.rows import at_least, at_most
from avse.index import Index
from avse.serve import Limits, create_app
from avse.serve.run import Server, listen
from avse.trainer.table import memory_bytes

CLIENTS = (1, 8, 32)
WORDS = (
    "a the red green blue yellow black white small large old happy sad round dog cat bird fish horse tree house car "
    "boat man woman child ball beach road river flower star sun moon cloud hat book chair table on in at under above "
    "beside with two many holding riding eating looking sleeping running near behind cartoon simple line drawing icon"
).split()


@dataclass(frozen=True)
class Sizes:
    """How much is asked.

    Attributes:
        questions: Of one turn of one client; of 8 and 32 clients so many a client / 4, at least.
        runs: Turns of each way.
        k: Answers to a question.
        requests: For the memory; 0: not measured.
    """

    questions: int = 200
    runs: int = 5
    k: int = 10
    requests: int = 20_000


def measure_serving(index: Index, sizes: Sizes, limits: Limits) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of clients, with batching and without, and one for the memory.

    Args:
        index: Open, of images; nobody else uses it meanwhile.
        sizes: How much is asked.
        limits: Those of the server; ``batch`` is what is compared with 1.
    """
    random = np.random.default_rng(0)
    for _ in range(20):
        index.search(_sentence(random), k=sizes.k)
    alone = replace(limits, batch=1)
    for clients in CLIENTS:
        turns: dict[str, list[dict[str, float]]] = {"batched": [], "alone": [], "bare": []}
        count = sizes.questions if clients == 1 else max(sizes.questions, clients * sizes.questions // 4)
        for _ in range(sizes.runs):
            for way, bounds in (("batched", limits), ("alone", alone)):
                with _serving(index, bounds) as port:
                    _ask(port, clients, random, 2 * clients, sizes.k)
                    turns[way].append(_ask(port, clients, random, count, sizes.k))
            if clients == 1:
                turns["bare"].append(_bare(index, random, count, sizes.k))
        yield _row(clients, turns)
    if sizes.requests:
        yield _memory(index, sizes, limits, random)


def _row(clients: int, turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": "load", "clients": clients, "targets": []}
    for way, found in turns.items():
        row |= {
            f"{way}_{name}": float(np.median([turn[name] for turn in found])) for name in (found[0] if found else ())
        }
    ratios = [one["rate"] / other["rate"] for one, other in zip(turns["batched"], turns["alone"])]
    row["ratio"] = float(np.median(ratios))
    row["ratios"] = [min(ratios), max(ratios)]
    if clients == 32:
        row["targets"] = [at_least(1.5, row, "ratio")]
    if turns["bare"]:
        over = [one["p95"] / other["p95"] for one, other in zip(turns["batched"], turns["bare"])]
        row["p95_over_bare"] = float(np.median(over))
        row["targets"] = [at_most(1.3, row, "p95_over_bare")]
    return row


def _memory(index: Index, sizes: Sizes, limits: Limits, random: np.random.Generator) -> dict[str, Any]:
    early = max(1, sizes.requests // 10)
    with _serving(index, limits) as port:
        _ask(port, 8, random, early, sizes.k)
        first = _resident_mib()
        _ask(port, 8, random, sizes.requests - early, sizes.k)
        last = _resident_mib()
    row = {"measure": "memory", "requests": sizes.requests, "early": early, "early_mib": first, "late_mib": last}
    row["grown_mib"] = last - first
    return {**row, "targets": [at_most(16, row, "grown_mib")]}


def _resident_mib() -> float:
    return (memory_bytes() or 0) / (1 << 20)


def _ask(port: int, clients: int, random: np.random.Generator, count: int, k: int) -> dict[str, float]:
    told = {"port": port, "clients": clients, "k": k, "sentences": [_sentence(random) for _ in range(count)]}
    command = [sys.executable, "-c", "from avse.benchmarks.load import main; main()"]
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout)
    return {"rate": count / found["seconds"], **_percentiles(found["times"])}


def _bare(index: Index, random: np.random.Generator, count: int, k: int) -> dict[str, float]:
    times = []
    for _ in range(count):
        sentence = _sentence(random)
        began = time.perf_counter()
        index.search(sentence, k=k)
        times.append(1e3 * (time.perf_counter() - began))
    return {"rate": 1e3 * count / sum(times), **_percentiles(times)}


def _percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 99)}


def _sentence(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, random.integers(4, 11)))


@contextmanager
def _serving(index: Index, limits: Limits) -> Iterator[int]:
    """Serve from a thread of this process; give the port."""
    ready, sock = threading.Event(), listen("127.0.0.1", 0)
    server = Server(create_app(index, limits=limits), limits, ready.set)
    thread = threading.Thread(target=server.run_on, args=(sock,))
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the server did not start within 60 s")
        yield sock.getsockname()[1]
    finally:
        server.stop()
        thread.join()
