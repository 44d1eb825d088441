"""Mutations of valid files, and what a loader may do with one: give something, or say in one line what is wrong."""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

SECONDS = 20.0
"""A load that takes longer is taken for one that hangs."""
MEBIBYTES = 400
"""By which the peak of the process may grow in one load."""
OUTSIDE = "../outside/secret"
TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r\n", b'"', b"\\", b"{", b"}", b"[", b",", b":", b"-",
    b"[" * 100_000, b'{"a":' * 20_000, b"1" * 5000, b"1e999", b"NaN", b"-1", b"null", b"\x7f\xff\xff\xff", b"\xff" * 8,
    b"\0" * 64, OUTSIDE.encode() + b".png", b"/etc/passwd", b"&a [*a]", b"*a", b"!!python/object/apply:os.system [id]",
    "ü\u2028".encode(), b"x" * 200_000, b"%s", b"\\ud800", b"..\\..\\x",
]  # fmt: skip
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "a", "1", OUTSIDE + ".png", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "a\nb", "x" * 500,
    [], [0], [None], [[]], ["a", 1], {}, {"a": 1}, {"": []}, DEEP,
]  # fmt: skip


class Slow(BaseException):
    """Raised in a load that takes too long; no loader catches it by mistake."""


_watched: list[str] = []
_outside = ""


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _outside and event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(_outside):
            _watched.append(path)


sys.addaudithook(_hear)


@contextmanager
def _guarded(outside: Path | None):
    """Stop what hangs, and note what is opened outside of the folder."""
    global _outside

    def stop(*_: object) -> None:
        raise Slow

    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, limits[1]))  # or one load could take the machine down
    timed = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGALRM, stop) if timed else None
    if timed:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _outside = str(outside.resolve()) if outside else ""
    _watched.clear()
    try:
        yield
    finally:
        _outside = ""
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)


def fault(
    load: Callable[[], object], names: Sequence[str], family: tuple[type[Exception], ...], outside: Path | None = None
) -> str | None:
    """Load, and return what is wrong with how it went: None where it gave something or a proper error.

    Args:
        load: Reads the mutated file.
        names: One of them must be in the message of an error: the file or its folder.
        family: The errors that are documented.
        outside: Nothing below it may be opened.
    """
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, or an earlier one would hide this load's
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, found = time.monotonic(), None
    try:
        with _guarded(outside):
            load()
    except family as error:
        said = str(error)
        if isinstance(error, UnicodeError) or type(error).__module__.startswith("json"):
            found = f"raw {type(error).__name__} {_where(error)}"
        elif "\n" in said or not said.strip() or len(said) > 4000:
            found = f"message of {len(said)} characters in {said.count(chr(10)) + 1} lines {_where(error)}"
        elif names and not any(name in said for name in names):
            found = f"names no file: {type(error).__name__} {_where(error)} {said[:100]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # panics are no Exception
        found = f"{type(error).__name__} {_where(error)} {str(error)[:100]!r}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    if grown > MEBIBYTES and time.monotonic() - began < 2 * SECONDS:
        found = found or f"grew by more than {MEBIBYTES} MiB"
    return found or (f"opened outside: {Path(_watched[0]).name}" if _watched else None)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}avse{os.sep}" in f.filename and "tests" not in f.filename]
    last = [f"{Path(f.filename).name}:{f.name}:{f.lineno}" for f in (*own[-1:], *frames[-1:])]
    return "at " + " ".join(dict.fromkeys(last))


@st.composite
def mutated(draw: Any, seed: bytes, kind: str = "bytes") -> bytes:
    """Draw a neighbour of a valid file: by its structure three times of four where it has one, else by its bytes."""
    if kind != "bytes" and draw(st.integers(0, 3)):
        try:
            return _STRUCTURED[kind](draw, seed)
        except (ValueError, RecursionError, yaml.YAMLError):  # what YAML or JSON cannot write
            pass
    return _bytes(draw, seed)


def _bytes(draw: Any, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.integers(0, 6))
        if how == 0 and data:
            data[at] ^= draw(st.integers(1, 255))
        elif how == 1:
            data[at:at] = draw(st.sampled_from(TOKENS))
        elif how == 2:
            del data[at : at + draw(st.integers(1, 64))]
        elif how == 3:
            del data[at:]
        elif how == 4:
            token = draw(st.sampled_from(TOKENS))
            data[at : at + len(token)] = token
        elif how == 5:
            data[at:at] = data[at : at + draw(st.integers(1, 256))]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every node below the root."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            left.append(value)
    return found


def change_tree(draw: Any, tree: Any) -> Any:
    """Change some nodes of what JSON or YAML says."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(tree)
        how = draw(st.integers(0, 9))
        if not places or (how == 9 and not draw(st.integers(0, 9))):
            return copy.deepcopy(draw(st.sampled_from(VALUES)))
        node, key = draw(st.sampled_from(places))
        if how < 5:
            node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == 5:
            del node[key]
        elif how == 6 and isinstance(node, dict):
            node[draw(st.sampled_from(["", "a", " ", "\ud800", *map(str, node)]))] = node.pop(key)
        elif how == 7 and isinstance(node, list):
            node[key:key] = [copy.deepcopy(node[key])] * draw(st.integers(1, 3))
        elif how == 8:
            other, name = draw(st.sampled_from(places))
            node[key] = (
                copy.deepcopy(other[name]) if name in (other if isinstance(other, dict) else range(len(other))) else 0
            )
        else:
            node[key] = [node[key]]
    return tree


def _json(draw: Any, seed: bytes) -> bytes:
    return json.dumps(change_tree(draw, json.loads(seed))).encode()


def _jsonl(draw: Any, seed: bytes) -> bytes:
    lines = seed.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    return b"\n".join([*lines[:at], _json(draw, lines[at]), *lines[at + 1 :]])


def _yaml(draw: Any, seed: bytes) -> bytes:
    return yaml.safe_dump(change_tree(draw, yaml.safe_load(seed))).encode()


_SHAPES = [
    "()",
    "(0,)",
    "(-1,)",
    "(10**15,)",
    "(2, 2**60, 4)",
    "(1, 1, 1)",
    "(True,)",
    "('a',)",
    "1",
    "(1000000000000, 36, 2048)",
]
_KINDS = [
    "'<f4'",
    "'|O'",
    "'<f2'",
    "'<U999999999'",
    "'|V0'",
    "[('a', '<f4')]",
    "'x'",
    "None",
    "'>f4'",
    "'<c16'",
    "'<M8[s]'",
]


def _npy(draw: Any, seed: bytes) -> bytes:
    body = seed[10 + int.from_bytes(seed[8:10], "little") :]
    array = np.load(io.BytesIO(seed), allow_pickle=False)
    shape = draw(st.sampled_from([repr(array.shape), repr(array.shape), *_SHAPES]))
    descr = draw(st.sampled_from([repr(array.dtype.str), repr(array.dtype.str), *_KINDS]))
    order = draw(st.sampled_from(["False", "False", "True", "0"]))
    more = draw(st.sampled_from(["", "", "'x': 1, ", "'shape': (1,), "]))
    header = f"{{{more}'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    length = draw(st.sampled_from([len(header), len(header), 0, 65535]))
    return b"\x93NUMPY\x01\0" + length.to_bytes(2, "little") + header + body[: draw(st.integers(0, len(body)))]


def _zip(draw: Any, seed: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = draw(st.integers(0, len(members) - 1))
    name, data = members[at]
    how = draw(st.integers(0, 4))
    if how == 0:
        members[at] = draw(st.sampled_from(["../x", "/etc/x", "_", members[0][0], "a" * 300])), data
    elif how == 1:
        del members[at]
    else:
        members[at] = name, (_npy if name.endswith(".npy") and how == 2 else _bytes)(draw, data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


_STRUCTURED: dict[str, Callable[[Any, bytes], bytes]] = {
    "json": _json, "jsonl": _jsonl, "yaml": _yaml, "npy": _npy, "zip": _zip,
}  # fmt: skip
