"""The syntax trees of src, parsed by the tests that ask for them."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "avse"


@pytest.fixture(scope="session")
def trees():
    return {path.relative_to(SRC).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(SRC.rglob("*.py"))}
