"""Print the lower bounds of pyproject.toml as constraints: the first release of each dependency that is allowed.

What only developers use (extras `dev` and `docs`) has no bound to be tested. Knows nothing but the file.
"""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

FOR_DEVELOPERS = ("dev", "docs")


def lowest(project: dict) -> list[str]:
    """Return NAME==VERSION, with its marker, of each requirement."""
    optional = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for extra in optional if extra not in FOR_DEVELOPERS for line in optional[extra]),
    ]
    found = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(?:>=|==)([\d.]+)[^;]*(;.*)?", line) for line in lines]
    assert all(found), f"a requirement has no lower bound: {lines[found.index(None)]}"
    return sorted({f"{name}=={version}{marker or ''}" for name, version, marker in (match.groups() for match in found)})


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "pyproject.toml"
    print("\n".join(lowest(tomllib.loads(path.read_text("utf-8"))["project"])))
