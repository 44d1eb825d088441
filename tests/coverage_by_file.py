"""Print lines and branches that the tests reach, file by file; a file below the limit must have its reason here.

``python tests/coverage_by_file.py coverage.json``, where the JSON is coverage's own; `make coverage` makes it first.
Exit 1: a file is below the limit without a reason.
"""

import json
import sys
from pathlib import Path

LIMIT = 85.0
"""Per cent of a file's lines and branches together."""
REASONS = {
    "src/avse/benchmarks/rivals.py": "numba compiles the plain loop: it runs, and no tracer sees it",
    "src/avse/trainer/random.py": "the GPU's generator: tests/test_gpu.py, where there is one",
}


def share(reached: int, all_of_them: int) -> float:
    return 100.0 * reached / all_of_them if all_of_them else 100.0


def report(found: dict) -> tuple[list[str], list[str]]:
    """Lines to print, the least covered file first, and the files that are below the limit without a reason."""
    lines, failed = [], []
    files = sorted(found["files"].items(), key=lambda item: item[1]["summary"]["percent_covered"])
    for name, one in [*files, ("all", {"summary": found["totals"]})]:
        said = one["summary"]
        parts = (share(said["covered_lines"], said["num_statements"]), said["num_statements"])
        parts += (share(said["covered_branches"], said["num_branches"]), said["num_branches"])
        low = said["percent_covered"] < LIMIT
        reason = REASONS.get(Path(name).as_posix(), "") if low else ""
        failed += [name] if low and not reason else []
        figures = "{:5.1f} % of {:5} lines {:5.1f} % of {:5} branches".format(*parts)
        lines.append(f"{figures}  {name}  {reason}".rstrip())
    return lines, failed


if __name__ == "__main__":
    lines, failed = report(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(lines))
    if failed:
        sys.exit(f"below {LIMIT:g} % of lines and branches without a reason in {sys.argv[0]}: {', '.join(failed)}")
