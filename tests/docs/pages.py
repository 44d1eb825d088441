"""What README and docs hold: their fenced blocks, commands and inline commands, and how a command is taken apart."""

from __future__ import annotations

import argparse
import importlib
import keyword
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str


def name_of(page: Path) -> str:
    """Return a page's name as the tests call it: below docs/, or in the root."""
    return page.relative_to(ROOT / "docs" if ROOT / "docs" in page.parents else ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(page.read_text())]


def commands(block: Block) -> list[str]:
    """Return the lines of a block of commands without comments, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", block.code).splitlines()
    return [line for line in (re.sub(r"(^|\s)#(?!\{).*$", "", line).strip() for line in lines) if line]


def outside_blocks(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def inline_commands(page: Path) -> Iterator[str]:
    """Yield the commands named in running text."""
    for found in re.findall(r"`([^`]+)`", outside_blocks(page)):
        if re.match(r"avse [a-z]+\b", found):
            yield " ".join(found.split())


def avse_words(command: str) -> list[str] | None:
    """Return the words behind `avse` of a command, or behind `-m avse`; None where it is another program."""
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    for place, word in enumerate(words):
        if word in (">", "2>>", "2>"):
            words = words[:place]
            break
    if words and words[0].removeprefix(".venv/bin/") == "avse":
        return words[1:]
    if "avse" in words and words[words.index("avse") - 1] == "-m":
        return words[words.index("avse") + 1 :]
    return None


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the real parser of a verb."""
    parser = argparse.ArgumentParser(prog=f"avse {verb}")
    importlib.import_module(f"avse.cli.{verb}_" if keyword.iskeyword(verb) else f"avse.cli.{verb}").add_arguments(
        parser
    )
    return parser


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return every option of a parser and of what stands below it."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options_of(sub)
    return found
