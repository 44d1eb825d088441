"""The filter language of ``where``: a small tree, and that tree as a test of a payload. Knows no store.

``year >= 2019 and (folder = sea or not name in ("a b.jpg", c.jpg))``: a field, one of = != < <= > >= in, and a value or
a list of values, joined by and, or, not and parentheses; "and" binds closer than "or". Fields and values are bare words
or quoted. A bare 2019 equals the number and the text "2019", a bare true the truth value and the text; what is quoted
is text. Order is for numbers and for dates: 2019-06-01, or quoted "2019-06-01T12:30:00" with or without an offset (UTC
is meant without one), against texts that are dates. A field that is missing, null or an empty list matches nothing,
under "not" too, which is pushed down to the comparisons. Of a list in the payload any item may match.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

MAX_LENGTH = 1000
MAX_DEPTH = 50

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_TOKEN = re.compile(  # each alternative begins with another character, so it reads in linear time
    r"""\s*(?:(?P<sign>[=<>!]+)|(?P<mark>[(),])|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s(),"'=<>!]+))""",
    re.DOTALL,
)


class Value(NamedTuple):
    """One literal: its text, and what a bare word may mean besides; the date is also that of a quoted text."""

    text: str
    number: float | None = None
    flag: bool | None = None
    date: datetime | None = None


@dataclass(frozen=True)
class Compare:
    """``field op value``; "=" may hold several values (any of them), "!=" too (none of them)."""

    field: str
    op: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Group:
    """All (``every``) or any of the parts."""

    every: bool
    parts: tuple[Node, ...]


Node = Compare | Group


def parse(text: str) -> Node:
    """Return the tree of a ``where`` expression.

    Raises:
        ValueError: It is not one; the message names the position. Also beyond 1,000 characters or 50 levels.

    >>> matches(parse("year >= 2019 and not folder in (drafts, old)"), {"year": 2020, "folder": "sea"})
    True
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"where: {len(text)} characters, at most {MAX_LENGTH} are read")
    parser = _Parser(text)
    node = parser.chain("or", False, 0)
    parser.accept("", "'and', 'or' or the end")
    return node


def matches(node: Node, payload: dict[str, Any]) -> bool:
    """Tell whether the payload satisfies the expression."""
    if isinstance(node, Group):
        return (all if node.every else any)(matches(part, payload) for part in node.parts)
    found: Any = payload.get(node.field)
    if not has(found):
        return False
    items = found if isinstance(found, list) else [found]
    if node.op in _ORDER:
        limit = node.values[0].number if node.values[0].date is None else node.values[0].date
        found = (_moment(item) if isinstance(limit, datetime) else _number(item) for item in items)
        return any(item is not None and _ORDER[node.op](item, limit) for item in found)
    return any(_equal(item, value) for item in items for value in node.values) == (node.op == "=")


def has(value: object) -> bool:
    """Tell whether a field of this value can match anything: it is not null and no empty list."""
    return value is not None and value != []


def fields(node: Node) -> list[str]:
    """Return the fields an expression asks for, each once.

    >>> fields(parse("width > 9 and (width < 20 or name = a)"))
    ['width', 'name']
    """
    if isinstance(node, Compare):
        return [node.field]
    return list(dict.fromkeys(name for part in node.parts for name in fields(part)))


def _number(item: object) -> float | None:
    return float(item) if isinstance(item, (int, float)) and not isinstance(item, bool) else None


def _moment(item: object) -> datetime | None:
    if not isinstance(item, str) or not _DATE.fullmatch(item):
        return None
    whole, _, rest = item.replace("Z", "+00:00").partition(".")  # Python 3.10 reads neither Z nor odd fractions
    digits = re.match(r"\d*", rest)
    fraction = digits[0] if digits else ""
    try:
        found = datetime.fromisoformat(f"{whole}.{fraction:0<6}{rest[len(fraction) :]}" if rest else whole)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _equal(item: Any, value: Value) -> bool:
    if isinstance(item, (str, bool)):
        return item == value.text if isinstance(item, str) else item is value.flag
    return value.number is not None and _number(item) == value.number


def _bare(text: str) -> Value:
    try:
        number = float(text) if set(text) <= set("0123456789+-.eE") else math.inf
    except ValueError:
        number = math.inf
    flag = {"true": True, "false": False}.get(text)
    return Value(text, number if math.isfinite(number) else None, flag, _moment(text))


class _Parser:
    """Recursive descent; ``negate`` travels down, so that the tree holds no "not"."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.advance()

    def advance(self) -> None:
        """Read a token: ``kind`` is "text", "word", the token itself for signs, marks and keywords, "" at the end."""
        found = _TOKEN.match(self.text, self.at)
        self.start = len(self.text) - len(self.text[self.at :].lstrip())
        self.token = found[found.lastgroup or 0] if found else self.text[self.start :]
        self.kind = str(found.lastgroup) if found else self.token
        if self.kind in ("sign", "mark") or (self.kind == "word" and self.token.lower() in ("and", "or", "not", "in")):
            self.kind = self.token.lower()
        self.at = found.end() if found else self.at

    def fail(self, wanted: str) -> ValueError:
        found = f"{self.token!r} found" if self.token else "the end found"
        return ValueError(f"where: {wanted} expected at position {self.start + 1}, {found}")

    def accept(self, kind: str, wanted: str = "") -> bool:
        """Go past a token of this kind, or return False; raise where one is ``wanted``."""
        if found := self.kind == kind:
            self.advance()
        elif wanted:
            raise self.fail(wanted)
        return found

    def chain(self, word: str, negate: bool, depth: int) -> Node:
        parts: list[Node] = []
        while not parts or self.accept(word):
            parts.append(self.chain("and", negate, depth) if word == "or" else self.term(negate, depth))
        return parts[0] if len(parts) == 1 else Group((word == "and") != negate, tuple(parts))

    def term(self, negate: bool, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} levels")
        if self.accept("not"):
            return self.term(not negate, depth + 1)
        if self.accept("("):
            node = self.chain("or", negate, depth + 1)
            self.accept(")", "')'")
            return node
        if '"' in self.token[1:-1] or "\\" in self.token:
            raise self.fail("a field name without quotes and backslashes")
        field, op = self.value("a field").text, self.kind
        if op not in ("in", *_NEGATED):
            raise self.fail("one of = != < <= > >= in")
        self.advance()
        if op == "in":
            op, values = "=", self.values()
        else:
            values = (self.value("a number or a date" if op in _ORDER else "a value", op in _ORDER),)
        return Compare(field, _NEGATED[op] if negate else op, values)

    def values(self) -> tuple[Value, ...]:
        found: list[Value] = []
        self.accept("(", "'('")
        while not found or self.accept(","):
            found.append(self.value("a value"))
        self.accept(")", "')'")
        return tuple(found)

    def value(self, wanted: str, ordered: bool = False) -> Value:
        text = re.sub(r"\\(.)", r"\1", self.token[1:-1], flags=re.DOTALL)
        found = _bare(self.token) if self.kind == "word" else Value(text, date=_moment(text))
        if self.kind not in ("word", "text") or (ordered and found.number is None and found.date is None):
            raise self.fail(wanted)
        self.advance()
        return found
