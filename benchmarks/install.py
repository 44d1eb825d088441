"""What avse costs to install and to import: `python benchmarks/install.py [--json FILE]`, or `make sizes`.

Sizes are those of the installed files of a package and of all that it requires, by the metadata of this environment; an
extra counts what it adds to an installation without extras. Times are the best of five fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from avse.trainer.record import processor

IMPORTS = {
    "python": "pass",
    "import avse": "import avse",
    "avse --help": "from avse.cli import main; main(['--help'])",
    "from avse import load_dataset": "from avse import load_dataset",
    "from avse import Index": "from avse import Index",
    "from avse import AVSE": "from avse import AVSE",
    "from avse import Trainer": "from avse import Trainer",
}
RUNS = 5


def closure(name: str, extras: frozenset[str], seen: dict[str, Distribution | None]) -> None:
    """Collect a package and what it requires here; None for what is not installed."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        seen[name] = None
        return
    known = name.lower().replace("_", "-")
    if known in seen and not extras:
        return
    seen[known] = found
    for line in found.requires or []:
        needed = Requirement(line)
        wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
        if wanted:
            closure(needed.name, frozenset(needed.extras), seen)


def size(found: Distribution) -> int:
    """Bytes of a package's installed files, compiled ones among them."""
    paths = [Path(str(found.locate_file(file))) for file in found.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())


def row(packages: dict[str, Distribution | None]) -> dict[str, Any]:
    """Return what some packages take, and which of them are not here to be measured."""
    here = [found for found in packages.values() if found]
    absent = sorted(name for name, found in packages.items() if not found)
    return {"megabytes": sum(map(size, here)) / 1e6, "packages": len(here), "absent": absent}


def sizes() -> dict[str, dict[str, Any]]:
    """Return the row of the core and of what each extra adds to it."""
    core: dict[str, Distribution | None] = {}
    closure("avse", frozenset(), core)
    told = {"avse": row(core), "of it torch": row({"torch": core["torch"]})}
    for extra in sorted(set(distribution("avse").metadata.get_all("Provides-Extra") or []) - {"dev", "docs"}):
        whole: dict[str, Distribution | None] = {}
        closure("avse", frozenset([extra]), whole)
        told[extra] = row({name: found for name, found in whole.items() if name not in core})
    return told


def seconds(code: str) -> float:
    """Return the least time of a fresh process that runs some code."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep them too")
    args = parser.parse_args()
    told = {"machine": f"{processor()}, {os.cpu_count()} cores", "python": sys.version.split()[0], "sizes": sizes()}
    told["seconds"] = {name: seconds(code) for name, code in IMPORTS.items()}
    print(f"Python {told['python']}, {told['machine']}\n\n| extra | adds, MB | packages |\n|---|---|---|")
    for name, found in told["sizes"].items():
        absent = f", without {', '.join(found['absent'])}, not installed here" if found["absent"] else ""
        print(f"| {name} | {found['megabytes']:.0f} | {found['packages']}{absent} |")
    print(f"\n| a fresh process, best of {RUNS} | seconds |\n|---|---|")
    for name, value in told["seconds"].items():
        print(f"| `{name}` | {value:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
