"""Tests of the house: floors, lazy imports, sizes, no stray prints, the environment that the constraints promise."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "avse"
FLOORS = {
    # ground: knows nothing of the others
    "ahead": 0, "allocator": 0, "bounded": 0, "extras": 0, "files": 0, "images": 0, "lock": 0, "markup": 0, "texts": 0,
    "parallel": 0, "precision": 0, "sampling": 0, "ranks": 0,
    "config": 1, "calibration": 1, "plots": 1, "scoring": 1, "intervals": 1, "pooling": 1, "groups": 1,
    "cost": 2, "heads": 2, "losses": 2, "metrics": 2, "encoders": 2, "data": 2, "checkpoint": 2, "index": 2,
    "rowstore": 2, "sheet": 2,
    "model": 3, "features": 3, "eccv": 3,
    "explain": 4, "inputs": 4, "start": 4, "official": 4, "protocols": 4,
    "evaluate": 5, "rankings": 5, "check": 5, "leaks": 5, "scale": 5,
    "export": 6, "report": 6, "serve": 6, "trainer": 6,
    "experiment": 7, "benchmarks": 7,
    "demo": 8,
    "ablate": 8,
    "cli": 9,
    "__main__": 10,
}  # fmt: skip
FILES = sorted(SRC.rglob("*.py"))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def room(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in nodes_of(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "avse" and len(parts) > 1 and parts[1] in FLOORS:
                rooms.add(parts[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_room_imports_from_lower_floors_only(path):
    here = room(path)
    if path == SRC / "__init__.py":
        return  # names the exports, which are loaded when they are asked for
    assert here in FLOORS, f"{here} has no floor: give it one"
    for other in imported_rooms(path):
        assert other == here or FLOORS[other] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {other}"


def test_sizes():
    total = 0
    for path in FILES:
        text = path.read_text()
        total += text.count("\n")
        assert text.count("\n") <= 500, path
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}: bare except"
    # Exports (1,250 lines: graphs of both encoders for ONNX 500, tables and embeddings 300, card and hub 350), their
    # verbs and bench (550), pairs from elsewhere (200), seals and refusals that fuzzing and a review asked for (700),
    # soak (170).
    assert total < 34_400


def test_import_avse_loads_no_torch():
    code = (
        "import sys, avse; assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "assert {'AVSE', 'Index', 'Trainer', 'evaluate', 'load_dataset'} <= set(dir(avse))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_exports_are_no_modules_whatever_is_imported_first():
    code = (
        "import avse; from avse import evaluate, load_dataset; import avse.evaluate, avse.metrics;"
        "assert callable(avse.evaluate) and avse.evaluate is evaluate and avse.metrics.interval"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


LIGHT = "config data images index metrics protocols rankings scoring".split()


def test_light_rooms_load_no_torch():
    code = (
        "import importlib, sys\n"
        f"for room in {LIGHT}:\n"
        "    importlib.import_module(f'avse.{room}')\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), room"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_fast_and_light():
    code = (
        "import sys\nfrom avse.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    # The promise is 0.3 s on an idle machine; a test only refuses what no load explains.
    assert min(seconds) < 1.5, seconds


def test_every_verb_explains_itself():
    from avse.cli import VERBS, main

    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0


def test_misuse_is_two_and_failure_is_one(capsys):
    from avse.cli import main

    assert main(["search"]) == main(["index", "photos"]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    assert main([]) == 2
    assert main(["evaluate", "no/such/model", "no/such/data"]) == 1
    assert "no model folder 'no/such/model'" in capsys.readouterr().err


def test_the_environment_is_the_constraints():
    if os.environ.get("AVSE_OTHER_VERSIONS"):
        pytest.skip("other versions on purpose")
    pinned = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith(("torch==", "qdrant-edge-py=="))
    )
    for package, version in pinned.items():
        assert importlib.metadata.version(package).split("+")[0] == version
    assert importlib.util.find_spec("torchvision") is None


def test_nothing_of_this_workplace_is_named():
    for path in [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        text = path.read_text()
        for word in ("/wor" + "k/", "../sha" + "red", "uav" + "ic", "file://"):
            assert word not in text, f"{path} names {word}"
